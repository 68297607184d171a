//! Operations, steps, which targets can be reached, and drawing a problem.

use super::MAX_TARGET;
use crate::writer::Writer;
use crate::{Draw, Problem};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Subtract,
    Add,
    Multiply,
    Divide,
}

/// The order in which a row lists them and a search tries them.
pub(super) const OPS: [Op; 4] = [Op::Subtract, Op::Add, Op::Multiply, Op::Divide];

impl Op {
    pub(super) fn word(self) -> &'static str {
        match self {
            Op::Subtract => "-",
            Op::Add => "+",
            Op::Multiply => "*",
            Op::Divide => "/",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Op> {
        OPS.into_iter().find(|op| op.word() == word)
    }

    /// The result where it is a positive whole number; saturates far above anything written.
    pub(super) fn apply(self, a: u32, b: u32) -> Option<u32> {
        match self {
            Op::Subtract => a.checked_sub(b).filter(|&value| value > 0),
            Op::Add => Some(a.saturating_add(b)),
            Op::Multiply => Some(a.saturating_mul(b)),
            Op::Divide => (b > 0 && a.is_multiple_of(b)).then(|| a / b),
        }
    }
}

/// `a op b = result`, with the larger operand first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub a: u32,
    pub op: Op,
    pub b: u32,
    pub result: u32,
}

impl Step {
    /// The step on two numbers in either order, where its result is positive and whole.
    pub(super) fn new(a: u32, op: Op, b: u32) -> Option<Step> {
        let (a, b) = (a.max(b), a.min(b));
        op.apply(a, b).map(|result| Step { a, op, b, result })
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.word(self.a);
        writer.word(self.op.word());
        writer.word(self.b);
        writer.word(self.result);
    }
}

pub(super) fn largest_first(numbers: &[u32]) -> Vec<u32> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted
}

/// All steps on two of the numbers (largest first) with a result that is one word, in the order of
/// a search, each with the numbers that it leaves (largest first). Equal pairs come once.
pub(super) fn steps_from(numbers: &[u32]) -> Vec<(Step, Vec<u32>)> {
    let mut found = Vec::new();
    let mut seen_pairs = Vec::new();
    for (i, &a) in numbers.iter().enumerate() {
        for (j, &b) in numbers.iter().enumerate().skip(i + 1) {
            if seen_pairs.contains(&(a, b)) {
                continue;
            }
            seen_pairs.push((a, b));
            for step in OPS.into_iter().filter_map(|op| Step::new(a, op, b)) {
                if step.result <= crate::LARGEST_NUMBER {
                    found.push((step, left_after(numbers, i, j, step.result)));
                }
            }
        }
    }
    found
}

fn left_after(numbers: &[u32], i: usize, j: usize, result: u32) -> Vec<u32> {
    let others = numbers
        .iter()
        .enumerate()
        .filter(|&(k, _)| k != i && k != j);
    let left: Vec<u32> = others.map(|(_, &number)| number).chain([result]).collect();
    largest_first(&left)
}

/// The reachable targets as a set of bits: bit `t` for target `t` in `1..=100`.
pub(super) fn reachable(numbers: &[u32]) -> u128 {
    let mut targets = 0;
    match *numbers {
        [a, b, c] => reach_from_three(a, b, c, &mut targets),
        [a, b, c, d] => {
            for (x, y, u, v) in [
                (a, b, c, d),
                (a, c, b, d),
                (a, d, b, c),
                (b, c, a, d),
                (b, d, a, c),
                (c, d, a, b),
            ] {
                for_each_result(x, y, |value| reach_from_three(value, u, v, &mut targets));
            }
        }
        _ => panic!("countdown has 3 or 4 numbers, not {}", numbers.len()),
    }
    targets
}

fn reach_from_three(a: u32, b: u32, c: u32, targets: &mut u128) {
    for (x, y, z) in [(a, b, c), (a, c, b), (b, c, a)] {
        for_each_result(x, y, |value| {
            for_each_result(value, z, |target| {
                if target <= MAX_TARGET {
                    *targets |= 1 << target;
                }
            });
        });
    }
}

/// The differences, sums, products and quotients that are positive and whole.
fn for_each_result(a: u32, b: u32, mut visit: impl FnMut(u32)) {
    let (a, b) = (a.max(b), a.min(b));
    if a > b {
        visit(a - b);
    }
    visit(a.saturating_add(b));
    visit(a.saturating_mul(b));
    if b > 0 && a.is_multiple_of(b) {
        visit(a / b);
    }
}

/// The targets of a set of bits, ascending.
pub(super) fn targets(bits: u128) -> impl Iterator<Item = u32> {
    (1..=MAX_TARGET).filter(move |target| bits >> target & 1 == 1)
}

pub(super) fn draw_problem(count: usize, max_number: u32, draw: &mut Draw) -> Problem {
    loop {
        let mut numbers: Vec<u32> = (0..count).map(|_| draw_one_to(max_number, draw)).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let bits = reachable(&numbers);
        // Numbers that reach nothing are drawn anew: they have no target to choose.
        if bits == 0 {
            continue;
        }
        let chosen = draw(u64::from(bits.count_ones())) as usize;
        let target = targets(bits).nth(chosen).expect("draw(n) is below n");
        return Problem { numbers, target };
    }
}

fn draw_one_to(largest: u32, draw: &mut Draw) -> u32 {
    let below = draw(u64::from(largest));
    u32::try_from(below).expect("draw(n) is below n") + 1
}
