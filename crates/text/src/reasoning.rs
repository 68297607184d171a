//! Where thinking ends and the answer begins.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Splits a completion into its thinking and its answer, as DeepSeek-R1 writes them; both trimmed.
///
/// `primed`: the prompt ended inside `<think>`, so the completion starts with thinking. Otherwise
/// it thinks only if it starts with `<think>`. The first `</think>` ends the thinking; where there
/// is none, everything is thinking and the answer is empty.
pub fn split_reasoning(text: &str, primed: bool) -> (Option<&str>, &str) {
    let text = text.trim();
    let thinking = match text.strip_prefix(OPEN) {
        Some(thinking) => thinking,
        None if primed => text,
        None => return (None, text),
    };
    let (thinking, answer) = thinking.split_once(CLOSE).unwrap_or((thinking, ""));
    (Some(thinking.trim()), answer.trim())
}

/// Whether a rendered prompt ends inside an open `<think>`: with the tag, then white space alone.
/// A `<think>` further up is a user's text or an earlier answer's.
pub fn opens_thinking(prompt: &str) -> bool {
    prompt.trim_end().ends_with(OPEN)
}

/// What became certain with a chunk; either may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub reasoning: String,
    pub answer: String,
}

/// [`split_reasoning`] for a completion that comes in chunks. The pieces of all chunks, joined, are
/// what it gives for the whole, however the text is cut: a tag may be spread over chunks. Held back
/// is only what may be part of a tag, or white space that may be the last.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    place: Place,
    primed: bool,
    /// Text that is not yet given.
    held: String,
    /// Whether the present part has given anything; white space before that is dropped.
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but white space, or part of `<think>`.
    Start,
    Thinking,
    Answer,
}

impl ReasoningSplitter {
    /// `primed`: as for [`split_reasoning`]; [`opens_thinking`] of the prompt tells.
    pub fn new(primed: bool) -> ReasoningSplitter {
        ReasoningSplitter {
            place: Place::Start,
            primed,
            held: String::new(),
            begun: false,
        }
    }

    /// Whether the text so far ends within thinking.
    pub fn is_thinking(&self) -> bool {
        match self.place {
            Place::Start => self.primed,
            place => place == Place::Thinking,
        }
    }

    pub fn push(&mut self, chunk: &str) -> Piece {
        self.held += chunk;
        let mut piece = Piece::default();
        if self.place == Place::Start {
            self.start();
        }
        if self.place == Place::Thinking {
            let end = self.held.find(CLOSE);
            let certain = end.unwrap_or(self.held.len() - overlap(&self.held, CLOSE));
            piece.reasoning = self.give(certain);
            if end.is_some() {
                // What is left before the tag is white space at the thinking's end.
                let tag = self.held.find(CLOSE).map_or(0, |at| at + CLOSE.len());
                self.held.drain(..tag);
                self.place = Place::Answer;
                self.begun = false;
            }
        }
        if self.place == Place::Answer {
            piece.answer = self.give(self.held.len());
        }
        piece
    }

    /// What is still held back, after the last chunk.
    pub fn finish(mut self) -> Piece {
        if self.place == Place::Start {
            self.place = match self.primed {
                true => Place::Thinking,
                false => Place::Answer,
            };
        }
        let rest = self.give(self.held.len());
        match self.place {
            Place::Thinking => Piece {
                reasoning: rest,
                answer: String::new(),
            },
            _ => Piece {
                reasoning: String::new(),
                answer: rest,
            },
        }
    }

    /// Decides how the completion starts, if it is certain.
    fn start(&mut self) {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(OPEN) {
            self.held = rest.to_string();
            self.place = Place::Thinking;
        } else if !OPEN.starts_with(text) {
            self.place = match self.primed {
                true => Place::Thinking,
                false => Place::Answer,
            };
        }
    }

    /// Takes the first `certain` bytes, without white space at their end, and without white space
    /// in front if they are the part's first.
    fn give(&mut self, certain: usize) -> String {
        let mut start = 0;
        if !self.begun {
            let text = &self.held[..certain];
            start = certain - text.trim_start().len();
        }
        let end = start + self.held[start..certain].trim_end().len();
        let given = self.held[start..end].to_string();
        self.begun |= !given.is_empty();
        self.held.drain(..end);
        given
    }
}

