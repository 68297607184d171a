//! The numbers of a model that are not packed for products.

use std::ops::Range;

/// Weights by their place in the flat buffer of [`Layout`](crate::Layout).
pub(crate) enum Params {
    /// All of them, as training needs them.
    Flat(Vec<f32>),
    /// Norms and biases alone: matrices exist in the form that products read, and nowhere else.
    Vectors(Vectors),
}

/// Some ranges of the flat buffer, one behind the other.
#[derive(Default)]
pub(crate) struct Vectors {
    /// First place in the flat buffer, ascending, and first place in `values`.
    starts: Vec<(usize, usize)>,
    values: Vec<f32>,
}

impl Vectors {
    /// Adds a range behind all that were added before.
    pub fn push(&mut self, range: &Range<usize>) -> &mut [f32] {
        assert!(
            self.starts.last().is_none_or(|last| last.0 < range.start),
            "ascending ranges"
        );
        let at = self.values.len();
        self.starts.push((range.start, at));
        self.values.resize(at + range.len(), 0.0);
        &mut self.values[at..]
    }
}

impl Params {
    /// The weights of a range.
    ///
    /// # Panics
    /// If the range is a matrix and only vectors are held.
    pub fn get(&self, range: &Range<usize>) -> &[f32] {
        match self {
            Params::Flat(all) => &all[range.clone()],
            Params::Vectors(_) if range.is_empty() => &[],
            Params::Vectors(vectors) => {
                let found = vectors.starts.binary_search_by_key(&range.start, |s| s.0);
                let at = vectors.starts[found.expect("norms and biases are held")].1;
                &vectors.values[at..at + range.len()]
            }
        }
    }

    /// # Panics
    /// If only vectors are held: such a model is not trained.
    pub fn flat(&self) -> &[f32] {
        match self {
            Params::Flat(all) => all,
            Params::Vectors(_) => panic!("opened for inference: it has no flat weights"),
        }
    }

    /// # Panics
    /// As [`Params::flat`].
    pub fn flat_mut(&mut self) -> &mut [f32] {
        match self {
            Params::Flat(all) => all,
            Params::Vectors(_) => panic!("opened for inference: it has no flat weights"),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Params::Flat(all) => 4 * all.len(),
            Params::Vectors(vectors) => 4 * vectors.values.len(),
        }
    }
}
