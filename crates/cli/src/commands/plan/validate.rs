//! The page of validation: every published step against what is predicted of it without itself.

mod elsewhere;
mod runs;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use plan::campaigns::campaigns;
use plan::efficiency::{Entry, entries};
use plan::measured;
use plan::validation::{Compared, STEP_SPREAD, compare};

use super::pictures::{BAND, compared};
use super::words;
use crate::commands::{print, print_json};
use crate::failure::{Failure, Outcome};
use crate::numbers::short;
use crate::report::chart::{Point, standalone};
use crate::settings::Settings;

/// Calculon (Isaev et al., SC 2023) was compared with these.
const CALCULON: &str = "seqsel-";

/// Writes the page and the picture beside it.
///
/// # Errors
/// The place cannot be written, or its name is not that of a Markdown file.
pub fn write(path: &Path, settings: &Settings) -> Outcome {
    if path.extension().is_none_or(|ending| ending != "md") {
        let cause = format!("{} does not end with .md", path.display());
        return Err(Failure::usage(
            cause,
            "name a Markdown file, as in predicted.md",
        ));
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    if dir.is_some_and(|dir| !dir.is_dir()) {
        let cause = format!("{}: there is no such folder", path.display());
        return Err(Failure::usage(cause, "make it first"));
    }
    let total = measured::all().len();
    let progress = Mutex::new(settings.ui().start("validate", total as u64));
    let rows = compare(settings.thread_count(), |done| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.update(done as u64, "steps predicted");
    });
    let progress = progress
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    progress.finish(&format!("{total} steps predicted"));
    let picture = path.with_extension("svg");
    let name = picture.file_name().unwrap_or_default().to_string_lossy();
    model::write_atomic(path, page(&rows, &name)?.as_bytes())?;
    model::write_atomic(&picture, standalone(&svg(&rows)).as_bytes())?;
    let ui = settings.ui();
    ui.say(format_args!(
        "wrote {} and {}",
        path.display(),
        picture.display()
    ));
    match settings.json {
        true => print_json(&rows),
        false => print(&in_short(&rows)),
    }
}

fn svg(rows: &[Compared]) -> String {
    let point = |row: &Compared| Point {
        name: row.id.clone(),
        x: row.measured_seconds,
        y: row.without_row,
    };
    let points: Vec<Point> = rows.iter().map(point).collect();
    compared(&points, "predicted without the step itself, seconds")
}

/// Errors of some rows, without their signs.
struct Summary {
    of: &'static str,
    count: usize,
    median: f64,
    mean: f64,
    worst: f64,
    worst_id: String,
    beyond: usize,
}

impl Summary {
    fn new<'a>(
        of: &'static str,
        rows: impl Iterator<Item = &'a Compared>,
        error: impl Fn(&Compared) -> f64,
    ) -> Summary {
        let mut errors: Vec<(f64, &str)> = rows
            .map(|row| (error(row).abs(), row.id.as_str()))
            .collect();
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = errors.len();
        let middle = |at: usize| errors.get(at).map_or(0.0, |(error, _)| *error);
        let (worst, worst_id) = errors.last().copied().unwrap_or_default();
        Summary {
            of,
            count,
            median: (middle(count / 2) + middle(count.saturating_sub(1) / 2)) / 2.0,
            mean: errors.iter().map(|(error, _)| error).sum::<f64>() / count.max(1) as f64,
            worst,
            worst_id: worst_id.to_string(),
            beyond: errors.iter().filter(|(error, _)| *error > BAND).count(),
        }
    }

    fn row(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} ({}) | {} |\n",
            self.of,
            self.count,
            percent(self.median),
            percent(self.mean),
            percent(self.worst),
            self.worst_id,
            self.beyond,
        )
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn summaries(rows: &[Compared]) -> Vec<Summary> {
    let runs = campaigns();
    let of_runs = |row: &&Compared| runs.iter().any(|campaign| campaign.run.id == row.id);
    let calculon = |row: &&Compared| row.id.starts_with(CALCULON);
    vec![
        Summary::new("all, each without itself", rows.iter(), Compared::error),
        Summary::new(
            "all, each without its group",
            rows.iter(),
            Compared::error_without_group,
        ),
        Summary::new(
            "those of the list of runs",
            rows.iter().filter(of_runs),
            Compared::error,
        ),
        Summary::new(
            "Calculon's eight",
            rows.iter().filter(calculon),
            Compared::error,
        ),
    ]
}

fn in_short(rows: &[Compared]) -> String {
    let line = |summary: &Summary| {
        format!(
            "{:<28} {:>3} steps: median {:>7}, mean {:>7}, worst {:>8} ({}), {} over {:.0} %\n",
            summary.of,
            summary.count,
            percent(summary.median),
            percent(summary.mean),
            percent(summary.worst),
            summary.worst_id,
            summary.beyond,
            100.0 * BAND,
        )
    };
    summaries(rows).iter().map(line).collect()
}

/// The sections in order.
fn page(rows: &[Compared], picture: &str) -> Result<String, Failure> {
    let sections = [
        introduction(picture),
        summary(rows),
        steps(rows),
        runs::section(),
        elsewhere::memory(rows)?,
        elsewhere::services()?,
        efficiencies(),
    ];
    Ok(sections.concat())
}

