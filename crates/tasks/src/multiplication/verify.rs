//! Judging an answer: the product's digits, one a word.

use crate::completion::Completion;
use crate::{Problem, Verdict};

/// Longer answers are not read; three digits times three have six.
const MAX_ANSWER_DIGITS: usize = 12;

pub(super) fn verify(problem: &Problem, completion: &str) -> Verdict {
    Completion::read(completion).verdict(|answer| {
        let value = product(answer)?;
        let right = value == u64::from(problem.target);
        Ok(if right {
            Ok(())
        } else {
            Err("the product is wrong")
        })
    })
}

fn product(answer: &str) -> Result<u64, &'static str> {
    let mut value = 0;
    let mut count = 0;
    for word in answer.split_whitespace() {
        let &[digit @ b'0'..=b'9'] = word.as_bytes() else {
            return Err("the answer has a word that is no digit");
        };
        if count > 0 && value == 0 {
            return Err("the answer has a leading zero");
        }
        count += 1;
        if count > MAX_ANSWER_DIGITS {
            return Err("the answer is too long");
        }
        value = 10 * value + u64::from(digit - b'0');
    }
    if count == 0 {
        Err("the answer is empty")
    } else {
        Ok(value)
    }
}
