//! Text of other people's files and models, made fit for a terminal.

/// Control characters, which a terminal would obey, and those that turn the direction of writing,
/// as escapes: one line stays one line.
pub fn plain(text: &str) -> String {
    escaped(text, |_| false)
}

/// As [`plain`], but line breaks and tabs stay: for a text of many lines, or for pieces of one as
/// they come, since every character stands for itself.
pub fn inert(text: &str) -> String {
    escaped(text, |character| matches!(character, '\n' | '\t'))
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        let turns = matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}');
        match (character.is_control() || turns) && !stays(character) {
            true => plain.extend(character.escape_debug()),
            false => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{inert, plain};

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_nothing_else() {
        for (text, shown) in [
            ("a\u{1b}[2Jb\nc\td\r", "a\\u{1b}[2Jb\\nc\\td\\r"),
            ("\u{9b}31m\u{7f}\u{202e}", "\\u{9b}31m\\u{7f}\\u{202e}"),
            ("\"<｜User｜>\" 'ü' \\ 漢", "\"<｜User｜>\" 'ü' \\ 漢"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn lines_stay_lines_in_a_text_of_many() {
        assert_eq!(
            inert("a\n\tb\u{1b}]0;x\u{7}\r\n"),
            "a\n\tb\\u{1b}]0;x\\u{7}\\r\n"
        );
    }
}
