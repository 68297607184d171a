//! One file per op: its forward and its backward.

pub(crate) mod attention;
pub(crate) mod copy;
pub(crate) mod embedding;
pub(crate) mod experts;
pub(crate) mod head;
pub(crate) mod optimizer;
pub(crate) mod rmsnorm;
pub(crate) mod rope;
pub(crate) mod router;
pub(crate) mod swiglu;
