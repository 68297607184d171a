//! Attention of one layer.

use super::{Part, Product, Split};

#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    Mla(Mla),
    Grouped(Grouped),
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct Mla {
    pub num_heads: u64,
    /// `None`: queries are projected directly.
    pub q_lora_rank: Option<u64>,
    pub kv_lora_rank: u64,
    pub qk_nope_head_dim: u64,
    pub qk_rope_head_dim: u64,
    pub v_head_dim: u64,
    /// DeepSeek-V3.2's sparse attention.
    pub indexer: Option<Indexer>,
}

/// The lightning indexer of DeepSeek-V3.2: scores all keys cheaply, keeps the best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Indexer {
    pub num_heads: u64,
    pub head_dim: u64,
    /// Keys that a query attends to.
    pub top_k: u64,
}

/// Grouped-query attention; multi-head where the heads are as many, linear where keys are summed
/// into a state.
#[derive(Clone, Debug, PartialEq)]
pub struct Grouped {
    pub num_heads: u64,
    pub num_kv_heads: u64,
    pub head_dim: u64,
    pub span: Span,
    /// A projection of what comes in gates what comes out (lightning attention).
    pub output_gate: bool,
    /// Scores have a second term, of queries and projected positions (Transformer-XL).
    pub relative_positions: bool,
    /// Biases and norms of queries, keys, values and output: numbers in all.
    pub vectors: u64,
}

/// Which keys a query of grouped attention meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All before it.
    Full,
    /// The last so many.
    Window(u64),
    /// Those of its own chunk of so many.
    Chunk(u64),
    /// None: a state of `head_dim` squared per head stands for them (linear attention).
    State,
}

impl Attention {
    pub fn num_heads(&self) -> u64 {
        match self {
            Attention::Mla(mla) => mla.num_heads,
            Attention::Grouped(grouped) => grouped.num_heads,
        }
    }

    /// Heads of keys and values that tensor parallelism can divide.
    pub fn num_kv_heads(&self) -> u64 {
        match self {
            Attention::Mla(mla) => mla.num_heads,
            Attention::Grouped(grouped) => grouped.num_kv_heads,
        }
    }

    pub(super) fn products(&self, hidden_size: u64) -> Vec<Product> {
        match self {
            Attention::Mla(mla) => mla.products(hidden_size),
            Attention::Grouped(grouped) => grouped.products(hidden_size),
        }
    }

    pub(super) fn vectors(&self) -> u64 {
        match self {
            Attention::Mla(mla) => {
                let indexer = mla.indexer.map_or(0, |indexer| 2 * indexer.head_dim);
                mla.q_lora_rank.unwrap_or(0) + mla.kv_lora_rank + indexer
            }
            Attention::Grouped(grouped) => grouped.vectors,
        }
    }

    /// Operations of a token's attention core, forward, where it meets `keys` keys: scores and
    /// values, with MLA's heads expanded as in training and prefill.
    pub fn core_flops(&self, keys: f64) -> f64 {
        match self {
            Attention::Mla(mla) => {
                let width = mla.qk_head_dim() + mla.v_head_dim;
                2.0 * keys * (mla.num_heads * width) as f64
            }
            Attention::Grouped(grouped) => {
                let per_value = if grouped.relative_positions { 6.0 } else { 4.0 };
                per_value * keys * (grouped.num_heads * grouped.head_dim) as f64
            }
        }
    }

    /// As [`Attention::core_flops`], in the form that decoding uses: MLA absorbed, over latents.
    pub fn core_flops_decode(&self, keys: f64) -> f64 {
        match self {
            Attention::Mla(mla) => {
                let width = mla.latent_width() + mla.kv_lora_rank;
                2.0 * keys * (mla.num_heads * width) as f64
            }
            Attention::Grouped(_) => self.core_flops(keys),
        }
    }

    /// Operations of choosing keys among `keys`, where an indexer does.
    pub fn index_flops(&self, keys: f64) -> f64 {
        match self {
            Attention::Mla(Mla {
                indexer: Some(indexer),
                ..
            }) => 2.0 * keys * (indexer.num_heads * indexer.head_dim) as f64,
            _ => 0.0,
        }
    }

