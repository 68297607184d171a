//! The feed-forward half of one layer.

use super::{Part, Product, Split};

/// Dense, a mixture of experts, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForward {
    /// Width of the dense block; 0 where there is none.
    pub width: u64,
    /// Whether a gate multiplies what goes up (SwiGLU): three matrices, not two.
    pub gated: bool,
    /// Whether products add biases.
    pub bias: bool,
    pub experts: Option<Experts>,
}

/// A mixture of experts (DeepSeek-V3, section 2.1.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Experts that tokens choose from.
    pub routed: u64,
    /// How many each token chooses.
    pub active: u64,
    /// Width of one.
    pub width: u64,
    /// Width of the block that every token meets; 0 where there is none.
    pub shared_width: u64,
    /// Numbers of the router besides its matrix, such as a bias of selection.
    pub router_vectors: u64,
    /// Groups of experts, and of how many of them a token's may be; `None`: of any.
    pub groups: Option<[u64; 2]>,
}

impl FeedForward {
    pub(super) fn products(&self, hidden_size: u64) -> Vec<Product> {
        let mut products = Vec::new();
        if self.width > 0 {
            let dense = (Part::DenseFeedForward, self.width, 1, 1);
            products.extend(self.mlp(hidden_size, dense));
        }
        if let Some(experts) = &self.experts {
            products.push(Product {
                name: "gate",
                part: Part::Router,
                inputs: hidden_size,
                outputs: experts.routed,
                stored: 1,
                used: 1,
                split: Split::Whole,
            });
            let routed = (
                Part::RoutedExperts,
                experts.width,
                experts.routed,
                experts.active,
            );
            products.extend(self.mlp(hidden_size, routed));
            if experts.shared_width > 0 {
                let shared = (Part::SharedExperts, experts.shared_width, 1, 1);
                products.extend(self.mlp(hidden_size, shared));
            }
        }
        products
    }

    /// `block` is part, width, matrices held, matrices met.
    fn mlp(&self, hidden_size: u64, block: (Part, u64, u64, u64)) -> Vec<Product> {
        let (part, width, stored, used) = block;
        let product = |name, inputs, outputs, split| Product {
            name,
            part,
            inputs,
            outputs,
            stored,
            used,
            split,
        };
        let mut products = vec![product("up_proj", hidden_size, width, Split::Outputs)];
        if self.gated {
            products.push(product("gate_proj", hidden_size, width, Split::Outputs));
        }
        products.push(product("down_proj", width, hidden_size, Split::Inputs));
        products
    }

    pub(super) fn vectors(&self, hidden_size: u64) -> u64 {
        let mut vectors = 0;
        if self.width > 0 {
            vectors += self.biases(hidden_size, self.width);
        }
        if let Some(experts) = &self.experts {
            vectors += experts.router_vectors;
            vectors += experts.routed * self.biases(hidden_size, experts.width);
            if experts.shared_width > 0 {
                vectors += self.biases(hidden_size, experts.shared_width);
            }
        }
        vectors
    }

    pub(super) fn idle_vectors(&self, hidden_size: u64) -> u64 {
        let Some(experts) = &self.experts else {
            return 0;
        };
        (experts.routed - experts.active) * self.biases(hidden_size, experts.width)
    }

    /// Of one block.
    fn biases(&self, hidden_size: u64, width: u64) -> u64 {
        let ups = if self.gated { 2 } else { 1 };
        if self.bias {
            ups * width + hidden_size
        } else {
            0
        }
    }
}
