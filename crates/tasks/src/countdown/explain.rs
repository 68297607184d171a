//! A completion in words that a reader can follow. The model's own claims are shown as it made
//! them, wrong ones marked: this reads anything, and judges only single steps.

use super::problem::{OPS, Op};
use crate::LARGEST_NUMBER;
use crate::completion::{Completion, MAX_EXPLAINED_WORDS};

pub(super) fn explain(completion: &str) -> String {
    let completion = Completion::read(completion);
    let (words, more) = completion.thinking_words();
    let mut lines = thinking_in_lines(&words);
    if more {
        lines.push("(and so on)".to_string());
    }
    lines.push(match completion.answer {
        Some(answer) => format!("Answer: {}", answer_in_words(answer)),
        None => "No answer was given.".to_string(),
    });
    lines.join("\n")
}

/// A number as written, or `None` for any other word.
fn number(word: &str) -> Option<u32> {
    word.parse()
        .ok()
        .filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()))
}

/// One line for each marker, step, restated question or row of a block.
fn thinking_in_lines(words: &[&str]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = words;
    while let Some((&first, after)) = rest.split_first() {
        let (line, left) = match first {
            "x" => ("  Dead end; go back.".to_string(), after),
            "try" => ("  Try another first step.".to_string(), after),
            ";" => question_left(after),
            _ if rest.get(1).and_then(|word| Op::from_word(word)).is_some() => step_line(rest),
            _ if number(first).is_some() => block_lines(rest),
            _ => ("?".to_string(), after),
        };
        // A run of nonsense is one `?`.
        if line != "?" || lines.last() != Some(&line) {
            lines.push(line);
        }
        rest = left;
    }
    lines
}

/// `a op b result` as a sentence.
fn step_line<'a, 'w>(words: &'w [&'a str]) -> (String, &'w [&'a str]) {
    let (step, rest) = words.split_at(words.len().min(4));
    (step_in_words(step), rest)
}

fn step_in_words(step: &[&str]) -> String {
    let at = |index: usize| step.get(index).and_then(|word| number(word));
    let op = step.get(1).and_then(|word| Op::from_word(word));
    match (at(0), op, at(2)) {
        (Some(a), Some(op), Some(b)) => claim(a, op, b, step.get(3).copied()),
        _ => "?".to_string(),
    }
}

/// `a op b = claimed`, and whether that is so.
fn claim(a: u32, op: Op, b: u32, claimed: Option<&str>) -> String {
    let sign = op.word();
    let value = op.apply(a, b).filter(|&value| value <= LARGEST_NUMBER);
    match claimed {
        Some("~") if value.is_none() => format!("{a} {sign} {b} {}", fault(op)),
        Some("~") => format!("{a} {sign} {b} is of no use (wrong)"),
        Some(word) => match number(word) {
            Some(result) if value == Some(result) => format!("{a} {sign} {b} = {result}"),
            Some(result) => format!("{a} {sign} {b} = {result} (wrong)"),
            None => format!("{a} {sign} {b} = ?"),
        },
        None => format!("{a} {sign} {b} = ?"),
    }
}

/// Why a result of this operation is not a number in `1..=999`.
fn fault(op: Op) -> &'static str {
    match op {
        Op::Add | Op::Multiply => "is above 999",
        Op::Subtract => "is not positive",
        Op::Divide => "is not whole",
    }
}

/// `a b c t =` after the `;`.
fn question_left<'a, 'w>(words: &'w [&'a str]) -> (String, &'w [&'a str]) {
    let numbers = words
        .iter()
        .take_while(|word| number(word).is_some())
        .count();
    let (question, mut rest) = words.split_at(numbers);
    if let Some((&"=", after)) = rest.split_first() {
        rest = after;
    }
    let line = match question {
        [numbers @ .., target] if !numbers.is_empty() => {
            format!("  This leaves {} for {target}.", numbers.join(", "))
        }
        _ => "?".to_string(),
    };
    (line, rest)
}

/// Twelve words, or as many as stand there before a marker.
fn block_lines<'a, 'w>(words: &'w [&'a str]) -> (String, &'w [&'a str]) {
    let is_slot = |word: &&&str| **word == "~" || number(word).is_some();
    let length = words.iter().take(12).take_while(is_slot).count();
    let (block, rest) = words.split_at(length);
    let (needs, makes) = block.split_at(length.min(6));
    let mut line = match needs {
        [target, last, ..] => format!("With {last} last, to reach {target}: {}", row(needs)),
        _ => "?".to_string(),
    };
    if let [x, y, ..] = makes {
        line += &format!("\n  {x} and {y} make: {}", row(makes));
        line += &meeting(needs, makes);
    }
    (line, rest)
}

/// The four claims after the two numbers of a row. Differences and quotients take the larger first.
fn row(words: &[&str]) -> String {
    let pair = (
        words.first().and_then(|w| number(w)),
        words.get(1).and_then(|w| number(w)),
    );
    let (Some(a), Some(b)) = pair else {
        return "?".to_string();
    };
    let claims: Vec<String> = OPS
        .iter()
        .enumerate()
        .map(|(slot, &op)| claim(a.max(b), op, a.min(b), words.get(slot + 2).copied()))
        .collect();
    claims.join("; ")
}

/// The values that the model wrote in both rows.
fn meeting(needs: &[&str], makes: &[&str]) -> String {
    let made = makes.get(2..).unwrap_or_default();
    let needed = needs.get(2..).unwrap_or_default();
    let both: Vec<&str> = needed
        .iter()
        .copied()
        .filter(|word| *word != "~" && made.contains(word))
        .collect();
    if both.is_empty() {
        String::new()
    } else {
        format!("\n  In both: {}", both.join(", "))
    }
}

fn answer_in_words(answer: &str) -> String {
    let words: Vec<&str> = answer
        .split_whitespace()
        .take(MAX_EXPLAINED_WORDS)
        .collect();
    let is_expression = !words
        .windows(2)
        .any(|pair| pair.iter().all(|w| number(w).is_some()));
    if words.is_empty() {
        "?".to_string()
    } else if is_expression {
        words.join(" ")
    } else {
        words
            .chunks(4)
            .map(step_in_words)
            .collect::<Vec<_>>()
            .join("; ")
    }
}
