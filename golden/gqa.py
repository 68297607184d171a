"""Grouped-query attention of Qwen2, Qwen3, Qwen3-MoE and Llama, from the models' reports.

Which parts there are is read from the tensors that stand in the checkpoint: biases on q, k and v
(Qwen2), RMSNorm of each head of q and k before the rotation (Qwen3). RoPE is half-split in all.
"""

import torch
import torch.nn.functional as F

import ops


def head_dim(cfg):
    return cfg.get("head_dim") or cfg["hidden_size"] // cfg["num_attention_heads"]


def attention(p, cfg, x, how):
    """Causal attention of one document, p already narrowed to `self_attn.`."""
    tokens, dim = x.shape[0], head_dim(cfg)
    heads, kv_heads = cfg["num_attention_heads"], cfg["num_key_value_heads"]
    turns = ops.rope_turns(cfg, tokens, dim, x.dtype)

    def projected(name, count):
        y = how.linear(x, p[f"{name}_proj.weight"])
        if f"{name}_proj.bias" in p:
            y = y + p[f"{name}_proj.bias"]
        y = y.view(tokens, count, dim)
        if f"{name}_norm.weight" in p:
            y = ops.rms_norm(y, p[f"{name}_norm.weight"], cfg["rms_norm_eps"])
        return y

    q = ops.rotate(projected("q", heads), turns, interleaved=False)
    k = ops.rotate(projected("k", kv_heads), turns, interleaved=False)
    v = projected("v", kv_heads)
    # Query head h reads key-value head h / (heads / kv_heads).
    q = q.view(tokens, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("qgrd,kgd->grqk", q, k) * dim**-0.5
    prob = F.softmax(scores + ops.causal_mask(tokens, x.dtype), dim=-1)
    out = torch.einsum("grqk,kgd->qgrd", prob, v)
    return how.linear(out.reshape(tokens, heads * dim), p["o_proj.weight"])
