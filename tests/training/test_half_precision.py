"""Training in half precision: its gradients against those in fp32, beside PyTorch's autocast."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from lamp.method.host import Host
from lamp.method.layers import causal_conv1d
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.overrides import Hooks
from lamp.training.last_norm import keep_last_norm_exact
from lamp.training.loop import predict_loss
from tests.helpers.small_models import TEXT_WIDTH, build, random_motion, random_state

FRAMES, SIDE = 4, 8
BF16 = torch.bfloat16


def gradients(host: Host, motion: Motion, seed: int, autocast: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(FRAMES, 4, SIDE, SIDE, generator=generator) for _ in range(2))
    text = torch.randn(1, 5, TEXT_WIDTH, generator=generator)
    timesteps = torch.randint(1000, (1,), generator=generator)
    learned = motion.trained_parameters()
    for parameter in learned.values():
        parameter.requires_grad_(True)
        parameter.grad = None
    with motion.attached(host.unet, FrameLayout(FRAMES)), Hooks() as stack:
        keep_last_norm_exact(host.unet, motion.sites, stack)
        with torch.autocast("cpu", BF16, enabled=autocast):
            loss = predict_loss(host, latents, noise, timesteps, text)
        loss.backward()
    return {name: p.grad.clone() for name, p in learned.items() if p.grad is not None}


def errors(found: list[dict[str, Tensor]], exact: list[dict[str, Tensor]]) -> dict[str, float]:
    """Relative to each matrix, over all draws. Vectors, whose few sums cancel by chance, count
    together."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for ours, theirs in zip(found, exact, strict=True):
        for name, gradient in theirs.items():
            parts.setdefault(name if gradient.ndim > 1 else "vectors", []).append(
                (float((ours[name] - gradient).square().sum()), float(gradient.square().sum()))
            )
    sums = {name: torch.tensor(pairs).sum(0) for name, pairs in parts.items()}
    return {name: float((error / size).sqrt()) for name, (error, size) in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusers", "comfy"])
def test_gradients_in_bf16_are_as_exact_as_under_autocast(kind: str, comfy: ModuleType) -> None:
    host, draws = build(kind, random_state()), range(12)
    motion = random_motion(host.unet)
    exact = [gradients(host, motion, draw) for draw in draws]
    assert len(exact[0]) == len(motion.trained_parameters())
    autocast = errors([gradients(host, motion, draw, autocast=True) for draw in draws], exact)
    host.compute_in(BF16)
    found = [gradients(host, motion, draw) for draw in draws]
    assert {gradient.dtype for gradient in found[0].values()} == {torch.float32}
    ours = errors(found, exact)
    # Pure bf16 also rounds the statistics of the other frozen GroupNorms, which autocast keeps in
    # fp32. Everything else is the same: with those in fp32 the errors are equal.
    ratios = {name: ours[name] / autocast[name] for name in ours}
    assert sum(ratios.values()) / len(ratios) < 1.02
    assert {name: ratio for name, ratio in ratios.items() if ratio > 1.15} == {}
    if kind == "diffusers":  # ComfyUI's norms do not mix precisions
        for module in host.unet.modules():
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                module.float()
        found = [gradients(host, motion, draw) for draw in draws]
        assert errors(found, exact) == pytest.approx(autocast, rel=1e-3)


@pytest.mark.parametrize("channels", [16, 160])  # one product per frame, and one per tap
def test_weight_gradient_of_the_temporal_convolution_rounds_its_sum_once(channels: int) -> None:
    y = torch.randn(1, 16, channels, 5, 6).to(BF16)
    weight, bias = torch.randn(channels, channels, 3), torch.zeros(channels)
    upstream = torch.randn(1, 16, channels, 5, 6).to(BF16)

    def gradient(y: Tensor, upstream: Tensor, weight: Tensor) -> Tensor:
        weight = weight.clone().requires_grad_(True)
        causal_conv1d(y, weight, bias.to(weight)).backward(upstream)
        assert weight.grad is not None and weight.grad.dtype == weight.dtype
        return weight.grad.double()

    exact = gradient(y.double(), upstream.double(), weight.double())
    # A single rounding to bf16 is off by 2 ** -9 at most.
    assert (gradient(y, upstream, weight) - exact).norm() < 2**-9 * exact.norm()


def test_linear_layers_of_a_motion_compute_in_the_precision_of_their_input() -> None:
    motion = random_motion(build("diffusers", random_state()).unet)
    for module in motion.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm)):
            x = torch.randn(2, module.weight.shape[-1])
            assert module.weight.dtype == torch.float32
            assert module(x.to(BF16)).dtype == BF16 and module(x).dtype == torch.float32
