"""What a run computes with on ComfyUI: plain weights, wherever and however the host holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.tiny_models import WIDTH, tiny_patcher
from lamp.clips.load import clips_from_images
from lamp.errors import IncompatibleModelError, LampError
from lamp.training.latents import SCALE, LatentClips, cache_latents
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig, choose_precision
from tests.helpers.dynamic_vram import DEVICE, Pages, dynamic_class  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow  # many of them

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FP8 = torch.float8_e4m3fn


def small_clips(words: tuple[str, ...] = ("one", "two")) -> LatentClips:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(5, 64, 64, 3, generator=generator) for _ in words]
    return cache_latents(
        clips_from_images(images, list(words), 3, 64, 64),
        lambda pixels: (
            torch.randn(len(pixels), 4, 8, 8, generator=torch.Generator().manual_seed(7)) / SCALE,
            torch.full((len(pixels), 4, 8, 8), 0.1),
        ),
        # A long caption takes several chunks of tokens.
        lambda texts: {text: torch.full((1, 5 * len(text.split()) or 5, WIDTH), 0.1 * len(text))
                       for text in texts},
    )  # fmt: skip


def losses(
    patcher: Any, between: Callable[[], Any] = lambda: None, steps: int = 3, **settings: Any
) -> list[float]:
    """Of a short run in ComfyUI, as its executor starts one."""
    from lamp.hosts.comfy.training import new_motion, tuning_host

    with torch.inference_mode(), tuning_host(patcher) as host:
        precision = choose_precision("auto", host.dtype, host.has_bf16)
        config = TrainConfig(
            steps=steps, frames=3, learning_rate=1e-2, precision=precision, **settings
        )
        training = Training(host, new_motion(host, 0), small_clips(), config)
        found = []
        for _ in range(steps):
            found.append(training.advance().loss)
            between()
    return found


def stored(patcher: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in patcher.model.named_parameters()}


def check_as_before(patcher: Any, before: dict[str, Tensor]) -> None:
    for name, parameter in patcher.model.named_parameters():
        assert parameter.dtype == before[name].dtype, name
        assert torch.equal(parameter, before[name]), name


def remember_type(patcher: Any, kind: torch.dtype) -> None:
    """What newer hosts note beside the weights: the type that they are to have in the model."""
    unet = patcher.model.diffusion_model
    unet.dtype = kind
    for module in unet.modules():
        for name, _ in module.named_parameters(recurse=False):
            setattr(module, f"{name}_comfy_model_dtype", kind)


def of_types(kind: torch.dtype, computed: torch.dtype | None) -> Any:
    """The tiny MODEL with its weights in one type, computing in another, as the host makes it."""
    import comfy.ops

    patcher = tiny_patcher()
    model = patcher.model
    model.diffusion_model.to(kind)
    remember_type(patcher, kind)
    model.manual_cast_dtype = computed
    for module in model.modules():
        if computed is not None and isinstance(module, comfy.ops.CastWeightBiasOp):
            module.comfy_cast_weights = True
            module.__class__ = getattr(comfy.ops.manual_cast, type(module).__name__)
    return patcher


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_weights_that_are_streamed_train_as_those_that_are_loaded(
    comfy: Any, monkeypatch: pytest.MonkeyPatch, gradient_checkpointing: bool
) -> None:
    """--novram, --lowvram: the host leaves weights off the device and casts them at each layer."""
    import comfy.model_management as management

    expected = losses(tiny_patcher(), gradient_checkpointing=gradient_checkpointing)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "soft_empty_cache", lambda force=False: None)
    for state in (management.VRAMState.LOW_VRAM, management.VRAMState.NO_VRAM):
        monkeypatch.setattr(management, "vram_state", state)
        patcher = tiny_patcher()
        patcher.load_device = DEVICE
        # It was sampled with before, and its weights are on the card in part.
        management.load_models_gpu([patcher])
        before = stored(patcher)
        assert losses(patcher, gradient_checkpointing=gradient_checkpointing) == expected
        check_as_before(patcher, before)
    management.current_loaded_models.clear()


class _Streaming:
    """A patcher as newer hosts have: it takes no heed of `force_full_load`, keeps the file's type
    and gives each layer its weight in a buffer that the next one overwrites."""

    def __new__(cls, patcher: Any) -> Any:
        import comfy.model_patcher

        class Patcher(comfy.model_patcher.ModelPatcher):
            def load(self, *_: Any, **__: Any) -> None:
                buffer = torch.empty(2**16)
                for module in self.model.diffusion_model.modules():
                    if hasattr(module, "comfy_cast_weights"):
                        module.comfy_cast_weights = True
                        module.weight_function = [_Buffered(buffer)]

        streaming = Patcher(patcher.model, patcher.load_device, patcher.offload_device)
        remember_type(patcher, BF16)
        return streaming


class _Buffered:
    def __init__(self, buffer: Tensor) -> None:
        self._buffer = buffer

    def __call__(self, weight: Tensor) -> Tensor:
        room = self._buffer[: weight.numel()].view(weight.shape).to(weight.dtype)
        room.copy_(weight)
        self._buffer.fill_(float("nan"))
        return room


def test_a_patcher_that_streams_another_type_trains_as_plain_weights(comfy: Any) -> None:
    import comfy.model_management as management

    expected = losses(of_types(BF16, None))
    patcher = _Streaming(tiny_patcher())
    management.load_models_gpu([patcher], force_full_load=True)
    before = stored(patcher)
    assert losses(patcher) == expected
    check_as_before(patcher, before)
    management.current_loaded_models.clear()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_dynamic_vram_trains_as_plain_weights(dynamic_class: Any, share: float) -> None:  # noqa: F811
    """Also while pages go between the steps; a file in fp32 for a model in bf16."""
    import comfy.model_management as management

    expected = losses(of_types(BF16, None))
    plain = tiny_patcher()
    remember_type(plain, BF16)
    patcher = dynamic_class(plain.model, DEVICE, torch.device("cpu"))
    before = stored(patcher)
    management.load_models_gpu([patcher], force_full_load=True)
    pages: Pages = patcher.model.dynamic_vbars[DEVICE]
    pages.limit = int(share * pages.end)
    assert losses(patcher, between=lambda: pages.free_memory(pages.end)) == expected
    check_as_before(patcher, before)
    # The MODEL streams as before: what it samples with is its own.
    management.load_models_gpu([patcher])
    assert patcher.is_dynamic() and patcher.model.dynamic_vbars[DEVICE] is pages


def test_patches_act_in_training_and_the_model_keeps_its_weights(comfy: Any) -> None:
    """A LoRA in front of the trainer: the motion learns what it does not do."""
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    delta = 0.2 * torch.randn(WIDTH, WIDTH)
    patched, changed = tiny_patcher().clone(), tiny_patcher()
    patched.add_patches({key: ("diff", (delta,))})
    with torch.no_grad():
        dict(changed.model.named_parameters())[key].add_(delta)
    before = stored(patched)
    assert losses(patched) == losses(changed) != losses(tiny_patcher())
    check_as_before(patched, before)


@pytest.mark.parametrize(
    ("kind", "computed"), [(FP16, FP32), (BF16, FP32), (FP8, FP32), (FP8, BF16), (FP16, None)]
)
def test_storage_and_arithmetic_may_have_two_types(
    comfy: Any, kind: torch.dtype, computed: torch.dtype | None
) -> None:
    """GTX 10xx and P40 (fp16 stored, fp32 computed), fp8 on a CPU: planned, and close to fp32 with
    the weights rounded so."""
    from lamp.hosts.comfy.memory import plan_memory
    from lamp.hosts.comfy.training import tuning_host

    patcher, rounded = of_types(kind, computed), tiny_patcher()
    rounded.model.diffusion_model.to(kind).to(FP32)
    with tuning_host(patcher) as host:
        precision = choose_precision("auto", host.dtype, host.has_bf16)
        assert (precision == "fp32") == (computed == FP32)
        config = TrainConfig(steps=1, frames=3, precision=precision)
        said: list[str] = []
        plan_memory(host, small_clips(), config, "off", said.append)
        assert precision in said[0]
    found, expected = losses(patcher, steps=1)[0], losses(rounded, steps=1)[0]
    assert found == pytest.approx(expected, rel=1e-6 if computed == FP32 else 0.02)


@pytest.mark.parametrize(
    ("wanted", "computes", "has_bf16", "expected"),
    [
        ("auto", FP32, True, "fp32"),
        ("auto", FP16, True, "bf16"),
        ("auto", FP16, False, "fp16"),
        ("auto", BF16, False, "bf16"),
        ("auto", None, True, "bf16"),
        ("auto", None, False, "fp16"),
        ("fp32", None, True, "fp32"),
        ("bf16", FP32, False, "bf16"),
    ],
)
def test_the_chosen_precision_suits_the_host(
    wanted: str, computes: torch.dtype | None, has_bf16: bool, expected: str
) -> None:
    assert choose_precision(wanted, computes, has_bf16) == expected


def test_fp32_is_refused_where_the_unet_computes_in_half_precision() -> None:
    with pytest.raises(LampError, match="float16"):
        choose_precision("fp32", FP16, False)


def test_an_error_leaves_the_model_as_it_was(comfy: Any) -> None:
    class Cancelled(BaseException):
        pass

    def cancel() -> None:
        raise Cancelled

    patcher = tiny_patcher()
    before = stored(patcher)
    with pytest.raises(Cancelled):
        losses(patcher, between=cancel)
    check_as_before(patcher, before)
    modules = list(patcher.model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    assert not any("forward" in m.__dict__ for m in modules)


class _Packed(Tensor):
    """A weight as GGUF packs keep it: bytes that only their own layers understand."""


@pytest.mark.parametrize(
    "pack",
    [
        lambda weight: torch.zeros(weight.shape).as_subclass(_Packed),
        lambda weight: torch.zeros(weight.shape, dtype=torch.uint8),
        lambda weight: torch.zeros(weight.shape, device="meta"),
    ],
)
def test_weights_that_are_no_plain_tensors_are_refused(
    comfy: Any, pack: Callable[[Tensor], Tensor]
) -> None:
    from lamp.hosts.comfy.training import tuning_host

    patcher = tiny_patcher()
    layer = patcher.model.diffusion_model.input_blocks[1][0].in_layers[2]
    layer.weight = torch.nn.Parameter(pack(layer.weight.detach()), requires_grad=False)
    with pytest.raises(LampError, match="GGUF"), tuning_host(patcher):
        pass


def test_weights_for_which_there_is_no_room_are_told(
    comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    import comfy.model_patcher

    from lamp.hosts.comfy.training import tuning_host

    def full(*_: Any, **__: Any) -> None:
        raise management.OOM_EXCEPTION("no room")

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "patch_model", full)
    with pytest.raises(LampError, match=r"weights take \d+ MB"), tuning_host(tiny_patcher()):
        pass


def test_other_models_push_no_weight_off_the_device(comfy: Any) -> None:
    """The host makes room for a VAE by moving weights; those of a run it does not move."""
    import comfy.model_management as management

    from lamp.hosts.comfy.training import tuning_host

    with tuning_host(tiny_patcher()) as host:
        places = {name: (id(p), p.device) for name, p in host.unet.named_parameters()}
        management.free_memory(1e30, host.device)
        management.unload_all_models()
        assert {n: (id(p), p.device) for n, p in host.unet.named_parameters()} == places


def test_captions_of_several_lengths_train_and_are_sampled(comfy: Any) -> None:
    """77 tokens against 154: in one batch, and beside the empty text of a sample."""
    from lamp.hosts.comfy.training import new_motion, tuning_host
    from lamp.training.samples import sample_clip

    clips = small_clips(("one", "a far longer caption"))
    assert {text.shape[1] for text in clips.text.values()} == {5, 20}
    with tuning_host(tiny_patcher()) as host:
        config = TrainConfig(steps=1, frames=3, batch=2)
        training = Training(host, new_motion(host, 0), clips, config)
        assert training.advance().loss > 0
        first, text = clips.posteriors[0].mean[0], clips.text["a far longer caption"]
        video = sample_clip(training, first, text, clips.text[""], steps=2, guidance=3.0)
        assert video.isfinite().all() and torch.equal(video[0], first)


def test_directml_is_refused_at_once(comfy: Any) -> None:
    from types import SimpleNamespace

    from lamp.hosts.comfy.training import check_trainable

    patcher = tiny_patcher()
    patcher.load_device = SimpleNamespace(type="privateuseone")
    with pytest.raises(LampError, match="DirectML"):
        check_trainable(patcher)


def test_a_motion_trained_behind_a_lora_is_of_that_very_checkpoint(comfy: Any) -> None:
    from lamp.hosts.comfy.binding import image_model_hash
    from lamp.hosts.comfy.training import tuning_host

    plain = tiny_patcher()
    patched = plain.clone()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    patched.add_patches({key: ("diff", (torch.ones(WIDTH, WIDTH),))})
    expected = image_model_hash(plain)
    with tuning_host(patched):
        assert image_model_hash(patched) == expected != image_model_hash(tiny_patcher(seed=1))


def test_a_checkpoint_that_cannot_be_read_is_no_reason_to_fail(comfy: Any) -> None:
    from lamp.hosts.comfy.binding import image_model_hash

    patcher = tiny_patcher()
    patcher.model.diffusion_model.to("meta")
    assert image_model_hash(patcher) == ""


def test_patches_without_effect_in_training_are_named(comfy: Any) -> None:
    from lamp.hosts.comfy.training import ignored_patches

    patcher = tiny_patcher().clone()
    patcher.add_patches({})
    assert ignored_patches(patcher) == []

    def free_u(h: Tensor, hsp: Tensor, options: Any) -> tuple[Tensor, Tensor]:
        return h, hsp

    patcher.set_model_output_block_patch(free_u)
    patcher.set_model_sampler_post_cfg_function(lambda given: given["denoised"])
    patcher.add_wrapper_with_key("diffusion_model", "block_cache", lambda *given: given)
    named = " ".join(ignored_patches(patcher))
    for name in ("output_block_patch", "sampler_post_cfg_function", "block_cache"):
        assert name in named


@pytest.mark.parametrize("channels", [8, 9])
def test_checkpoints_for_inpainting_and_editing_are_refused(comfy: Any, channels: int) -> None:
    from lamp.hosts.comfy.training import check_trainable

    patcher = tiny_patcher()
    first = patcher.model.diffusion_model.input_blocks[0]
    first[0] = torch.nn.Conv2d(channels, first[0].out_channels, 3, padding=1)
    with pytest.raises(IncompatibleModelError, match=f"{channels} channels"):
        check_trainable(patcher)


def test_packed_weights_are_refused_before_anything_runs(comfy: Any) -> None:
    """As GGUF's, of which each number of a row holds several."""
    from lamp.hosts.comfy.training import check_trainable

    class Packed(torch.Tensor):
        pass

    patcher = tiny_patcher()
    check_trainable(patcher)
    conv = patcher.model.diffusion_model.out[2]
    conv.weight = torch.nn.Parameter(conv.weight.detach().as_subclass(Packed), requires_grad=False)
    with pytest.raises(LampError, match="packed.*Packed"):
        check_trainable(patcher)
