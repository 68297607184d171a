//! Problems with checkable answers: draw one, ask it, show worked text for it, and judge an answer.
//!
//! A task knows words, never token ids: every text here is words of [`vocabulary()`] joined by one
//! blank, so one tokenizer serves all tasks. Nothing in this crate holds randomness of its own; the
//! caller passes a [`Draw`], so the same draws give the same problems and the same texts.
#![forbid(unsafe_code)]

mod completion;
mod countdown;
mod multiplication;
mod split;
mod vocabulary;
mod writer;

use std::fmt;

pub use countdown::Countdown;
pub use multiplication::Multiplication;
pub use vocabulary::{
    EOS, LARGEST_NUMBER, PAD, SPECIAL_WORDS, THINK_CLOSE, THINK_OPEN, UNK, VOCABULARY_SIZE,
    vocabulary,
};

/// The caller's randomness: `draw(n)` returns an integer uniform in `0..n` (`n` is at least 1).
pub type Draw<'a> = dyn FnMut(u64) -> u64 + 'a;

/// What is given and what must come out.
///
/// Countdown: the numbers, largest first, and the target. Multiplication: the two factors in the
/// order shown, and their product.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    pub numbers: Vec<u32>,
    pub target: u32,
}

/// How a worked text goes about its problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceStyle {
    /// The task's own way of working in full, from which a small model learns best.
    Row,
    /// The answer at once, with no working.
    Blurt,
    /// Depth-first search with dead ends and backtracking (Stream of Search, arXiv 2404.03683).
    DepthFirst,
}

/// The judgement of one completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What follows the last `</think>` is a right answer.
    pub accurate: bool,
    /// Exactly one `</think>`, `<eos>` at the end, and an answer that can be read.
    pub well_formed: bool,
    /// Why the completion is not accurate or not well formed; `"right"` where it is both.
    pub reason: &'static str,
}

/// Problems with checkable answers.
///
/// A completion is what the model writes after the prompt, decoded *with* its special tokens.
pub trait Task {
    /// The name by which [`task_by_name`] finds this task.
    fn name(&self) -> String;

    /// Draws a problem, of the training or of the held-out side.
    fn problem(&self, draw: &mut Draw) -> Problem;

    /// Whether the problem is kept for evaluation. A fixed function of the problem: about one in
    /// ten is held out, in every run and for ever.
    fn is_held_out(&self, problem: &Problem) -> bool;

    /// The problem in words, as a user would type it.
    fn question(&self, problem: &Problem) -> String;

    /// The question with thinking opened: what the model completes.
    fn prompt(&self, problem: &Problem) -> String {
        format!("{} {THINK_OPEN}", self.question(problem))
    }

    /// A right completion in the given style, from after `<think>` up to and including `<eos>`.
    /// `None` where the style has none within [`Task::max_completion_tokens`].
    fn trace(&self, problem: &Problem, style: TraceStyle, draw: &mut Draw) -> Option<String>;

    /// Judges a completion. Never panics, whatever the text.
    fn verify(&self, problem: &Problem, completion: &str) -> Verdict;

    /// The completion's thinking and answer as a reader would say them, one line a thought. Shows
    /// `?` where the model wrote nonsense and marks wrong arithmetic; never panics.
    fn explain(&self, problem: &Problem, completion: &str) -> String;

    /// How many words a completion may have, `<eos>` included.
    fn max_completion_tokens(&self) -> usize;

    /// How many attempts the `Row` working needs at best, so that a caller can oversample the
    /// rarer, harder problems. `None` where that style has no working for the problem.
    fn attempts(&self, problem: &Problem) -> Option<usize>;

    /// Draws until a problem is of the training side.
    fn training_problem(&self, draw: &mut Draw) -> Problem {
        draw_until(self, draw, false)
    }

    /// Draws until a problem is of the held-out side.
    fn held_out_problem(&self, draw: &mut Draw) -> Problem {
        draw_until(self, draw, true)
    }
}

/// One draw in ten is held out, so ten thousand misses mean that `draw` is not random.
fn draw_until<T: Task + ?Sized>(task: &T, draw: &mut Draw, held_out: bool) -> Problem {
    for _ in 0..10_000 {
        let problem = task.problem(draw);
        if task.is_held_out(&problem) == held_out {
            return problem;
        }
    }
    panic!(
        "{}: 10,000 draws gave no problem with held_out = {held_out}",
        task.name()
    );
}

/// A task name that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    name: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: String = self.name.chars().take(60).collect();
        write!(
            f,
            "task {name:?} is unknown; known tasks: {}",
            TASK_NAMES.join(", ")
        )
    }
}

impl std::error::Error for Error {}

/// The names that [`task_by_name`] knows.
pub const TASK_NAMES: [&str; 6] = [
    "countdown3",
    "countdown4",
    "multiplication1x1",
    "multiplication2x1",
    "multiplication2x2",
    "multiplication3x3",
];

/// The task of that name with its default settings.
///
/// # Errors
/// An unknown name; the message lists the known ones.
pub fn task_by_name(name: &str) -> Result<Box<dyn Task>, Error> {
    Ok(match name {
        "countdown3" => Box::new(Countdown::three()),
        "countdown4" => Box::new(Countdown::four()),
        "multiplication1x1" => Box::new(Multiplication::new(1, 1)),
        "multiplication2x1" => Box::new(Multiplication::new(2, 1)),
        "multiplication2x2" => Box::new(Multiplication::new(2, 2)),
        "multiplication3x3" => Box::new(Multiplication::new(3, 3)),
        _ => {
            return Err(Error {
                name: name.to_string(),
            });
        }
    })
}
