//! What a forward pass works on: a packed list of tokens, and the cache it may read.

use crate::config::{Attention, Config};
use kernels::{KeyRows, Sequences};

/// Tokens of several sequences, one after the other: whole documents in training, a chunk of a
/// prompt in prefill, one token per sequence in decoding.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub token_ids: Vec<u32>,
    /// Position of each token in its sequence.
    pub positions: Vec<u32>,
    /// Rows of sequence s: `cu_seqlens[s]..cu_seqlens[s + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// Keys that each sequence attends to, its tokens of this batch included.
    pub context_lens: Vec<u32>,
    /// Where a cache holds the sequences; `None` for whole documents without one.
    pub places: Option<CachePlaces>,
}

/// Where a [`KvCache`] holds the sequences of a batch.
#[derive(Clone, Debug, Default)]
pub struct CachePlaces {
    /// For each token, `block * block_size + offset`.
    pub slot_mapping: Vec<u32>,
    /// `[sequences, blocks_per_sequence]`
    pub block_tables: Vec<u32>,
    pub blocks_per_sequence: usize,
}

impl Batch {
    /// Whole documents that cannot see each other.
    pub fn documents(documents: &[&[u32]]) -> Batch {
        let mut batch = Batch {
            cu_seqlens: vec![0],
            ..Batch::default()
        };
        for document in documents {
            batch.token_ids.extend_from_slice(document);
            batch.positions.extend(0..document.len() as u32);
            batch.cu_seqlens.push(batch.token_ids.len() as u32);
            batch.context_lens.push(document.len() as u32);
        }
        batch
    }

    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// The sequences as attention sees them: keys in the cache where there is one.
    pub(crate) fn sequences(&self, block_size: usize) -> Sequences<'_> {
        let key_rows = match &self.places {
            None => KeyRows::Packed,
            Some(places) => KeyRows::Blocks {
                tables: &places.block_tables,
                blocks_per_sequence: places.blocks_per_sequence,
                block_size,
            },
        };
        let (cu_seqlens, context_lens) = (&self.cu_seqlens, &self.context_lens);
        Sequences {
            cu_seqlens,
            context_lens,
            key_rows,
        }
    }
}

/// Keys and values of past tokens, in blocks, for every layer: of MLA the latent with its rotary
/// key, which is both; of grouped heads a row of keys and a row of values per token.
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    num_blocks: usize,
    block_size: usize,
}

/// `[num_blocks * block_size, width]` each; no values where the keys are the values too.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl KvCache {
    /// Room for `num_blocks` blocks of `block_size` tokens in every layer.
    pub fn new(config: &Config, num_blocks: usize, block_size: usize) -> KvCache {
        KvCache::of_layers(config, config.num_hidden_layers, num_blocks, block_size)
    }

    /// As [`KvCache::new`], and for multi-token prediction.
    pub fn with_mtp(config: &Config, num_blocks: usize, block_size: usize) -> KvCache {
        let layers = config.num_hidden_layers + config.num_nextn_predict_layers;
        KvCache::of_layers(config, layers, num_blocks, block_size)
    }

    fn of_layers(config: &Config, layers: usize, num_blocks: usize, block_size: usize) -> KvCache {
        let (keys, values) = match &config.attention {
            Attention::Mla(mla) => (mla.latent_width(), 0),
            Attention::Gqa(gqa) => {
                let width = gqa.num_key_value_heads * gqa.head_dim;
                (width, width)
            }
        };
        let rows = num_blocks * block_size;
        let layer = || LayerCache {
            keys: vec![0.0; rows * keys],
            values: vec![0.0; rows * values],
        };
        KvCache {
            layers: (0..layers).map(|_| layer()).collect(),
            num_blocks,
            block_size,
        }
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn bytes(&self) -> usize {
        let floats = |layer: &LayerCache| layer.keys.len() + layer.values.len();
        4 * self.layers.iter().map(floats).sum::<usize>()
    }
}
