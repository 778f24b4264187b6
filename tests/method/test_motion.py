"""A motion attached to small UNets of both hosts: its effect, and its removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lamp.errors import LampError
from lamp.method import attention
from lamp.method.architecture import BlockSite, map_unet
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import TRAINED, Motion
from tests.helpers.small_models import TEXT_WIDTH, hook_count, random_motion


@pytest.fixture
def exact(host: Host) -> Iterator[Host]:
    """The host in float64: how float32 rounds differs from processor to processor."""
    host.compute_in(torch.float64)
    yield host
    host.compute_in(torch.float32)


def inputs(frames: int, videos: int = 1, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(videos * frames, 4, 16, 8, generator=generator)
    text = torch.randn(videos, 7, TEXT_WIDTH, generator=generator)
    return x, torch.randint(1000, (videos,), generator=generator), text


@torch.no_grad()
def predict(host: Host, motion: Motion | None, frames: int, videos: int = 1, **how) -> Tensor:
    given = inputs(frames, videos)
    if motion is None:
        return host.predict(*given)
    with motion.attached(host.unet, FrameLayout(frames, videos), **how):
        return host.predict(*given)


IMAGE_MODEL = {"groupnorm": "frame", "first_frame": False}


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_new_motion_is_the_image_model_bit_for_bit(host: Host, frames: int) -> None:
    fresh = Motion(map_unet(host.unet)).initialise()
    plain = predict(host, None, frames)
    assert torch.equal(predict(host, fresh, frames, **IMAGE_MODEL), plain)


def test_strength_zero_is_the_image_model_bit_for_bit(host: Host) -> None:
    motion = random_motion(host.unet)
    plain = predict(host, None, 3)
    assert torch.equal(predict(host, motion, 3, strength=0.0, **IMAGE_MODEL), plain)
    assert not torch.allclose(predict(host, motion, 3, **IMAGE_MODEL), plain, atol=1e-3)


def test_one_frame_needs_neither_pooling_nor_a_first_frame(host: Host) -> None:
    """Of a single frame the pooled statistics and the first frame are its own."""
    fresh = Motion(map_unet(host.unet)).initialise()
    ours = predict(host, fresh, 1)
    torch.testing.assert_close(ours, predict(host, None, 1), rtol=1e-5, atol=1e-5)


def test_pooling_and_first_frame_act_on_a_fresh_motion(host: Host) -> None:
    fresh = Motion(map_unet(host.unet)).initialise()
    plain = predict(host, None, 4)
    for how in ({"groupnorm": "frame"}, {"first_frame": False}):
        assert not torch.allclose(predict(host, fresh, 4, **how), plain, atol=1e-3)


def test_first_frame_attention_leaves_frame_1_alone(host: Host) -> None:
    fresh = Motion(map_unet(host.unet)).initialise()
    ours = predict(host, fresh, 4, groupnorm="frame")
    plain = predict(host, None, 4)
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-5)


def test_videos_of_a_batch_do_not_see_each_other(host: Host) -> None:
    frames, motion = 3, random_motion(host.unet)
    x, t, text = inputs(frames, 2)
    with torch.no_grad(), motion.attached(host.unet, FrameLayout(frames, 2)):
        together = host.predict(x, t, text)
    with torch.no_grad(), motion.attached(host.unet, FrameLayout(frames, 1)):
        alone = [
            host.predict(x[i * frames : (i + 1) * frames], t[i : i + 1], text[i : i + 1])
            for i in range(2)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_both_hosts_give_the_same_numbers(comfy, hosts: Callable[[str], Host]) -> None:
    ours, theirs = hosts("diffusers"), hosts("comfy")
    first = random_motion(ours.unet)
    second = Motion(map_unet(theirs.unet))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        predict(theirs, second, 5, 2), predict(ours, first, 5, 2), rtol=1e-4, atol=1e-5
    )


def test_no_hook_remains(host: Host) -> None:
    before = hook_count(host.unet)
    motion = random_motion(host.unet)
    with motion.attached(host.unet, FrameLayout(2)):
        assert hook_count(host.unet) > before
    assert hook_count(host.unet) == before


def test_no_hook_remains_after_an_error_in_the_forward_pass(host: Host) -> None:
    before, plain = hook_count(host.unet), predict(host, None, 2)
    motion = random_motion(host.unet)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    place = host.unet.get_submodule(motion.sites.blocks[-1].module)
    handle = place.register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            predict(host, motion, 2)
    finally:
        handle.remove()
    assert hook_count(host.unet) == before
    assert torch.equal(predict(host, None, 2), plain)


def test_no_hook_remains_when_attaching_fails_half_way(host: Host) -> None:
    before = hook_count(host.unet)
    motion = random_motion(host.unet)
    nowhere = BlockSite("nowhere", "nowhere", 32, 4)
    motion.sites = replace(motion.sites, blocks=(*motion.sites.blocks, nowhere))
    with pytest.raises(KeyError, match="nowhere"):
        predict(host, motion, 2)
    assert hook_count(host.unet) == before


def test_a_batch_of_incomplete_videos_is_refused(host: Host) -> None:
    """Another patch may change the batch behind the layout's back."""
    before, plain = hook_count(host.unet), predict(host, None, 3)
    motion = random_motion(host.unet)
    with (
        pytest.raises(LampError, match="3.*2 videos of 3 frames"),
        motion.attached(host.unet, FrameLayout(3, 2)),
    ):
        host.predict(*inputs(3))
    assert hook_count(host.unet) == before
    assert torch.equal(predict(host, None, 3), plain)


