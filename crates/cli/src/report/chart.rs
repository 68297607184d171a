//! Charts as inline SVG. Colours come from the page's style sheet, so that they follow dark mode.

mod plot;
mod stack;

use std::fmt::Write;

use super::escape;
pub use plot::{Point, Scatter, Trend, scatter, trend};
pub use stack::{Part, Stack, stack};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

/// One value for each step.
pub struct Curve<'a> {
    pub title: &'a str,
    pub x_label: &'a str,
    /// (x, y) with x ascending. Values that are not finite are left out.
    pub points: &'a [[f64; 2]],
    /// Digits after the point in the labels.
    pub digits: usize,
}

/// A share and its interval, all from 0 to 1.
pub struct Bar {
    pub label: String,
    pub share: f64,
    pub interval: [f64; 2],
    pub greedy: bool,
}

/// Where values lie in the picture.
struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
    /// Whether equal lengths are equal factors.
    logarithmic: bool,
}

impl Scale {
    /// From the bottom of the usual picture to its top.
    fn upwards(low: f64, high: f64) -> Scale {
        Scale {
            low,
            high,
            start: HEIGHT - BOTTOM,
            end: TOP,
            logarithmic: false,
        }
    }

    /// From left to right.
    fn across(low: f64, high: f64) -> Scale {
        Scale {
            low,
            high,
            start: LEFT,
            end: WIDTH - RIGHT,
            logarithmic: false,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let [value, low, high] = match self.logarithmic {
            true => [value, self.low, self.high].map(f64::ln),
            false => [value, self.low, self.high],
        };
        self.start + (value - low) / (high - low) * (self.end - self.start)
    }
}

/// Steps of 1, 2 or 5 times a power of ten, at most `most` of them over the range.
fn tick_step(range: f64, most: f64) -> f64 {
    let mut step = 1e-9;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if range / (step * factor) <= most {
                return step * factor;
            }
        }
        step *= 10.0;
    }
}

/// The multiples of a step that frame the values, and the step.
fn frame(low: f64, high: f64, most: f64) -> (f64, f64, f64) {
    let range = if high > low {
        high - low
    } else {
        high.abs().max(1.0)
    };
    let step = tick_step(range, most);
    let low = (low / step).floor() * step;
    let high = (high / step).ceil() * step;
    (low, if high > low { high } else { low + step }, step)
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\
         <title>{title}</title>\n"
    )
}

/// A chart as a file of its own: always light, because a host that shows it may be either.
pub fn standalone(svg: &str) -> String {
    let style = "<style>text { fill: #5c616b; font: 11px system-ui, sans-serif; } \
                 .value { fill: #1b1d22; } .grid { stroke: #d9dbe0; } \
                 .span { fill: #1d5bb8; opacity: 0.16; } .dot { fill: #1d5bb8; } \
                 .dot.out { fill: #b3500f; } \
                 .limit { stroke: #1b1d22; stroke-dasharray: 4 3; }</style>\n\
                 <rect width=\"100%\" height=\"100%\" fill=\"#fcfcfa\"/>\n";
    let opened = svg.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1);
    opened.replacen("</title>\n", &format!("</title>\n{style}"), 1) + "\n"
}

/// Horizontal lines with their values.
fn y_axis(svg: &mut String, scale: &Scale, step: f64, label: impl Fn(f64) -> String) {
    let count = ((scale.high - scale.low) / step).round() as u32;
    for tick in 0..=count {
        let value = scale.low + f64::from(tick) * step;
        let y = scale.at(value);
        let (end, text_x, text_y) = (WIDTH - RIGHT, LEFT - 6.0, y + 4.0);
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{text_x}\" y=\"{text_y:.1}\" text-anchor=\"end\">{}</text>",
            label(value)
        );
    }
}

