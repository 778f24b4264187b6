"""ComfyUI after mixed runs (benchmarks/robustness/host.py)."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.mark.slow
def test_nothing_of_many_mixed_runs_is_left(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.robustness import host as robustness_host

    few = dict(list(robustness_host.PATCHES.items())[:3])  # each has tests of its own
    monkeypatch.setattr(robustness_host, "PATCHES", few)
    result = robustness_host.soak(rounds=2, seed=0)
    assert not result.problems
    assert len(result.counts) == 11 and set(result.counts.values()) == {2}
    # One motion that stays alive has hundreds of objects.
    assert result.figures["objects_per_run"] < 20


def leak_a_hook(mixed: Any) -> None:
    mixed.plain.model.diffusion_model.out[0].register_forward_hook(lambda *_: None)


def change_a_weight(mixed: Any) -> None:
    next(mixed.plain.model.diffusion_model.parameters()).data += 0.1


def leave_an_attachment(mixed: Any) -> None:
    mixed.plain.set_attachments("mine", 1)


def replace_code(mixed: Any) -> None:
    import comfy.samplers

    original = comfy.samplers.calc_cond_batch
    comfy.samplers.calc_cond_batch = lambda *given: original(*given)


def test_growth_is_the_slope_behind_the_first_third_whatever_jumps() -> None:
    from benchmarks.robustness.host import growth

    filling = [0.0, 50.0, 80.0, 95.0, 99.0, 100.0]
    flat = [100.0, 104.0, 100.0, 100.0, 104.0, 100.0, 100.0, 100.0, 100.0, 100.0, 104.0]
    assert growth([*filling, *flat]) == 0
    leaking = [value + 3 * number for number, value in enumerate([*filling, *flat])]
    assert growth(leaking) == 3
    assert growth([7.0, 9.0]) == 2


kept: list[Any] = []


def keep_a_model(mixed: Any) -> None:
    from benchmarks.samples.tiny_models import random_motion

    kept.append([torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(100))])
    kept.append(random_motion(mixed.plain))


def keep_bytes(mixed: Any) -> None:
    # Straight from the system: what earlier tests gave back could serve a tensor.
    fresh = mmap.mmap(-1, 4 * 2**20)
    fresh.write(bytes([1]) * len(fresh))
    kept.append(fresh)


def soak_of(monkeypatch: pytest.MonkeyPatch, kind: Any, rounds: int) -> Any:
    """A soak of runs of one kind, on a model that is built anew."""
    from benchmarks.robustness import host as robustness_host

    def only(self: Any) -> None:
        made(self)
        self.kinds = {"plain": lambda random: kind(self)}

    made = robustness_host.MixedRuns.__init__
    monkeypatch.setattr(robustness_host.MixedRuns, "__init__", only)
    monkeypatch.setattr(robustness_host, "PATCHES", {})
    return robustness_host.soak(rounds, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        (leak_a_hook, "1 hooks are left after plain"),
        (leave_an_attachment, "carries something after plain"),
        (change_a_weight, "gives another picture"),
        (replace_code, "replaced: comfy.samplers.calc_cond_batch"),
        (keep_a_model, ""),
    ],
)
def test_what_is_left_is_noticed(comfy: Any, monkeypatch: pytest.MonkeyPatch, fault: Any,
                                 noticed: str) -> None:  # fmt: skip
    import comfy.samplers

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", comfy.samplers.calc_cond_batch)
    times = iter([False, True])  # it goes well while everything is built, and wrong afterwards
    result = soak_of(monkeypatch, lambda mixed: next(times) and fault(mixed), rounds=1)
    if noticed:
        assert noticed in " ".join(result.problems)
    else:
        assert result.figures["objects_per_run"] > 200
        kept.clear()


@pytest.mark.slow
def test_memory_that_is_kept_is_noticed(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = soak_of(monkeypatch, keep_bytes, rounds=5)
    kept.clear()
    assert 3 * 2**20 < result.figures["bytes_per_run"] < 5 * 2**20
