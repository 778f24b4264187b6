"""A second run encodes nothing, learns the same, and never takes what belongs to something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.small_training import FRAMES, small_host
from lamp.clips.clip_set import ClipSet
from lamp.clips.load import clips_from_images
from lamp.errors import ClipError
from lamp.files.cache import TensorCache, digest
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.latents import SCALE, LatentCache, LatentClips, cache_latents
from lamp.training.loop import train
from lamp.training.recipe import TrainConfig

PROMPTS = ["one", "two", "three"]


@dataclass
class Models:
    """A VAE and a text encoder of one weight each, which count what they are asked for."""

    vae: float = 0.7
    text: float = 0.3
    frames: list[int] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.frames.append(len(pixels))
        mean = pixels.movedim(-1, 1).repeat(1, 2, 1, 1)[:, :4] * self.vae / SCALE
        return mean, mean.abs() / 9

    def embed(self, prompts: list[str]) -> dict[str, Tensor]:
        self.prompts += prompts
        width = torch.arange(16.0) * self.text
        return {text: (width + len(text)).sin().expand(1, 5, 16) for text in prompts}

    def cache(self, folder: Path) -> LatentCache:
        text = digest(self.text)
        return LatentCache(TensorCache(folder), digest(self.vae), lambda prompt: text)

    @property
    def captions(self) -> list[str]:
        """The prompts it embedded, but for the empty one, which every run needs for its samples."""
        return [prompt for prompt in self.prompts if prompt]

    @property
    def idle(self) -> bool:
        return not self.frames and not self.prompts


def make_clips(
    prompts: list[str] | str = PROMPTS, change: float = 0.0, flip: bool = False, frames: int = 5
) -> ClipSet:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(frames, 8, 8, 3, generator=generator) for _ in range(3)]
    images[1][2, 3, 4, 0] = 0.5 + change
    return clips_from_images(images, prompts, FRAMES, 8, 8, flip=flip)


def prepare(folder: Path | None, clips: ClipSet, models: Models, **more: Any) -> LatentClips:
    cache = None if folder is None else models.cache(folder)
    return cache_latents(clips, models.encode, models.embed, cache=cache, **more)


def everything(latents: LatentClips) -> dict[str, Tensor]:
    found = dict(latents.text)
    for label, posteriors in (("", latents.posteriors), ("mirrored ", latents.mirrored)):
        for number, posterior in enumerate(posteriors):
            found[f"{label}mean {number}"] = posterior.mean
            found[f"{label}std {number}"] = posterior.std
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_a_second_run_encodes_nothing_and_gets_the_same_bits(tmp_path: Path, flip: bool) -> None:
    first, second, without = Models(), Models(), Models()
    made = everything(prepare(tmp_path, make_clips(flip=flip), first))
    kept = everything(prepare(tmp_path, make_clips(flip=flip), second))
    plain = everything(prepare(None, make_clips(flip=flip), without))
    assert first.frames == without.frames == [5] * (6 if flip else 3)
    assert first.prompts == without.prompts == [*PROMPTS, ""]
    assert second.idle
    assert made.keys() == kept.keys() == plain.keys()
    for name, tensor in plain.items():
        assert kept[name].dtype == torch.float32
        assert torch.equal(made[name], tensor) and torch.equal(kept[name], tensor), name


def test_losses_are_the_same_with_a_cache_and_without(tmp_path: Path) -> None:
    host, config = small_host(), TrainConfig(steps=3, frames=FRAMES, learning_rate=1e-2)
    losses = []
    for folder in (None, tmp_path, tmp_path):
        latents = prepare(folder, make_clips(flip=True), Models())
        losses.append(train(host, Motion(map_unet(host.unet)).initialise(0), latents, config))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("clips", "models", "frames", "prompts"),
    [
        (lambda: make_clips(change=1 / 255), Models(), 5, []),
        (lambda: make_clips(frames=6), Models(), 18, []),
        (lambda: make_clips(flip=True), Models(), 15, []),
        (lambda: make_clips(["one", "two", "four"]), Models(), 0, ["four"]),
        (make_clips, Models(vae=0.70001), 15, []),
        (make_clips, Models(text=0.30001), 0, PROMPTS),
    ],
    ids=["a pixel", "more frames", "mirrored", "a prompt", "the VAE", "the text encoder"],
)
def test_only_what_changed_is_encoded_again(
    tmp_path: Path,
    clips: Callable[[], ClipSet],
    models: Models,
    frames: int,
    prompts: list[str],
) -> None:
    prepare(tmp_path, make_clips(), Models())
    found = everything(prepare(tmp_path, clips(), models))
    assert (sum(models.frames), models.captions) == (frames, prompts)
    fresh = everything(prepare(None, clips(), Models(models.vae, models.text)))
    assert all(torch.equal(found[name], tensor) for name, tensor in fresh.items())


def test_clips_in_another_order_or_number_are_found(tmp_path: Path) -> None:
    prepare(tmp_path, make_clips(), Models())
    models, fewer = Models(), make_clips()
    fewer.sources.reverse()
    fewer.sources.pop()
    latents = prepare(tmp_path, fewer, models)
    plain = prepare(None, fewer, Models())
    assert models.idle
    assert torch.equal(latents.posteriors[0].mean, plain.posteriors[0].mean)


def test_one_prompt_for_all_clips_is_embedded_once(tmp_path: Path) -> None:
    models = Models()
    prepare(None, make_clips("the same"), models)
    assert models.captions == ["the same"]


def test_an_embedding_does_not_depend_on_what_else_is_missing(tmp_path: Path) -> None:
    """Prompts of one batch may be padded to one length: they go in one by one."""

    class Padding(Models):
        def embed(self, prompts: list[str]) -> dict[str, Tensor]:
            longest = max(map(len, prompts))
            return {text: torch.full((1, longest, 16), float(len(text))) for text in prompts}

    prepare(tmp_path, make_clips("two"), Padding())
    kept = prepare(tmp_path, make_clips(), Padding())
    plain = prepare(None, make_clips(), Padding())
    assert {text: tensor.shape for text, tensor in kept.text.items()} == {
        text: tensor.shape for text, tensor in plain.text.items()
    }


def test_the_callback_tells_what_came_from_the_cache(tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool]] = []

    def listen(*clip: Any) -> None:
        seen.append(clip)

    prepare(tmp_path, make_clips(), Models(), on_clip=listen)
    prepare(tmp_path, make_clips(change=1 / 255), Models(), on_clip=listen)
    # Half of a mirrored clip is missing: it had to be encoded.
    prepare(tmp_path, make_clips(flip=True), Models(), on_clip=listen)
    assert [clip[:2] for clip in seen] == [(1, 3), (2, 3), (3, 3)] * 3
    assert [clip[2] for clip in seen] == [False] * 3 + [True, False, True] + [False] * 3


def test_a_cancel_keeps_the_clips_that_are_done(tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(done: int, total: int, cached: bool) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        prepare(tmp_path, make_clips(), Models(), on_clip=cancel)
    models = Models()
    prepare(tmp_path, make_clips(), models)
    assert models.frames == [5]


def test_a_clip_that_fails_half_way_is_not_kept(tmp_path: Path) -> None:
    class Failing(Models):
        def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            if len(self.frames) == 1:
                raise MemoryError
            return super().encode(pixels)

    with pytest.raises(MemoryError):
        prepare(tmp_path, make_clips(frames=20), Failing())
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("flip", [False, True])
def test_nan_is_named_and_not_kept(tmp_path: Path, flip: bool) -> None:
    class Overflowing(Models):
        def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = super().encode(pixels)
            if len(self.frames) == (2 if flip else 1):  # the mirrored one alone is bad, too
                std[3, 0, 0, 0] = float("nan")
            return mean, std

    with pytest.raises(ClipError, match="NaN for the clip 'clip 1'"):
        prepare(tmp_path, make_clips(flip=flip), Overflowing())
    assert len(list(tmp_path.glob("*.safetensors"))) == int(flip)


def test_long_clips_are_encoded_few_frames_at_a_time() -> None:
    models = Models()
    latents = prepare(None, make_clips(frames=40), models)
    assert models.frames == [16, 16, 8] * 3
    assert latents.posteriors[0].mean.shape == (40, 4, 8, 8)
    # Nothing else is held on to: no pixels, no larger tensor behind a view.
    for posterior in latents.posteriors:
        assert posterior.mean.untyped_storage().nbytes() == 40 * 4 * 8 * 8 * 4


def test_models_that_cannot_be_told_apart_are_never_kept(tmp_path: Path) -> None:
    models = Models()
    cache = LatentCache(TensorCache(tmp_path), None, lambda prompt: None)
    for _ in range(2):
        cache_latents(make_clips(), models.encode, models.embed, cache=cache)
    assert len(models.frames) == 6 and len(models.captions) == 6
    assert not list(tmp_path.iterdir())


def test_damaged_entries_cost_time_and_nothing_else(tmp_path: Path) -> None:
    plain = everything(prepare(tmp_path, make_clips(), Models()))
    for number, path in enumerate(sorted(tmp_path.glob("*.safetensors"))):
        path.write_bytes(path.read_bytes()[: 40 * (number + 1)])
    models = Models()
    again = everything(prepare(tmp_path, make_clips(), models))
    assert len(models.frames) == 3 and len(models.captions) == 3
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.items())
