"""Weight decay of the tuned queries: as a published AdamW does it on the whole queries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lamp.training.loop
from benchmarks.samples.small_training import FRAMES, small_training
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.latents import LatentClips
from lamp.training.loop import Training
from lamp.training.optimizers import QueryDecay, apply_gradients, make_optimizer
from lamp.training.recipe import TrainConfig, preset
from lamp.training.state import StateError, read_state, restore, take_state, write_state

pytestmark = pytest.mark.slow  # many of them

WHO = {"base": "abc", "clips": "def"}
SHARP: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.1, "clip_norm": 0.05}
Gradients = list[list[Tensor]]


def fresh(host: DiffusersHost, clips: LatentClips, **settings: Any) -> Training:
    return small_training(host, clips, **{"steps": 5, **SHARP, **settings})


def bases(training: Training) -> dict[str, Tensor]:
    """The image model's queries by the names of their changes."""
    unet = training.host.unet
    return {
        f"{block.name}.attn1.to_q.weight": unet.get_parameter(f"{block.module}.attn1.to_q.weight")
        for block in training.motion.sites.blocks
    }


def wholes(training: Training) -> dict[str, Tensor]:
    """The learned tensors as the published code holds them."""
    base = bases(training)
    return {
        name: parameter.detach() + base[name] if name in base else parameter.detach().clone()
        for name, parameter in training.motion.trained_parameters().items()
    }