def test_state_dict_keys_are_canonical(host: Host) -> None:
    keys = set(Motion(map_unet(host.unet), device="meta").state_dict())
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert {
        "conv_in.conv1d.weight",
        "conv_in.conv_gate.bias",
        "down_blocks.0.downsamplers.0.conv.conv1d.bias",
        "mid_block.resnets.1.conv2.conv_gate.weight",
        "up_blocks.1.resnets.0.conv_shortcut.conv1d.weight",
        f"{block}.attn_temp.to_q.weight",
        f"{block}.attn_temp.to_out.0.bias",
        f"{block}.norm_temp.weight",
        f"{block}.attn1.to_q.weight",
    } <= keys
    assert not any("module" in key or "input_blocks" in key for key in keys)


def test_what_is_trained(host: Host) -> None:
    motion = Motion(map_unet(host.unet), device="meta")
    trained = set(motion.trained_parameters())
    rest = set(motion.state_dict()) - trained
    assert all(any(f".{part}." in name for part in TRAINED) for name in trained)
    assert rest and all(".norm_temp." in name for name in rest)


def test_initialising_depends_on_the_seed_only(host: Host) -> None:
    sites = map_unet(host.unet)
    first, again, other = (Motion(sites).initialise(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert differing == {name for name in first if ".attn_temp.to_" in name and "_out" not in name}


def products(block: torch.nn.Module, run: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of the weights of all linear products while the block's query is computed."""
    shapes: list[tuple[int, ...]] = []

    class Count(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.linear:
                shapes.append(tuple(args[1].shape))
            return func(*args, **(kwargs or {}))

    counter: list[Count] = []

    def begin(*_: object) -> None:
        counter.append(Count().__enter__())

    def end(*_: object) -> None:
        counter.pop().__exit__(None, None, None)

    handles = [
        block.attn1.to_q.register_forward_pre_hook(begin),
        block.attn1.to_q.register_forward_hook(end),
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def first_block(host: Host) -> torch.nn.Module:
    return host.unet.get_submodule(map_unet(host.unet).blocks[0].module)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_a_changed_query_is_one_product_with_the_weight_of_the_moment(
    exact: Host, strength: float
) -> None:
    motion, block = random_motion(exact.unet), first_block(exact)
    weight = block.attn1.to_q.weight
    run = partial(predict, exact, motion, 3, strength=strength)
    assert len(products(block, run)) == 1
    merged = run()
    with torch.no_grad(), motion.attached(exact.unet, FrameLayout(3), strength=strength):
        with torch.enable_grad():  # two products
            separate = exact.predict(*inputs(3))
        torch.testing.assert_close(merged, separate.detach(), rtol=1e-6, atol=1e-7)
        # A LoRA of a later step, as ComfyUI's hooks apply it: nothing of the old weight remains.
        own = weight.clone()
        try:
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
            changed = exact.predict(*inputs(3))
            with torch.enable_grad():
                separate = exact.predict(*inputs(3))
        finally:
            weight.copy_(own)
    assert not torch.allclose(changed, merged, atol=1e-3)
    torch.testing.assert_close(changed, separate.detach(), rtol=1e-6, atol=1e-7)


class Packed(torch.Tensor):
    """Twice a weight, as which only a linear layer uses it: like the packed weights of other
    libraries, these are not the numbers that they seem to be."""

    __module__ = "gguf"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return F.linear(args[0], args[1].as_subclass(Tensor) / 2)
        return super().__torch_function__(func, types, args, kwargs)


def test_packed_weights_and_replaced_layers_get_the_change_as_a_second_product(exact: Host) -> None:
    motion, block = random_motion(exact.unet), first_block(exact)
    expected, to_q = predict(exact, motion, 3), block.attn1.to_q
    own = to_q.weight
    try:
        packed = (own.detach() * 2).as_subclass(Packed)
        to_q.weight = torch.nn.Parameter(packed, requires_grad=False)
        got = predict(exact, motion, 3).as_subclass(Tensor)
    finally:
        to_q.weight = own
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    inner = to_q.forward
    try:
        to_q.forward = lambda x: inner(x) + 0.5 * inner(x)  # as an adapter that bypasses weights
        assert len(products(block, partial(predict, exact, motion, 3))) == 3
        assert vars(to_q)["forward"] is not inner
    finally:
        del to_q.forward


def test_where_other_code_takes_part_the_batch_of_self_attention_keeps_its_shape(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the numbers are the same."""
    motion, block, seen = random_motion(host.unet), first_block(host), []

    def note(layer: object, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(len(args[0]))

    handle = block.attn1.to_out[0].register_forward_hook(note)
    try:
        joined = predict(host, motion, 3, videos=2)
        monkeypatch.setattr(attention, "_is_alone", lambda *_: False)
        apart = predict(host, motion, 3, videos=2)
    finally:
        handle.remove()
    torch.testing.assert_close(joined, apart, rtol=1e-4, atol=1e-5)
    assert seen == [2, 6]


def test_keys_masks_and_replaced_attention_count_as_other_code() -> None:
    layout, x = FrameLayout(3, 2), torch.zeros(6, 4, 8)

    def alone(*args: object, **kwargs: object) -> bool:
        return attention._is_alone(args, kwargs, layout)

    def options(override: object) -> dict[str, object]:
        return {"optimized_attention_override": override}

    assert alone(x, context=None, mask=None, transformer_options={})
    assert alone(x, transformer_options=options(attention.torch_attention))
    assert not alone(x, x)
    assert not alone(x, mask=torch.zeros(4, 4))
    assert not alone(x, transformer_options=options(lambda *_: None))
    assert not alone(x[:3])  # tiles, or a part of the batch
