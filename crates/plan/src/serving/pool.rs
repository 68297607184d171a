//! Chips that serve one copy of a model together, and what they hold.

use serde::Serialize;

use super::Service;
use crate::efficiency::{Efficiencies, Efficiency};
use crate::job::{Cluster, Job, Precision, Software};
use crate::layer_time::Work;
use crate::layout::Layout;
use crate::memory::{USABLE, activation_bytes};
use crate::quantity::{Bytes, Flops, Seconds};
use crate::shape::{Attention, Layer, Part, Product, Span, Split};

/// Of a cached value: bf16, as DeepSeek's 70,272 bytes a token are.
pub const CACHE_BYTES: f64 = 2.0;

/// One copy of the model: its experts are spread over `chips`, everything else is divided over
/// `tp` of them and repeated for the others, which have sequences of their own.
pub(super) struct Pool<'a> {
    pub service: &'a Service<'a>,
    pub cluster: Cluster,
    pub chips: u64,
    pub tp: u64,
    pub efficiencies: Efficiencies,
}

/// Bytes on each chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Holding {
    pub weights: Bytes,
    pub cache: Bytes,
    pub activations: Bytes,
}

impl Holding {
    pub fn total(&self) -> Bytes {
        self.weights + self.cache + self.activations
    }
}

impl<'a> Pool<'a> {
    pub fn new(service: &'a Service, chips: u64, tp: u64, efficiencies: &Efficiencies) -> Pool<'a> {
        Pool {
            service,
            cluster: Cluster::new(service.chip.clone(), chips),
            chips,
            tp,
            efficiencies: efficiencies.clone(),
        }
    }

    /// A forward pass over so many tokens of each group of `tp` chips.
    pub fn job(&self, tokens: u64) -> Job<'_> {
        let ep = match self.service.shape.experts() {
            Some(_) => self.chips,
            None => 1,
        };
        Job {
            shape: self.service.shape,
            cluster: &self.cluster,
            seq_len: tokens,
            batch_seqs: 1,
            precision: self.service.precision,
            with_mtp: false,
            layout: Layout {
                tp: self.tp,
                ep,
                ..Layout::default()
            },
            software: Software::default(),
            efficiencies: &self.efficiencies,
        }
    }

    /// Whether experts' exchanges cross links.
    pub fn exchanges(&self) -> bool {
        self.chips > 1 && self.service.shape.experts().is_some()
    }

    /// Routed experts that the fullest chip holds of a layer; where they are not divisible some
    /// are held twice, as DeepSeek's 32 redundant ones on 144 chips.
    pub fn held(&self, product: &Product) -> f64 {
        match product.part {
            Part::RoutedExperts => product.stored.div_ceil(self.chips) as f64,
            _ => 1.0,
        }
    }

    /// Weights of one chip, those that a product keeps in 16 bits so counted.
    pub fn weights(&self) -> Bytes {
        let shape = self.service.shape;
        let hidden = shape.hidden_size;
        let layer = |layer: &Layer| -> Bytes {
            let products = layer.products(hidden);
            let vectors = 2 * layer.vectors(hidden, shape.norm_vectors);
            products.iter().map(|p| self.stored(p)).sum::<Bytes>() + Bytes(vectors as f64)
        };
        let blocks = shape.blocks.iter();
        let mut bytes: Bytes = blocks.map(|b| layer(&b.layer) * b.count as f64).sum();
        if self.service.acceptance.is_some() {
            let module = layer(shape.last_layer()) + self.stored(&shape.mtp_projection());
            bytes += module * shape.mtp_modules as f64;
        }
        let positions = Bytes((2 * hidden * shape.learned_positions) as f64);
        let head = self.stored(&shape.head());
        let tables = if shape.tie_word_embeddings { 1.0 } else { 2.0 };
        bytes + head * tables + positions
    }

    /// Of a product, on one chip.
    fn stored(&self, product: &Product) -> Bytes {
        let [inputs, outputs] = self.local(product);
        let matrices = self.held(product);
        Bytes(width(self.service.precision, product.part) * matrices * inputs * outputs)
    }

