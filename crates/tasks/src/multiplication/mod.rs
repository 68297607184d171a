//! Multiplication of two whole numbers, worked on paper, one digit a word.
//!
//! A question is the two factors' digits: `4 7 * 3 6`. An answer is the product's digits, the
//! highest first, without leading zeros.
//!
//! # The `Row` working
//! Statements with `;` between them. For each digit of the second factor, lowest first, every digit
//! of the first factor, lowest first, as `digit * digit + carry = tens ones`; then `:` and the
//! partial product with its zeros. From the second partial product on, it is added to the total:
//! column by column, lowest first, `digit + digit + carry = tens ones`; then `:` and the new total.
//!
//! ```text
//! 4 7 * 3 6 <think> 7 * 6 + 0 = 4 2 ; 4 * 6 + 4 = 2 8 : 2 8 2 ;
//!   7 * 3 + 0 = 2 1 ; 4 * 3 + 2 = 1 4 : 1 4 1 0 ;
//!   2 + 0 + 0 = 0 2 ; 8 + 1 + 0 = 0 9 ; 2 + 4 + 0 = 0 6 ; 0 + 1 + 0 = 0 1 : 1 6 9 2
//!   </think> 1 6 9 2 <eos>
//! ```
//!
//! There is no search in it, so there is no `DepthFirst` working.

mod explain;
mod verify;
mod working;

use crate::writer::Writer;
use crate::{Draw, EOS, Problem, THINK_CLOSE, Task, TraceStyle, Verdict, split};

/// The task: how many digits each factor has.
#[derive(Clone, Debug)]
pub struct Multiplication {
    digits: [u32; 2],
}

impl Multiplication {
    /// Factors of exactly so many digits, 1 to 3 each. Panics otherwise.
    pub fn new(first: u32, second: u32) -> Multiplication {
        let digits = [first, second];
        assert!(
            digits.iter().all(|d| (1..=3).contains(d)),
            "1 to 3 digits, not {digits:?}"
        );
        Multiplication { digits }
    }
}

/// Two digits times two digits.
impl Default for Multiplication {
    fn default() -> Multiplication {
        Multiplication::new(2, 2)
    }
}

/// The digits of a number, highest first.
fn digits(number: u32) -> Vec<u32> {
    number
        .to_string()
        .bytes()
        .map(|byte| u32::from(byte - b'0'))
        .collect()
}

/// The factors of a problem. Panics when it is not a problem of this task.
fn factors(problem: &Problem) -> [u32; 2] {
    let Ok(factors) = <[u32; 2]>::try_from(problem.numbers.as_slice()) else {
        panic!(
            "a multiplication has 2 factors, not {}",
            problem.numbers.len()
        )
    };
    factors
}

impl Task for Multiplication {
    fn name(&self) -> String {
        format!("multiplication{}x{}", self.digits[0], self.digits[1])
    }

    /// Each factor uniform among the numbers of its length, from 1 on.
    fn problem(&self, draw: &mut Draw) -> Problem {
        let numbers = self.digits.map(|digits| {
            let lowest = 10_u32.pow(digits - 1);
            let below = draw(u64::from(9 * lowest));
            lowest + u32::try_from(below).expect("draw(n) is below n")
        });
        Problem {
            numbers: numbers.to_vec(),
            target: numbers[0] * numbers[1],
        }
    }

    /// `a * b` and `b * a` are on the same side.
    fn is_held_out(&self, problem: &Problem) -> bool {
        let [a, b] = factors(problem);
        split::is_held_out(0x3417, [a.min(b), a.max(b)])
    }

    fn question(&self, problem: &Problem) -> String {
        let [a, b] = factors(problem);
        let mut writer = Writer::default();
        writer.words(digits(a));
        writer.word("*");
        writer.words(digits(b));
        writer.finish(usize::MAX).unwrap_or_default()
    }

    fn trace(&self, problem: &Problem, style: TraceStyle, _draw: &mut Draw) -> Option<String> {
        let mut writer = Writer::default();
        match style {
            TraceStyle::Row => working::write(factors(problem), &mut writer),
            TraceStyle::Blurt => {}
            TraceStyle::DepthFirst => return None,
        }
        writer.word(THINK_CLOSE);
        writer.words(digits(problem.target));
        writer.word(EOS);
        writer.finish(self.max_completion_tokens())
    }

    fn verify(&self, problem: &Problem, completion: &str) -> Verdict {
        verify::verify(problem, completion)
    }

    fn explain(&self, _problem: &Problem, completion: &str) -> String {
        explain::explain(completion)
    }

    /// Room for the longest `Row` working of these lengths.
    fn max_completion_tokens(&self) -> usize {
        let [a, b] = self.digits.map(|digits| digits as usize);
        let product = a + b;
        // A column is 9 words with the `;` or `:` after it; then come a result's digits and `;`.
        let partials = b * (9 * a + product + 1);
        let additions = (b - 1) * (9 * product + product + 1);
        partials + additions + product + 2
    }

    fn attempts(&self, _problem: &Problem) -> Option<usize> {
        Some(1)
    }
}
