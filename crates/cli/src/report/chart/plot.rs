//! Points and curves over logarithmic axes.

use std::fmt::Write;

use super::{BOTTOM, HEIGHT, LEFT, RIGHT, Scale, TOP, WIDTH, frame, open, y_axis};
use crate::report::escape;

/// A value and its bounds at each of a few places that lie factors apart.
pub struct Trend<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    /// (x, low, mid, high) with x ascending and above 0.
    pub points: &'a [(f64, [f64; 3])],
    /// The x whose point stands out.
    pub own: f64,
}

/// A curve through the middle values, with what lies between the bounds shaded.
pub fn trend(trend: &Trend) -> String {
    let mut svg = open(trend.title, HEIGHT);
    let (Some(first), Some(last)) = (trend.points.first(), trend.points.last()) else {
        return svg + "<text x=\"240\" y=\"120\" text-anchor=\"middle\">nothing known</text></svg>";
    };
    let highest = trend.points.iter().map(|(_, [_, _, high])| *high);
    let (low, high, step) = frame(0.0, highest.fold(0.0, f64::max), 5.0);
    let y = Scale::upwards(low, high);
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    y_axis(&mut svg, &y, step, |value| format!("{value:.digits$}"));
    let x = Scale {
        logarithmic: true,
        // Half a step of room, so that the labels of the ends are inside.
        ..Scale::across(first.0 / 1.2, (last.0 * 1.2).max(first.0 * 1.21))
    };
    let place = |at: f64, value: f64| format!("{:.1},{:.1}", x.at(at), y.at(value));
    let below = trend.points.iter().map(|(at, [low, ..])| place(*at, *low));
    let above = trend.points.iter().rev();
    let above = above.map(|(at, [.., high])| place(*at, *high));
    let span: Vec<String> = below.chain(above).collect();
    let middle = trend
        .points
        .iter()
        .map(|(at, [_, mid, _])| place(*at, *mid));
    let middle: Vec<String> = middle.collect();
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<polygon class=\"span\" points=\"{}\"/>\n<polyline class=\"curve\" points=\"{}\"/>",
        span.join(" "),
        middle.join(" ")
    );
    for (at, [_, mid, _]) in trend.points {
        let class = if *at == trend.own { "dot own" } else { "dot" };
        let (px, py, below) = (x.at(*at), y.at(*mid), HEIGHT - BOTTOM + 16.0);
        let _ = writeln!(
            svg,
            "<circle class=\"{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"/>\
             <text x=\"{px:.1}\" y=\"{below}\" text-anchor=\"middle\">{at:.0}</text>"
        );
    }
    svg + &x_title(trend.x_label, HEIGHT)
}

fn x_title(label: &str, height: f64) -> String {
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, height - 3.0);
    format!(
        "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{}</text></svg>",
        escape(label)
    )
}

/// One comparison.
pub struct Point {
    pub name: String,
    pub x: f64,
    pub y: f64,
}

/// What was said of each thing against what it is.
pub struct Scatter<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    /// Above 0 in both.
    pub points: &'a [Point],
    /// How far from equal is within the shaded band, such as 0.15.
    pub band: f64,
}

const SCATTER_HEIGHT: f64 = 440.0;
/// Labels of both axes.
const TICKS: [f64; 3] = [1.0, 2.0, 5.0];

/// Points over two logarithmic axes of one range, with the line on which both are equal.
pub fn scatter(scatter: &Scatter) -> String {
    let mut svg = open(scatter.title, SCATTER_HEIGHT);
    let values = scatter.points.iter().flat_map(|point| [point.x, point.y]);
    let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return svg + "<text x=\"240\" y=\"120\" text-anchor=\"middle\">nothing known</text></svg>";
    }
    let (low, high) = (low / 1.25, high * 1.25);
    let x = Scale {
        logarithmic: true,
        ..Scale::across(low, high)
    };
    let y = Scale {
        low,
        high,
        start: SCATTER_HEIGHT - BOTTOM,
        end: TOP,
        logarithmic: true,
    };
    ticks(&mut svg, &x, &y);
    diagonal(&mut svg, scatter.band, &x, &y);
    for Point {
        name,
        x: at,
        y: value,
    } in scatter.points
    {
        let error = value / at - 1.0;
        let out = if error.abs() > scatter.band {
            " out"
        } else {
            ""
        };
        let (px, py, name) = (x.at(*at), y.at(*value), escape(name));
        let _ = writeln!(
            svg,
            "<circle class=\"dot{out}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\">\
             <title>{name}: {:+.1} %</title></circle>",
            100.0 * error
        );
    }
    let (up, label) = (TOP + 4.0, escape(scatter.y_label));
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{up}\">{label}</text>", LEFT + 8.0);
    svg + &x_title(scatter.x_label, SCATTER_HEIGHT)
}