    /// Keys that a query with `before` keys at hand (its own included) meets.
    pub fn keys_met(&self, before: f64) -> f64 {
        match self {
            Attention::Mla(mla) => mla
                .indexer
                .map_or(before, |indexer| before.min(indexer.top_k as f64)),
            Attention::Grouped(grouped) => match grouped.span {
                Span::Full => before,
                Span::Window(window) => before.min(window as f64),
                Span::Chunk(chunk) => before.min((chunk as f64 + 1.0) / 2.0),
                Span::State => grouped.head_dim as f64,
            },
        }
    }

    /// Mean over the queries of a whole sequence of the keys met; with `causal` false every query
    /// is taken to meet every key, as some reports count.
    pub fn mean_keys(&self, seq_len: f64, causal: bool) -> f64 {
        if !causal {
            return self.keys_met(seq_len);
        }
        let most = match self {
            Attention::Mla(mla) => mla.indexer.map_or(seq_len, |indexer| indexer.top_k as f64),
            Attention::Grouped(grouped) => match grouped.span {
                Span::Full => seq_len,
                Span::Window(window) => window as f64,
                Span::Chunk(chunk) => return (seq_len.min(chunk as f64) + 1.0) / 2.0,
                Span::State => return grouped.head_dim as f64,
            },
        };
        let most = most.min(seq_len);
        // The first `most` queries meet 1, 2, ... keys, the rest meet `most`.
        (most * (most + 1.0) / 2.0 + (seq_len - most) * most) / seq_len
    }

    /// Values kept per token for later queries; none grow with the sequence in linear attention.
    pub fn cache_values(&self) -> u64 {
        match self {
            Attention::Mla(mla) => {
                mla.latent_width() + mla.indexer.map_or(0, |indexer| indexer.head_dim)
            }
            Attention::Grouped(grouped) => match grouped.span {
                Span::State => 0,
                _ => 2 * grouped.num_kv_heads * grouped.head_dim,
            },
        }
    }
}

impl Mla {
    pub fn qk_head_dim(&self) -> u64 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Width of what the cache holds of a token: the latent and the rotated key.
    pub fn latent_width(&self) -> u64 {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    fn products(&self, hidden_size: u64) -> Vec<Product> {
        let queries = self.num_heads * self.qk_head_dim();
        let mut products = match self.q_lora_rank {
            Some(rank) => vec![
                attention("q_a_proj", hidden_size, rank, Split::Whole),
                attention("q_b_proj", rank, queries, Split::Outputs),
            ],
            None => vec![attention("q_proj", hidden_size, queries, Split::Outputs)],
        };
        let expanded = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim);
        let values = self.num_heads * self.v_head_dim;
        products.extend([
            attention(
                "kv_a_proj_with_mqa",
                hidden_size,
                self.latent_width(),
                Split::Whole,
            ),
            attention("kv_b_proj", self.kv_lora_rank, expanded, Split::Outputs),
            attention("o_proj", values, hidden_size, Split::Inputs),
        ]);
        if let Some(indexer) = self.indexer {
            let from = self.q_lora_rank.unwrap_or(hidden_size);
            let index = |name, inputs, outputs| Product {
                part: Part::Indexer,
                ..attention(name, inputs, outputs, Split::Whole)
            };
            products.extend([
                index("indexer.wq_b", from, indexer.num_heads * indexer.head_dim),
                index("indexer.wk", hidden_size, indexer.head_dim),
                index("indexer.weights_proj", hidden_size, indexer.num_heads),
            ]);
        }
        products
    }
}

impl Grouped {
    fn products(&self, hidden_size: u64) -> Vec<Product> {
        let queries = self.num_heads * self.head_dim;
        let keys = self.num_kv_heads * self.head_dim;
        let mut products = vec![
            attention("q_proj", hidden_size, queries, Split::Outputs),
            attention("k_proj", hidden_size, keys, Split::Outputs),
            attention("v_proj", hidden_size, keys, Split::Outputs),
            attention("o_proj", queries, hidden_size, Split::Inputs),
        ];
        if self.output_gate {
            products.push(attention(
                "output_gate",
                hidden_size,
                queries,
                Split::Outputs,
            ));
        }
        if self.relative_positions {
            products.push(Product {
                used: 0,
                ..attention("r_net", hidden_size, queries, Split::Outputs)
            });
        }
        products
    }
}

fn attention(name: &'static str, inputs: u64, outputs: u64, split: Split) -> Product {
    Product {
        name,
        part: Part::Attention,
        inputs,
        outputs,
        stored: 1,
        used: 1,
        split,
    }
}
