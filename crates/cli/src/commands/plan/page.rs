//! A plan as one HTML page that needs nothing else.

use plan::interval::Interval;
use plan::training::Plan;

use super::answer::Answer;
use super::{explain, pictures, words};
use crate::numbers::{amount, counted, grouped, short};
use crate::report::chart::Point;
use crate::report::{CLOSING, escape, figure, opening, table};

pub fn html(answer: &Answer) -> String {
    let plan = &answer.plan;
    let (chips, chip) = (grouped(plan.chips as f64), escape(&plan.chip));
    let title = format!("{} on {chips} x {}", plan.model, plan.chip);
    let model = escape(&plan.model);
    [
        opening(&format!("Bruchteil: {title}")),
        format!("<h1>{model} on {chips} &times; {chip}</h1>\n"),
        lead(answer),
        tiles(plan),
        charts(answer),
        taken(answer),
        explanations(answer),
        CLOSING.to_string(),
    ]
    .concat()
}

fn lead(answer: &Answer) -> String {
    let plan = &answer.plan;
    let fits = match plan.fits {
        true => String::new(),
        false => {
            let sentence = escape(&answer.too_large());
            format!("<p class=\"wrong\">It does not fit: {sentence}.</p>\n")
        }
    };
    format!(
        "<p>{}. Trained on {} tokens in {}, {} sequences of {} tokens a step: {:.3e} operations \
         in all.</p>\n<p>Layout: <code>{}</code>, {}; {} ways data-parallel, {} \
         micro-batches a step.</p>\n{fits}",
        escape(&words::size(plan)),
        counted(plan.tokens),
        plan.precision.name(),
        grouped(plan.batch_seqs as f64),
        plan.seq_len,
        plan.flops_total,
        words::short_layout(&plan.layout.to_string()),
        match plan.layout_searched {
            true => "the fastest of all that fit",
            false => "as given",
        },
        plan.dp,
        plan.micro_batches,
    )
}

fn tiles(plan: &Plan) -> String {
    let run = &plan.campaign;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let seconds = |seconds: f64| format!("{} s", short(seconds));
    let cost = match &run.cost_usd {
        Some(cost) => tile("Cost", cost, words::dollars),
        None => String::new(),
    };
    [
        "<div class=\"tiles\">\n",
        &tile("Days", &run.days, short),
        &tile("Chip-hours", &run.chip_hours, amount),
        &cost,
        &tile("A step", &plan.step_seconds, seconds),
        &tile("MFU", &plan.mfu, percent),
        "</div>\n",
    ]
    .concat()
}

fn tile(title: &str, value: &Interval<f64>, write: impl Fn(f64) -> String) -> String {
    let Interval { low, mid, high } = *value;
    // A number and its unit stay on one line.
    let whole = |value: f64| escape(&write(value)).replace(' ', "&nbsp;");
    format!(
        "<div class=\"tile\">{title}<b>{}</b><span class=\"soft\">{} to {}</span></div>\n",
        whole(mid),
        whole(low),
        whole(high)
    )
}

fn charts(answer: &Answer) -> String {
    let plan = &answer.plan;
    let step = pictures::step(plan);
    let memory = pictures::memory(answer);
    // What went well for the number of chips asked for can fail only for want of a fit.
    let plans = pictures::sizes(answer).unwrap_or_else(|_| vec![plan.clone()]);
    let (cost, unit) = pictures::cost(answer, &plans);
    let layouts = match plan.layout_searched {
        true => "with the fastest layout of each",
        false => "with the layout given",
    };
    let caption = format!(
        "The same batch on other numbers of chips, {layouts}; shaded: low to high. Numbers that \
         cannot hold the model, or that no layout divides the batch for, are left out."
    );
    let mut html = "<h2>A step</h2>\n<div class=\"charts\">\n".to_string();
    html += &figure(
        "Where the time goes",
        &(step.svg + &step.legend),
        "Of the busiest chip; exchanges only as far as nothing hides them",
    );
    html += &figure(
        "Memory",
        &(memory.svg + &memory.legend),
        "Of the fullest chip",
    );
    html += "</div>\n<h2>More chips, fewer chips</h2>\n<div class=\"charts\">\n";
    html += &figure("Days", &pictures::days(answer, &plans), &caption);
    if plan.campaign.cost_usd.is_some() {
        let caption = format!("In {unit}. More chips are interrupted more often and wait more.");
        html += &figure("Cost", &cost, &caption);
    }
    html += "</div>\n";
    if !plan.alternatives.is_empty() {
        html += &format!(
            "<h2>Layouts that would nearly do as well</h2>\n{}\n",
            pictures::others(plan)
        );
    }
    html + &accuracy(plan)
}

fn accuracy(plan: &Plan) -> String {
    let points = pictures::known_steps();
    let good = |point: &&Point| (point.y / point.x - 1.0).abs() <= pictures::BAND;
    let inside = points.iter().filter(good).count();
    let caption = format!(
        "{inside} of {} published steps lie within {:.0} % (shaded), the others stand out. The \
         efficiencies were fitted to these very steps; <code>bruchteil plan --validate FILE.md\
         </code> predicts each without itself.",
        points.len(),
        100.0 * pictures::BAND
    );
    let svg = pictures::compared(&points, "predicted seconds");
    format!(
        "<h2>How far to trust it</h2>\n<div class=\"charts\">\n{}{}</div>\n",
        figure("Predicted against published", &svg, &caption),
        results(plan)
    )
}

/// Everything with its interval.
fn results(plan: &Plan) -> String {
    let lines = words::results(plan);
    let rows: Vec<(&str, String)> = lines
        .into_iter()
        .map(|line| (line.name, line.value))
        .collect();
    let caption = "In brackets from low to high: nineteen in twenty published steps lie in the \
                   interval of their software, nine in ten in the wider one without a software.";
    figure("Results with their intervals", &table(&rows), caption)
}

fn taken(answer: &Answer) -> String {
    let taken = answer.assumptions.iter();
    let taken: String = taken
        .map(|sentence| format!("<li>{}</li>\n", escape(sentence)))
        .collect();
    format!(
        "<h2>What was taken</h2>\n<ul>\n{taken}<li>Export class: {}</li>\n</ul>\n",
        escape(&answer.export_words())
    )
}

fn explanations(answer: &Answer) -> String {
    let rows: String = explain::all(answer)
        .iter()
        .map(|line| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"soft\">{}</td></tr>\n",
                escape(&line.name),
                escape(&line.value),
                escape(&line.formula),
                escape(&line.source)
            )
        })
        .collect();
    format!(
        "<h2>Where each number comes from</h2>\n<details><summary>Formulas and sources</summary>\n\
         <div class=\"scroll\"><table>\n<tr><th>number</th><th>value</th><th>formula</th>\
         <th>source</th></tr>\n{rows}</table></div>\n</details>\n"
    )
}
