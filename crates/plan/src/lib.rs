//! Arithmetic about arithmetic: what a model takes to train and to serve, on which chips, in what
//! time and for how much; and whether a claim about that can be true.
//!
//! Nothing here measures: every efficiency is data with a source (`data/efficiencies.toml`).
#![forbid(unsafe_code)]

pub mod audit;
pub mod budget;
pub mod campaign;
pub mod campaigns;
pub mod chip;
pub mod config;
pub mod date;
pub mod efficiency;
pub mod error;
pub mod executed;
pub mod export;
pub mod fit;
pub mod interval;
pub mod job;
pub mod layer_time;
pub mod layout;
pub mod measured;
pub mod memory;
pub mod nearest;
pub mod partition;
pub mod peaks;
pub mod preset;
pub mod quantity;
pub mod search;
pub mod serving;
pub mod shape;
pub mod stages;
pub mod step;
mod table;
pub mod training;
pub mod validation;
