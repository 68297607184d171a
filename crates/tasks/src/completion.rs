//! The parts of a completion, alike in every task: thinking, `</think>`, an answer, `<eos>`.

use crate::{EOS, THINK_CLOSE, Verdict};

/// Words read of one completion to explain it, so that endless output gives no endless text.
pub(crate) const MAX_EXPLAINED_WORDS: usize = 2_000;

/// What an answer was judged to be. The outer error: it cannot be read. The inner: it is wrong.
pub(crate) type Judged = Result<Result<(), &'static str>, &'static str>;

pub(crate) struct Completion<'a> {
    /// Everything before the last `</think>`.
    pub thinking: &'a str,
    /// What follows the last `</think>` up to `<eos>`, where there is one.
    pub answer: Option<&'a str>,
    form: Result<(), &'static str>,
}

impl<'a> Completion<'a> {
    pub(crate) fn read(text: &'a str) -> Completion<'a> {
        let Some((thinking, rest)) = text.rsplit_once(THINK_CLOSE) else {
            let form = Err("no answer after </think>");
            let thinking = text.split(EOS).next().unwrap_or_default();
            return Completion {
                thinking,
                answer: None,
                form,
            };
        };
        let (answer, after) = rest
            .split_once(EOS)
            .map_or((rest, None), |(a, b)| (a, Some(b)));
        let form = if thinking.contains(THINK_CLOSE) {
            Err("more than one </think>")
        } else if thinking.contains(EOS) || after.is_none_or(|after| !after.trim().is_empty()) {
            Err("does not end with <eos>")
        } else {
            Ok(())
        };
        Completion {
            thinking,
            answer: Some(answer),
            form,
        }
    }

    pub(crate) fn verdict(&self, judge: impl FnOnce(&str) -> Judged) -> Verdict {
        let judged = self
            .answer
            .map_or(Ok(Err("no answer after </think>")), judge);
        Verdict {
            accurate: judged == Ok(Ok(())),
            well_formed: judged.is_ok() && self.form.is_ok(),
            reason: judged
                .and_then(|judged| judged)
                .and(self.form)
                .err()
                .unwrap_or("right"),
        }
    }

    /// The thinking in words, and whether there was more than is explained.
    pub(crate) fn thinking_words(&self) -> (Vec<&'a str>, bool) {
        let mut words = self.thinking.split_whitespace();
        let first: Vec<&str> = words.by_ref().take(MAX_EXPLAINED_WORDS).collect();
        (first, words.next().is_some())
    }
}
