//! `audit`: whether a claim about computing can be true.

use std::path::Path;

use clap::Args;
use plan::audit::{self, Audit, Chips, Claim};
use plan::error::Error;
use serde::Serialize;

use super::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::lines::WIDTH;
use crate::model_choice;
use crate::numbers::parse;
use crate::plain::plain;
use crate::settings::Settings;
use crate::small_text;

/// Stands for " %" while lines are broken: as wide, and no place to break.
const GLUED: &str = "\u{e000}%";
/// Bytes of a claim's file at most.
const LARGEST_CLAIM: u64 = 1 << 20;

/// Whether a claim about computing can be true, and what it implies
///
/// A claim is any part of: a model, tokens, chips and their number, days, chip-hours, dollars. What
/// is missing is solved for; the verdict is one of impossible (beyond the chips), implausible
/// (beyond what anyone has published), plausible, typical, or not enough, with its reasons.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bruchteil audit deepseek-v3\n  bruchteil audit --model deepseek-v3 \
--tokens 14.8e12 --chips h800:2048 --days 54"
)]
pub struct AuditCommand {
    /// A claim that ships with the program (--list), or a TOML file
    #[arg(required_unless_present_any = ["list", "model", "tokens", "chips", "days", "chip_hours",
        "dollars", "price", "capital", "gigawatts"])]
    claim: Option<String>,
    /// The claims that ship with the program
    #[arg(long, conflicts_with = "claim")]
    list: bool,
    #[command(flatten)]
    parts: Parts,
}

/// A claim on the command line.
#[derive(Args)]
#[command(next_help_heading = "A claim's parts, any of them")]
struct Parts {
    /// A preset such as deepseek-v3, a config.json, or a folder with one
    #[arg(long, value_name = "MODEL", conflicts_with = "claim")]
    model: Option<String>,
    /// Tokens trained on, such as 14.8e12
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    tokens: Option<f64>,
    /// Kinds of chip and how many of each, such as h800:2048,h100:100; one kind may lack its number
    #[arg(
        long,
        value_name = "CHIP:N",
        value_delimiter = ',',
        conflicts_with = "claim"
    )]
    #[arg(value_parser = chips)]
    chips: Vec<Chips>,
    /// Days that the run took
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    days: Option<f64>,
    /// Chip-hours of the run
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    chip_hours: Option<f64>,
    /// Dollars for these chip-hours
    #[arg(
        long,
        value_name = "USD",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    dollars: Option<f64>,
    /// Dollars for a chip-hour
    #[arg(
        long,
        value_name = "USD",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    price: Option<f64>,
    /// Dollars for chips that are bought
    #[arg(
        long,
        value_name = "USD",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    capital: Option<f64>,
    /// Power of the building
    #[arg(
        long,
        value_name = "GW",
        conflicts_with = "claim",
        value_parser = parse,
        allow_negative_numbers = true
    )]
    gigawatts: Option<f64>,
    /// Tokens of a sequence [default: 4096]
    #[arg(long, value_name = "N", conflicts_with = "claim")]
    seq_len: Option<u64>,
}

impl AuditCommand {
    pub fn run(&self, settings: &Settings) -> Outcome {
        if self.list {
            return list(settings);
        }
        let audited = match &self.claim {
            None => self.parts.judged(settings)?,
            Some(name) => named(name)?,
        };
        if settings.json {
            return print_json(&audited);
        }
        print(&screen(&audited))
    }
}

impl Parts {
    fn judged(&self, settings: &Settings) -> Result<Audit, Failure> {
        let claim = self.claim(settings)?;
        let chosen = self.model.as_deref().map(model_choice::choose);
        let chosen = chosen.transpose()?;
        let shape = chosen.as_ref().map(|chosen| &chosen.shape);
        audit::audit_of(&claim, shape).map_err(usage)
    }

    fn claim(&self, settings: &Settings) -> Result<Claim, Failure> {
        let precision = settings.precision.map(|_| settings.planned_precision());
        Ok(Claim {
            title: "A claim from the command line".to_string(),
            model: self.model.clone(),
            tokens: self.tokens,
            seq_len: self.seq_len,
            precision: precision.transpose()?,
            chips: self.chips.clone(),
            days: self.days,
            chip_hours: self.chip_hours,
            dollars: self.dollars,
            usd_per_chip_hour: self.price,
            capital: self.capital,
            gigawatts: self.gigawatts,
            ..Claim::default()
        })
    }
}

