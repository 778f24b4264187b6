"""Everything that a run learns gets its gradient, whatever kernels the host samples with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from benchmarks.samples.tiny_models import tiny_patcher
from lamp.errors import LampError
from lamp.training.gradient_check import PATIENCE, GradientCheck
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig
from tests.training.test_training_weights import small_clips as comfy_clips


def gradients(**settings: Any) -> dict[str, Tensor]:
    """Of the fourth step, when no layer is zero any more."""
    from lamp.hosts.comfy.training import new_motion, tuning_host

    with torch.inference_mode(), tuning_host(tiny_patcher()) as host:
        config = TrainConfig(steps=9, frames=3, learning_rate=1e-2, **settings)
        training = Training(host, new_motion(host, 0), comfy_clips(), config)
        for _ in range(3):
            training.advance()
        training._gradients(0.0)
        learned = training.motion.trained_parameters()
        return {name: p.grad.clone() for name, p in learned.items() if p.grad is not None}


@torch.library.custom_op("lamp_test::flash", mutates_args=())
def no_backward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel that autograd knows nothing of."""
    return F.scaled_dot_product_attention(q, k, v).contiguous()


def _kernel(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, **__: Any) -> Tensor:
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return no_backward(q, k, v).transpose(1, 2).flatten(2)


@torch.no_grad()
def _quantised(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, **__: Any) -> Tensor:
    return _kernel(q, k, v, heads)