    /// Inputs and outputs of a product on one chip.
    fn local(&self, product: &Product) -> [f64; 2] {
        let (tp, inputs, outputs) = (
            self.tp as f64,
            product.inputs as f64,
            product.outputs as f64,
        );
        match product.split {
            _ if product.part == Part::RoutedExperts => [inputs, outputs],
            Split::Outputs => [inputs, outputs / tp],
            Split::Inputs => [inputs / tp, outputs],
            Split::Whole => [inputs, outputs],
        }
    }

    /// One product over `rows` tokens of each group: the slower of arithmetic and memory, with the
    /// experts that so many tokens are expected to meet.
    pub fn product(&self, job: &Job, product: &Product, rows: f64) -> Work {
        let precision = at(job.precision, product.part);
        let [inputs, outputs] = self.local(product);
        let mut rows_here = rows * product.used as f64;
        let mut read = 1.0;
        let rate = job.matmul_rate(precision);
        if product.part == Part::RoutedExperts {
            let tokens = rows * self.chips as f64 / self.tp as f64;
            let met = super::distinct_experts(product.stored, product.used, tokens);
            read = self.held(product) * met / product.stored as f64;
            rows_here /= self.tp as f64;
        }
        let arithmetic = Flops(2.0 * rows_here * inputs * outputs) / rate;
        let streams = precision.bytes() * inputs + 2.0 * outputs;
        let weights = precision.bytes() * read * inputs * outputs;
        let moved = Bytes(weights + rows_here * streams) / job.memory_rate();
        Work {
            matmul: arithmetic.max(moved),
            ..Work::default()
        }
    }

    /// Bytes that one sequence keeps on each chip of its group.
    pub fn cache(&self, context: f64) -> Bytes {
        let blocks = self.service.shape.blocks.iter();
        let values =
            |attention: &Attention| kept_values(attention, context) / self.shares(attention);
        let values: f64 = blocks
            .map(|b| b.count as f64 * values(&b.layer.attention))
            .sum();
        Bytes(CACHE_BYTES * values)
    }

    /// Over how many chips tensor parallelism divides a cache: heads are divided, MLA's latent,
    /// which all heads read, is on each.
    pub fn shares(&self, attention: &Attention) -> f64 {
        match attention {
            Attention::Mla(_) => 1.0,
            Attention::Grouped(grouped) => self.tp.min(grouped.num_kv_heads) as f64,
        }
    }

    /// What one layer works with of a token, the largest of the model.
    pub fn activation(&self) -> Bytes {
        let job = self.job(1);
        let blocks = self.service.shape.blocks.iter();
        let bytes = blocks.map(|b| activation_bytes(&job, &b.layer));
        Bytes(bytes.fold(0.0, f64::max))
    }

    pub fn usable(&self) -> Bytes {
        let memory = self.service.chip.memory;
        memory.expect("a chip that was checked") * USABLE
    }

    /// Of two streams that run beside each other.
    pub fn overlapped(&self, compute: Seconds, exchange: Seconds) -> Seconds {
        let exposed = self.efficiencies.get(Efficiency::Exposed);
        compute.max(exchange) + compute.min(exchange) * exposed
    }
}

/// Values that a sequence of so many tokens keeps in one layer.
pub(super) fn kept_values(attention: &Attention, context: f64) -> f64 {
    let each = attention.cache_values() as f64;
    match attention {
        Attention::Grouped(grouped) => match grouped.span {
            Span::Full => each * context,
            Span::Window(most) | Span::Chunk(most) => each * context.min(most as f64),
            Span::State => (grouped.num_heads * grouped.head_dim * grouped.head_dim) as f64,
        },
        Attention::Mla(_) => each * context,
    }
}

/// Router, head and the projection of multi-token prediction stay in 16 bits.
fn at(precision: Precision, part: Part) -> Precision {
    match part {
        Part::Router | Part::Head | Part::MtpProjection => Precision::Bf16,
        _ => precision,
    }
}

fn width(precision: Precision, part: Part) -> f64 {
    at(precision, part).bytes()
}
