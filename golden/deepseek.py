"""DeepSeek-V3's forward pass written from the paper's formulas (arXiv 2412.19437, section 2.1).

This is the second, independent source of the golden files: plain torch over a dictionary of
tensors under Hugging Face's names, in whatever dtype the dictionary holds (float64 for the
goldens). It does on purpose what transformers does not: attention in the absorbed form, RoPE by
complex multiplication, every expert applied to every token and weighted by a dense gate matrix.
One document at a time, positions from 0, no cache, no padding.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

NORM_EPS = (
    1e-6  # DeepSeek uses 1e-6 in every RMSNorm; transformers fixes it for the two latent norms.
)


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
    absorbed: bool = True


@dataclass
class Trace:
    """What one document's forward pass leaves behind, layer by layer."""

    hidden: list = field(default_factory=list)  # [tokens, hidden_size] after each layer
    scores: list = field(default_factory=list)  # [tokens, n_routed_experts], MoE layers only
    topk_indices: list = field(default_factory=list)  # [tokens, num_experts_per_tok], ascending
    gates: list = field(default_factory=list)  # [tokens, n_routed_experts], zero where unselected
    margins: list = field(default_factory=list)  # [tokens]: last selected minus first rejected


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + NORM_EPS) * weight


def rope(x, cfg):
    """Rotates x [tokens, heads, qk_rope_head_dim] by its token's position.

    Interleaved (DeepSeek's own): pairs are (x0, x1), (x2, x3), ... Half-split: (x_i, x_{i + d/2}).
    """
    tokens, _, dim = x.shape
    inverse = cfg["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    angle = torch.arange(tokens, dtype=x.dtype)[:, None] * inverse
    turn = torch.polar(torch.ones_like(angle), angle)[:, None, :]
    if cfg["rope_interleave"]:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], dim // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)
    pairs = torch.complex(x[..., : dim // 2].contiguous(), x[..., dim // 2 :].contiguous()) * turn
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def attention(p, cfg, x, how):
    """Multi-head latent attention (eq. 1-11), p already narrowed to `self_attn.`."""
    tokens, heads = x.shape[0], cfg["num_attention_heads"]
    nope, rot, v_dim = cfg["qk_nope_head_dim"], cfg["qk_rope_head_dim"], cfg["v_head_dim"]
    rank = cfg["kv_lora_rank"]
    if cfg["q_lora_rank"] is None:
        q = how.linear(x, p["q_proj.weight"])
    else:
        c_q = rms_norm(how.linear(x, p["q_a_proj.weight"]), p["q_a_layernorm.weight"])
        q = how.linear(c_q, p["q_b_proj.weight"])
    q_nope, q_rope = q.view(tokens, heads, nope + rot).split([nope, rot], dim=-1)
    q_rope = rope(q_rope, cfg)

    latent = how.linear(x, p["kv_a_proj_with_mqa.weight"])
    c_kv = rms_norm(latent[:, :rank], p["kv_a_layernorm.weight"])
    k_rope = rope(latent[:, None, rank:], cfg)[:, 0]
    scores_rope = torch.einsum("qhr,kr->hqk", q_rope, k_rope)
    scale = (nope + rot) ** -0.5
    mask = torch.full((tokens, tokens), float("-inf"), dtype=x.dtype).triu(1)

    if how.absorbed:
        w = p["kv_b_proj.weight"].view(heads, nope + v_dim, rank)
        w_uk, w_uv = w[:, :nope], w[:, nope:]
        q_lat = torch.stack([how.linear(q_nope[:, h], w_uk[h].T) for h in range(heads)], dim=1)
        scores = torch.einsum("qhc,kc->hqk", q_lat, c_kv) + scores_rope
        prob = F.softmax(scores * scale + mask, dim=-1)
        mixed = torch.einsum("hqk,kc->qhc", prob, c_kv)
        out = torch.stack([how.linear(mixed[:, h], w_uv[h]) for h in range(heads)], dim=1)
    else:
        kv = how.linear(c_kv, p["kv_b_proj.weight"]).view(tokens, heads, nope + v_dim)
        scores = torch.einsum("qhd,khd->hqk", q_nope, kv[..., :nope]) + scores_rope
        prob = F.softmax(scores * scale + mask, dim=-1)
        out = torch.einsum("hqk,khd->qhd", prob, kv[..., nope:])
    return how.linear(out.reshape(tokens, heads * v_dim), p["o_proj.weight"])


def mlp(p, prefix, x, how):
    gate = how.linear(x, p[prefix + "gate_proj.weight"])
    up = how.linear(x, p[prefix + "up_proj.weight"])
    return how.linear(gate * torch.sigmoid(gate) * up, p[prefix + "down_proj.weight"])


def route(p, cfg, x, trace):
    """Gates of eq. 12-16: the bias decides who is chosen, the plain affinity how much it counts."""
    assert cfg["n_group"] == 1 and cfg["topk_group"] == 1, (
        "group-limited routing is not written here"
    )
    top_k = cfg["num_experts_per_tok"]
    scores = torch.sigmoid(x @ p["mlp.gate.weight"].T)
    biased = (scores + p["mlp.gate.e_score_correction_bias"]).detach()
    ranked, order = biased.sort(dim=-1, descending=True, stable=True)
    selected = torch.zeros_like(scores).scatter(1, order[:, :top_k], 1.0)
    gates = scores * selected
    if cfg["norm_topk_prob"]:
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
    gates = gates * cfg["routed_scaling_factor"]
    trace.scores.append(scores)
    trace.topk_indices.append(order[:, :top_k].sort(dim=-1).values)
    trace.gates.append(gates)
    trace.margins.append(ranked[:, top_k - 1] - ranked[:, top_k])
    return gates


def moe(p, cfg, x, how, trace):
    gates = route(p, cfg, x, trace)
    out = mlp(p, "mlp.shared_experts.", x, how)
    for expert in range(cfg["n_routed_experts"]):
        out = out + gates[:, expert : expert + 1] * mlp(p, f"mlp.experts.{expert}.", x, how)
    return out


def narrowed(params, prefix):
    return {name[len(prefix) :]: t for name, t in params.items() if name.startswith(prefix)}


def forward(params, cfg, ids, how=Precision()):
    """Logits [tokens, vocab_size] of one document, and its Trace."""
    trace = Trace()
    x = params["model.embed_tokens.weight"][ids]
    for layer in range(cfg["num_hidden_layers"]):
        p = narrowed(params, f"model.layers.{layer}.")
        attended = rms_norm(x, p["input_layernorm.weight"])
        x = x + attention(narrowed(p, "self_attn."), cfg, attended, how)
        h = rms_norm(x, p["post_attention_layernorm.weight"])
        dense = layer < cfg["first_k_dense_replace"]
        x = x + (mlp(p, "mlp.", h, how) if dense else moe(p, cfg, h, how, trace))
        trace.hidden.append(x)
    x = rms_norm(x, params["model.norm.weight"])
    return how.head(x, params["lm_head.weight"]), trace


def next_token_loss(logits, documents):
    """Cross-entropy summed over every position that has a next token, over the number of those."""
    total = sum(
        F.cross_entropy(out[:-1], ids[1:], reduction="sum") for out, ids in zip(logits, documents)
    )
    return total / sum(len(ids) - 1 for ids in documents)


def balance_loss(traces, cfg, alpha, count_biased):
    """Sequence-wise balance loss, eq. 17-20: mean over documents of the sum over MoE layers.

    f_i counts selections. Eq. 18 as printed takes the top-k of the affinities WITHOUT the bias
    (`count_biased=False`, also what Megatron-LM does); `count_biased=True` counts the experts that
    the tokens were really sent to. No gradient flows through f_i in either.
    """
    experts, top_k = cfg["n_routed_experts"], cfg["num_experts_per_tok"]
    total = 0.0
    for trace in traces:
        for scores, indices in zip(trace.scores, trace.topk_indices):
            chosen = indices if count_biased else scores.detach().topk(top_k, dim=-1).indices
            counts = torch.bincount(chosen.flatten(), minlength=experts).to(scores.dtype)
            f = counts * experts / (top_k * scores.shape[0])
            mean_share = (scores / scores.sum(-1, keepdim=True)).mean(0)
            total = total + alpha * (f * mean_share).sum()
    return total / len(traces)
