//! The catalogue, and how a user's own is read.

use plan::chip::{Market, catalogue, find, from_csv};
use plan::date::Date;
use plan::error::Error;
use plan::export::Precision;

/// The message of what is wrong with a catalogue.
fn refusal(text: &str) -> String {
    from_csv("mine.csv", text)
        .expect_err("it is wrong")
        .to_string()
}

#[test]
fn chips_are_found_as_people_write_them() {
    for (written, key) in [
        ("h800", "h800"),
        ("H800", "h800"),
        ("H800 SXM5 80GB", "h800"),
        ("A100", "a100"),
        ("rtx 4090", "rtx4090"),
        ("TPUv3", "tpu-v3"),
        ("TPUv5p", "tpu-v5p"),
        ("Ascend 910", "910"),
        ("mi-300x", "mi300x"),
    ] {
        assert_eq!(find(written).expect("a chip").key, key, "{written}");
    }
    let chips = catalogue();
    assert_eq!(chips.len(), 49);
    for chip in chips {
        assert_eq!(find(&chip.key).expect("by key").key, chip.key);
        assert_eq!(find(&chip.name).expect("by name").key, chip.key);
        assert!(!chip.source.is_empty(), "{}: no source", chip.key);
        let sourced = chip.hourly.is_some() != chip.hourly_source.is_empty();
        assert!(sourced, "{}: a rent and its source go together", chip.key);
    }
}

#[test]
fn a_chip_that_is_not_there_brings_near_names() {
    let Err(Error::UnknownChip { name, nearest }) = find("h801") else {
        panic!("there is no such chip");
    };
    assert_eq!(name, "h801");
    assert_eq!(nearest[0], "h800");
    let words = find("h801").expect_err("unknown").to_string();
    assert!(words.contains("h800"), "{words}");
    // By the beginning of a key, and by that of a name.
    for (written, key) in [("910b", "910b1"), ("Ascend", "910"), ("Gaudi", "gaudi3")] {
        let words = find(written).expect_err("unknown").to_string();
        assert!(words.contains(&format!("nearest: {key}")), "{words}");
    }
    let words = find("abacus").expect_err("unknown").to_string();
    assert_eq!(words, "no chip is called \"abacus\"");
}

#[test]
fn figures_are_those_of_the_datasheets() {
    // arXiv 2505.09343, section 4: NVLink 400 GB/s in all, one 400 Gbit/s NIC per GPU; and the $2
    // of the DeepSeek-V3 report.
    let h800 = find("h800").expect("a chip");
    assert_eq!(h800.scale_up.expect("known").0, 200e9);
    assert_eq!(h800.scale_up_total.expect("known").0, 400e9);
    assert_eq!(h800.scale_out.expect("known").0, 50e9);
    assert_eq!(h800.scale_up_chips, Some(8));
    assert_eq!(h800.fp8.expect("known").0, 1979e12);
    assert_eq!(h800.memory.expect("known").0, 80e9);
    assert!((h800.hourly.expect("known").mid.hourly() - 2.0).abs() < 1e-12);
    assert_eq!(h800.launch, Some(Date::new(2023, 3, 21)));
    assert_eq!(find("gb200").expect("a chip").scale_up_chips, Some(72));
    assert_eq!(find("rtx4090").expect("a chip").market, Market::Consumer);
    let v5e = find("tpu-v5e").expect("a chip");
    assert_eq!(v5e.market, Market::Cloud);
    // What nobody published is unknown, not 0.
    let unknown = find("h20-3e").expect("a chip");
    assert_eq!(
        (unknown.bf16, unknown.memory, unknown.hourly),
        (None, None, None)
    );
    let d = plan::export::total_processing_performance(find("rtx4090d").expect("a chip"));
    assert_eq!(d.expect("stated").basis, Precision::Stated);
}

#[test]
fn a_catalogue_of_ones_own() {
    let text =
        "name,key,market,vendor,mem_gb,launch_date\n\"Abacus, large\",abacus,dc,Us,64,2027\n";
    let chips = from_csv("mine.csv", text).expect("a catalogue");
    assert_eq!(chips.len(), 1);
    assert_eq!(chips[0].name, "Abacus, large");
    assert_eq!(chips[0].memory.expect("given").0, 64e9);
    assert_eq!(chips[0].launch.expect("given").to_string(), "2027");
    assert_eq!(chips[0].bf16, None);
}

#[test]
fn bad_catalogues_say_where() {
    let head = "key,name,vendor,market,mem_gb,launch_date,usd_per_hour_low,usd_per_hour_mid,\
                usd_per_hour_high,matmul_efficiency_measured_bf16\n";
    let good = "a,A,V,dc,80,,,,,\n";
    for (rows, words) in [
        (
            "b,B,V,dc,many,,,,,\n",
            "mine.csv, line 3, mem_gb: \"many\" is not a number above 0",
        ),
        ("b,B,V,dc,0,,,,,\n", "mem_gb"),
        ("b,B,V,dc,-1,,,,,\n", "mem_gb"),
        ("b,B,V,dc,NaN,,,,,\n", "mem_gb"),
        ("b,B,V,dc,inf,,,,,\n", "mem_gb"),
        ("b,B,V,home,1,,,,,\n", "market: \"home\" is none of"),
        ("b,B,V,dc,1,2023-02-29,,,,\n", "launch_date"),
        ("b,B,V,dc,1,,1,2,,\n", "usd_per_hour_mid"),
        ("b,B,V,dc,1,,3,2,1,\n", "usd_per_hour_mid"),
        ("b,B,V,dc,1,,,,,1.2\n", "more than the whole"),
        (",B,V,dc,1,,,,,\n", "line 3, key: empty"),
        ("A,B,V,dc,1,,,,,\n", "line 3, key: \"A\" is there twice"),
        (
            "b,B,V\n",
            "mine.csv, line 3: 3 cells where the header has 10",
        ),
    ] {
        let refused = refusal(&format!("{head}{good}{rows}"));
        assert!(refused.contains(words), "{rows}: {refused}");
    }
    assert!(refusal("").contains("mine.csv"), "empty");
    assert!(refusal(head).contains("no chip"));
    assert!(refusal("key,name,vendor\na,A,V\n").contains("\"market\" is missing"));
    let misspelt = refusal("key,name,vendor,market,mem_gib\na,A,V,dc,1\n");
    assert!(misspelt.contains("mem_gb, perhaps?"), "{misspelt}");
}
