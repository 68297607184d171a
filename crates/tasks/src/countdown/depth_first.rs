//! The `DepthFirst` working: every step as it is taken, and back again.

use super::problem::{Step, largest_first, steps_from};
use crate::Problem;
use crate::writer::Writer;

struct Search<'a> {
    target: u32,
    /// Steps and `x` that may still be written, in words.
    room: usize,
    standing: Vec<Step>,
    writer: &'a mut Writer,
}

/// Writes the search and returns the steps that reached the target. `None` where no whole positive
/// steps within `limit` words do.
pub(super) fn work(problem: &Problem, limit: usize, writer: &mut Writer) -> Option<Vec<Step>> {
    let mut search = Search {
        target: problem.target,
        room: limit,
        standing: Vec::new(),
        writer,
    };
    search
        .visit(&largest_first(&problem.numbers))
        .then_some(search.standing)
}

impl Search<'_> {
    /// True when the target was reached; `standing` then holds the way there. Recursion goes as
    /// deep as there are numbers.
    fn visit(&mut self, numbers: &[u32]) -> bool {
        if let [only] = numbers {
            return *only == self.target;
        }
        for (step, left) in steps_from(numbers) {
            let Some(room) = self.room.checked_sub(5) else {
                return false;
            };
            self.room = room;
            step.write(self.writer);
            self.standing.push(step);
            if self.visit(&left) {
                return true;
            }
            self.standing.pop();
            self.writer.word("x");
        }
        false
    }
}
