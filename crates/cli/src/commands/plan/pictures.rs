//! A plan in pictures.

use plan::efficiency::Efficiencies;
use plan::error::Error;
use plan::measured;
use plan::training::{Plan, Request, plan};

use super::answer::Answer;
use super::words;
use crate::numbers::{grouped, short};
use crate::report::chart::{self, Part, Point, Scatter, Stack, Trend};
use crate::report::escape;

/// Other numbers of chips that are planned, as numerator and denominator of the one asked for.
const SIZES: [(u64, u64); 5] = [(1, 4), (1, 2), (1, 1), (2, 1), (4, 1)];
/// What is held to be a good prediction of a step.
pub const BAND: f64 = 0.15;

/// A picture, and the table of its parts under it.
pub struct Legended {
    pub svg: String,
    pub legend: String,
}

pub fn step(plan: &Plan) -> Legended {
    let seconds = |value: f64| format!("{} s", short(value));
    let whole = plan.step_seconds.mid;
    let share = |value: f64| format!("{:.1} %", 100.0 * value / whole);
    legended(
        "Where the time of a step goes",
        &plan.step_parts,
        &[],
        &seconds,
        &share,
    )
}

pub fn memory(answer: &Answer) -> Legended {
    let plan = &answer.plan;
    let memory = answer.chip().memory.map_or(0.0, |memory| memory.0);
    let gigabytes = |bytes: f64| format!("{} GB", words::gigabytes(bytes));
    let limits = [
        (
            plan.memory_usable_bytes,
            format!("usable {}", gigabytes(plan.memory_usable_bytes)),
        ),
        (memory, format!("chip {}", gigabytes(memory))),
    ];
    let share = |bytes: f64| format!("{:.1} %", 100.0 * bytes / memory);
    let title = "Memory of the fullest chip";
    legended(title, &plan.memory_parts, &limits, &gigabytes, &share)
}

fn legended(
    title: &str,
    values: &[(&'static str, f64)],
    limits: &[(f64, String)],
    label: &dyn Fn(f64) -> String,
    share: &dyn Fn(f64) -> String,
) -> Legended {
    let part = |(colour, &(name, value)): (usize, &(&'static str, f64))| Part {
        name,
        value,
        colour,
    };
    let parts: Vec<Part> = values.iter().enumerate().map(part).collect();
    let parts: Vec<Part> = parts.into_iter().filter(|part| part.value > 0.0).collect();
    let row = |part: &Part| {
        format!(
            "<tr><td><span class=\"key part p{}\"></span> {}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td></tr>\n",
            part.colour,
            escape(part.name),
            escape(&label(part.value)),
            escape(&share(part.value)),
        )
    };
    let rows: String = parts.iter().map(row).collect();
    let sum: f64 = parts.iter().map(|part| part.value).sum();
    let sum = format!(
        "<tr><th>together</th><th class=\"number\">{}</th><th class=\"number\">{}</th></tr>\n",
        escape(&label(sum)),
        escape(&share(sum))
    );
    Legended {
        svg: chart::stack(&Stack {
            title,
            parts: &parts,
            limits,
            label,
        }),
        legend: format!("<div class=\"scroll\"><table>\n{rows}{sum}</table></div>"),
    }
}

/// The same run on fewer and on more chips; numbers that the batch does not allow or that cannot
/// hold the model are left out.
pub fn sizes(answer: &Answer) -> Result<Vec<Plan>, Error> {
    let mut plans = Vec::new();
    for (more, less) in SIZES {
        let asked = answer.request.chips;
        if !(asked * more).is_multiple_of(less) {
            continue;
        }
        let chips = asked * more / less;
        if chips == asked {
            plans.push(answer.plan.clone());
            continue;
        }
        let request = Request {
            chips,
            ..answer.request.clone()
        };
        match plan(&request) {
            Ok(planned) if planned.fits => plans.push(planned),
            Ok(_) | Err(Error::DoesNotFit(_) | Error::Layout { .. } | Error::Asked { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(plans)
}

pub fn days(answer: &Answer, plans: &[Plan]) -> String {
    let points: Vec<(f64, [f64; 3])> = plans
        .iter()
        .map(|plan| {
            let days = plan.campaign.days;
            (plan.chips as f64, [days.low, days.mid, days.high])
        })
        .collect();
    chart::trend(&Trend {
        title: "Days by number of chips",
        x_label: "chips",
        points: &points,
        own: answer.plan.chips as f64,
    })
}

/// A curve of cost, and in which unit it is.
pub fn cost(answer: &Answer, plans: &[Plan]) -> (String, &'static str) {
    let highest = plans.iter().filter_map(|plan| plan.campaign.cost_usd);
    let highest = highest.fold(0.0, |most: f64, cost| most.max(cost.high));
    let (unit, size) = match highest {
        0.0..2e3 => ("dollars", 1.0),
        2e3..2e6 => ("thousands of dollars", 1e3),
        _ => ("millions of dollars", 1e6),
    };
    let point = |plan: &Plan| {
        let cost = plan.campaign.cost_usd?;
        Some((
            plan.chips as f64,
            [cost.low, cost.mid, cost.high].map(|usd| usd / size),
        ))
    };
    let points: Vec<(f64, [f64; 3])> = plans.iter().filter_map(point).collect();
    let svg = chart::trend(&Trend {
        title: "Cost by number of chips",
        x_label: "chips",
        points: &points,
        own: answer.plan.chips as f64,
    });
    (svg, unit)
}

/// All published steps as the shipped efficiencies, which know them, predict them.
pub fn known_steps() -> Vec<Point> {
    let shipped = Efficiencies::shipped();
    let rows = measured::all().iter();
    // What a row of the shipped table lacks is for that crate's own tests to say.
    let points = rows.filter_map(|measured| {
        let step = measured.predict(&shipped).ok()?;
        Some(Point {
            name: measured.row.id.clone(),
            x: measured.row.step_seconds,
            y: step.seconds.0,
        })
    });
    points.collect()
}

pub fn compared(points: &[Point], predicted: &str) -> String {
    chart::scatter(&Scatter {
        title: "Predicted against published seconds of a step",
        x_label: "published seconds of a step",
        y_label: predicted,
        points,
        band: BAND,
    })
}

/// The other layouts as rows of a table, with bars that show how much slower each is.
pub fn others(plan: &Plan) -> String {
    let own = (
        plan.layout.to_string(),
        plan.step_seconds.mid,
        plan.memory_bytes_per_chip,
    );
    let others = plan.alternatives.iter();
    let others = others.map(|o| (o.layout.clone(), o.step_seconds, o.memory_bytes_per_chip));
    let all: Vec<(String, f64, f64)> = std::iter::once(own).chain(others).collect();
    let slowest = all.iter().fold(0.0, |most: f64, row| most.max(row.1));
    let row = |(layout, seconds, bytes): &(String, f64, f64)| {
        format!(
            "<tr><td class=\"number\">{} s</td>\
             <td><span class=\"length\" style=\"width:{:.1}rem\"></span></td>\
             <td class=\"number\">{} GB</td><td><code>{}</code></td></tr>\n",
            short(*seconds),
            6.0 * seconds / slowest,
            words::gigabytes(*bytes),
            escape(&words::short_layout(layout)),
        )
    };
    let rows: String = all.iter().map(row).collect();
    format!(
        "<div class=\"scroll\"><table>\n<tr><th class=\"number\">step</th><th></th>\
         <th class=\"number\">memory</th><th>layout of {} chips</th></tr>\n{rows}</table></div>",
        grouped(plan.chips as f64)
    )
}
