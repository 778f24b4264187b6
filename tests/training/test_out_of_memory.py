"""No memory left, in the UNet, in the VAE on the way in and on the way out: nothing is left behind,
and nothing that was done is lost. ComfyUI itself has the VAE try again in tiles, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.samples.comfy_runs import count_hooks, moving
from lamp.errors import LampError
from tests.helpers.small_models import hook_count
from tests.helpers.trainer_runs import HIDDEN, TrainerRuns, pictures
from tests.hosts.test_cancel import WORKS, same

pytestmark = pytest.mark.usefixtures("comfy")
Nodes = dict[str, Any]


@contextmanager
def no_memory(module: nn.Module, first: int, times: int = 10**6) -> Iterator[list[int]]:
    """The module's calls number `first` and following find no memory, so many of them."""
    calls = [0]

    def burst(*_: Any) -> None:
        calls[0] += 1
        if first <= calls[0] < first + times:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = module.register_forward_pre_hook(burst)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture(autouse=True)
def in_inference_mode() -> Iterator[None]:
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("where", ["UNet", "motion"])
@pytest.mark.parametrize("name", ["KSampler", "extend", "invert", "map", "custom", "windows"])
def test_nothing_is_left_of_a_video_that_did_not_fit(
    node_classes: Nodes,
    plain: Any,
    file: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    where: str,
) -> None:
    from benchmarks.robustness.host import belongings

    for node in node_classes.values():
        monkeypatch.setattr(node, "hidden", HIDDEN, raising=False)
    model = moving(plain, file)
    motion = model.get_attachment("lamp_motion").motion
    place = plain.model.diffusion_model.out if where == "UNet" else list(motion.children())[-1]
    place = next(part for part in place.modules() if not list(part.children()))
    expected, before = WORKS[name][0](node_classes, model, None), belongings(plain)
    with no_memory(place, first=2), pytest.raises(torch.OutOfMemoryError):
        WORKS[name][0](node_classes, model, None)
    assert count_hooks(plain) == 0 == hook_count(motion)
    assert belongings(plain) == before
    assert same(WORKS[name][0](node_classes, model, None), expected)


def test_a_first_frame_goes_through_the_vae_in_tiles_or_not_at_all(
    node_classes: Nodes, toy: Any
) -> None:
    def encode() -> torch.Tensor:
        node = node_classes["LAMP_FirstFrameCondition"]
        return node.execute(toy[2], pictures(1, 64), width=64, height=64, frames=3)[0]["samples"]

    encoder, expected = toy[2].first_stage_model.encoder, encode()
    with no_memory(encoder, first=1, times=1) as calls:
        torch.testing.assert_close(encode(), expected, rtol=1e-3, atol=1e-3)
    assert calls[0] > 1
    with no_memory(encoder, first=1), pytest.raises(torch.OutOfMemoryError):
        encode()
    assert torch.equal(encode(), expected)


@pytest.fixture
def runs(
    node_classes: Nodes, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainerRuns:
    return TrainerRuns(node_classes, toy, tmp_path, monkeypatch)


@pytest.mark.slow
def test_clips_that_are_encoded_stay_so_where_the_next_one_does_not_fit(runs: TrainerRuns) -> None:
    encoder, cache = runs.vae.first_stage_model.encoder, runs.folder / "user"
    with no_memory(encoder, first=6), pytest.raises(torch.OutOfMemoryError):
        runs.train("short")
    kept = {path.name for path in cache.rglob("posterior-*")}
    assert len(kept) == 1 and not list(runs.folder.rglob("*.part"))
    with no_memory(encoder, first=10**6) as calls:
        learned = runs.train("short")
    assert calls[0] == 5  # the frames of the second clip
    assert kept < set(os.listdir(next(cache.rglob("posterior-*")).parent))
    assert same(runs.train("again"), learned)


@pytest.mark.slow
def test_a_training_that_does_not_fit_is_a_sentence_and_goes_on_later(runs: TrainerRuns) -> None:
    unet, decoder = runs.model.model.diffusion_model, runs.vae.first_stage_model.decoder
    straight, drawn = runs.train("straight"), "sample of step"
    cases = {
        "forward": (unet.out[2], 2, 10**6, "in step 2.*step 1 "),
        "sample": (unet.out[2], 4, 10**6, f"{drawn} 2.*step 2 "),
        "decode": (decoder, 2, 10**6, f"{drawn} 2.*step 2 "),
    }
    for name, (module, first, times, place) in cases.items():
        with (
            no_memory(module, first, times),
            pytest.raises(LampError, match=f"^LAMP Trainer: .*memory.*{place}"),
        ):
            runs.train(name)
        assert count_hooks(runs.model) == 0
        runs.check_whole()
        assert same(runs.train(name, "latest"), straight), name
    with no_memory(decoder, first=2, times=1) as calls:  # one frame of the sample goes in tiles
        assert same(runs.train("tiles"), straight)
    assert calls[0] > 3