fn ticks(svg: &mut String, x: &Scale, y: &Scale) {
    let decades = -6..9;
    let all = decades.flat_map(|decade| TICKS.map(|tick| tick * 10f64.powi(decade)));
    for value in all.filter(|value| (x.low..=x.high).contains(value)) {
        let (across, up) = (x.at(value), y.at(value));
        let digits = (-value.log10().floor()).clamp(0.0, 6.0) as usize;
        let (left, right, top, bottom) = (x.start, x.end, y.end, y.start);
        let (text_x, text_y, below) = (left - 6.0, up + 4.0, bottom + 16.0);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{up:.1}\" y2=\"{up:.1}\"/>\
             <line class=\"grid\" x1=\"{across:.1}\" x2=\"{across:.1}\" y1=\"{top}\" \
             y2=\"{bottom}\"/>\
             <text x=\"{text_x}\" y=\"{text_y:.1}\" text-anchor=\"end\">{value:.digits$}</text>\
             <text x=\"{across:.1}\" y=\"{below}\" \
             text-anchor=\"middle\">{value:.digits$}</text>"
        );
    }
}

/// The line of equals, and the band around it, cut off at the edges.
fn diagonal(svg: &mut String, band: f64, x: &Scale, y: &Scale) {
    let (low, high, more) = (x.low, x.high, 1.0 + band);
    let less = 1.0 - band;
    let corners = [
        (low, low),
        (low, low * more),
        (high / more, high),
        (high, high),
        (high, high * less),
        (low / less, low),
    ];
    let corners = corners.map(|(at, value)| format!("{:.1},{:.1}", x.at(at), y.at(value)));
    let _ = writeln!(
        svg,
        "<polygon class=\"span\" points=\"{}\"/>\
         <line class=\"limit\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        corners.join(" "),
        x.start,
        y.start,
        x.end,
        y.end
    );
}

#[cfg(test)]
mod tests {
    use super::{Point, Scatter, Trend, scatter, trend};

    #[test]
    fn equals_lie_on_the_diagonal_and_errors_stand_out() {
        let point = |name: &str, x, y| Point {
            name: name.to_string(),
            x,
            y,
        };
        let svg = scatter(&Scatter {
            title: "t",
            x_label: "x",
            y_label: "y",
            points: &[
                point("a<b", 1.0, 1.0),
                point("c", 16.0, 16.0),
                point("d", 4.0, 5.0),
            ],
            band: 0.15,
        });
        // The mean of the logarithms of 1 and 16 is that of 4: the middle of the picture.
        let middle = (46.0 + 468.0) / 2.0;
        assert!(
            svg.contains(&format!("class=\"dot out\" cx=\"{middle:.1}\"")),
            "{svg}"
        );
        assert!(
            svg.contains("a&lt;b: +0.0 %") && svg.contains("d: +25.0 %"),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"dot out\"").count(), 1, "{svg}");
    }

    #[test]
    fn a_trend_marks_its_own_point() {
        let points = [(1.0, [1.0, 2.0, 3.0]), (2.0, [0.5, 1.0, 1.5])];
        let trend_of = |points| {
            trend(&Trend {
                title: "t",
                x_label: "chips",
                points,
                own: 2.0,
            })
        };
        let svg = trend_of(&points);
        assert_eq!(svg.matches("class=\"dot own\"").count(), 1, "{svg}");
        assert!(svg.contains(">chips</text></svg>"), "{svg}");
        assert!(trend_of(&[]).contains("nothing known"));
    }
}
