//! Exact fractions. Every operation is checked: what does not fit i128 is an error, never a wrong
//! value.

use super::problem::Op;

/// In lowest terms, with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ratio {
    numerator: i128,
    denominator: i128,
}

impl Ratio {
    pub(super) fn whole(value: u32) -> Ratio {
        Ratio {
            numerator: i128::from(value),
            denominator: 1,
        }
    }

    /// `self op other`.
    ///
    /// # Errors
    /// Division by zero, or a result that does not fit.
    pub(super) fn apply(self, op: Op, other: Ratio) -> Result<Ratio, &'static str> {
        let Ratio {
            numerator: n,
            denominator: d,
        } = other;
        match op {
            Op::Divide if n == 0 => return Err("divides by zero"),
            Op::Divide => self.times(d, n),
            Op::Multiply => self.times(n, d),
            Op::Add => self.plus(n, d),
            Op::Subtract => n.checked_neg().and_then(|negated| self.plus(negated, d)),
        }
        .ok_or("a value is too large")
    }

    fn times(self, n: i128, d: i128) -> Option<Ratio> {
        reduced(
            self.numerator.checked_mul(n)?,
            self.denominator.checked_mul(d)?,
        )
    }

    fn plus(self, n: i128, d: i128) -> Option<Ratio> {
        let sum = self
            .numerator
            .checked_mul(d)?
            .checked_add(n.checked_mul(self.denominator)?)?;
        reduced(sum, self.denominator.checked_mul(d)?)
    }
}

fn reduced(numerator: i128, denominator: i128) -> Option<Ratio> {
    let (mut a, mut b) = (numerator.checked_abs()?, denominator.checked_abs()?);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    let divisor = if denominator < 0 { -a } else { a };
    Some(Ratio {
        numerator: numerator / divisor,
        denominator: denominator / divisor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_exact() {
        let third = Ratio::whole(1).apply(Op::Divide, Ratio::whole(3)).unwrap();
        let two_thirds = third.apply(Op::Add, third).unwrap();
        assert_eq!(
            two_thirds.apply(Op::Multiply, Ratio::whole(3)),
            Ok(Ratio::whole(2))
        );
        let negative = Ratio::whole(1)
            .apply(Op::Subtract, Ratio::whole(3))
            .unwrap();
        let half = Ratio::whole(1).apply(Op::Divide, Ratio::whole(2)).unwrap();
        assert_eq!(
            Ratio::whole(0)
                .apply(Op::Subtract, half)
                .unwrap()
                .apply(Op::Multiply, Ratio::whole(4)),
            Ok(negative)
        );
        assert_eq!(negative.apply(Op::Divide, negative), Ok(Ratio::whole(1)));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zero = Ratio::whole(0);
        assert_eq!(
            Ratio::whole(1).apply(Op::Divide, zero),
            Err("divides by zero")
        );
        let mut value = Ratio::whole(u32::MAX);
        let grown = (0..10).try_for_each(|_| {
            value = value.apply(Op::Multiply, value)?;
            Ok::<(), &str>(())
        });
        assert_eq!(grown, Err("a value is too large"));
    }
}
