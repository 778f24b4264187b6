"""The cache for ComfyUI's VAE and CLIP: exact digests, and models loaded only when needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lamp.clips.clip_set import ClipSet
from lamp.clips.load import clips_from_images
from lamp.errors import LampError
from lamp.files.cache import TensorCache
from lamp.hosts.comfy import cache as comfy_cache
from lamp.hosts.comfy import clips as comfy_clips
from lamp.training.latents import LatentClips

PROMPT = "a red star moves right"


@pytest.fixture(scope="module")
def toy(comfy: ModuleType) -> Any:
    """MODEL, CLIP and VAE of the toy base, in ComfyUI's own classes."""
    return load()


def load() -> Any:
    from lamp.hosts.comfy.toy import load_toy_models
    from lamp.toy.base import toy_state

    return load_toy_models(toy_state())


@pytest.fixture
def folder(comfy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return tmp_path / "__lamp_cache"


@pytest.fixture
def loads(comfy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the models that the host was asked to put on the device."""
    import comfy.model_management as management

    asked: list[str] = []
    real = management.load_models_gpu

    def listen(models: Any, *args: Any, **options: Any) -> Any:
        asked.extend(type(model.model).__name__ for model in models)
        return real(models, *args, **options)

    management.unload_all_models()
    monkeypatch.setattr(management, "load_models_gpu", listen)
    yield asked
    management.unload_all_models()


def make_clips(seed: int = 0) -> ClipSet:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(4, 32, 32, 3, generator=generator) for _ in range(2)]
    return clips_from_images(images, [PROMPT, "another"], 4, 32, 32, flip=True)


def prepare(
    toy: Any, clips: ClipSet, say: Callable[[str], None] = lambda text: None
) -> LatentClips:
    with torch.inference_mode():  # in which the host runs its nodes
        return comfy_clips.prepare_clips(
            toy.model, toy.vae, toy.clip, clips, lambda done, total: None, say
        )


def copied(clip: Any) -> Any:
    """A CLIP of the same model, as nodes that change one make it."""
    return clip.clone()


# --- a run and the next ---------------------------------------------------------------------


def test_the_second_run_loads_no_model_and_gets_the_same_bits(
    toy: Any, folder: Path, loads: list[str]
) -> None:
    import comfy.model_management as management

    said: list[str] = []
    first = prepare(toy, make_clips(), said.append)
    assert {"AutoencoderKL", "SD1ClipModel"} <= set(loads)
    assert management.loaded_models() == []
    restarted = load()
    management.unload_all_models()  # on a CPU the host itself puts a new CLIP there
    loads.clear()
    second = prepare(restarted, make_clips(), said.append)
    assert loads == []
    assert management.loaded_models() == []
    for name in ("posteriors", "mirrored"):
        for a, b in zip(getattr(first, name), getattr(second, name), strict=True):
            assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
    assert first.text.keys() == second.text.keys()
    assert all(torch.equal(first.text[prompt], second.text[prompt]) for prompt in first.text)
    assert len(list(folder.glob("posterior-*"))) == 4
    assert len(list(folder.glob("prompt-*"))) == len(first.text)
    assert said == [
        "clip 1 of 2 encoded",
        "clip 2 of 2 encoded",
        "clip 1 of 2 found in the cache",
        "clip 2 of 2 found in the cache",
    ]


def test_a_clip_with_hooks_is_refused_before_anything_is_encoded(
    toy: Any, folder: Path, loads: list[str]
) -> None:
    """Training would leave out what the hooks change on the MODEL."""
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks

    for applied, scheduled in ((True, False), (False, True)):
        hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
        (clip,) = SetClipHooks().apply_hooks(toy.clip, scheduled, applied, hooks)
        with pytest.raises(LampError, match="hooks"):
            prepare(SimpleNamespace(model=toy.model, vae=toy.vae, clip=clip), make_clips())
    assert loads == []


def test_only_the_model_that_is_needed_is_loaded(toy: Any, folder: Path, loads: list[str]) -> None:
    prepare(toy, make_clips())
    loads.clear()
    prepare(toy, make_clips(seed=1))
    assert set(loads) == {"AutoencoderKL"}


def test_without_a_text_encoder_nothing_is_encoded_first(
    toy: Any, folder: Path, loads: list[str]
) -> None:
    with pytest.raises(LampError, match="CLIP"):
        prepare(SimpleNamespace(model=toy.model, vae=toy.vae, clip=None), make_clips())
    assert loads == []


def test_a_cancel_takes_effect_within_a_clip(toy: Any, folder: Path) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        prepare(toy, make_clips())
    assert not folder.exists()


# --- what models are known by ---------------------------------------------------------------


def test_digests_are_the_same_after_a_restart(toy: Any) -> None:
    other = load()
    assert comfy_cache.vae_digest(other.vae) == comfy_cache.vae_digest(toy.vae) is not None
    assert comfy_cache.clip_digest(other.clip) == comfy_cache.clip_digest(toy.clip) is not None


@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "quant_conv.bias", "decoder.conv_out.weight"]
)
def test_one_changed_weight_changes_the_digest_of_a_vae(toy: Any, name: str) -> None:
    other = load().vae
    weight = other.first_stage_model.state_dict()[name].flatten()
    weight[-1] = weight[-1].nextafter(torch.tensor(100.0))
    assert comfy_cache.vae_digest(other) != comfy_cache.vae_digest(toy.vae)


def test_another_dtype_changes_the_digest_of_a_vae(toy: Any) -> None:
    other = load().vae
    other.first_stage_model.to(torch.bfloat16)
    other.vae_dtype = torch.bfloat16
    assert comfy_cache.vae_digest(other) != comfy_cache.vae_digest(toy.vae)


def lora(clip: Any, seed: int = 0, strength: float = 1.0) -> Any:
    """The CLIP with a LoRA, as Load LoRA makes it."""
    from comfy.weight_adapter import LoRAAdapter

    key = next(name for name in clip.patcher.model.state_dict() if name.endswith("fc1.weight"))
    out, width = clip.patcher.model.state_dict()[key].shape
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, 2, generator=generator)
    down = torch.randn(2, width, generator=generator)
    changed = copied(clip)
    adapter = LoRAAdapter({"up", "down"}, (up, down, 2.0, None, None, None))
    assert changed.add_patches({key: adapter}, strength) == [key]
    return changed


def skipping(clip: Any, layer: int) -> Any:
    """The CLIP with clip skip, as CLIP Set Last Layer makes it."""
    changed = copied(clip)
    changed.clip_layer(layer)
    return changed


def test_loras_and_clip_skip_change_the_digest_of_a_clip(toy: Any) -> None:
    variants = [
        toy.clip,
        lora(toy.clip),
        lora(toy.clip, seed=1),
        lora(toy.clip, strength=0.5),
        lora(lora(toy.clip), seed=1),
        skipping(toy.clip, -2),
        skipping(toy.clip, -1),
        skipping(lora(toy.clip), -2),
    ]
    digests = [comfy_cache.clip_digest(clip) for clip in variants]
    assert None not in digests
    assert len(set(digests)) == len(variants)
    # By content: the host numbers its patches anew in every process.
    assert comfy_cache.clip_digest(lora(load().clip)) == digests[1]


def test_an_applied_lora_does_not_change_the_digest_of_the_base(toy: Any) -> None:
    import comfy.model_management as management

    patched = lora(toy.clip)
    expected = [comfy_cache.clip_digest(clip) for clip in (toy.clip, patched)]
    management.load_models_gpu([patched.patcher], force_patch_weights=True)
    try:
        assert patched.patcher.backup  # the weights in the model are the patched ones now
        assert [comfy_cache.clip_digest(clip) for clip in (toy.clip, patched)] == expected
    finally:
        management.unload_all_models()
    assert [comfy_cache.clip_digest(clip) for clip in (toy.clip, patched)] == expected


def test_a_model_with_hooked_code_is_not_cached_and_logged(
    toy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hooked, wrapped = copied(toy.clip), lora(toy.clip)
    hooked.patcher.object_patches["logit_scale"] = object()
    (patches,) = wrapped.patcher.patches.values()
    patches[0] = (*patches[0][:-1], lambda weight: weight)
    with caplog.at_level(logging.INFO, "lamp"):
        assert comfy_cache.clip_digest(hooked) is None
        assert comfy_cache.clip_digest(wrapped) is None
    assert len(caplog.records) == 2 and caplog.text.count("SD1ClipModel") == 2


def test_a_lora_reaches_the_embedding_through_the_cache(toy: Any, folder: Path) -> None:
    plain = prepare(toy, make_clips()).text[PROMPT]
    changed = prepare(
        SimpleNamespace(model=toy.model, vae=toy.vae, clip=lora(toy.clip)), make_clips()
    ).text[PROMPT]
    again = prepare(toy, make_clips()).text[PROMPT]
    assert torch.equal(plain, again)
    assert not torch.allclose(plain, changed)


def test_a_textual_inversion_counts_by_its_vectors(toy: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    clip = copied(toy.clip)
    tokenizer = clip.tokenizer.clip_l
    vector = torch.randn(2, tokenizer.embedding_size, generator=torch.Generator().manual_seed(0))
    known = comfy_cache.clip_digest(clip)
    before, tokenizer.embedding_directory = tokenizer.embedding_directory, str(tmp_path)
    try:
        digests = []
        for value in (vector, vector + 1, vector):
            save_file({"emb_params": value}, tmp_path / "mine.safetensors")
            digests.append(comfy_cache.prompt_digest(clip, "a embedding:mine star", known))
    finally:
        tokenizer.embedding_directory = before
    assert digests[0] == digests[2] != digests[1]


def test_weights_of_words_count(toy: Any) -> None:
    known = comfy_cache.clip_digest(toy.clip)
    prompts = ["a (red:1.2) star", "a (red:1.3) star", "a red star"]
    assert len({comfy_cache.prompt_digest(toy.clip, prompt, known) for prompt in prompts}) == 3


# --- several frames at a time ---------------------------------------------------------------


def frames(count: int = 5) -> Tensor:
    return torch.rand(count, 32, 32, 3, generator=torch.Generator().manual_seed(0))


def test_frames_at_once_are_what_a_quarter_of_the_device_takes(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    pixels = torch.zeros(16, 3, 320, 512)
    vae = SimpleNamespace(
        device=torch.device("cuda"),
        vae_dtype=torch.float32,
        memory_used_encode=lambda shape, dtype: 1767 * shape[2] * shape[3] * 4,
    )
    each = 1767 * 320 * 512 * 4
    for total, expected in ((2**30, 1), (4 * each, 1), (13 * each, 3), (1000 * each, 16)):
        monkeypatch.setattr(management, "get_total_memory", lambda device, total=total: total)
        assert comfy_clips._frames_at_once(vae, pixels) == expected
    assert comfy_clips._frames_at_once(toy.vae, pixels) == 1


def test_frames_together_encode_as_frames_alone(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        alone = comfy_clips.encode_posterior(toy.vae, frames())
        monkeypatch.setattr(comfy_clips, "_frames_at_once", lambda vae, pixels: 3)
        together = comfy_clips.encode_posterior(toy.vae, frames())
    for a, b in zip(alone, together, strict=True):
        assert a.shape[:2] == (5, 4)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_frames_are_encoded_one_by_one_if_several_do_not_fit(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    sizes: list[int] = []

    def full(module: Any, inputs: tuple[Tensor]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 1:
            raise management.OOM_EXCEPTION("out of memory")

    monkeypatch.setattr(comfy_clips, "_frames_at_once", lambda vae, pixels: 4)
    hook = toy.vae.first_stage_model.encoder.register_forward_pre_hook(full)
    try:
        with torch.no_grad():
            mean, _ = comfy_clips.encode_posterior(toy.vae, frames())
    finally:
        hook.remove()
    assert sizes == [4, 1, 1, 1, 1, 1]
    with torch.no_grad():
        monkeypatch.setattr(comfy_clips, "_frames_at_once", lambda vae, pixels: 1)
        assert torch.equal(comfy_clips.encode_posterior(toy.vae, frames())[0], mean)


def test_the_cache_folder_survives_restarts(comfy: ModuleType) -> None:
    import folder_paths

    folder = comfy_cache.cache_folder()
    assert folder.parent == Path(folder_paths.get_user_directory())
    assert not folder.is_relative_to(folder_paths.get_temp_directory())
    # No web client may read it, where the host has folders that none may.
    public = getattr(folder_paths, "get_public_user_directory", lambda name: None)
    assert public(folder.name) is None
    assert isinstance(comfy_cache.latent_cache(load().vae, load().clip).files, TensorCache)
