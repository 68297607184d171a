"""What every architecture is made of: products, RMSNorm, the gated MLP, rotary positions, the loss.

Plain torch in whatever dtype its inputs have (float64 for the goldens), written from the papers'
formulas and sharing no code with transformers. One document at a time: positions count from 0, no
cache, no padding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def exact(x, weight):
    """y = x W^T in the dtype of the inputs."""
    return x @ weight.T


def bf16_inputs(x, weight):
    """y = x W^T with both inputs rounded to bf16 (nearest even) and the sum kept wide."""
    return rounded(x) @ rounded(weight).T


def rounded(x):
    # By way of f32, because f32 is what a kernel would hold before it rounds.
    return x.float().bfloat16().to(x.dtype)


@dataclass
class Precision:
    """How each kind of product is computed; the router is always exact (f32 in every system)."""

    linear: object = exact
    head: object = exact
    absorbed: bool = True  # MLA alone: which of its two equal forms


EXACT = Precision()


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def mlp(p, prefix, x, how):
    gate = how.linear(x, p[prefix + "gate_proj.weight"])
    up = how.linear(x, p[prefix + "up_proj.weight"])
    return how.linear(gate * torch.sigmoid(gate) * up, p[prefix + "down_proj.weight"])


def rope_settings(cfg):
    """One spelling for both: `rope_theta` beside `rope_scaling` (the hub), or `rope_parameters`."""
    scaling = cfg.get("rope_parameters") or cfg.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = scaling.get("rope_theta", cfg.get("rope_theta"))
    return scaling | {"rope_type": kind, "rope_theta": theta}


def rope_turns(cfg, tokens, dim, dtype):
    """e^(i angle), times YaRN's factor on cos and sin: complex [tokens, dim / 2]."""
    rope = rope_settings(cfg)
    frequency = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=dtype) / dim)
    length = 1.0
    if rope["rope_type"] == "yarn":
        keep = yarn_keep(rope, dim, dtype)
        frequency = frequency * (keep + (1 - keep) / rope["factor"])
        length = yarn_length(rope)
    elif rope["rope_type"] == "llama3":
        keep = llama3_keep(rope, frequency)
        frequency = frequency * (keep + (1 - keep) / rope["factor"])
    else:
        assert rope["rope_type"] == "default", rope["rope_type"]
    angle = torch.arange(tokens, dtype=dtype)[:, None] * frequency
    return torch.polar(torch.full_like(angle, length), angle)


def yarn_keep(rope, dim, dtype):
    """The share of each frequency that stays as it was (arXiv 2309.00071, "by parts").

    DeepSeek's variant (`inference/model.py`): the ramp runs over the frequency's index, between the
    indices that turn beta_fast and beta_slow times within the original length, rounded outwards.
    """
    original = rope["original_max_position_embeddings"]

    def index_that_turns(times):
        ratio = original / (times * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(index_that_turns(rope.get("beta_fast", 32))), 0)
    high = min(math.ceil(index_that_turns(rope.get("beta_slow", 1))), dim - 1)
    width = high - low if high != low else 0.001
    return 1 - ((torch.arange(dim // 2, dtype=dtype) - low) / width).clamp(0, 1)


def yarn_mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_length(rope):
    """What YaRN multiplies cos and sin by: m(mscale) / m(mscale_all_dim), 1 and 0 where absent.

    `attn_factor` multiplies it, as in YaRN's own code. DeepSeek-R1-0528-Qwen3-8B writes
    0.8782488562869419 = 1 / m(1) there for factor 4, so that nothing is left of it.
    """
    top = yarn_mscale(rope["factor"], rope.get("mscale", 1.0))
    below = yarn_mscale(rope["factor"], rope.get("mscale_all_dim", 0.0))
    return top / below * rope.get("attn_factor", 1.0)


def llama3_keep(rope, frequency):
    """Llama 3.1: the share kept grows with the number of turns within the original length."""
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    return ((turns - low) / (high - low)).clamp(0, 1)


def rotate(x, turns, interleaved):
    """Rotates x [tokens, heads, dim] by its token's position.

    Interleaved (DeepSeek's own): pairs are (x0, x1), (x2, x3), ... Half-split: (x_i, x_{i + d/2}).
    """
    dim, turns = x.shape[-1], turns[:, None, :]
    if interleaved:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], dim // 2, 2).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)
    pairs = torch.complex(x[..., : dim // 2].contiguous(), x[..., dim // 2 :].contiguous()) * turns
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def causal_mask(tokens, dtype):
    return torch.full((tokens, tokens), float("-inf"), dtype=dtype).triu(1)


def next_token_loss(logits, documents, ahead=1):
    """Cross-entropy summed over every position with a token `ahead`, over the number of those."""
    total = sum(
        F.cross_entropy(out[: len(ids) - ahead], ids[ahead:], reduction="sum")
        for out, ids in zip(logits, documents)
    )
    return total / sum(max(len(ids) - ahead, 0) for ids in documents)
