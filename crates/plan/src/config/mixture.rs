//! Feed-forward halves: dense blocks, and the mixtures of each family.

use super::families::{Family, Width};
use super::fields::{COUNT, EXPERTS, Fields, LAYERS, SHARED_EXPERTS};
use crate::error::Error;
use crate::shape::{Experts, FeedForward};

const WIDTH: [&str; 5] = [
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "d_inner",
    "ffn_hidden_size",
];

/// One of these; transformers writes some families' experts under a name of another's.
const ROUTED: [&str; 4] = [
    "n_routed_experts",
    "num_experts",
    "num_local_experts",
    "num_routed_experts",
];

#[derive(Clone, Copy)]
pub struct Mixture {
    pub layers: RoutedLayers,
    /// Field of the width of one expert.
    pub width: &'static str,
    pub shared: Shared,
    /// A bias for each expert, and a choice by groups of them, where no `topk_method` says
    /// otherwise.
    pub router_bias: bool,
}

/// Which layers have experts.
#[derive(Clone, Copy)]
pub enum RoutedLayers {
    All,
    /// Those behind the first `first_k_dense_replace`, every `moe_layer_freq`-th; the number is
    /// what absence means. Without experts there are none.
    After(u64),
    /// The last of every `decoder_sparse_step`, `mlp_only_layers` left out.
    Stepped,
    /// `moe_layers`, or the last of every `interleave_moe_layer_step`.
    Interleaved,
}

