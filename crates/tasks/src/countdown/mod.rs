//! Countdown: reach a target with `+ - * /` from given numbers, each used exactly once.
//!
//! A question is the numbers, largest first, and the target: `69 64 4 20`. An answer is a list of
//! steps `a op b result`, later steps using earlier results: `69 - 64 5 5 * 4 20`.
//!
//! # The `Row` working of three numbers
//! For each choice of the last number `z`, smallest first, one block of twelve words: the target
//! `t` and `z`, then what the other two would have to make (`|t-z|`, `t+z`, `t*z`, the quotient);
//! the other two `x y`, then what they do make (`x-y`, `x+y`, `x*y`, the quotient). A value that is
//! not a whole number in `1..=999` is `~`. A value in both rows ends the search; else `x` (a dead
//! end) and the next `z`. A `z` equal to the one before it is not tried again.
//!
//! ```text
//! 69 64 4 20 <think> 20 4 16 24 80 5 69 64 5 133 ~ ~ </think> 69 - 64 5 5 * 4 20 <eos>
//! ```
//!
//! # The `Row` working of four numbers
//! A first step, then `;`, the three-number question that it leaves, `=`, and that question's own
//! working, word for word as above, so that what was learnt on three numbers carries over. If it
//! finds nothing: `try` and another first step.
//!
//! ```text
//! 75 69 11 4 20 <think> 75 + 69 144 ; 144 11 4 20 = 20 4 16 24 80 5 144 11 133 155 ~ ~
//!   x 20 11 9 31 220 ~ 144 4 140 148 576 36 x 20 144 124 164 ~ ~ 11 4 7 15 44 ~
//!   try 75 - 11 64 ; 69 64 4 20 = 20 4 16 24 80 5 69 64 5 133 ~ ~
//!   </think> 75 - 11 64 69 - 64 5 5 * 4 20 <eos>
//! ```
//!
//! How many last numbers a first step gets before `try` is [`Countdown::last_numbers_per_try`].
//!
//! # The `DepthFirst` working
//! Each step as it is taken; the first pair is the largest two, the operations go `- + * /`. After
//! the last two numbers gave something else than the target, or all steps from a position failed,
//! `x` takes back the latest step that still stands.
//!
//! ```text
//! 8 3 2 30 <think> 8 - 3 5 5 - 2 3 x 5 + 2 7 x 5 * 2 10 x x 8 + 3 11 11 - 2 9 x 11 + 2 13 x
//!   11 * 2 22 x x 8 * 3 24 24 - 2 22 x 24 + 2 26 x 24 * 2 48 x 24 / 2 12 x x 8 - 2 6 6 - 3 3 x
//!   6 + 3 9 x 6 * 3 18 x 6 / 3 2 x x 8 + 2 10 10 - 3 7 x 10 + 3 13 x 10 * 3 30
//!   </think> 8 + 2 10 10 * 3 30 <eos>
//! ```

mod depth_first;
mod explain;
mod problem;
mod ratio;
mod row;
mod verify;

use crate::writer::Writer;
use crate::{Draw, EOS, Problem, THINK_CLOSE, Task, TraceStyle, Verdict, split};
use problem::Step;

/// The largest target.
pub(crate) const MAX_TARGET: u32 = 100;

/// The task and its settings.
#[derive(Clone, Debug)]
pub struct Countdown {
    /// How many numbers: 3 or 4.
    count: usize,
    /// Numbers are uniform in `1..=max_number`.
    max_number: u32,
    /// Four numbers: how many first steps a `Row` working tries at most, the last being good.
    pub first_step_tries: usize,
    /// Four numbers: how many last numbers `z` a first step gets before `try`, 1 to 3. Of random
    /// problems 95 % have a working with 3 (mean 156 words), 83 % with 2 (120), 70 % with 1 (82).
    pub last_numbers_per_try: usize,
    /// Completions, written or generated, have at most so many words.
    pub max_completion_tokens: usize,
}

impl Countdown {
    /// Three numbers in `1..=99`. No `Row` completion is longer than the limit of 48 words.
    pub fn three() -> Countdown {
        Countdown::new(3, 99)
    }

    /// Four numbers in `1..=99`, as TinyZero has them.
    /// `Row` completions of six tries have at most 307 words; the limit is 320.
    pub fn four() -> Countdown {
        Countdown::new(4, 99)
    }

    /// Panics unless `count` is 3 or 4 and `max_number` in `1..=999`.
    pub fn new(count: usize, max_number: u32) -> Countdown {
        assert!(
            matches!(count, 3 | 4),
            "countdown has 3 or 4 numbers, not {count}"
        );
        assert!(
            (1..=crate::LARGEST_NUMBER).contains(&max_number),
            "max_number {max_number}"
        );
        let max_completion_tokens = if count == 3 { 48 } else { 320 };
        let (first_step_tries, last_numbers_per_try) = (6, 3);
        Countdown {
            count,
            max_number,
            first_step_tries,
            last_numbers_per_try,
            max_completion_tokens,
        }
    }

    /// How many numbers a problem has: 3 or 4.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The targets in `1..=100` that the numbers reach when each is used once and every
    /// intermediate is a positive whole number, ascending.
    pub fn targets(&self, numbers: &[u32]) -> Vec<u32> {
        problem::targets(problem::reachable(numbers)).collect()
    }

    /// Which `z` ends the `Row` working of a three-number problem: 1 is the smallest number. Four
    /// numbers: the same for the best first step. `None` where there is no such working.
    pub fn row_attempts(&self, problem: &Problem) -> Option<usize> {
        row::attempts(self, problem)
    }
}

impl Task for Countdown {
    fn name(&self) -> String {
        format!("countdown{}", self.count)
    }

    /// Numbers uniform in `1..=max_number`; the target uniform among those they reach.
    fn problem(&self, draw: &mut Draw) -> Problem {
        problem::draw_problem(self.count, self.max_number, draw)
    }

    fn is_held_out(&self, problem: &Problem) -> bool {
        let values = problem::largest_first(&problem.numbers)
            .into_iter()
            .chain([problem.target]);
        split::is_held_out(0xc0de, values)
    }

    fn question(&self, problem: &Problem) -> String {
        let mut writer = Writer::default();
        writer.words(problem.numbers.iter().chain([&problem.target]));
        writer.finish(usize::MAX).unwrap_or_default()
    }

    fn trace(&self, problem: &Problem, style: TraceStyle, draw: &mut Draw) -> Option<String> {
        let mut writer = Writer::default();
        let steps = match style {
            TraceStyle::Row => row::work(self, problem, draw, &mut writer)?,
            TraceStyle::Blurt => row::work(self, problem, draw, &mut Writer::default())?,
            TraceStyle::DepthFirst => {
                depth_first::work(problem, self.max_completion_tokens, &mut writer)?
            }
        };
        write_answer(&steps, &mut writer);
        writer.finish(self.max_completion_tokens)
    }

    fn verify(&self, problem: &Problem, completion: &str) -> Verdict {
        verify::verify(problem, completion)
    }

    fn explain(&self, _problem: &Problem, completion: &str) -> String {
        explain::explain(completion)
    }

    fn max_completion_tokens(&self) -> usize {
        self.max_completion_tokens
    }

    fn attempts(&self, problem: &Problem) -> Option<usize> {
        self.row_attempts(problem)
    }
}

fn write_answer(steps: &[Step], writer: &mut Writer) {
    writer.word(THINK_CLOSE);
    steps.iter().for_each(|step| step.write(writer));
    writer.word(EOS);
}
