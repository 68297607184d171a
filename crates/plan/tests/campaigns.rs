//! The list of published runs.

use plan::campaigns::{CAMPAIGN_SPREAD, Outcome, campaigns, spread_of_campaigns};

#[test]
fn every_run_is_predicted_or_says_why_not() {
    let all = campaigns();
    assert_eq!(all.len(), 74);
    let (mut predicted, mut inside) = (0, 0);
    for campaign in all {
        match &campaign.outcome {
            Outcome::Step => {}
            Outcome::NotPredicted { why } => assert!(!why.is_empty(), "{}", campaign.run.id),
            Outcome::Predicted(one) => {
                predicted += 1;
                inside += usize::from(one.inside());
            }
        }
    }
    // Eight in ten should lie inside, give or take what chance does with so few.
    println!("{inside} of {predicted}");
    assert!(predicted >= 30);
    assert!(inside * 10 >= predicted * 7, "{inside} of {predicted}");
}

#[test]
fn large_campaigns_are_met_within_a_fifth_without_their_own_steps() {
    for id in [
        "dsv3-pre",
        "dsv3-all",
        "dsv2-pre",
        "ds67b-pre",
        "llama31-405b",
    ] {
        let found = campaigns().iter().find(|campaign| campaign.run.id == id);
        let Outcome::Predicted(predicted) = &found.expect("a run of the list").outcome else {
            panic!("{id} is predicted");
        };
        assert!(predicted.error().abs() < 0.2, "{id}: {}", predicted.error());
    }
}

#[test]
fn the_spread_shown_is_that_of_the_list() {
    let found = spread_of_campaigns();
    println!("{found:?}");
    for (shown, found) in [
        (CAMPAIGN_SPREAD.low, found.low),
        (CAMPAIGN_SPREAD.mid, found.mid),
        (CAMPAIGN_SPREAD.high, found.high),
    ] {
        assert!((shown - found).abs() < 0.01, "{shown} shown, {found} found");
    }
}