/// A line through the points, from a y axis that starts at 0 where nothing is negative.
pub fn curve(curve: &Curve) -> String {
    let mut svg = open(curve.title, HEIGHT);
    let finite = |point: &&[f64; 2]| point.iter().all(|value| value.is_finite());
    let points: Vec<[f64; 2]> = curve.points.iter().filter(finite).copied().collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return svg
            + "<text x=\"240\" y=\"120\" text-anchor=\"middle\">nothing measured</text></svg>";
    };
    let lowest = points.iter().fold(0.0, |low: f64, point| low.min(point[1]));
    let highest = points
        .iter()
        .fold(lowest, |high: f64, point| high.max(point[1]));
    let (low, high, step) = frame(lowest, highest, 5.0);
    let y = Scale::upwards(low, high);
    y_axis(&mut svg, &y, step, |value| {
        format!("{value:.*}", curve.digits)
    });
    let (low, high) = (
        first[0],
        if last[0] > first[0] {
            last[0]
        } else {
            first[0] + 1.0
        },
    );
    let x = Scale::across(low, high);
    let place = |point: &[f64; 2]| format!("{:.1},{:.1}", x.at(point[0]), y.at(point[1]));
    let path: Vec<String> = points.iter().map(place).collect();
    let _ = writeln!(
        svg,
        "<polyline class=\"curve\" points=\"{}\"/>",
        path.join(" ")
    );
    for (value, anchor) in [(low, "start"), (high, "end")] {
        let (at, below) = (x.at(value), HEIGHT - BOTTOM + 16.0);
        let _ = write!(
            svg,
            "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"{anchor}\">{value:.0}</text>"
        );
    }
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 3.0);
    let label = escape(curve.x_label);
    svg + &format!(
        "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{label}</text></svg>"
    )
}

/// Shares side by side with their intervals, from 0 to 100 %.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let mut svg = open(title, HEIGHT);
    let y = Scale::upwards(0.0, 1.0);
    y_axis(&mut svg, &y, 0.2, |share| format!("{:.0} %", 100.0 * share));
    let place = (WIDTH - RIGHT - LEFT) / bars.len().max(1) as f64;
    for (index, bar) in bars.iter().enumerate() {
        let middle = LEFT + (index as f64 + 0.5) * place;
        let (half, class) = (0.32 * place, if bar.greedy { "bar greedy" } else { "bar" });
        let (left, width, top) = (middle - half, 2.0 * half, y.at(bar.share));
        let height = HEIGHT - BOTTOM - top;
        let [low, high] = bar.interval.map(|share| y.at(share));
        let (above, below) = (high - 4.0, HEIGHT - BOTTOM + 16.0);
        let (label, percent) = (escape(&bar.label), 100.0 * bar.share);
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\"/>\
             <line class=\"interval\" x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{low:.1}\" \
             y2=\"{high:.1}\"/>\
             <text class=\"value\" x=\"{middle:.1}\" y=\"{above:.1}\" \
             text-anchor=\"middle\">{percent:.1}</text>\
             <text x=\"{middle:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>"
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_frame_the_values() {
        for (low, high, expected) in [
            (0.0, 1.0, (0.0, 1.0, 0.2)),
            (0.0, 47.3, (0.0, 50.0, 10.0)),
            (0.0, 6.9, (0.0, 8.0, 2.0)),
            (-0.3, 0.9, (-0.5, 1.0, 0.5)),
        ] {
            let (found_low, found_high, step) = frame(low, high, 5.0);
            let found = [
                found_low - expected.0,
                found_high - expected.1,
                step - expected.2,
            ];
            assert!(
                found.iter().all(|difference| difference.abs() < 1e-9),
                "{low} {high} {found:?}"
            );
        }
        let (low, high, _) = frame(0.0, 0.0, 5.0);
        assert!(high > low, "values that are all zero still have a frame");
    }

    #[test]
    fn a_curve_runs_from_corner_to_corner() {
        let points = [[0.0, 0.0], [5.0, f64::NAN], [10.0, 1.0]];
        let svg = curve(&Curve {
            title: "a < b",
            x_label: "step",
            points: &points,
            digits: 1,
        });
        assert!(svg.contains("points=\"46.0,206.0 468.0,14.0\""), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>"));
        let svg = curve(&Curve {
            title: "none",
            x_label: "step",
            points: &[],
            digits: 1,
        });
        assert!(svg.contains("nothing measured"));
    }
}
