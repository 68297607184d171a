//! A completion in words; wrong arithmetic is marked, nonsense is `?`.

use crate::completion::{Completion, MAX_EXPLAINED_WORDS};

pub(super) fn explain(completion: &str) -> String {
    let completion = Completion::read(completion);
    let (words, more) = completion.thinking_words();
    let mut lines: Vec<String> = Vec::new();
    if !words.is_empty() {
        lines.extend(words.split(|word| *word == ";").map(statement));
    }
    if more {
        lines.push("(and so on)".to_string());
    }
    lines.push(match completion.answer {
        Some(answer) => format!("Answer: {}", joined_digits(answer.split_whitespace())),
        None => "No answer was given.".to_string(),
    });
    lines.join("\n")
}

/// One column, and the result that ends its line where there is one.
fn statement(words: &[&str]) -> String {
    match words.iter().position(|word| *word == ":") {
        Some(colon) => {
            let result = joined_digits(words[colon + 1..].iter().copied());
            format!("{}\nThis makes {result}.", column(&words[..colon]))
        }
        None => column(words),
    }
}

fn column(words: &[&str]) -> String {
    let &[x, sign, y, "+", carry, "=", tens, ones] = words else {
        return "?".to_string();
    };
    let read = [x, y, carry, tens, ones].map(digit);
    let [Some(x), Some(y), Some(carry), Some(tens), Some(ones)] = read else {
        return "?".to_string();
    };
    let value = match sign {
        "*" => x * y + carry,
        "+" => x + y + carry,
        _ => return "?".to_string(),
    };
    let claimed = 10 * tens + ones;
    let mark = if claimed == value { "" } else { " (wrong)" };
    format!("  {x} {sign} {y}, carry {carry}: {claimed}{mark}, write {ones}, carry {tens}")
}

fn digit(word: &str) -> Option<u32> {
    let mut chars = word.chars();
    let value = chars.next()?.to_digit(10)?;
    chars.next().is_none().then_some(value)
}

fn joined_digits<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let digits: Option<String> = words
        .take(MAX_EXPLAINED_WORDS)
        .map(|word| digit(word).and_then(|value| char::from_digit(value, 10)))
        .collect();
    digits
        .filter(|digits| !digits.is_empty())
        .unwrap_or_else(|| "?".to_string())
}
