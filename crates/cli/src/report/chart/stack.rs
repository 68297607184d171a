//! Parts of a whole, one after the other in one bar.

use std::fmt::Write;

use super::{LEFT, RIGHT, WIDTH, open};
use crate::report::escape;

/// A part narrower than this has no label inside.
const LABELLED: f64 = 46.0;
const HEIGHT: f64 = 92.0;
const TOP: f64 = 28.0;
const BAR: f64 = 34.0;

/// One part; its colour is the class `p0` to `p9` of the style sheet.
pub struct Part {
    pub name: &'static str,
    pub value: f64,
    pub colour: usize,
}

pub struct Stack<'a> {
    pub title: &'a str,
    pub parts: &'a [Part],
    /// What the parts may come to, with a word; shown as lines across the bar.
    pub limits: &'a [(f64, String)],
    /// A value with its unit.
    pub label: &'a dyn Fn(f64) -> String,
}

/// A bar from 0 to the sum of the parts, or to the greatest limit if that is more.
pub fn stack(stack: &Stack) -> String {
    let mut svg = open(stack.title, HEIGHT);
    let sum: f64 = stack.parts.iter().map(|part| part.value).sum();
    let limits = stack.limits.iter().map(|(value, _)| *value);
    let whole = limits.fold(sum, f64::max).max(f64::MIN_POSITIVE);
    // No axis stands to the left of it.
    let left = RIGHT;
    let width = |value: f64| value / whole * (WIDTH - LEFT / 2.0 - left);
    let mut at = left;
    for part in stack.parts.iter().filter(|part| part.value > 0.0) {
        let wide = width(part.value);
        let (name, label) = (escape(part.name), escape(&(stack.label)(part.value)));
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<rect class=\"part p{}\" x=\"{at:.1}\" y=\"{TOP}\" width=\"{wide:.1}\" \
             height=\"{BAR}\"><title>{name}: {label}</title></rect>",
            part.colour
        );
        if wide >= LABELLED {
            let (middle, text_y) = (at + wide / 2.0, TOP + BAR / 2.0 + 4.0);
            let _ = writeln!(
                svg,
                "<text class=\"inside\" x=\"{middle:.1}\" y=\"{text_y}\" \
                 text-anchor=\"middle\">{label}</text>"
            );
        }
        at += wide;
    }
    limit_lines(&mut svg, stack, |value| left + width(value));
    svg + "</svg>"
}

fn limit_lines(svg: &mut String, stack: &Stack, place: impl Fn(f64) -> f64) {
    for (index, (value, word)) in stack.limits.iter().enumerate() {
        let x = place(*value);
        let bottom = TOP + BAR + 6.0;
        // The words of two limits close to each other stand above and below.
        let (top, text_y) = match index % 2 {
            0 => (TOP - 6.0, TOP - 10.0),
            _ => (TOP - 6.0, bottom + 12.0),
        };
        let word = escape(word);
        let _ = writeln!(
            svg,
            "<line class=\"limit\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{text_y}\" text-anchor=\"end\">{word}</text>"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, Stack, stack};

    #[test]
    fn parts_share_the_width() {
        let part = |name, value, colour| Part {
            name,
            value,
            colour,
        };
        let parts = [part("a", 1.0, 0), part("none", 0.0, 1), part("b", 3.0, 2)];
        let svg = stack(&Stack {
            title: "whole",
            parts: &parts,
            limits: &[(4.0, "all".to_string())],
            label: &|value| format!("{value} s"),
        });
        // 480 wide less 12 and 23: a quarter and three quarters of 445.
        assert!(
            svg.contains("class=\"part p0\" x=\"12.0\" y=\"28\" width=\"111.2\""),
            "{svg}"
        );
        assert!(
            svg.contains("class=\"part p2\" x=\"123.2\" y=\"28\" width=\"333.8\""),
            "{svg}"
        );
        assert!(!svg.contains("none"), "{svg}");
        assert!(
            svg.contains(">3 s</text>") && svg.contains(">all</text>"),
            "{svg}"
        );
    }
}
