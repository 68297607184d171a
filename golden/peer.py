"""The other source: transformers' own models, opened from the written folder in f32."""

import json
import re

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.modeling_layers import MtpModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import ops
import reference
import storage

LOGITS_TOLERANCE = 1e-5  # of the logits' spread
GRADS_TOLERANCE = 1e-4  # relative, norm of the difference over norm


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def furthest(some, others):
    return max(float((a - b).detach().abs().max()) for a, b in zip(some, others, strict=True))


def model(folder, architecture):
    opened = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    assert type(opened).__name__ == architecture, type(opened)
    return opened.train()  # no dropout in any case: train() changes nothing but says what is meant


def loss(opened, documents):
    logits = [opened(ids[None], use_cache=False).logits[0] for ids in documents]
    return ops.next_token_loss(logits, documents), logits


def grads(opened):
    """Gradients under the checkpoint's names: fused experts are taken apart."""
    found = {}
    for name, parameter in opened.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            gate, up = parameter.grad.chunk(2, dim=1)
            parts = {"gate_proj": gate, "up_proj": up}
        elif name.endswith("experts.down_proj"):
            parts = {"down_proj": parameter.grad}
        else:
            found[name] = parameter.grad
            continue
        at = name[: name.rindex(".")]
        for part, fused in parts.items():
            for expert, grad in enumerate(fused):
                found[f"{at}.{expert}.{part}.weight"] = grad
    return found


def compare_grads(theirs, ours, what):
    assert theirs.keys() >= ours.keys(), ours.keys() - theirs.keys()
    worst = max(relative(theirs[name], ours[name]) for name in ours)
    assert worst < GRADS_TOLERANCE, f"{what}: gradients differ by {worst}"
    return worst


def check(folder, cfg, documents, logits, loss_value, own_grads):
    """Logits, loss and the gradients of `own_grads`, which are of the plain loss; or None."""
    opened = model(folder, cfg["architectures"][0])
    their_loss, their_logits = loss(opened, documents)
    spread = float(torch.cat(logits).std())
    worst = furthest(their_logits, logits)
    assert worst < LOGITS_TOLERANCE * spread, (
        f"{folder.name}: logits differ by {worst}, spread {spread}"
    )
    assert abs(their_loss.item() - loss_value) < LOGITS_TOLERANCE * spread
    found = {"logits_max_abs": worst}
    if own_grads is not None:
        their_loss.backward()
        found["grad_max_relative"] = compare_grads(grads(opened), own_grads, folder.name)
    return found


def misread(cfg):
    """Does transformers read this folder otherwise than it is meant: FP8 blocks, `attn_factor`?"""
    return "quantization_config" in cfg or "attn_factor" in ops.rope_settings(cfg)


def write_plainly(folder, cfg, weights):
    """The same model in a form that transformers reads as meant: f32, `attention_factor`."""
    cfg = {k: v for k, v in cfg.items() if k != "quantization_config"} | {"torch_dtype": "float32"}
    rope = ops.rope_settings(cfg)
    if "attn_factor" in rope:
        cfg = {k: v for k, v in cfg.items() if k not in ("rope_scaling", "rope_theta")}
        known = {k: v for k, v in rope.items() if k != "attn_factor"}
        cfg["rope_parameters"] = known | {"attention_factor": ops.yarn_length(rope)}
    (folder / "config.json").write_text(json.dumps(cfg))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def distance(folder, cfg, documents, logits):
    """By how much transformers' logits differ, as a share of the spread."""
    _, theirs = loss(model(folder, cfg["architectures"][0]), documents)
    return furthest(theirs, logits) / float(torch.cat(logits).std())


def check_mtp(folder, cfg, documents, mtp_logits, own_grads):
    """transformers' MtpModel: it drafts only, so that its one layer is called here for each pair.

    It counts the position of pair (i, i + 1) as i + 1, here i: rotations are relative, so the two
    agree. Its loading knows DeepSeek-V3's layer 61 by number; here the number is told to it.
    """
    opened, number = model(folder, cfg["architectures"][0]), cfg["num_hidden_layers"]
    opened._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{number}.*"]
    mtp = MtpModel.from_pretrained(opened)
    logits, drafted = [], []
    for ids in documents:
        out = opened(ids[None], use_cache=False, output_hidden_states=True)
        logits.append(out.logits[0])
        last, positions = out.hidden_states[-1][:, :-1], torch.arange(1, len(ids))[None]
        mine = mtp.forward_layer(0, last, positions, None, input_ids=ids[None, 1:])
        drafted.append(mtp.shared_head(mine)[0])
    spread = float(torch.cat(mtp_logits).detach().std())
    worst = furthest(drafted, mtp_logits)
    assert worst < LOGITS_TOLERANCE * spread, f"MTP logits differ by {worst}, spread {spread}"
    main = ops.next_token_loss(logits, documents)
    extra = ops.next_token_loss(drafted, documents, ahead=2)
    (main + reference.MTP_WEIGHT * extra).backward()
    theirs = grads(opened)
    for name, grad in grads(mtp).items():
        at = f"model.layers.{number}."
        name = re.sub(r"^layers\.0\.(mtp_block\.)?", at, name)
        name = name.replace("post_norm", "shared_head.norm") if ".post_norm" in name else name
        theirs.setdefault(name, grad)
    found = compare_grads(theirs, own_grads, "MTP")
    return {"mtp_logits_max_abs": worst, "mtp_grad_max_relative": found}


def dequantised(tensors):
    """The weights as transformers expands FP8: otherwise than DeepSeek.

    It takes a block's height to be rows / rows of the scale grid. DeepSeek's blocks are 128 high
    and the last is what is left, so that the two agree only where 128 divides both sides. Where the
    rows of the grid do not divide the rows of the weight it raises: DeepSeek-V3's own
    kv_a_proj_with_mqa has 576 and 5.
    """
    weights = storage.read_back(tensors)
    for name, codes in tensors.items():
        if codes.dtype == torch.float8_e4m3fn:
            scales = tensors[name + "_scale_inv"]
            weights[name] = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    return weights


def yarn_lengths(folder):
    """(ours, transformers') factor on cos and sin where one mscale of the two is absent or zero."""
    out = {}
    for name, change in {
        "mscale_0.707_alone": {"mscale": 0.707, "mscale_all_dim": None},
        "mscale_all_dim_0.707_alone": {"mscale": None, "mscale_all_dim": 0.707},
    }.items():
        config = AutoConfig.from_pretrained(folder)
        rope = {k: v for k, v in (config.rope_parameters | change).items() if v is not None}
        config.rope_parameters = rope
        ours = ops.yarn_length(rope)
        out[name] = [ours, ROPE_INIT_FUNCTIONS["yarn"](config)[1]]
    return out
