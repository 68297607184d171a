//! Arithmetic about arithmetic: what a model takes to train and to serve, on which chips, in what
//! time and for how much; and whether a claim about that can be true.
//!
//! Nothing here measures: every efficiency is data with a source (`data/efficiencies.toml`).
#![forbid(unsafe_code)]

pub mod interval;
pub mod quantity;
pub mod shape;
