//! What a model is, as far as arithmetic on it goes: layers, and of each the matrices that a token
//! is multiplied with.
//!
//! Parameters, operations, bytes and times are all sums over [`Product`]s, so they cannot disagree
//! about what a layer holds.

mod attention;
mod convert;
mod count;
mod feed_forward;

pub use attention::{Attention, Grouped, Indexer, Mla, Span};
pub use count::{CacheWidth, ParameterParts};
pub use feed_forward::{Experts, FeedForward};

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub vocab_size: u64,
    pub hidden_size: u64,
    /// The layers in order; equal neighbours are one entry.
    pub blocks: Vec<Blocks>,
    /// Modules of multi-token prediction (DeepSeek-V3, section 2.2): one layer like the last, a
    /// projection of `2 * hidden_size` to `hidden_size`, and the model's own embedding and head.
    pub mtp_modules: u64,
    pub tie_word_embeddings: bool,
    /// Rows of a learned table of positions; 0 with RoPE or ALiBi.
    pub learned_positions: u64,
    /// Norms outside the layers: the final one, and one behind the embedding where there is one.
    pub norms: u64,
    /// What norms hold per channel: 1 in RMSNorm, 2 in LayerNorm, whose bias counts, 0 where they
    /// have no weights.
    pub norm_vectors: u64,
    /// The longest sequence that the model is said to take, where that is known.
    pub max_position_embeddings: Option<u64>,
}

/// Equal layers that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    pub count: u64,
    pub layer: Layer,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub attention: Attention,
    pub feed_forward: FeedForward,
    /// Norms of the hidden size: 2, 1 in Falcon's parallel blocks, 4 in sandwiches.
    pub norms: u64,
}

/// A matrix, or several of one size, that tokens are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// As in the checkpoint.
    pub name: &'static str,
    pub part: Part,
    /// Width of what goes in.
    pub inputs: u64,
    /// Width of what comes out.
    pub outputs: u64,
    /// Matrices of this size in the layer: 1, or the number of routed experts.
    pub stored: u64,
    /// How many of them each token meets; 0 of a matrix for positions, which is applied to them
    /// once for all sequences.
    pub used: u64,
    pub split: Split,
}

/// Which part of a layer a product belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Attention,
    Indexer,
    DenseFeedForward,
    SharedExperts,
    RoutedExperts,
    Router,
    MtpProjection,
    Head,
}

/// How tensor parallelism divides a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// By its outputs; what goes in is whole on every chip.
    Outputs,
    /// By its inputs; what comes out is summed over the chips.
    Inputs,
    /// Not at all: every chip holds it whole and computes its own tokens' share of it.
    Whole,
}

impl Product {
    /// Parameters that all matrices of the product hold.
    pub fn parameters(&self) -> u64 {
        self.inputs * self.outputs * self.stored
    }

    /// Parameters that one token meets.
    pub fn active_parameters(&self) -> u64 {
        self.inputs * self.outputs * self.used
    }
}

impl Layer {
    /// Every product of one token's way through the layer, in order.
    pub fn products(&self, hidden_size: u64) -> Vec<Product> {
        let mut products = self.attention.products(hidden_size);
        products.extend(self.feed_forward.products(hidden_size));
        products
    }

    /// Numbers of the layer that are no matrices: norms, biases.
    pub fn vectors(&self, hidden_size: u64, norm_vectors: u64) -> u64 {
        self.norms * hidden_size * norm_vectors
            + self.attention.vectors()
            + self.feed_forward.vectors(hidden_size)
    }

    /// Those of them that one token does not meet: biases of the experts that it did not choose.
    fn idle_vectors(&self, hidden_size: u64) -> u64 {
        self.feed_forward.idle_vectors(hidden_size)
    }
}

impl Shape {
    pub fn num_layers(&self) -> u64 {
        self.blocks.iter().map(|blocks| blocks.count).sum()
    }

    /// The layer at an index, counted from 0.
    ///
    /// # Panics
    /// If there is none.
    pub fn layer(&self, mut layer_idx: u64) -> &Layer {
        for blocks in &self.blocks {
            if layer_idx < blocks.count {
                return &blocks.layer;
            }
            layer_idx -= blocks.count;
        }
        panic!("a layer of the model");
    }

    /// The layer that multi-token prediction repeats.
    pub fn last_layer(&self) -> &Layer {
        let blocks = self.blocks.last().expect("a model has layers");
        &blocks.layer
    }

    /// The largest mixture of the model, if there is any.
    pub fn experts(&self) -> Option<&Experts> {
        let mixtures = self.blocks.iter();
        mixtures
            .filter_map(|blocks| blocks.layer.feed_forward.experts.as_ref())
            .max_by_key(|experts| experts.routed)
    }

    /// Hidden states to logits.
    pub fn head(&self) -> Product {
        Product {
            name: "lm_head",
            part: Part::Head,
            inputs: self.hidden_size,
            outputs: self.vocab_size,
            stored: 1,
            used: 1,
            split: Split::Outputs,
        }
    }

    /// The projection of one module of multi-token prediction.
    pub fn mtp_projection(&self) -> Product {
        Product {
            name: "eh_proj",
            part: Part::MtpProjection,
            inputs: 2 * self.hidden_size,
            outputs: self.hidden_size,
            stored: 1,
            used: 1,
            split: Split::Whole,
        }
    }
}
