//! Judging an answer: a list of steps, or an expression with parentheses.

use super::problem::Op;
use super::ratio::Ratio;
use crate::completion::{Completion, Judged};
use crate::{Problem, Verdict};

/// Longer answers are not read: a right one has at most 16 words and a few parentheses.
const MAX_ANSWER_TOKENS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Number(u32),
    Op(Op),
    Open,
    Close,
}

pub(super) fn verify(problem: &Problem, completion: &str) -> Verdict {
    Completion::read(completion).verdict(|answer| read_answer(problem, answer))
}

fn read_answer(problem: &Problem, answer: &str) -> Judged {
    let tokens = tokens(answer)?;
    // Only in steps does a number follow a number.
    let numbers = |pair: &[Token]| matches!(pair, [Token::Number(_), Token::Number(_)]);
    if tokens.windows(2).any(numbers) {
        read_steps(problem, &tokens)
    } else {
        read_expression(problem, &tokens)
    }
}

fn tokens(answer: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut rest = answer.trim_start();
    while let Some(first) = rest.chars().next() {
        if tokens.len() == MAX_ANSWER_TOKENS {
            return Err("the answer is too long");
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (word, after) = rest.split_at(if digits > 0 { digits } else { first.len_utf8() });
        tokens.push(match word {
            "(" => Token::Open,
            ")" => Token::Close,
            _ if digits > 0 => {
                Token::Number(word.parse().map_err(|_| "a number is too large to read")?)
            }
            _ => Token::Op(Op::from_word(word).ok_or("the answer has a word that is no step")?),
        });
        rest = after.trim_start();
    }
    if tokens.is_empty() {
        Err("the answer is empty")
    } else {
        Ok(tokens)
    }
}

/// `a op b result` again and again. Every operand is a given number or an earlier result, and
/// each is used once, so that `n` numbers take `n - 1` steps.
fn read_steps(problem: &Problem, tokens: &[Token]) -> Judged {
    let (steps, []) = tokens.as_chunks::<4>() else {
        return Err("a step is not complete");
    };
    let mut available = problem.numbers.clone();
    let mut judged = Ok(());
    for step in steps {
        let [
            Token::Number(a),
            Token::Op(op),
            Token::Number(b),
            Token::Number(result),
        ] = *step
        else {
            return Err("a step is not `number operation number result`");
        };
        // A wrong step ends the judging, not the reading: later steps must still have their form.
        judged = judged.and_then(|()| take_step(&mut available, a, op, b, result));
    }
    Ok(judged.and_then(|()| match available[..] {
        [value] if value == problem.target => Ok(()),
        [_] => Err("the result is not the target"),
        _ => Err("not every number is used"),
    }))
}

fn take_step(
    available: &mut Vec<u32>,
    a: u32,
    op: Op,
    b: u32,
    result: u32,
) -> Result<(), &'static str> {
    for operand in [a, b] {
        let place = available.iter().position(|&number| number == operand);
        available.swap_remove(place.ok_or("uses a number that is not there")?);
    }
    let value = Ratio::whole(a).apply(op, Ratio::whole(b))?;
    if value != Ratio::whole(result) {
        return Err("a step's result is wrong");
    }
    available.push(result);
    Ok(())
}

fn read_expression(problem: &Problem, tokens: &[Token]) -> Judged {
    let mut reader = Reader {
        tokens,
        used: Vec::new(),
    };
    let value = reader.sum()?;
    if !reader.tokens.is_empty() {
        return Err("the answer does not end where its expression ends");
    }
    let (mut used, mut given) = (reader.used, problem.numbers.clone());
    used.sort_unstable();
    given.sort_unstable();
    Ok(value.and_then(|value| {
        if used != given {
            Err("not every number is used exactly once")
        } else if value != Ratio::whole(problem.target) {
            Err("the result is not the target")
        } else {
            Ok(())
        }
    }))
}

/// Recursive descent with the usual precedence. The inner `Err` of a value is arithmetic that has
/// no result; the outer one text that is no expression. Depth is bounded by the answer's length.
struct Reader<'a> {
    tokens: &'a [Token],
    used: Vec<u32>,
}

type Value = Result<Ratio, &'static str>;

impl Reader<'_> {
    fn sum(&mut self) -> Result<Value, &'static str> {
        let mut value = self.product()?;
        while let Some(op) = self.next_op([Op::Add, Op::Subtract]) {
            let right = self.product()?;
            value = value.and_then(|left| left.apply(op, right?));
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<Value, &'static str> {
        let mut value = self.operand()?;
        while let Some(op) = self.next_op([Op::Multiply, Op::Divide]) {
            let right = self.operand()?;
            value = value.and_then(|left| left.apply(op, right?));
        }
        Ok(value)
    }

    fn operand(&mut self) -> Result<Value, &'static str> {
        match self.next() {
            Some(Token::Number(number)) => {
                self.used.push(number);
                Ok(Ok(Ratio::whole(number)))
            }
            Some(Token::Open) => {
                let value = self.sum()?;
                match self.next() {
                    Some(Token::Close) => Ok(value),
                    _ => Err("a parenthesis is not closed"),
                }
            }
            _ => Err("an operand is missing"),
        }
    }

    fn next(&mut self) -> Option<Token> {
        let (&first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn next_op(&mut self, wanted: [Op; 2]) -> Option<Op> {
        match *self.tokens.first()? {
            Token::Op(op) if wanted.contains(&op) => {
                self.next();
                Some(op)
            }
            _ => None,
        }
    }
}