/// Bytes at the text's end that may be the beginning of the tag.
fn overlap(text: &str, tag: &str) -> usize {
    let lengths = (1..tag.len()).rev();
    lengths
        .into_iter()
        .find(|&length| text.ends_with(&tag[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{ReasoningSplitter, opens_thinking, split_reasoning};

    /// Text, whether it is primed, thinking and answer.
    type Case = (&'static str, bool, (Option<&'static str>, &'static str));

    const CASES: [Case; 16] = [
        ("a b </think> c", true, (Some("a b"), "c")),
        ("<think>\na\n</think>\n\nc", false, (Some("a"), "c")),
        ("<think> a </think> c", true, (Some("a"), "c")),
        ("a b", true, (Some("a b"), "")),
        ("<think> a", false, (Some("a"), "")),
        ("c", false, (None, "c")),
        ("c </think> d", false, (None, "c </think> d")),
        ("</think> c", true, (Some(""), "c")),
        ("a </think> c </think> d", true, (Some("a"), "c </think> d")),
        ("", true, (Some(""), "")),
        ("", false, (None, "")),
        (" <think", false, (None, "<think")),
        ("<thin a </think", true, (Some("<thin a </think"), "")),
        ("a </thi </think>é  \n", true, (Some("a </thi"), "é")),
        (
            "a<</think>\u{a0} b \u{3000}c",
            true,
            (Some("a<"), "b \u{3000}c"),
        ),
        (" \n<think></think> ", false, (Some(""), "")),
    ];

    #[test]
    fn splits_as_r1_does() {
        for (text, primed, expected) in CASES {
            assert_eq!(
                split_reasoning(text, primed),
                expected,
                "{text:?} primed {primed}"
            );
        }
    }

    /// All ways to cut a text in three, and character by character.
    #[test]
    fn chunks_make_no_difference() {
        for (text, primed, (thinking, answer)) in CASES {
            let cuts: Vec<usize> = (0..=text.len())
                .filter(|&at| text.is_char_boundary(at))
                .collect();
            let mut ways: Vec<Vec<&str>> = Vec::new();
            for (index, &first) in cuts.iter().enumerate() {
                for &second in &cuts[index..] {
                    ways.push(vec![&text[..first], &text[first..second], &text[second..]]);
                }
            }
            ways.push(
                cuts.windows(2)
                    .map(|pair| &text[pair[0]..pair[1]])
                    .collect(),
            );
            for chunks in ways {
                let mut splitter = ReasoningSplitter::new(primed);
                let mut pieces: Vec<_> = chunks.iter().map(|chunk| splitter.push(chunk)).collect();
                pieces.push(splitter.finish());
                let reasoning: String = pieces.iter().map(|p| p.reasoning.as_str()).collect();
                let answered: String = pieces.iter().map(|p| p.answer.as_str()).collect();
                assert_eq!(
                    reasoning,
                    thinking.unwrap_or(""),
                    "{chunks:?} primed {primed}"
                );
                assert_eq!(answered, answer, "{chunks:?} primed {primed}");
            }
        }
    }

    #[test]
    fn text_comes_as_soon_as_it_is_certain() {
        let mut splitter = ReasoningSplitter::new(true);
        assert!(splitter.is_thinking());
        assert_eq!(splitter.push("a b<").reasoning, "a b");
        assert_eq!(splitter.push("c").reasoning, "<c");
        let piece = splitter.push("</think>\n\nd e ");
        assert_eq!(
            (piece.reasoning.as_str(), piece.answer.as_str()),
            ("", "d e")
        );
        assert!(!splitter.is_thinking());
    }

    #[test]
    fn a_prompt_primes_at_its_end() {
        assert!(opens_thinking("<｜Assistant｜><think>\n"));
        assert!(!opens_thinking("what is <think>?<｜Assistant｜>"));
        assert!(!opens_thinking("<think>\n\n</think>\n\n"));
    }
}