fn chips(text: &str) -> Result<Chips, String> {
    let (chip, count) = match text.split_once(':') {
        None => (text, None),
        Some((chip, count)) => (chip, Some(count)),
    };
    let count = count.map(|count| {
        let number = count.parse::<u64>();
        number.map_err(|_| format!("{count:?} is no number of chips; write h800:2048"))
    });
    Ok(Chips {
        chip: chip.trim().to_string(),
        count: count.transpose()?,
    })
}

fn usage(error: Error) -> Failure {
    let advice = match &error {
        Error::Asked { what, .. } if what.contains(" and ") => {
            "mend one of the two, or leave it out"
        }
        Error::Asked { .. } => "give a number that is meant; `--help` shows an example",
        Error::UnknownChip { .. } => "give a chip of the catalogue",
        Error::UnknownModel { .. } => "give a preset",
        _ => "`--help` shows an example",
    };
    Failure::usage(error, advice)
}

/// A shipped claim, or one in a file.
fn named(name: &str) -> Result<Audit, Failure> {
    let path = Path::new(name);
    match audit::find(name) {
        Ok(claim) => audit::audit(claim).map_err(usage),
        Err(_) if path.exists() => {
            let claim = from_file(path)?;
            audit::audit(&claim).map_err(|error| {
                Failure::input(
                    path,
                    error,
                    "mend that part of the claim; nothing was reckoned",
                )
            })
        }
        Err(nearest) => {
            let nearest = match nearest.as_slice() {
                [] => String::new(),
                nearest => format!("; nearest: {}", nearest.join(", ")),
            };
            let cause = format!("no claim is called {name:?}, and no file either{nearest}");
            Err(Failure::usage(
                cause,
                "`bruchteil audit --list` shows the claims",
            ))
        }
    }
}

fn from_file(path: &Path) -> Result<Claim, Failure> {
    let text = small_text::read(path, LARGEST_CLAIM, "give a TOML file with a claim")?;
    audit::from_toml(&path.display().to_string(), &text).map_err(|error| {
        let advice = "mend that part of the claim; nothing was reckoned";
        Failure::new(crate::failure::BAD_INPUT, error, advice)
    })
}

fn list(settings: &Settings) -> Outcome {
    #[derive(Serialize)]
    struct Listed<'a> {
        name: &'a str,
        title: &'a str,
    }
    let claims = audit::shipped().iter();
    let claims = claims.map(|Claim { name, title, .. }| Listed { name, title });
    let claims: Vec<Listed> = claims.collect();
    if settings.json {
        return print_json(&claims);
    }
    let lines = claims.iter();
    let lines = lines.map(|listed| format!("{:<18} {}\n", listed.name, listed.title));
    print(&lines.collect::<String>())
}

/// The whole audit on one screen.
fn screen(audited: &Audit) -> String {
    let claim = &audited.claim;
    let mut text = format!("{}\n", plain(&claim.title));
    text += &hanging("  said: ", &claim.statement);
    text += "\nWhat it implies\n";
    for line in &audited.implied {
        let head = format!("  {:<23} {:<22} ", line.name, line.shown());
        text += &hanging(&head, &line.how);
    }
    text += "\nWhat was checked\n";
    for check in &audited.checks {
        let head = format!("  {:<12} {} ", check.verdict.name(), check.question);
        text += &hung(&head, 15, &check.reason);
    }
    text += "\n";
    text += &hung("Verdict: ", 9, &audited.sentence);
    text += &hanging("Beside it: ", &claim.beside.join("; "));
    for (index, left) in audited.leaves_out.iter().enumerate() {
        let head = if index == 0 {
            "Left out: "
        } else {
            "          "
        };
        text += &hanging(head, left);
    }
    text += &hanging("Sources: ", &claim.sources.join("; "));
    text
}

/// Text after a head, its further lines as far to the right.
fn hanging(head: &str, text: &str) -> String {
    hung(head, head.chars().count(), text)
}

/// Text after a head, its further lines this far to the right.
fn hung(head: &str, indent: usize, text: &str) -> String {
    // A number keeps its sign of per cent.
    let text = plain(text.trim()).replace(" %", GLUED);
    if text.is_empty() {
        return String::new();
    }
    let mut lines = String::new();
    let mut line = head.to_string();
    let mut begun = false;
    for word in text.split_whitespace() {
        let wide = line.chars().count() + usize::from(begun) + word.chars().count();
        if begun && wide > WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(indent);
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line += word;
        begun = true;
    }
    (lines + line.trim_end() + "\n").replace(GLUED, " %")
}
