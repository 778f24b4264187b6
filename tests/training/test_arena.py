"""Memory is arranged once, after the first update, and no number changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.arena import MARGIN, Arena
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig

STEPS = 3


def new_training(update: str) -> Training:
    host = small_host()
    config = TrainConfig(steps=STEPS, frames=FRAMES, learning_rate=1e-2, update=update)
    return Training(host, Motion(map_unet(host.unet)).initialise(0), small_clips(), config)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | int]:
    """What the run asks of a GPU that is not there: 100 bytes are allocated, 1100 at most."""
    calls: list[str | int] = []
    own = torch.empty

    def empty(*size: Any, **options: Any) -> torch.Tensor:
        if str(options.get("device")) != "cuda":
            return own(*size, **options)
        calls.append(size[0])
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(torch, "empty", empty)
    for name, answer in (("memory_allocated", 100), ("max_memory_allocated", 1100)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("update", ["step", "backward", "offload"])
def test_the_memory_is_arranged_once_and_the_run_is_the_same(
    asked: list[str | int], update: str
) -> None:
    plain, arranged = new_training(update), new_training(update)
    arranged._arena = Arena(torch.device("cuda"))
    plain.run()
    assert not asked
    arranged.run()
    assert asked == ["reset_peak_memory_stats", "empty_cache", int(MARGIN * 1000)]
    assert arranged.losses == plain.losses
    for expected, found in zip(plain.trained, arranged.trained, strict=True):
        assert torch.equal(found, expected)
        states = (run.optimizer.state[p] for run, p in ((plain, expected), (arranged, found)))
        for one, other in zip(*(each.values() for each in states), strict=True):
            assert torch.equal(one, other)


def test_an_update_that_is_skipped_does_not_count(asked: list[str | int]) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    arena = Arena(torch.device("cuda"))
    with arena.measured():
        pass
    arena.arrange(optimizer, torch.device("cpu"))
    assert "empty_cache" not in asked
    parameter.grad = torch.ones(2)
    optimizer.step()
    arena.arrange(optimizer, torch.device("cpu"))
    assert "empty_cache" in asked
