"""DeepSeek's attention and experts by the papers' formulas (arXiv 2405.04434 V2, 2412.19437 V3).

It does on purpose what transformers does not: attention in the absorbed form, RoPE by complex
multiplication, every expert applied to every token and weighted by a dense gate matrix. Where the
papers are silent DeepSeek's own code decides: `inference/model.py` of DeepSeek-V3 and
`modeling_deepseek.py` of DeepSeek-V2.
"""

import torch
import torch.nn.functional as F

import ops

# DeepSeek's RMSNorm has this by default, and its attention builds the two latent norms with the
# default, whatever `rms_norm_eps` says.
LATENT_NORM_EPS = 1e-6


def attention(p, cfg, x, how):
    """Multi-head latent attention (V3, eq. 1-11), p already narrowed to `self_attn.`."""
    tokens, heads = x.shape[0], cfg["num_attention_heads"]
    nope, rot, v_dim = cfg["qk_nope_head_dim"], cfg["qk_rope_head_dim"], cfg["v_head_dim"]
    rank = cfg["kv_lora_rank"]
    eps = cfg.get("latent_norm_eps", LATENT_NORM_EPS)  # a variant's, to show that it matters
    turns = ops.rope_turns(cfg, tokens, rot, x.dtype)
    interleaved = cfg.get("rope_interleave", True)
    if cfg["q_lora_rank"] is None:
        q = how.linear(x, p["q_proj.weight"])
    else:
        c_q = ops.rms_norm(how.linear(x, p["q_a_proj.weight"]), p["q_a_layernorm.weight"], eps)
        q = how.linear(c_q, p["q_b_proj.weight"])
    q_nope, q_rope = q.view(tokens, heads, nope + rot).split([nope, rot], dim=-1)
    q_rope = ops.rotate(q_rope, turns, interleaved)

    latent = how.linear(x, p["kv_a_proj_with_mqa.weight"])
    c_kv = ops.rms_norm(latent[:, :rank], p["kv_a_layernorm.weight"], eps)
    k_rope = ops.rotate(latent[:, None, rank:], turns, interleaved)[:, 0]
    scores_rope = torch.einsum("qhr,kr->hqk", q_rope, k_rope)
    scale = softmax_scale(cfg)
    mask = ops.causal_mask(tokens, x.dtype)

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


def softmax_scale(cfg):
    """1 / sqrt(d), times YaRN's m(mscale_all_dim) twice: once for q and once for k."""
    rope = ops.rope_settings(cfg)
    scale = (cfg["qk_nope_head_dim"] + cfg["qk_rope_head_dim"]) ** -0.5
    if rope["rope_type"] != "yarn":
        return scale
    return scale * ops.yarn_mscale(rope["factor"], rope.get("mscale_all_dim", 0.0)) ** 2


def route(p, cfg, x, trace):
    """V3 eq. 12-16: the bias decides who is chosen, the plain affinity how much it counts.

    V2 and Qwen3-MoE are the same with softmax for the sigmoid and without a bias.
    """
    top_k = cfg["num_experts_per_tok"]
    logits = x @ p["mlp.gate.weight"].T
    sigmoid = cfg.get("scoring_func", "softmax") == "sigmoid"
    scores = torch.sigmoid(logits) if sigmoid else F.softmax(logits, dim=-1)
    choice = scores.detach()
    if "mlp.gate.e_score_correction_bias" in p:
        choice = choice + p["mlp.gate.e_score_correction_bias"]
    choice, margin = within_best_groups(choice, cfg)
    ranked, order = choice.sort(dim=-1, descending=True, stable=True)
    selected = torch.zeros_like(scores).scatter(1, order[:, :top_k], 1.0)
    gates = scores * selected
    if cfg["norm_topk_prob"]:
        # DeepSeek-V2's code would then leave the factor below out; no release asks for both.
        assert cfg["model_type"] != "deepseek_v2", "V2 with norm_topk_prob is not written here"
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
    gates = gates * cfg.get("routed_scaling_factor", 1.0)
    trace.scores.append(scores)
    trace.topk_indices.append(order[:, :top_k].sort(dim=-1).values)
    trace.gates.append(gates)
    trace.margins.append(torch.minimum(ranked[:, top_k - 1] - ranked[:, top_k], margin))
    return gates


def within_best_groups(choice, cfg):
    """Experts outside the `topk_group` best groups drop out, and by how much a group got in.

    A group's score is the sum of its two best (V3, `noaux_tc`) or its best (V2,
    `group_limited_greedy`). Outside is minus infinity, as in `inference/model.py`: zero, as in
    V2's `modeling_deepseek.py`, is the same only while every score inside is positive.
    """
    groups, kept = cfg.get("n_group") or 1, cfg.get("topk_group") or 1
    if groups == 1 or cfg["topk_method"] == "greedy":
        return choice, torch.full_like(choice[:, 0], float("inf"))
    grouped = choice.view(len(choice), groups, -1)
    best = 2 if cfg["topk_method"] == "noaux_tc" else 1
    group_scores = grouped.sort(dim=-1, descending=True).values[..., :best].sum(-1)
    ranked, order = group_scores.sort(dim=-1, descending=True, stable=True)
    outside = torch.ones_like(group_scores).scatter(1, order[:, :kept], 0.0).bool()
    outside_score = cfg.get("masked_with", float("-inf"))  # a variant's, to show that it matters
    grouped = grouped.masked_fill(outside[..., None], outside_score)
    return grouped.flatten(1), ranked[:, kept - 1] - ranked[:, kept]


def moe(p, cfg, x, how, trace):
    gates = route(p, cfg, x, trace)
    out = ops.mlp(p, "mlp.shared_experts.", x, how) if cfg.get("n_shared_experts") else 0.0
    for expert in range(gates.shape[1]):
        out = out + gates[:, expert : expert + 1] * ops.mlp(p, f"mlp.experts.{expert}.", x, how)
    return out


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
