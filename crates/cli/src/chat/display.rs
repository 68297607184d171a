//! An answer as it appears: the thinking between its marks, dimmed on a terminal.

use std::borrow::Cow;

use text::Piece;

use crate::plain::inert;

const DIM: &str = "\u{1b}[2m";
const NORMAL: &str = "\u{1b}[0m";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Thinking,
    Answer,
}

/// The text of one answer, piece by piece.
pub struct Display {
    on_terminal: bool,
    dims: bool,
    place: Place,
}

impl Display {
    /// On a terminal the model's text is made inert; elsewhere it is the model's bytes.
    pub fn new(on_terminal: bool, no_color: bool) -> Display {
        Display {
            on_terminal,
            dims: on_terminal && !no_color,
            place: Place::Start,
        }
    }

    pub fn piece(&mut self, piece: &Piece) -> String {
        let mut shown = String::new();
        if !piece.reasoning.is_empty() {
            if self.place == Place::Start {
                shown += self.dim(DIM);
                shown += "<think> ";
                self.place = Place::Thinking;
            }
            shown += &self.text(&piece.reasoning);
        }
        if !piece.answer.is_empty() {
            if self.place == Place::Thinking {
                shown += " </think>";
                shown += self.dim(NORMAL);
                shown.push('\n');
            }
            self.place = Place::Answer;
            shown += &self.text(&piece.answer);
        }
        shown
    }

    /// What comes after the last piece. Thinking that was cut off is not closed.
    pub fn end(self) -> String {
        match self.place {
            Place::Thinking => format!("{}\n", self.dim(NORMAL)),
            Place::Start | Place::Answer => "\n".to_string(),
        }
    }

    fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.on_terminal {
            true => Cow::Owned(inert(text)),
            false => Cow::Borrowed(text),
        }
    }

    fn dim(&self, code: &'static str) -> &'static str {
        match self.dims {
            true => code,
            false => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mut display: Display, pieces: &[(&str, &str)]) -> String {
        let mut shown = String::new();
        for (reasoning, answer) in pieces {
            shown += &display.piece(&Piece {
                reasoning: reasoning.to_string(),
                answer: answer.to_string(),
            });
        }
        shown + &display.end()
    }

    #[test]
    fn thinking_is_marked_and_dimmed_on_a_terminal_alone() {
        let pieces = [("a", ""), (" b", "c\u{1b}[2J"), ("", "\nd")];
        for (on_terminal, no_color, expected) in [
            (false, false, "<think> a b </think>\nc\u{1b}[2J\nd\n"),
            (true, true, "<think> a b </think>\nc\\u{1b}[2J\nd\n"),
            (
                true,
                false,
                "\u{1b}[2m<think> a b </think>\u{1b}[0m\nc\\u{1b}[2J\nd\n",
            ),
        ] {
            assert_eq!(
                shown(Display::new(on_terminal, no_color), &pieces),
                expected
            );
        }
        let cut = shown(Display::new(true, false), &[("a", "")]);
        assert_eq!(cut, "\u{1b}[2m<think> a\u{1b}[0m\n");
        assert_eq!(shown(Display::new(true, false), &[("", "c")]), "c\n");
    }
}
