"""The whole model in float64: embedding, blocks, head; and DeepSeek-V3's multi-token prediction.

One block structure serves every architecture: MLA or GQA, MLP or experts. `params` is a dictionary
of tensors under Hugging Face's names, `cfg` the fields of config.json.
"""

from dataclasses import dataclass, field

import torch

import deepseek
import gqa
import ops

MTP_WEIGHT = 0.3  # lambda of V3's first 10T tokens (arXiv 2412.19437, section 4.2)


@dataclass
class Trace:
    """What one document's forward pass leaves behind, layer by layer."""

    hidden: list = field(default_factory=list)  # [tokens, hidden_size] after each layer
    scores: list = field(default_factory=list)  # [tokens, n_routed_experts], MoE layers only
    topk_indices: list = field(default_factory=list)  # [tokens, num_experts_per_tok], ascending
    gates: list = field(default_factory=list)  # [tokens, n_routed_experts], zero where unselected
    margins: list = field(default_factory=list)  # [tokens]: last selected minus first rejected
    last: object = None  # [tokens, hidden_size], after `model.norm`


def is_moe(cfg, layer):
    """Is this layer's feed-forward part made of experts?"""
    if "kv_lora_rank" in cfg:
        return layer >= cfg["first_k_dense_replace"] and layer % cfg["moe_layer_freq"] == 0
    if "num_experts" not in cfg:
        return False
    return layer not in cfg["mlp_only_layers"] and (layer + 1) % cfg["decoder_sparse_step"] == 0


def narrowed(params, prefix):
    return {name[len(prefix) :]: t for name, t in params.items() if name.startswith(prefix)}


def block(params, cfg, layer, x, how, trace):
    p, eps = narrowed(params, f"model.layers.{layer}."), cfg["rms_norm_eps"]
    attention = deepseek.attention if "kv_lora_rank" in cfg else gqa.attention
    attended = ops.rms_norm(x, p["input_layernorm.weight"], eps)
    x = x + attention(narrowed(p, "self_attn."), cfg, attended, how)
    h = ops.rms_norm(x, p["post_attention_layernorm.weight"], eps)
    moe = is_moe(cfg, layer)
    return x + (deepseek.moe(p, cfg, h, how, trace) if moe else ops.mlp(p, "mlp.", h, how))


def head_weight(params, cfg):
    tied = cfg.get("tie_word_embeddings", False)
    return params["model.embed_tokens.weight" if tied else "lm_head.weight"]


def forward(params, cfg, ids, how=ops.EXACT):
    """Logits [tokens, vocab_size] of one document, and its Trace."""
    trace = Trace()
    x = params["model.embed_tokens.weight"][ids]
    for layer in range(cfg["num_hidden_layers"]):
        x = block(params, cfg, layer, x, how, trace)
        trace.hidden.append(x)
    trace.last = ops.rms_norm(x, params["model.norm.weight"], cfg["rms_norm_eps"])
    return how.head(trace.last, head_weight(params, cfg)), trace


def forward_mtp(params, cfg, ids, last, how=ops.EXACT):
    """Logits [tokens - 1, vocab_size] for the token after next (V3, eq. 21-23), and a Trace.

    `last` is the main model's output after `model.norm`, not detached. Row i joins it with the
    embedding of token i + 1 and predicts token i + 2; its position is i. Embedding and head are the
    main model's own, so their gradients add up under the main names. Eq. 21 prints the hidden state
    first; the released `eh_proj` has the embedding first, as its name says.
    """
    layer, eps, trace = cfg["num_hidden_layers"], cfg["rms_norm_eps"], Trace()
    p = narrowed(params, f"model.layers.{layer}.")
    embedded = params["model.embed_tokens.weight"][ids[1:]]
    e = ops.rms_norm(embedded, p["enorm.weight"], eps)
    h = ops.rms_norm(last[:-1], p["hnorm.weight"], eps)
    x = how.linear(torch.cat([e, h], dim=-1), p["eh_proj.weight"])
    x = block(params, cfg, layer, x, how, trace)
    x = ops.rms_norm(x, p["shared_head.norm.weight"], eps)
    return how.head(x, head_weight(params, cfg)), trace


def run_all(params, cfg, documents, how=ops.EXACT):
    return zip(*[forward(params, cfg, ids, how) for ids in documents])


def run_mtp(params, cfg, documents, traces, how=ops.EXACT):
    return zip(*[forward_mtp(params, cfg, d, t.last, how) for d, t in zip(documents, traces)])
