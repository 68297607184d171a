//! What this program executes: operations and bytes of its own forward and backward, in closed
//! form.
//!
//! Nothing here is an estimate: for every model each number is what the `count` backend of
//! `kernels` counts while the model runs, and its names are that backend's. MLA runs in the
//! absorbed form (DeepSeek-V2, section 2.1), in training too, and the backward takes the scores of
//! attention once more: another program may execute other numbers for the same model.

use model::{Attention, Config, Moe};
use std::iter::Sum;
use std::ops::{Add, Mul};

/// Columns of a panel: a held weight is padded to whole ones.
const PANEL: u128 = 32;
/// Of a key or a value in the cache, and of the activations: f32.
const KEY_BYTES: u128 = 4;

/// Operations, a multiply-add being two, and bytes; a large batch of a large model needs more than
/// 64 bits.
///
/// Norms, rotations, activation functions, softmax, biases, the lookup of embeddings and the
/// optimizer are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Of matrix products with weights, head included, and of those that give weights' gradients.
    pub matmul_flops: u128,
    /// Of scores and weighted values over the pairs of a query and a key that it sees.
    pub attention_flops: u128,
    /// Weights that products read, once a product. With several tokens the routed experts are those
    /// of even routing, `min(n_routed_experts, tokens * num_experts_per_tok)` of each layer: no
    /// routing reads more, and for one token none reads fewer.
    pub weights: u128,
    /// Bytes of these weights in the panels of [`model::Model::from_params`] where products are in
    /// bf16, router and head in f32 ([`model::Numerics::new`] of bf16): the padding of panels to 32
    /// columns is included. For other forms, start from `weights`.
    pub weight_bytes: u128,
    /// Bytes of keys and values (f32) that attention reads, each once a layer and pass.
    pub key_bytes: u128,
}

impl Executed {
    /// Of both kinds.
    pub fn flops(&self) -> u128 {
        self.matmul_flops + self.attention_flops
    }
}

impl Add for Executed {
    type Output = Executed;

    fn add(self, other: Executed) -> Executed {
        Executed {
            matmul_flops: self.matmul_flops + other.matmul_flops,
            attention_flops: self.attention_flops + other.attention_flops,
            weights: self.weights + other.weights,
            weight_bytes: self.weight_bytes + other.weight_bytes,
            key_bytes: self.key_bytes + other.key_bytes,
        }
    }
}

impl Mul<usize> for Executed {
    type Output = Executed;

    fn mul(self, times: usize) -> Executed {
        let times = times as u128;
        Executed {
            matmul_flops: times * self.matmul_flops,
            attention_flops: times * self.attention_flops,
            weights: times * self.weights,
            weight_bytes: times * self.weight_bytes,
            key_bytes: times * self.key_bytes,
        }
    }
}

impl Sum for Executed {
    fn sum<I: Iterator<Item = Executed>>(all: I) -> Executed {
        all.fold(Executed::default(), Add::add)
    }
}

/// New tokens of a sequence, at the end of what they attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub new: u64,
    /// Keys of the sequence, the new tokens included.
    pub context: u64,
}

/// One forward over packed documents of these lengths without a cache, and the head on every row;
/// no multi-token prediction.
pub fn forward(config: &Config, lengths: &[u64]) -> Executed {
    let batch = Batch::documents(lengths);
    layers(config, &batch, Pass::Forward) + head(config, batch.tokens, Pass::Forward)
}

/// Forward and backward of one packed batch of documents of these lengths, each token but the first
/// of a document being learnt; with multi-token prediction, each but the first two, where the model
/// has such a layer.
pub fn training_step(config: &Config, lengths: &[u64]) -> Executed {
    let batch = Batch::documents(lengths);
    let behind = |first: u64| -> u128 {
        let learnt = lengths.iter().map(|length| length.saturating_sub(first));
        learnt.map(u128::from).sum()
    };
    let step = layers(config, &batch, Pass::Training) + head(config, behind(1), Pass::Training);
    if config.num_nextn_predict_layers == 0 {
        return step;
    }
    let hidden = config.hidden_size;
    let join = Product::dense(hidden, 2 * hidden, batch.tokens).executed(Pass::Training);
    let layer = layer(config, config.num_hidden_layers, &batch, Pass::Training);
    step + join + layer + head(config, behind(2), Pass::Training)
}

