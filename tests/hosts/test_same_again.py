"""Same seed, same video: again, on a clone, reloaded, with previews, in deterministic mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    advanced,
    conditioning,
    lamp_ksampler,
    levels,
    moving,
    sampler,
)
from benchmarks.samples.ecosystem import sample
from benchmarks.samples.tiny_models import tiny_patcher, video_latent
from lamp.hosts.comfy.inversion import invert_video
from lamp.hosts.comfy.noise import GivenNoise, SharedNoise
from lamp.method.adain import AdaINSchedule
from lamp.motion_file.file import MotionFile

pytestmark = pytest.mark.usefixtures("comfy", "in_inference_mode")


def ours(model: Any) -> Tensor:
    schedule = AdaINSchedule("official")
    return lamp_ksampler(model, video_latent(4), steps=2, schedule=schedule)


def ancestral(model: Any) -> Tensor:
    return sample(model, "dpmpp_2m_sde")


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("run", [ours, ancestral])
def test_the_same_again(
    plain: Any,
    file: MotionFile,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Any], Tensor],
) -> None:
    import comfy.model_management as management
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    model = moving(plain, file)
    first = run(model)
    assert torch.equal(run(model), first)
    assert torch.equal(run(model.clone()), first)

    management.unload_all_models()
    assert torch.equal(run(model), first)
    # models and motion made anew, as in another server
    assert torch.equal(run(moving(tiny_patcher(), file)), first)

    with deterministic():  # as the host's --deterministic
        assert torch.equal(run(model), first)

    shown = []
    decode = latent_preview.Latent2RGBPreviewer.decode_latent_to_preview

    def see(self: Any, x0: Tensor) -> Any:
        shown.append(1)
        return decode(self, x0)

    monkeypatch.setattr(latent_preview.Latent2RGBPreviewer, "decode_latent_to_preview", see)
    for method in (LatentPreviewMethod.Latent2RGB, LatentPreviewMethod.NoPreviews):
        monkeypatch.setattr(args, "preview_method", method)
        shown.clear()
        assert torch.equal(run(model), first)
        assert bool(shown) == (method == LatentPreviewMethod.Latent2RGB)


def drawing(seen: list[float]) -> Callable[[Any], Any]:
    """A patch that draws from PyTorch's own generator in each call, as ToMe and HyperTile do."""

    def patch(model: Any) -> Any:
        def draw(unet: Any, args: dict[str, Any]) -> Tensor:
            seen.append(torch.rand(1).item())
            return unet(args["input"], args["timestep"], **args["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(draw)
        return model

    return patch


@pytest.mark.parametrize("adain", ["off", "paper"])
@pytest.mark.parametrize("name", ["lamp", "shared noise", "given noise", "inverted"])
def test_patches_that_draw_numbers_draw_the_same(
    plain: Any, file: MotionFile, name: str, adain: Any
) -> None:
    """Whatever ran before: ComfyUI's own noise seeds the generator, too."""
    seen: list[float] = []
    model = drawing(seen)(moving(plain, file))
    drawn = []
    for before in (1, 2):
        torch.manual_seed(before)
        seen.clear()
        if name == "lamp":
            schedule = AdaINSchedule(adain)
            lamp_ksampler(model, video_latent(4), steps=2, sampler="euler", schedule=schedule)
        elif name == "inverted":
            invert_video(model, conditioning()[0], {"samples": torch.ones(4, 4, 8, 8)}, steps=2)
        else:
            noise: Any = SharedNoise(SEED, 0.2)
            if name == "given noise":
                noise = GivenNoise(torch.ones(6, 4, 8, 8), SEED)
            advanced(model, sampler("euler", adain), levels(model), noise)
        drawn.append([*seen])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == len(drawn[0]) > 1


def test_adain_leaves_the_cards_generator_alone(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehearsal of the sampler runs on the CPU; fork_rng would not restore another device."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    lamp_ksampler(moving(plain, file), video_latent(4), schedule=AdaINSchedule("paper"), seed=78)
    assert seeds and 0 not in seeds  # the rehearsal's
