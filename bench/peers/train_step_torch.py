"""The training step that ours is compared with: PyTorch on the CPU.

    python bench/peers/train_step_torch.py --mode bf16-compile [--steps 10] [--threads 2]

Model: width 256, 6 layers, 4 heads, SwiGLU 1024, RMSNorm, RoPE (half-split), causal SDPA,
vocabulary 4096 with an untied head: 8.39 M parameters. One step: forward, cross-entropy, backward
and fused AdamW over 16 sequences of 256 tokens. Weights and optimizer state are f32 in every mode;
bf16 is autocast. Modes: bf16, bf16-compile (torch.compile of forward and loss; needs g++), f32,
f32-compile.
The last line on stdout is one JSON object. `tokens_per_s` comes from the median step after the
warm-up; `peak_rss_bytes` is the whole process's, so run one mode per process. `flops_per_token`
counts 6 per matmul weight and causal attention's three passes, nothing else.
Packages: ../../golden/requirements.txt.
"""

import argparse
import contextlib
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, LAYERS, HEADS, INNER, VOCAB = 256, 6, 4, 1024, 4096
TOKENS, BATCH = 256, 16
MODES = ["bf16", "bf16-compile", "f32", "f32-compile"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, WIDTH))


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(WIDTH, 1e-6), nn.RMSNorm(WIDTH, 1e-6)
        self.attention = Attention()
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, 1e-6)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        half = WIDTH // HEADS // 2
        angle = torch.arange(TOKENS)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, targets):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, VOCAB).float(), targets.reshape(-1))


def measure(mode, steps, warmup):
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    loss_of = torch.compile(model) if mode.endswith("compile") else model
    ids = torch.randint(0, VOCAB, (warmup + steps, BATCH, TOKENS + 1))
    seconds, losses = [], []
    for batch in ids:
        began = time.perf_counter()
        bf16 = torch.autocast("cpu", torch.bfloat16) if mode.startswith("bf16") else None
        with bf16 or contextlib.nullcontext():
            loss = loss_of(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return model, seconds, losses


def main():
    parser = argparse.ArgumentParser(description="PyTorch training step, tokens per second.")
    parser.add_argument("--mode", choices=MODES, default="bf16-compile")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    if a.steps < 1 or a.warmup < 0 or a.threads < 1:
        parser.error("--steps and --threads must be at least 1, --warmup at least 0")
    torch.set_num_threads(a.threads)
    model, seconds, losses = measure(a.mode, a.steps, a.warmup)
    timed = seconds[a.warmup :]
    median = statistics.median(timed)
    matmul_weights = sum(p.numel() for p in model.parameters() if p.ndim == 2) - VOCAB * WIDTH
    result = {
        "peer": "train_step_torch",
        "mode": a.mode,
        "torch": torch.__version__,
        "threads": a.threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_step": BATCH * TOKENS,
        "flops_per_token": 6 * matmul_weights + LAYERS * 6 * TOKENS * WIDTH,
        "tokens_per_s": round(BATCH * TOKENS / median, 1),
        "step_ms": round(1000 * median, 2),
        "step_ms_min": round(1000 * min(timed), 2),
        "step_ms_max": round(1000 * max(timed), 2),
        "steps": a.steps,
        "first_step_ms": round(1000 * seconds[0], 2),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
