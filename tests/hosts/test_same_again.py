"""Same seed, same video: again, on a clone, reloaded, with previews, in deterministic mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import lamp_ksampler, moving
from benchmarks.samples.ecosystem import sample
from benchmarks.samples.tiny_models import tiny_patcher, video_latent
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
