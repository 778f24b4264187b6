"""ComfyUI after mixed runs: see benchmarks/robustness_host.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("comfy")


@pytest.mark.slow
def test_nothing_of_many_mixed_runs_is_left(comfy: Any) -> None:
    from benchmarks.robustness_host import soak

    result = soak(rounds=2, seed=0)
    assert not result.problems
    assert len(result.runs) == 11 and set(result.runs.values()) == {2}
    # One motion that stays alive has hundreds of objects.
    assert result.objects_per_run < 20


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


kept: list[Any] = []


def keep_a_model(mixed: Any) -> None:
    from tests.tiny_models import random_motion

    kept.append([torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(100))])
    kept.append(random_motion(mixed.plain))


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

    from benchmarks import robustness_host

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", comfy.samplers.calc_cond_batch)
    times = iter([False, True])  # it goes well while everything is built, and wrong afterwards

    def faulty(self: Any) -> None:
        made(self)
        self.kinds = {"plain": lambda random: next(times) and fault(self)}

    made = robustness_host.MixedRuns.__init__
    monkeypatch.setattr(robustness_host.MixedRuns, "__init__", faulty)
    result = robustness_host.soak(rounds=1, seed=0)
    if noticed:
        assert noticed in " ".join(result.problems)
    else:
        assert result.objects_per_run > 200
        kept.clear()
