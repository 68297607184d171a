//! Reinforcement learning: what its hours hold in generated tokens.

use super::claim::Stage;
use super::implied::{exact, number};
use super::known::Known;
use super::published::{facts, share_of};
use super::words::{percent, short};
use super::{Check, Line, Verdict};
use crate::interval::Interval;
use crate::quantity::{FlopsPerSecond, Seconds};

/// Chips of a node at which decoding was published.
const NODE: f64 = 8.0;
/// A forward pass of the three that training takes.
const FORWARD: f64 = 1.0 / 3.0;

/// Chip-seconds of a stage that has chips and hours.
fn held(stage: &Stage) -> Option<Seconds> {
    Some(Seconds::from_hours(stage.chips? as f64 * stage.hours?))
}

/// Tokens that a stage could generate if it did nothing else.
fn decoded(held: Seconds) -> f64 {
    held.0 / NODE * facts().decode_per_node.bounds().mid
}

pub fn lines(known: &Known) -> Vec<Line> {
    let mut lines = Vec::new();
    // Without a model that decodes at this rate nothing is known of tokens.
    if known.claim.yardstick.is_none() {
        return lines;
    }
    for stage in &known.claim.stages {
        let Some(held) = held(stage) else { continue };
        let rate = &facts().decode_per_node;
        let how = format!(
            "{}: {} chip-hours / 8 x {} tokens/s, were it all decoding",
            stage.name,
            short(held.hours()),
            short(rate.bounds().mid)
        );
        let tokens = exact("tokens, at most", decoded(held), "tokens", how);
        lines.push(Line {
            source: rate.source.clone(),
            ..tokens
        });
        if let (Some(rollouts), Some(seconds)) = (stage.rollouts, seconds_per_token(known)) {
            let how = format!(
                "{}: {} rollouts, generated at that rate and trained on",
                stage.name,
                short(rollouts)
            );
            let length = held.0 / rollouts / seconds;
            let source = &facts().passes_per_rollout.source;
            let length = Interval::exact(length);
            lines.push(number("a rollout, at most", length, "tokens", how, source));
        }
    }
    lines
}

/// Chip-seconds of a token that is generated and learnt from at the yardstick's share of peak.
fn seconds_per_token(known: &Known) -> Option<f64> {
    let share = share_of(known.claim.yardstick.as_deref()?)?.share;
    let rate: FlopsPerSecond = known.peak()? * share;
    let passes = facts().passes_per_rollout.bounds().mid;
    let forward = known.per_token()?.causal.0 * FORWARD;
    let training = passes * forward / rate.0;
    Some(NODE / facts().decode_per_node.bounds().mid + training)
}

/// Whether the hours hold the rollouts.
pub fn check(known: &Known) -> Option<Check> {
    let stages = known.claim.stages.iter();
    let stage = stages.into_iter().find(|stage| stage.rollouts.is_some())?;
    let (held, rollouts) = (held(stage)?, stage.rollouts?);
    let possible = held.0 / rollouts / seconds_per_token(known)?;
    let needed = stage.mean_length.or(stage.longest)?;
    let share = needed / possible;
    let verdict = if share > 1.0 && stage.mean_length.is_some() {
        Verdict::Implausible
    } else if share > 0.5 {
        Verdict::Plausible
    } else {
        Verdict::Typical
    };
    let reason = format!(
        "the hours of {} hold {} tokens a rollout; some {} are published, {} of them",
        stage.name,
        short(possible),
        short(needed),
        percent(share)
    );
    Some(Check {
        verdict,
        question: "Do the hours hold the rollouts?",
        reason,
        decides: true,
    })
}
