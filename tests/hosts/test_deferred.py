"""Checks that do not wait for the device, and hooks that stay for a sampling run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.samples.comfy_runs import count_hooks, lamp_ksampler, moving
from benchmarks.samples.tiny_models import random_motion, tiny_patcher
from lamp.errors import LampError
from lamp.hosts.comfy import deferred, run
from lamp.hosts.comfy.deferred import DeferredChecks


class OnGpu:
    """A value that has not arrived; reading it is noted."""

    is_cuda = True

    def __init__(self, value: bool) -> None:
        self.value, self.reads = value, 0


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> None:
    def arrive(flag: OnGpu) -> Callable[[], bool]:
        def read() -> bool:
            flag.reads += 1
            return flag.value

        return read

    monkeypatch.setattr(deferred, "_arriving", arrive)


@pytest.mark.usefixtures("arriving")
def test_a_value_on_a_gpu_is_read_when_the_next_call_is_under_way() -> None:
    checks, good, bad = DeferredChecks(), OnGpu(True), OnGpu(False)
    checks.add(good, lambda: LampError("good"))
    checks.add(bad, lambda: LampError("step 17"))
    checks.turn()
    assert (good.reads, bad.reads) == (0, 0)
    later = OnGpu(True)
    checks.add(later, lambda: LampError("later"))
    with pytest.raises(LampError, match="17"):
        checks.turn()
    assert (good.reads, bad.reads, later.reads) == (1, 1, 0)


@pytest.mark.usefixtures("arriving")
def test_the_end_of_a_run_reads_all_values() -> None:
    checks, first, last = DeferredChecks(), OnGpu(True), OnGpu(False)
    checks.add(first, lambda: LampError("first"))
    checks.turn()
    checks.add(last, lambda: LampError("step 18"))
    with pytest.raises(LampError, match="18"):
        checks.finish()
    assert (first.reads, last.reads) == (1, 1)
    checks.finish()  # each is judged once


def test_other_devices_are_checked_at_once() -> None:
    checks = DeferredChecks()
    checks.add(torch.tensor(False), lambda: None)  # acceptable after a closer look
    with pytest.raises(LampError, match="19"):
        checks.add(torch.tensor(False), lambda: LampError("step 19"))


@pytest.mark.usefixtures("comfy")
@pytest.mark.parametrize(("when", "expected"), [({}, 1), ({"start_percent": 0.5}, 2)])
def test_hooks_are_attached_once_a_run_and_again_if_the_strength_changes(
    monkeypatch: pytest.MonkeyPatch, when: dict[str, float], expected: int
) -> None:
    patcher, times, own = tiny_patcher(), [], run.attached

    def note(*args: Any, **kwargs: Any) -> Any:
        times.append(1)
        return own(*args, **kwargs)

    monkeypatch.setattr(run, "attached", note)
    before = count_hooks(patcher)
    lamp_ksampler(moving(patcher, random_motion(patcher), **when))
    assert len(times) == expected
    assert count_hooks(patcher) == before