/// One forward of chunks of prompts through the cache, and the head on `sampled` of the rows.
///
/// # Panics
/// If a chunk has more tokens than keys.
pub fn prefill(config: &Config, chunks: &[Chunk], sampled: u64) -> Executed {
    let batch = Batch::new(chunks.iter().copied());
    layers(config, &batch, Pass::Forward) + head(config, u128::from(sampled), Pass::Forward)
}

/// One step of decoding: a token of each sequence, which attends to so many keys, its own included;
/// and the head on each.
///
/// # Panics
/// If a sequence has no key.
pub fn decode(config: &Config, contexts: &[u64]) -> Executed {
    let one = |&context| Chunk { new: 1, context };
    let chunks: Vec<Chunk> = contexts.iter().map(one).collect();
    prefill(config, &chunks, contexts.len() as u64)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    /// Forward and backward.
    Training,
}

/// The sums over sequences that every layer needs.
struct Batch {
    tokens: u128,
    /// Of a query and a key that it sees.
    pairs: u128,
    /// Of sequences that have a query.
    keys: u128,
}

impl Batch {
    fn documents(lengths: &[u64]) -> Batch {
        let whole = |&length| Chunk {
            new: length,
            context: length,
        };
        Batch::new(lengths.iter().map(whole))
    }

    fn new(chunks: impl Iterator<Item = Chunk>) -> Batch {
        let mut batch = Batch {
            tokens: 0,
            pairs: 0,
            keys: 0,
        };
        for Chunk { new, context } in chunks {
            assert!(new <= context, "{new} tokens of a sequence of {context}");
            let (new, context) = (u128::from(new), u128::from(context));
            batch.tokens += new;
            batch.pairs += new * (context - new) + new * (new + 1) / 2;
            batch.keys += if new > 0 { context } else { 0 };
        }
        batch
    }
}

/// Rows times a weight, or times several of one shape.
struct Product {
    out_features: u128,
    in_features: u128,
    /// Over all the weights.
    rows: u128,
    /// How many of the weights have rows.
    read: u128,
    /// Router and head; the others are bf16.
    is_f32: bool,
    /// Whether the forward multiplies by the weight itself and the backward by its transpose.
    is_transposed: bool,
}

impl Product {
    fn dense(out_features: usize, in_features: usize, rows: u128) -> Product {
        Product::each(out_features, in_features, rows, 1)
    }

    /// `weights` of one shape that share `rows`.
    fn each(out_features: usize, in_features: usize, rows: u128, weights: u128) -> Product {
        Product {
            out_features: out_features as u128,
            in_features: in_features as u128,
            rows,
            read: if rows > 0 { weights } else { 0 },
            is_f32: false,
            is_transposed: false,
        }
    }

    fn in_f32(self) -> Product {
        Product {
            is_f32: true,
            ..self
        }
    }

    /// Bytes of the panels of one weight, with k along `depth`.
    fn panel_bytes(&self, columns: u128, depth: u128) -> u128 {
        let lanes = if self.is_f32 {
            depth
        } else {
            depth.div_ceil(2)
        };
        columns.next_multiple_of(PANEL) * lanes * 4
    }

    /// The backward takes the gradient of the rows, which reads the weight the other way, and that
    /// of the weight, which does not read it.
    fn executed(&self, pass: Pass) -> Executed {
        let (out, input) = (self.out_features, self.in_features);
        let [mut once, mut back] = [self.panel_bytes(out, input), self.panel_bytes(input, out)];
        if self.is_transposed {
            std::mem::swap(&mut once, &mut back);
        }
        let (products, reads, bytes) = match pass {
            Pass::Forward => (1, 1, once),
            Pass::Training => (3, 2, once + back),
        };
        Executed {
            matmul_flops: products * 2 * self.rows * out * input,
            weights: reads * self.read * out * input,
            weight_bytes: self.read * bytes,
            ..Executed::default()
        }
    }
}

fn head(config: &Config, rows: u128, pass: Pass) -> Executed {
    let product = Product::dense(config.vocab_size, config.hidden_size, rows);
    product.in_f32().executed(pass)
}