fn introduction(picture: &str) -> String {
    format!(
        "# Predicted against published\n\n\
         Published steps of training that name their layout, and what `bruchteil plan` says of \
         each without that step: the efficiencies that were found by fitting are found anew from \
         all other rows, and so is the slowdown of the row's software. \"Without its group\" \
         leaves out every row of the same model on the same chip too, so that nothing near it is \
         known. What is not left out is the form of the model: its formulas were chosen with these \
         rows in sight. And the rows are a choice: the 34 of the list of runs, and 61 from the \
         same tables, picked for variety before the first fit; the tables have hundreds.\n\n\
         `bruchteil plan --validate FILE.md` writes this page.\n\n\
         ![Predicted against published seconds of a step, both axes logarithmic; shaded: within \
         {:.0} %]({picture})\n\n",
        100.0 * BAND
    )
}

fn summary(rows: &[Compared]) -> String {
    let lines: String = summaries(rows).iter().map(Summary::row).collect();
    let within = |row: &&Compared| {
        let factor = row.measured_seconds / row.without_row;
        STEP_SPREAD.contains(factor)
    };
    let inside = rows.iter().filter(within).count();
    format!(
        "## Summary\n\nErrors are those of seconds, predicted by published less 1, without their \
         sign.\n\n| Steps | Number | Median | Mean | Worst | Over {:.0} % |\n\
         |---|--:|--:|--:|---|--:|\n{lines}\n\
         Calculon's own errors on its eight are 3.65 % on average and 8.87 % at worst (Isaev et \
         al., SC 2023).\n\nThe interval that `plan` shows around a step, {} to {} of the \
         prediction, holds {inside} of {} published steps.\n\n",
        100.0 * BAND,
        STEP_SPREAD.low,
        STEP_SPREAD.high,
        rows.len()
    )
}

/// Text that stands in one cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn steps(rows: &[Compared]) -> String {
    let signed = |share: f64| format!("{:+.1}", 100.0 * share);
    let row = |row: &Compared| {
        format!(
            "| {} | {} | {} x {} {} | {} | {} | {} | {} | {} | {} | {} |\n",
            cell(&row.id),
            cell(&row.model),
            row.chips,
            row.chip,
            row.precision,
            words::short_layout(&row.layout),
            cell(&row.software),
            short(row.measured_seconds),
            short(row.without_row),
            signed(row.error()),
            signed(row.error_without_group()),
            cell(&row.source),
        )
    };
    let lines: String = rows.iter().map(row).collect();
    format!(
        "## Steps that name their layout\n\n\
         | Step | Model | Chips | Layout | Software | Published s | Predicted s | Error % | \
         Without group % | Source |\n|---|---|---|---|---|--:|--:|--:|--:|---|\n{lines}\n"
    )
}

fn efficiencies() -> String {
    let row = |entry: &Entry| {
        let name = serde_json::to_value(entry.name).expect("a name");
        let [low, high] = entry.range.map(short);
        format!(
            "| {} | {} | {} | {} |\n",
            name.as_str().unwrap_or_default(),
            short(entry.value),
            match entry.fitted {
                true => format!("yes, from {low} to {high}"),
                false => "no".to_string(),
            },
            cell(&entry.source),
        )
    };
    let lines: String = entries().iter().map(row).collect();
    format!(
        "## Efficiencies\n\nShared by all rows, and by every plan; those that are fitted are \
         fitted to all steps above at once, within the bounds shown.\n\n\
         | Efficiency | Value | Fitted | Source |\n|---|--:|---|---|\n{lines}"
    )
}

#[cfg(test)]
mod tests {
    use super::{Summary, page, summaries};
    use plan::validation::Compared;

    fn row(id: &str, predicted: f64) -> Compared {
        Compared {
            id: id.to_string(),
            model: "m|n".to_string(),
            chip: "h100".to_string(),
            chips: 8,
            precision: "bf16",
            layout: "tp=1".to_string(),
            software: "s".to_string(),
            source: "paper".to_string(),
            note: String::new(),
            measured_seconds: 1.0,
            without_row: predicted,
            without_group: 2.0,
            memory_bytes: 1.0,
        }
    }

    #[test]
    fn the_summary_is_that_of_a_hand() {
        let rows = [row("a", 1.1), row("b", 0.8), row("c", 1.0), row("d", 1.3)];
        let summary = Summary::new("all", rows.iter(), Compared::error);
        // 0, 0.1, 0.2, 0.3.
        assert!((summary.median - 0.15).abs() < 1e-12 && (summary.mean - 0.15).abs() < 1e-12);
        assert_eq!((summary.worst_id.as_str(), summary.beyond), ("d", 2));
        let empty = Summary::new("none", [].iter(), Compared::error);
        assert_eq!((empty.count, empty.median), (0, 0.0));
    }

    #[test]
    fn every_row_is_on_the_page() {
        let rows = [row("first", 1.1), row("seqsel-x", 0.8)];
        let page = page(&rows, "p.svg").expect("the shipped data");
        for part in [
            "| first | m\\|n | 8 x h100 bf16 |",
            "| +10.0 | +100.0 |",
            "](p.svg)",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert_eq!(summaries(&rows)[3].count, 1);
    }
}
