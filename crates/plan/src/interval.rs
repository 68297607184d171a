//! A value that is known to lie between two bounds.

use std::ops::Mul;

use serde::{Deserialize, Serialize, Serializer};

/// `low <= mid <= high`. In JSON a plain number where the three are one, else an object.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Interval<T> {
    pub low: T,
    pub mid: T,
    pub high: T,
}

impl<T: Copy + PartialOrd> Interval<T> {
    /// # Panics
    /// If the bounds are out of order.
    pub fn new(low: T, mid: T, high: T) -> Interval<T> {
        assert!(low <= mid && mid <= high, "bounds of an interval in order");
        Interval { low, mid, high }
    }

    /// Known exactly.
    pub fn exact(value: T) -> Interval<T> {
        Interval {
            low: value,
            mid: value,
            high: value,
        }
    }

    pub fn contains(&self, value: T) -> bool {
        self.low <= value && value <= self.high
    }

    /// Through a function that grows or falls throughout; the bounds change places if it falls.
    pub fn map<U: Copy + PartialOrd>(&self, f: impl Fn(T) -> U) -> Interval<U> {
        let (a, b) = (f(self.low), f(self.high));
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        Interval {
            low,
            mid: f(self.mid),
            high,
        }
    }
}

/// The product of two positive values that may be low or high together: the widest bounds.
impl<T, U, V> Mul<Interval<U>> for Interval<T>
where
    T: Mul<U, Output = V>,
{
    type Output = Interval<V>;

    fn mul(self, other: Interval<U>) -> Interval<V> {
        Interval {
            low: self.low * other.low,
            mid: self.mid * other.mid,
            high: self.high * other.high,
        }
    }
}

impl<T: Serialize + PartialEq> Serialize for Interval<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Bounds<'a, T> {
            low: &'a T,
            mid: &'a T,
            high: &'a T,
        }
        if self.low == self.high {
            return self.mid.serialize(serializer);
        }
        let Interval { low, mid, high } = self;
        Bounds { low, mid, high }.serialize(serializer)
    }
}