/// The hidden layers.
fn layers(config: &Config, batch: &Batch, pass: Pass) -> Executed {
    let layers = 0..config.num_hidden_layers;
    let moe_layers = layers.filter(|&i| config.is_moe_layer(i)).count();
    attention(config, batch, pass) * config.num_hidden_layers
        + mlp(config, true, batch.tokens, pass) * moe_layers
        + mlp(config, false, batch.tokens, pass) * (config.num_hidden_layers - moe_layers)
}

/// One layer of either kind.
fn layer(config: &Config, layer_idx: usize, batch: &Batch, pass: Pass) -> Executed {
    let is_moe = config.is_moe_layer(layer_idx);
    attention(config, batch, pass) + mlp(config, is_moe, batch.tokens, pass)
}

fn attention(config: &Config, batch: &Batch, pass: Pass) -> Executed {
    let products = attention_products(config, batch.tokens);
    let projections: Executed = products.iter().map(|p| p.executed(pass)).sum();
    let (key, value) = match &config.attention {
        Attention::Mla(mla) => (mla.latent_width(), mla.kv_lora_rank),
        Attention::Gqa(gqa) => (gqa.head_dim, gqa.head_dim),
    };
    // The backward takes scores again, d weights, dv, dq and dk.
    let (widths, reads) = match pass {
        Pass::Forward => (key + value, 1),
        Pass::Training => (4 * key + 3 * value, 2),
    };
    let heads = config.num_attention_heads as u128;
    let cached = config.attention.cache_elements() as u128;
    let core = Executed {
        attention_flops: 2 * batch.pairs * heads * widths as u128,
        key_bytes: reads * KEY_BYTES * batch.keys * cached,
        ..Executed::default()
    };
    projections + core
}

fn attention_products(config: &Config, tokens: u128) -> Vec<Product> {
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    let dense = |out, input| Product::dense(out, input, tokens);
    let mla = match &config.attention {
        Attention::Gqa(gqa) => {
            let (queries, keys) = (heads * gqa.head_dim, gqa.num_key_value_heads * gqa.head_dim);
            return vec![
                dense(queries, hidden),
                dense(keys, hidden),
                dense(keys, hidden),
                dense(hidden, queries),
            ];
        }
        Attention::Mla(mla) => mla,
    };
    let (queries, rank) = (heads * mla.qk_head_dim(), mla.kv_lora_rank);
    let per_head = |width| Product::each(width, rank, heads as u128 * tokens, heads as u128);
    let mut products = match mla.q_lora_rank {
        Some(r) => vec![dense(r, hidden), dense(queries, r)],
        None => vec![dense(queries, hidden)],
    };
    // Queries go to the latent's space, W_UK from the left; what comes from there is W_UV's.
    let mut key_up = per_head(mla.qk_nope_head_dim);
    key_up.is_transposed = true;
    products.extend([
        dense(mla.latent_width(), hidden),
        key_up,
        per_head(mla.v_head_dim),
        dense(hidden, heads * mla.v_head_dim),
    ]);
    products
}

fn mlp(config: &Config, is_moe: bool, tokens: u128, pass: Pass) -> Executed {
    let hidden = config.hidden_size;
    match &config.moe {
        Some(moe) if is_moe => experts(hidden, moe, tokens, pass),
        _ => swiglu(hidden, config.intermediate_size, tokens, 1, pass),
    }
}

fn experts(hidden: usize, moe: &Moe, tokens: u128, pass: Pass) -> Executed {
    let router = Product::dense(moe.n_routed_experts, hidden, tokens).in_f32();
    let rows = tokens * moe.num_experts_per_tok as u128;
    let visited = rows.min(moe.n_routed_experts as u128);
    let routed = swiglu(hidden, moe.moe_intermediate_size, rows, visited, pass);
    let shared = swiglu(hidden, moe.shared_width(), tokens, 1, pass);
    router.executed(pass) + routed + shared
}

/// Gate, up and down of `blocks` that share `rows`; nothing where the width is none.
fn swiglu(hidden: usize, width: usize, rows: u128, blocks: u128, pass: Pass) -> Executed {
    if width == 0 {
        return Executed::default();
    }
    let into = Product::each(width, hidden, rows, blocks).executed(pass);
    let out = Product::each(hidden, width, rows, blocks).executed(pass);
    into * 2 + out
}
