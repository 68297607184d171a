//! The `Row` working: back from the target for each choice of the last number.

use super::Countdown;
use super::problem::{OPS, Op, Step, largest_first, steps_from};
use crate::writer::Writer;
use crate::{Draw, LARGEST_NUMBER, Problem};

/// A written value: `None` is `~`.
type Slot = Option<u32>;

/// One choice of the last number.
struct Block {
    target: u32,
    last: u32,
    /// What the other two would have to make, by the operation that makes it: `|t-z|, t+z, t*z`
    /// and the quotient of the larger by the smaller.
    needs: [Slot; 4],
    pair: (u32, u32),
    /// What the other two make by each operation.
    makes: [Slot; 4],
}

fn slots(a: u32, b: u32) -> [Slot; 4] {
    OPS.map(|op| {
        Step::new(a, op, b)
            .map(|step| step.result)
            .filter(|&r| r <= LARGEST_NUMBER)
    })
}

impl Block {
    fn new(target: u32, last: u32, pair: (u32, u32)) -> Block {
        Block {
            target,
            last,
            needs: slots(target, last),
            pair,
            makes: slots(pair.0, pair.1),
        }
    }

    /// The two steps of the first needed value that the pair makes.
    fn steps(&self) -> Option<[Step; 2]> {
        let (need, value) = self.needs.iter().enumerate().find_map(|(need, value)| {
            value
                .filter(|_| self.makes.contains(value))
                .map(|value| (need, value))
        })?;
        let make = self.makes.iter().position(|&made| made == Some(value))?;
        let first = Step::new(self.pair.0, OPS[make], self.pair.1)?;
        let second = Step::new(value, self.last_op(OPS[need]), self.last)?;
        assert_eq!(
            second.result, self.target,
            "a needed value makes the target"
        );
        Some([first, second])
    }

    /// The operation on a needed value and `z` that gives the target, where `undone` on the target
    /// and `z` gave that value. `Step` puts the larger operand first, so `z - v` and `z / v` are
    /// the operation itself.
    fn last_op(&self, undone: Op) -> Op {
        let target_is_larger = self.target >= self.last;
        match undone {
            Op::Add => Op::Subtract,
            Op::Multiply => Op::Divide,
            Op::Subtract if target_is_larger => Op::Add,
            Op::Divide if target_is_larger => Op::Multiply,
            own => own,
        }
    }

    fn write(&self, writer: &mut Writer) {
        writer.words([self.target, self.last]);
        write_slots(self.needs, writer);
        writer.words([self.pair.0, self.pair.1]);
        write_slots(self.makes, writer);
    }
}

fn write_slots(slots: [Slot; 4], writer: &mut Writer) {
    for slot in slots {
        match slot {
            Some(value) => writer.word(value),
            None => writer.word("~"),
        }
    }
}

/// The blocks of three numbers (largest first), up to the one that ends the search.
struct Row {
    blocks: Vec<Block>,
    steps: Option<[Step; 2]>,
}

impl Row {
    /// Tries at most `limit` different last numbers.
    fn search(numbers: &[u32], target: u32, limit: usize) -> Row {
        let &[a, b, c] = numbers else {
            panic!("a row has 3 numbers, not {}", numbers.len())
        };
        let mut choices = vec![(c, (a, b)), (b, (a, c)), (a, (b, c))];
        choices.dedup_by_key(|&mut (last, _)| last);
        let mut row = Row {
            blocks: Vec::new(),
            steps: None,
        };
        for (last, pair) in choices.into_iter().take(limit) {
            let block = Block::new(target, last, pair);
            row.steps = block.steps();
            row.blocks.push(block);
            if row.steps.is_some() {
                break;
            }
        }
        row
    }

    fn write(&self, writer: &mut Writer) {
        for (index, block) in self.blocks.iter().enumerate() {
            if index > 0 {
                writer.word("x");
            }
            block.write(writer);
        }
    }

    fn attempts(&self) -> Option<usize> {
        self.steps.map(|_| self.blocks.len())
    }
}

/// Writes the working and returns the steps of the answer. Only four numbers draw. `None` where
/// this way of working finds nothing, or nothing that fits the limit.
pub(super) fn work(
    task: &Countdown,
    problem: &Problem,
    draw: &mut Draw,
    writer: &mut Writer,
) -> Option<Vec<Step>> {
    let numbers = largest_first(&problem.numbers);
    if numbers.len() == 4 {
        return work_from_first_steps(task, &numbers, problem.target, draw, writer);
    }
    let row = Row::search(&numbers, problem.target, 3);
    row.write(writer);
    row.steps.map(|steps| steps.to_vec())
}

pub(super) fn attempts(task: &Countdown, problem: &Problem) -> Option<usize> {
    let numbers = largest_first(&problem.numbers);
    if numbers.len() == 4 {
        let tries = first_steps(task, &numbers, problem.target);
        return tries
            .iter()
            .filter_map(|attempt| attempt.row.attempts())
            .min();
    }
    Row::search(&numbers, problem.target, 3).attempts()
}

/// A first step of four numbers and the working of the three that it leaves.
struct Attempt {
    step: Step,
    left: Vec<u32>,
    row: Row,
}

impl Attempt {
    /// How many words [`Attempt::write`] writes: the step, `;`, the question, `=`; then twelve a
    /// block and an `x` between blocks.
    fn words(&self) -> usize {
        10 + 13 * self.row.blocks.len() - 1
    }

    fn write(&self, target: u32, writer: &mut Writer) {
        self.step.write(writer);
        writer.word(";");
        writer.words(self.left.iter().chain([&target]));
        writer.word("=");
        self.row.write(writer);
    }
}

fn first_steps(task: &Countdown, numbers: &[u32], target: u32) -> Vec<Attempt> {
    let attempt = |(step, left): (Step, Vec<u32>)| {
        let row = Row::search(&left, target, task.last_numbers_per_try);
        Attempt { step, left, row }
    };
    steps_from(numbers).into_iter().map(attempt).collect()
}

/// Random first steps until one is good. The last try allowed is a good one, and bad ones are left
/// out where the text would become too long.
fn work_from_first_steps(
    task: &Countdown,
    numbers: &[u32],
    target: u32,
    draw: &mut Draw,
    writer: &mut Writer,
) -> Option<Vec<Step>> {
    let mut tries = first_steps(task, numbers, target);
    shuffle(&mut tries, draw);
    let good = tries
        .iter()
        .position(|attempt| attempt.row.steps.is_some())?;
    // Three steps, `</think>` and `<eos>`.
    let answer_words = 14;
    let mut room = task
        .max_completion_tokens
        .checked_sub(tries[good].words() + answer_words)?;
    for bad in tries[..good]
        .iter()
        .take(task.first_step_tries.saturating_sub(1))
    {
        let Some(left) = room.checked_sub(bad.words() + 1) else {
            break;
        };
        room = left;
        bad.write(target, writer);
        writer.word("try");
    }
    tries[good].write(target, writer);
    let steps = tries[good].row.steps?;
    Some([&[tries[good].step], steps.as_slice()].concat())
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], draw: &mut Draw) {
    for end in (1..items.len()).rev() {
        let chosen = draw(end as u64 + 1) as usize;
        items.swap(chosen, end);
    }
}