def kept_gradients(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """The gradients of every step to come, before they are clipped."""
    kept: Gradients = []

    def keep(optimizer: Any, parameters: list[nn.Parameter], *others: Any) -> Tensor:
        kept.append([p.grad.clone() for p in parameters])  # type: ignore[union-attr]
        return apply_gradients(optimizer, parameters, *others)

    monkeypatch.setattr(lamp.training.loop, "apply_gradients", keep)
    return kept


def published(
    begin: dict[str, Tensor],
    gradients: Gradients,
    kind: Callable[..., Any] = torch.optim.AdamW,
    each: Callable[[list[Tensor]], None] = lambda parameters: None,
) -> dict[str, Tensor]:
    """The library's own AdamW on the whole weights, fed the same gradients."""
    parameters = {name: nn.Parameter(value.clone()) for name, value in begin.items()}
    optimizer = kind(parameters.values(), lr=1e-3, weight_decay=0.1)
    for step in gradients:
        for parameter, gradient in zip(parameters.values(), step, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(parameters.values(), 0.05)
        optimizer.step()
        each([p.detach() for p in parameters.values()])
    return {name: parameter.detach() for name, parameter in parameters.items()}


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def test_whole_queries_decay_as_in_a_plain_adamw(
    host: DiffusersHost, clips: LatentClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = kept_gradients(monkeypatch)
    training = fresh(host, clips)
    begin = wholes(training)
    for _ in range(5):
        training.advance()
    assert furthest(wholes(training), published(begin, gradients)) < 1e-6


def test_the_change_alone_decays_where_that_is_chosen(
    host: DiffusersHost, clips: LatentClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = kept_gradients(monkeypatch)
    training = fresh(host, clips, query_decay="change")
    changes = {n: p.detach().clone() for n, p in training.motion.trained_parameters().items()}
    base, begin = bases(training), wholes(training)
    for _ in range(5):
        training.advance()
    now = {n: p.detach() for n, p in training.motion.trained_parameters().items()}
    assert furthest(now, published(changes, gradients)) < 1e-6
    # Without gradients, the whole query would be (1 - r d)^5 of the base.
    lost = (1 - (1 - 1e-3 * 0.1) ** 5) * max(query.abs().max().item() for query in base.values())
    assert furthest(wholes(training), published(begin, gradients)) == pytest.approx(lost, rel=0.05)


def test_the_average_is_that_of_the_whole_queries(
    host: DiffusersHost, clips: LatentClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = kept_gradients(monkeypatch)
    training = fresh(host, clips, ema=0.5)
    begin = wholes(training)
    for _ in range(5):
        training.advance()
    average = [value.clone() for value in begin.values()]
    updates = 0

    def follow(parameters: list[Tensor]) -> None:
        nonlocal updates
        updates += 1
        decay = min(0.5, updates / (updates + 9))
        for mean, value in zip(average, parameters, strict=True):
            mean.mul_(decay).add_(value, alpha=1 - decay)

    published(begin, gradients, each=follow)
    training.finish()
    assert furthest(wholes(training), dict(zip(begin, average, strict=True))) < 1e-6


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_an_8_bit_adamw_decays_the_whole_queries_as_it_would_itself(
    host: DiffusersHost, clips: LatentClips, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers = pytest.importorskip(f"{library}.optim")
    monkeypatch.setitem(sys.modules, {"torchao": "bitsandbytes"}.get(library, "torchao"), None)
    gradients = kept_gradients(monkeypatch)
    training = fresh(host, clips, optimizer="adamw8bit")
    begin = wholes(training)
    for _ in range(5):
        training.advance()
    theirs, ours = published(begin, gradients, optimizers.AdamW8bit), wholes(training)
    for name in bases(training):
        # The last bit of a gradient may round a moment to another of its 256 values.
        assert (ours[name] - theirs[name]).abs().median() < 1e-6


def test_a_skipped_step_decays_nothing(host: DiffusersHost) -> None:
    """Half precision leaves out a step whose gradients overflowed, and the published code with it
    the decay."""
    motion = Motion(map_unet(host.unet)).initialise(0)
    optimizer = make_optimizer(motion, TrainConfig(frames=FRAMES, **SHARP))
    decay = QueryDecay(host.unet, motion, optimizer)
    parameters = list(motion.trained_parameters().values())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(1))
    before = [p.detach().clone() for p in parameters]
    for overflow in (True, False):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, float("inf") if overflow else 1.0)
        apply_gradients(optimizer, parameters, 1.0, scaler, decay)
        same = [torch.equal(p, old) for p, old in zip(parameters, before, strict=True)]
        assert all(same) if overflow else not any(same)


def test_a_rate_of_zero_leaves_the_queries_alone(host: DiffusersHost, clips: LatentClips) -> None:
    training = fresh(host, clips, query_rate=0.0)
    for _ in range(2):
        training.advance()
    for name in bases(training):
        assert not training.motion.get_parameter(name).any()


def test_factors_cannot_take_up_the_base_and_it_is_said(
    host: DiffusersHost, clips: LatentClips, caplog: pytest.LogCaptureFixture
) -> None:
    runs = {decay: fresh(host, clips, rank=4, query_decay=decay) for decay in ("whole", "change")}
    for training in runs.values():
        for _ in range(3):
            training.advance()
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    count = len(bases(runs["whole"]))
    assert len(warnings) == 1 and warnings[0].getMessage().startswith(f"{count} ")
    for one, other in zip(*(run.trained for run in runs.values()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"rank": 4}], ids=str)
def test_a_resumed_run_decays_the_same(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight, half = (fresh(host, clips, **settings) for _ in range(2))
    for _ in range(4):
        straight.advance()
    for _ in range(2):
        half.advance()
    write_state(tmp_path / "state", take_state(half, WHO))
    rest = fresh(host, clips, **settings)
    restore(rest, read_state(tmp_path / "state"), WHO)
    for _ in range(2):
        rest.advance()
    for name, tensor in straight.motion.state_dict().items():
        assert torch.equal(tensor, rest.motion.state_dict()[name]), name


def test_a_state_that_tells_no_decay_was_trained_with_that_of_the_change(
    host: DiffusersHost, clips: LatentClips
) -> None:
    before = fresh(host, clips, query_decay="change")
    before.advance()
    state = take_state(before, WHO)
    del state.facts["settings"]["query_decay"]
    restore(fresh(host, clips, query_decay="change"), state, WHO)
    with pytest.raises(StateError, match="query_decay change"):
        restore(fresh(host, clips), state, WHO)


def test_paper_decays_whole_queries_and_fast_their_change() -> None:
    decays = {name: TrainConfig(**preset(name, 100)).query_decay for name in ("paper", "fast")}
    assert decays == {"paper": "whole", "fast": "change"}
