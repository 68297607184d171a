//! Every row of the list of published runs.

use plan::campaigns::{Campaign, Outcome, Predicted, Quantity, campaigns};

use super::super::words;
use super::cell;
use crate::numbers::short;

/// Two tables: runs that are reckoned, and why the others are not.
pub fn section() -> String {
    let all = campaigns();
    let predicted: Vec<(&Campaign, &Predicted)> = all
        .iter()
        .filter_map(|campaign| match &campaign.outcome {
            Outcome::Predicted(predicted) => Some((campaign, predicted.as_ref())),
            _ => None,
        })
        .collect();
    let inside = predicted.iter().filter(|(_, p)| p.inside()).count();
    let lines: String = predicted
        .iter()
        .map(|(campaign, p)| row(campaign, p))
        .collect();
    let steps = all.iter().filter(|c| matches!(c.outcome, Outcome::Step));
    let steps: Vec<&str> = steps.map(|campaign| campaign.run.id.as_str()).collect();
    let missing: String = all.iter().filter_map(missing).collect();
    format!(
        "## The list of published runs\n\nAll {} rows. A campaign takes longer than its steady \
         steps: failures, restarts, evaluations and side runs are in its hours, layouts are not \
         always the best, and many hours cover more than the tokens that are stated. The interval \
         is the steady prediction times what the campaigns of other models took beyond theirs, \
         from the tenth to the ninetieth of a hundred; neither knows steps of the same model. It \
         holds {inside} of {}. Error: steady by published time, less 1.\n\n\
         | Run | What | Published | Steady | Error % | Interval | Inside | Layout | Assumed | \
         Source |\n|---|---|--:|--:|--:|---|---|---|---|---|\n{lines}\n\
         Compared as steps, above: {}.\n\n\
         Not predicted:\n\n{missing}\n",
        all.len(),
        predicted.len(),
        steps.join(", "),
    )
}

fn row(campaign: &Campaign, predicted: &Predicted) -> String {
    let run = &campaign.run;
    let number = |value: f64| match predicted.what {
        Quantity::ChipHours => short(value),
        _ => format!("{value:.0}"),
    };
    let layouts = predicted.layouts.iter().map(|l| words::short_layout(l));
    let layouts: Vec<String> = layouts.collect();
    let how = if predicted.searched {
        " (searched)"
    } else {
        ""
    };
    format!(
        "| {} | {} | {} | {} | {:+.1} | {} to {} | {} | {}{how} | {} | {} |\n",
        cell(&run.id),
        predicted.what.unit(),
        number(predicted.published),
        number(predicted.steady),
        100.0 * predicted.error(),
        number(predicted.interval.low),
        number(predicted.interval.high),
        if predicted.inside() { "yes" } else { "no" },
        layouts.join("; "),
        cell(&predicted.assumed),
        cell(&run.source),
    )
}

fn missing(campaign: &Campaign) -> Option<String> {
    let Outcome::NotPredicted { why } = &campaign.outcome else {
        return None;
    };
    Some(format!("- {}: {why}\n", campaign.run.id))
}