/// What every token meets beside the experts it chooses.
#[derive(Clone, Copy)]
pub enum Shared {
    None,
    /// So many experts, as one block; the number is what absence means, `None` that it may not be.
    Experts(Option<u64>),
    /// One as wide as the others.
    One,
    /// A block of a width of its own, none if the field is absent or 0.
    Width(&'static str),
    /// The same behind a gate of one number per token.
    Behind(&'static str),
}

impl Mixture {
    pub const EVERYWHERE: Mixture = Mixture {
        layers: RoutedLayers::All,
        width: "intermediate_size",
        shared: Shared::None,
        router_bias: false,
    };

    pub const QWEN: Mixture = Mixture {
        layers: RoutedLayers::Stepped,
        width: "moe_intermediate_size",
        ..Mixture::EVERYWHERE
    };

    pub const DEEPSEEK: Mixture = Mixture {
        layers: RoutedLayers::After(0),
        width: "moe_intermediate_size",
        shared: Shared::Experts(None),
        router_bias: true,
    };
}

/// The feed-forward half of each layer.
pub fn feed_forwards(
    fields: &Fields,
    family: &Family,
    hidden: u64,
    layers: u64,
) -> Result<Vec<FeedForward>, Error> {
    let bias = fields.has(family.mlp_bias)?;
    let routed = match &family.mixture {
        Some(mixture) => mixture.routed(fields, layers)?,
        None => vec![false; layers as usize],
    };
    let half = |width, experts| FeedForward {
        width,
        gated: family.gated,
        bias,
        experts,
    };
    // A field that no layer needs may be absent.
    let mixed = match &family.mixture {
        Some(mixture) if routed.contains(&true) => {
            Some(half(0, Some(mixture.experts(fields, hidden)?)))
        }
        _ => None,
    };
    let dense = if routed.contains(&false) {
        Some(half(dense_width(fields, family, hidden)?, None))
    } else {
        None
    };
    let pick = |is_routed: bool| if is_routed { &mixed } else { &dense };
    Ok(routed.into_iter().filter_map(|r| pick(r).clone()).collect())
}

fn dense_width(fields: &Fields, family: &Family, hidden: u64) -> Result<u64, Error> {
    match family.width {
        Width::Required => fields.required(&WIDTH, &COUNT),
        Width::FourTimes => Ok(fields.optional(&WIDTH, &COUNT)?.unwrap_or(4 * hidden)),
        Width::Named(name) => fields.required(&[name], &COUNT),
        Width::Expansion => {
            let ratio = fields.or("expansion_ratio", &(1..=1 << 10), 4)?;
            Ok(ratio * hidden)
        }
    }
}

impl Mixture {
    /// For each layer, whether it has experts.
    fn routed(&self, fields: &Fields, layers: u64) -> Result<Vec<bool>, Error> {
        let indices = 0..layers;
        Ok(match self.layers {
            RoutedLayers::All => vec![true; layers as usize],
            RoutedLayers::After(default) => {
                let first = ["first_k_dense_replace", "num_dense_layers"];
                let first = fields.optional(&first, &(0..=u64::MAX))?.unwrap_or(default);
                let step = fields.or("moe_layer_freq", &LAYERS, 1)?;
                let any = experts_or_none(fields)? > 0;
                indices
                    .map(|i| any && i >= first && i.is_multiple_of(step))
                    .collect()
            }
            RoutedLayers::Stepped => {
                let step = fields.or("decoder_sparse_step", &COUNT, 1)?;
                let dense = fields.layer_indices("mlp_only_layers")?.unwrap_or_default();
                indices
                    .map(|i| !dense.contains(&i) && (i + 1).is_multiple_of(step))
                    .collect()
            }
            RoutedLayers::Interleaved => match fields.layer_indices("moe_layers")? {
                Some(listed) => indices.map(|i| listed.contains(&i)).collect(),
                None => {
                    let step = fields.or("interleave_moe_layer_step", &LAYERS, 1)?;
                    indices.map(|i| (i + 1).is_multiple_of(step)).collect()
                }
            },
        })
    }

    fn experts(&self, fields: &Fields, hidden: u64) -> Result<Experts, Error> {
        let routed = one_of_experts(fields, &EXPERTS)?;
        let routed = routed.ok_or_else(|| fields.missing(&ROUTED))?;
        let chosen = ["num_experts_per_tok", "num_experts_per_token"];
        let active = fields.required(&chosen, &(1..=routed))?;
        let width = fields.required(&[self.width], &COUNT)?;
        let mut router_vectors = 0;
        let shared_width = match self.shared {
            Shared::None => 0,
            Shared::One => width,
            Shared::Experts(default) => {
                let names = ["n_shared_experts", "num_shared_experts"];
                let shared = fields.optional(&names, &SHARED_EXPERTS)?.or(default);
                width * shared.ok_or_else(|| fields.missing(&names))?
            }
            Shared::Width(name) => fields.or(name, &(0..=*COUNT.end()), 0)?,
            Shared::Behind(name) => {
                router_vectors += hidden;
                fields.required(&[name], &COUNT)?
            }
        };
        let method = fields.text("topk_method")?;
        if method.map_or(self.router_bias, |method| method == "noaux_tc") {
            router_vectors += routed;
        }
        let by_groups = method.map_or(self.router_bias, |method| method != "greedy");
        Ok(Experts {
            routed,
            active,
            width,
            shared_width,
            router_vectors,
            groups: if by_groups {
                groups(fields, routed)?
            } else {
                None
            },
        })
    }
}

/// Groups of experts, and of how many of them a token's may be, where that limits them.
fn groups(fields: &Fields, routed: u64) -> Result<Option<[u64; 2]>, Error> {
    let groups = fields.or("n_group", &(1..=routed), 1)?;
    let open = fields.or("topk_group", &(1..=groups), groups)?;
    Ok((open < groups).then_some([groups, open]))
}

/// The number of experts, 0 where the model is dense.
fn experts_or_none(fields: &Fields) -> Result<u64, Error> {
    let experts = one_of_experts(fields, &(0..=*EXPERTS.end()))?;
    Ok(experts.unwrap_or(0))
}

/// Refuses two spellings that contradict each other.
fn one_of_experts(
    fields: &Fields,
    range: &std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, Error> {
    let mut found = None;
    for name in ROUTED {
        let experts = fields.optional(&[name], range)?;
        if let (Some(experts), Some(other)) = (experts, found)
            && experts != other
        {
            let message = format!("{experts} contradicts the other number of experts, {other}");
            return Err(fields.error(name, message));
        }
        found = found.or(experts);
    }
    Ok(found)
}