@pytest.fixture(scope="module")
def usual_gradients(comfy: Any) -> Callable[[bool], dict[str, Tensor]]:
    """Those under PyTorch's own attention, with and without checkpointing."""
    import comfy.ldm.modules.attention as attention

    @functools.cache
    def found(gradient_checkpointing: bool) -> dict[str, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "optimized_attention", attention.attention_pytorch)
            torch.manual_seed(0)
            return gradients(gradient_checkpointing=gradient_checkpointing)

    return found


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sage", "flash", "sub_quad", "split", "basic"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_run_learns_the_same_under_every_attention_kernel_of_the_host(
    usual_gradients: Any,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    gradient_checkpointing: bool,
) -> None:
    """--use-sage-attention, --use-flash-attention, and what Macs and older AMD GPUs have."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management as management

    expected = usual_gradients(gradient_checkpointing)
    own = {"sage": _quantised, "flash": _kernel}.get(kernel)
    chosen = attention.wrap_attn(own) if own else getattr(attention, f"attention_{kernel}")
    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(attention, name, chosen)
    # So little that the kernels which look at it go through the keys in pieces.
    little = 2**14
    monkeypatch.setattr(
        management,
        "get_free_memory",
        lambda device=None, torch_free_too=False: (little, little) if torch_free_too else little,
    )
    found = gradients(gradient_checkpointing=gradient_checkpointing)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("heads_apart", [False, True])
@pytest.mark.parametrize("mask", [None, (5, 7), (2, 5, 7), (2, 3, 5, 7)])
def test_the_attention_of_a_run_is_that_of_the_host(
    comfy: Any, heads_apart: bool, mask: tuple[int, ...] | None
) -> None:
    import comfy.ldm.modules.attention as attention

    from lamp.method.attention import torch_attention

    lengths = (5, 7, 7)
    shapes = [(2, 3, n, 4) if heads_apart else (2, n, 12) for n in lengths]
    q, k, v = (torch.randn(shape) for shape in shapes)
    options = {"skip_reshape": heads_apart, "skip_output_reshape": heads_apart}
    given = None if mask is None else torch.randn(mask)
    expected = attention.attention_pytorch(q, k, v, 3, given, **options)
    found = torch_attention(attention.attention_basic, q, k, v, 3, given, **options)
    torch.testing.assert_close(found, expected)


def blocked(change: Callable[[Tensor], Tensor], steps: int, **settings: Any) -> Training:
    """A run on a UNet in which `change` is done to what the first self-attention gives."""
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion

    host = small_host()
    sites = map_unet(host.unet)
    attention = host.unet.get_submodule(f"{sites.blocks[0].module}.attn1.to_out.0")
    attention.register_forward_hook(lambda module, args, out: change(out))
    config = TrainConfig(steps=steps, frames=FRAMES, learning_rate=1e-2, **settings)
    training = Training(host, Motion(sites).initialise(0), small_clips(), config)
    for _ in range(steps):
        training.advance()
    return training


@pytest.mark.slow
@pytest.mark.parametrize("change", [Tensor.detach, lambda out: 0 * out])
def test_a_run_in_which_a_tensor_gets_no_gradient_stops_with_its_name(
    change: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(LampError, match=r"down_blocks\.0\.attentions\.0.*attn1\.to_q\.weight"):
        blocked(change, PATIENCE)


def test_what_has_no_gradient_at_all_is_told_before_anything_is_learned() -> None:
    with pytest.raises(LampError, match="to_q"):
        blocked(Tensor.detach, 1)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"query_rate": 0.0}, {"rank": 2, "query_rate": 0.0}])
def test_what_its_own_rate_freezes_needs_no_gradient(settings: dict[str, Any]) -> None:
    assert blocked(Tensor.detach, PATIENCE + 1, **settings).step == PATIENCE + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 2},
        {"accumulate": 2},
        {"warmup": PATIENCE, "learning_rate": 1e-6},
        {"conv_rate": 0.0},
        {"attention_rate": 0.0},
        {"groupnorm": "frame", "gradient_checkpointing": True},
        {"precision": "bf16"},
    ],
)
def test_layers_that_begin_at_zero_are_given_time(settings: dict[str, Any]) -> None:
    steps = PATIENCE + 1
    given = {"learning_rate": 1e-2, **settings, "steps": steps, "frames": FRAMES}
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion

    host = small_host()
    motion = Motion(map_unet(host.unet)).initialise(0)
    training = Training(host, motion, small_clips(), TrainConfig(**given))
    for _ in range(steps):
        training.advance()
    assert training.step == steps


@pytest.mark.slow
def test_gates_that_are_fully_open_are_no_fault() -> None:
    """As after a long training: sigmoid(30) is 1 in fp32, and its derivative 0."""
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion

    host, steps = small_host(), PATIENCE + 1
    motion = Motion(map_unet(host.unet)).initialise(0)
    with torch.no_grad():
        for name, gate in motion.trained_parameters().items():
            if name.endswith("conv_gate.bias"):
                gate.fill_(30.0)
    config = TrainConfig(steps=steps, frames=FRAMES, learning_rate=1e-4)
    training = Training(host, motion, small_clips(), config)
    for _ in range(steps):
        training.advance()
    assert training.step == steps


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_gate_without_a_gradient_needs_a_convolution_that_has_one(scale: float) -> None:
    """And with the loss scaling of fp16, a gradient may have been rounded to zero."""
    names = ("a.conv1d.weight", "a.conv_gate.weight")
    learned = {name: nn.Parameter(torch.zeros(2)) for name in names}
    for reached in (torch.zeros(2), torch.ones(2)):
        check = GradientCheck(learned)
        learned[names[0]].grad, learned[names[1]].grad = reached, torch.zeros(2)
        for _ in range(PATIENCE - 1):
            check.check(scale)
        if reached.any() and scale == 1.0:
            check.check(scale)
            assert not check.waits
        else:
            with pytest.raises(LampError, match="a.conv"):
                check.check(scale)


def test_steps_that_overflow_in_fp16_are_no_steps() -> None:
    """The scaler skips them, so that zeros stay zeros meanwhile."""
    layer = nn.Parameter(torch.zeros(2))
    reached = GradientCheck({"layer": layer})
    for _ in range(3 * PATIENCE):
        layer.grad = torch.tensor([0.0, float("inf")])
        reached.check(scale=65536.0)
    layer.grad = torch.tensor([0.0, 1.0])
    reached.check(scale=65536.0)
    layer.grad = None  # nothing is watched any more
    reached.check(scale=65536.0)
