"""The GRPO loss as practised (TRL's `dapo`: one mean over all completion tokens), in float64.

    ratio = exp(logp - old_logp)
    kl    = exp(ref_logp - logp) - (ref_logp - logp) - 1                        (k3)
    token = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + kl_coef kl
    loss  = sum over completion tokens of token / number of completion tokens

A is the reward minus its group's mean: no division by the standard deviation. The gradient with
respect to each log-probability comes from torch autograd and is checked against finite differences.
Each case of grpo.json carries its inputs, `loss`, `dlogp` (same layout as `logps`, zero where the
mask is 0) and TRL's metrics: `kl`, `clip_ratio/low_mean`, `clip_ratio/high_mean`,
`clip_ratio/region_mean`, each a mean over completion tokens. Rows are completions; all rows have
the same width, and `mask` (1 = completion token) says where each ends.
"""

import torch

LENGTHS = [9, 4, 7, 1, 6, 9, 3, 8]
GROUP_SIZE = 4
CLIP_LOW, CLIP_HIGH = 0.2, 0.28


def group_advantages(rewards):
    groups = rewards.view(-1, GROUP_SIZE)
    return (groups - groups.mean(-1, keepdim=True)).flatten()


def token_losses(logps, old_logps, ref_logps, advantages, kl_coef):
    ratio = torch.exp(logps - old_logps)
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    a = advantages[:, None]
    losses = -torch.minimum(ratio * a, clipped * a)
    delta = ref_logps - logps
    kl = torch.exp(delta) - delta - 1
    return losses + kl_coef * kl, kl, ratio


def loss_of(logps, case, mask):
    per_token, kl, ratio = token_losses(
        logps, case["old_logps"], case["ref_logps"], case["advantages"], case["kl_coef"]
    )
    return (per_token * mask).sum() / mask.sum(), kl, ratio


def finish(case, mask):
    """Adds loss, gradient and metrics to a case, and turns tensors into lists."""
    logps = case["logps"].clone().requires_grad_(True)
    loss, kl, ratio = loss_of(logps, case, mask)
    loss.backward()
    check_gradient(case, mask, logps.grad)
    a = case["advantages"][:, None]
    low = (ratio < 1 - CLIP_LOW) & (a < 0)
    high = (ratio > 1 + CLIP_HIGH) & (a > 0)

    def mean(x):
        return float((x.detach().double() * mask).sum() / mask.sum())

    case |= {
        "loss": loss.item(), "dlogp": logps.grad, "kl": mean(kl),
        "clip_ratio/low_mean": mean(low), "clip_ratio/high_mean": mean(high),
        "clip_ratio/region_mean": mean(low | high), "mask": mask.int(),
    }  # fmt: skip
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in case.items()}


def check_gradient(case, mask, grad):
    step = 1e-6
    for row, column in mask.nonzero().tolist():
        nudge = torch.zeros_like(case["logps"])
        nudge[row, column] = step
        up, down = (loss_of(case["logps"] + s * nudge, case, mask)[0] for s in (1, -1))
        slope = float(up - down) / (2 * step)
        assert abs(slope - float(grad[row, column])) < 1e-7, (row, column, slope)
    assert not grad[mask == 0].any()


def fixture():
    rng = torch.Generator().manual_seed(20250120)
    rows, width = len(LENGTHS), max(LENGTHS)

    def noise(scale):
        return scale * torch.randn(rows, width, generator=rng, dtype=torch.float64)

    mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None]).double()
    rewards = torch.tensor([1.1, 0.1, 0.0, 0.1, 1.1, 1.1, 0.1, 1.1], dtype=torch.float64)
    old = -noise(1.0).abs()

    def near(scale):
        return (old + noise(scale)).clamp(max=-1e-3)  # a log-probability is never positive

    drifted = {"logps": near(0.3), "old_logps": old, "ref_logps": near(0.4)}
    on_policy = {"logps": old, "old_logps": old, "ref_logps": near(0.4)}
    cases = {}
    for name, inputs, kl_coef in [
        ("off_policy_kl", drifted, 0.04),
        ("off_policy", drifted, 0.0),
        ("on_policy_kl", on_policy, 0.04),
        ("on_policy", on_policy, 0.0),
    ]:
        case = {"kl_coef": kl_coef, "clip_low": CLIP_LOW, "clip_high": CLIP_HIGH}
        case |= inputs | {"advantages": group_advantages(rewards)}
        cases[name] = finish(case, mask)
    for side in ("low", "high"):
        assert cases["off_policy"][f"clip_ratio/{side}_mean"] > 0, f"nothing is clipped {side}"
    return {"group_size": GROUP_SIZE, "rewards": rewards.tolist(), "cases": cases}
