//! Memory on a chip against peaks that were measured.

use plan::peaks::peaks;

#[test]
fn every_measured_peak_is_met_within_five_percent() {
    let peaks = peaks().expect("the shipped peaks");
    assert_eq!(peaks.len(), 12);
    for peak in peaks {
        let error = 100.0 * peak.error();
        println!(
            "{} {}: {:.2} GiB, {error:+.1} %",
            peak.model, peak.layout, peak.predicted
        );
        assert!(
            error.abs() < 5.0,
            "{} {}: {error:+.1} %",
            peak.model,
            peak.layout
        );
    }
}
