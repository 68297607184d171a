//! Sums joined in a fixed binary tree (the sum law).

/// Adds values as they come, in the shape of a binary counter: equal powers of two are joined at
/// once, so n values need no more than log2(n) + 1 partial sums. The tree depends on n alone, and
/// each aligned run of 2^k values is a subtree, which another process could have summed.
#[derive(Debug)]
pub struct PairwiseSum<T> {
    /// `levels[k]` holds the sum of 2^k values, or nothing.
    levels: Vec<Option<T>>,
}

impl<T> Default for PairwiseSum<T> {
    fn default() -> PairwiseSum<T> {
        PairwiseSum { levels: Vec::new() }
    }
}

impl<T> PairwiseSum<T> {
    /// Adds the next value; `add(earlier, later)` gives their sum.
    pub fn push(&mut self, value: T, mut add: impl FnMut(T, T) -> T) {
        let mut carry = value;
        for level in &mut self.levels {
            match level.take() {
                Some(earlier) => carry = add(earlier, carry),
                None => {
                    *level = Some(carry);
                    return;
                }
            }
        }
        self.levels.push(Some(carry));
    }

    /// The sum of all values, and an empty tree again. The last, incomplete runs are joined from
    /// the shortest, which is the latest, upwards.
    pub fn finish(&mut self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        let mut sum = None;
        for level in self.levels.drain(..) {
            sum = match (level, sum) {
                (Some(earlier), Some(later)) => Some(add(earlier, later)),
                (earlier, later) => earlier.or(later),
            };
        }
        sum
    }
}

/// The same tree over a list.
pub fn pairwise_sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sum = PairwiseSum::default();
    for value in values {
        sum.push(value, |a, b| a + b);
    }
    sum.finish(|a, b| a + b).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(values: std::ops::Range<usize>) -> String {
        let mut sum = PairwiseSum::default();
        let add = |a: String, b: String| format!("({a}{b})");
        values.for_each(|i| sum.push(i.to_string(), add));
        sum.finish(add).unwrap_or_default()
    }

    #[test]
    fn the_shape_is_a_binary_counter() {
        assert_eq!(tree(0..0), "");
        assert_eq!(tree(0..1), "0");
        assert_eq!(tree(0..3), "((01)2)");
        assert_eq!(tree(0..7), "(((01)(23))((45)6))");
        assert_eq!(tree(0..8), "(((01)(23))((45)(67)))");
    }

    #[test]
    fn two_ranks_join_to_the_same_tree() {
        assert_eq!(format!("({}{})", tree(0..4), tree(4..8)), tree(0..8));
        assert_eq!(format!("({}{})", tree(0..4), tree(4..7)), tree(0..7));
    }

    #[test]
    fn numbers() {
        assert_eq!(pairwise_sum([]), 0.0);
        assert_eq!(pairwise_sum((1..=100).map(f64::from)), 5050.0);
    }
}
