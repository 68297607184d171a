//! Guesses at the tokens to come, from a sequence's own earlier text.
//!
//! Prompt look-up (Saxena 2023): where the last tokens stood before, what followed them then may
//! follow again. A guess changes how fast a token comes, never which.

use std::collections::HashMap;

/// Tokens at the end of the text that are compared at most; at least two must be equal.
const LONGEST_MATCH: usize = 4;
/// Earlier places that are looked at for one guess.
const MOST_PLACES: usize = 32;
/// Length of the first guess.
const FIRST_WIDTH: usize = 4;
/// Steps without a guess, at most, after guesses that were all wrong.
const LONGEST_PAUSE: u32 = 64;

/// Rests after failures, longer after each, for a wrong guess costs a row.
#[derive(Default)]
pub(crate) struct Pacing {
    misses: u32,
    pause: u32,
}

impl Pacing {
    /// Whether to guess in this step.
    pub(crate) fn is_due(&mut self) -> bool {
        let is_due = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        is_due
    }

    pub(crate) fn note(&mut self, was_right: bool) {
        if was_right {
            self.misses = 0;
        } else {
            self.misses += 1;
            self.pause = LONGEST_PAUSE.min(1 << self.misses.min(31)) - 1;
        }
    }
}

/// An index of all pairs of neighbours in a text that only grows.
pub(crate) struct Lookup {
    /// Where each pair ended last.
    last: HashMap<(u32, u32), u32>,
    /// Where the pair that ends at a place ended the time before.
    before: Vec<Option<u32>>,
    width: usize,
}

impl Default for Lookup {
    fn default() -> Lookup {
        Lookup {
            last: HashMap::new(),
            before: Vec::new(),
            width: FIRST_WIDTH,
        }
    }
}

impl Lookup {
    /// `most` tokens at most that may follow the text, from the most recent of the longest matches.
    /// The text of a call begins with that of the call before.
    pub(crate) fn propose(&mut self, text: &[u32], most: usize) -> Vec<u32> {
        self.index(text);
        let most = most.min(self.width);
        let end = text.len() - 1;
        let (mut best, mut best_length) = (None, 0);
        let mut place = self.before[end];
        for _ in 0..MOST_PLACES {
            let Some(at) = place else { break };
            let length = match_length(text, at as usize, end);
            if length > best_length {
                (best, best_length) = (Some(at as usize), length);
            }
            if best_length == LONGEST_MATCH {
                break;
            }
            place = self.before[at as usize];
        }
        // Where the match reaches the end of the text, the guess goes on in itself, as a loop does.
        let period = best.map_or(1, |best| end - best);
        let guess = |i: usize| best.map(|best| text[best + 1 + i % period]);
        (0..most).map_while(guess).collect()
    }

    fn index(&mut self, text: &[u32]) {
        for place in self.before.len()..text.len() {
            let before = match place {
                0 => None,
                _ => self
                    .last
                    .insert((text[place - 1], text[place]), place as u32),
            };
            self.before.push(before);
        }
    }

    /// Longer guesses where they were right to the end, shorter ones where they were not.
    pub(crate) fn note(&mut self, proposed: usize, accepted: usize) {
        self.width = if accepted == proposed {
            (2 * self.width).min(usize::from(u16::MAX))
        } else {
            accepted + 1
        };
    }
}

/// How many tokens up to `end` are those up to the earlier `at`.
fn match_length(text: &[u32], at: usize, end: usize) -> usize {
    (0..LONGEST_MATCH)
        .take_while(|&back| back <= at && text[at - back] == text[end - back])
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::{Chance, Purpose};

    #[test]
    fn what_followed_before_is_the_guess() {
        let mut lookup = Lookup::default();
        assert!(lookup.propose(&[5], 9).is_empty());
        assert!(lookup.propose(&[5, 6, 7, 8, 9], 9).is_empty());
        // 6 7 stood before 8 9, and so on into the end of the text and around.
        assert_eq!(lookup.propose(&[5, 6, 7, 8, 9, 6, 7], 3), [8, 9, 6]);
        lookup.note(4, 4);
        assert_eq!(
            lookup.propose(&[5, 6, 7, 8, 9, 6, 7], 9),
            [8, 9, 6, 7, 8, 9, 6, 7]
        );
        lookup.note(8, 1);
        assert_eq!(lookup.propose(&[5, 6, 7, 8, 9, 6, 7], 9), [8, 9]);
        let loop_of_one = [3, 3, 3];
        assert_eq!(Lookup::default().propose(&loop_of_one, 9), [3, 3, 3, 3]);
    }

    /// Against every earlier place of every length, where there are few enough places for all to be
    /// looked at.
    #[test]
    fn the_longest_match_wins_and_of_equals_the_latest() {
        let mut guesses = 0;
        for seed in 0..200 {
            let mut draw = Chance::new(seed, Purpose::Problem).draws(1);
            let ids = 3 + draw(5);
            let text: Vec<u32> = (0..30).map(|_| draw(ids) as u32).collect();
            let mut lookup = Lookup::default();
            for len in 1..=text.len() {
                let text = &text[..len];
                let got = lookup.propose(text, 1);
                let is_at = |n: usize, at: usize| at >= n && text[at - n..at] == text[len - n..];
                let expected = [4, 3, 2]
                    .into_iter()
                    .filter(|&n| n <= len)
                    .find_map(|n| (0..len).rev().find(|&at| is_at(n, at)));
                assert_eq!(got.first(), expected.map(|at| &text[at]), "seed {seed}");
                guesses += got.len();
            }
        }
        assert!(guesses > 1000, "{guesses}");
    }

    #[test]
    fn failures_make_pauses_that_grow_and_end() {
        let mut pacing = Pacing::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert!(pacing.is_due());
            pacing.note(false);
            pauses.push((1..).find(|_| pacing.is_due()).unwrap() - 1);
        }
        assert_eq!(pauses, [1, 3, 7, 15, 31, 63, 63, 63, 63]);
        pacing.note(true);
        pacing.note(false);
        assert_eq!((1..).find(|_| pacing.is_due()), Some(2));
    }
}
