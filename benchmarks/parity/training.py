"""Comparisons of training steps, run through this project's own training code.

The recorded and the computed figures are both brought into one form, figures by group and key, and
compared group by group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.training.loop import predict_loss
from lamp.training.optimizers import QueryDecay, apply_gradients, make_optimizer
from lamp.training.recipe import TrainConfig

from .cases import Rounding
from .fixtures import Fixture, Measure, expand, largest, relative, to_frames, to_video, worst_of
from .hosts import COND, Model, watched

FORWARD = 2e-5
PARAMETERS = 1e-5
GRADIENTS, NOISY_GRADIENTS = 1e-3, 2e-2

SEEN, SAID, LOSSES, SECOND_LOSS = "noisy latents", "prediction", "losses", "batch of 2: loss"
GRADIENT, NORMS, WHOLE = "gradients", "gradient norms", "whole gradient's norm"
SECOND_NORMS, SECOND_WHOLE = "batch of 2: gradient norms", "batch of 2: whole gradient's norm"
AFTER = "parameters"

SHARP = {"learning_rate": 1e-3, "weight_decay": 0.1, "clip_norm": 0.05}

Figures = dict[str, dict[str, Tensor]]
Batch = dict[str, Tensor]


def training(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """Input and output of the UNet, losses, gradients, and parameters after some steps."""
    ours = _tune(model, fixture)
    rounding = Rounding(model, fixture, lambda other: _tune(other, fixture))
    for group, theirs in _recorded(fixture).items():
        yield _compare(group, ours[group], theirs, fixture, rounding)
    yield _decay(model, fixture)


def _decay(model: Model, fixture: Fixture) -> Measure:
    """Strong weight decay, since a short run with the paper's hardly shows it: the same gradients
    go through PyTorch's AdamW on the whole weights, which is how the official code decays them."""
    with model.tuning() as host:
        tuner = _Tuner(host, model, fixture, SHARP)
        theirs = {name: nn.Parameter(tuner.official(name)) for name in tuner.trained}
        adamw = torch.optim.AdamW(theirs.values(), SHARP["learning_rate"], weight_decay=0.1)
        for batch in _batches(fixture, model.dtype):
            gradients = tuner.gradients(tuner.loss(batch))
            tuner.step(gradients)
            for name, parameter in theirs.items():
                parameter.grad = gradients[name].clone()
            nn.utils.clip_grad_norm_(theirs.values(), SHARP["clip_norm"])
            adamw.step()
        errors = {name: largest(tuner.official(name), value) for name, value in theirs.items()}
    return worst_of("whole weights, lr 1e-3, decay 0.1, clip 0.05", errors, PARAMETERS)


def _compare(
    group: str, ours: Batch, theirs: Batch, fixture: Fixture, rounding: Rounding
) -> Measure:
    """A group that exceeds its bound is held to the rounding of fp32, see `Rounding`.

    AdamW divides each gradient by its own size: where an element's gradient is mere rounding, so
    is the direction of its step.
    """
    distance = largest if group == AFTER else relative
    errors = {key: distance(ours[key], value) for key, value in theirs.items()}
    if group in (SEEN, SAID, LOSSES, SECOND_LOSS):
        return worst_of(group, errors, FORWARD)
    recorded = fixture.info.get("grad_rel_err_fp32_vs_fp64_max", 0.0)
    bound = PARAMETERS if group == AFTER else _gradient_bound(recorded)
    if max(errors.values()) <= bound:
        return worst_of(group, errors, bound)
    single, double = (figures[group] for figures in rounding.both)
    floor = max(distance(single[key], double[key]) for key in theirs)
    # Both results have their own rounding, and one sample tells no more than its size.
    wider = max(PARAMETERS, 3 * floor) if group == AFTER else _gradient_bound(floor)
    return worst_of(f"{group} (fp32 rounding {floor:.1e})", errors, max(bound, wider))


def _gradient_bound(floor: float) -> float:
    """1e-3; but 2e-2 where fp32 and fp64 gradients of some tensor differ by more than a quarter of
    that, since the comparison would measure rounding."""
    return GRADIENTS if floor <= GRADIENTS / 4 else NOISY_GRADIENTS


def _recorded(fixture: Fixture) -> Figures:
    """The official figures, without gradients that are zero but for rounding."""
    given, info = fixture.tensors, fixture.info
    excluded = set(info.get("excluded_true_gradient_is_zero", ()))
    second = info.get("b2", {})

    def chosen(values: dict[str, Any]) -> dict[str, Tensor]:
        return {k: torch.as_tensor(v) for k, v in values.items() if k not in excluded}

    after = {
        f"{name} after step {i}": value
        for i in range(1, len(info["loss"]) + 1)
        for name, value in chosen(fixture.prefixed(f"after{i}")).items()
    }
    figures = {
        SEEN: {key: given[key] for key in ("noisy_latents",) if key in given},
        SAID: {key: given[key] for key in ("model_pred",) if key in given},
        LOSSES: chosen(_by_step(info["loss"])),
        GRADIENT: chosen(fixture.prefixed("grad")),
        NORMS: chosen(info.get("grad_norms", {})),
        WHOLE: chosen(_by_step(info.get("grad_norm_before_clip", []))),
        AFTER: after,
        SECOND_LOSS: chosen({"loss": second["loss"]} if "loss" in second else {}),
        SECOND_WHOLE: chosen({"norm": second["grad_norm"]} if "grad_norm" in second else {}),
        SECOND_NORMS: chosen(second.get("grad_norms", {})),
    }
    return {group: values for group, values in figures.items() if values}


def _by_step(values: list[Any]) -> dict[str, Any]:
    return {f"step {i}": value for i, value in enumerate(values, start=1)}


def _tune(model: Model, fixture: Fixture) -> Figures:
    """All figures of a fixture, in the precision of the model."""
    batches = _batches(fixture, model.dtype)
    with model.tuning() as host:
        tuner = _Tuner(host, model, fixture)
        with watched(host.unet, [COND]) as calls:
            gradients = tuner.gradients(tuner.loss(batches[0]))
        videos = len(batches[0]["latents"])
        figures: Figures = {
            SEEN: {"noisy_latents": to_video(calls[0].seen[COND], videos)},
            SAID: {"model_pred": to_video(calls[0].said[COND], videos)},
            GRADIENT: gradients,
            NORMS: {name: gradient.norm() for name, gradient in gradients.items()},
            **tuner.run(batches),
        }
        if "b2.latents" in fixture.keys:  # two clips, each with its own timestep
            tuner = _Tuner(host, model, fixture)
            loss = tuner.loss(_cast(fixture.prefixed("b2"), model.dtype))
            norms = {name: value.norm() for name, value in tuner.gradients(loss).items()}
            figures[SECOND_LOSS] = {"loss": loss.detach()}
            figures[SECOND_WHOLE] = {"norm": torch.stack(list(norms.values())).double().norm()}
            figures[SECOND_NORMS] = norms
    return figures


def _batches(fixture: Fixture, dtype: torch.dtype) -> list[Batch]:
    """The batch of each step: `latents.0`, `latents.1`, ..., or one for all steps."""
    given, batches = fixture.tensors, []
    for i in range(len(fixture.info["loss"])):
        keys = ("latents", "noise", "timesteps", "text")
        batch = {key: given[f"{key}.{i}" if f"{key}.{i}" in given else key] for key in keys}
        batches.append(_cast(batch, dtype))
    return batches


def _cast(batch: Batch, dtype: torch.dtype) -> Batch:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


class _Tuner:
    """The project's training code on one motion."""

    def __init__(
        self, host: Host, model: Model, fixture: Fixture, rates: dict[str, float] | None = None
    ) -> None:
        self._host, self._base = host, model.base
        self._motion = Motion(map_unet(host.unet))
        self._motion.load_state_dict(model.learned)
        self._motion.to(model.dtype)
        self.trained = self._motion.trained_parameters()
        config = TrainConfig(steps=len(fixture.info["loss"]), **(rates or _rates(fixture.info)))
        self._optimizer = make_optimizer(self._motion, config)
        self._decay = QueryDecay(host.unet, self._motion, self._optimizer)
        self._clip_norm = config.clip_norm

    def loss(self, batch: Batch) -> Tensor:
        videos, _, frames = batch["latents"].shape[:3]
        latents, noise = to_frames(batch["latents"]), to_frames(batch["noise"])
        with self._motion.attached(self._host.unet, FrameLayout(frames, videos)):
            text = expand(batch["text"], videos)
            return predict_loss(self._host, latents, noise, batch["timesteps"], text)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        return dict(zip(self.trained, gradients, strict=True))

    def step(self, gradients: dict[str, Tensor]) -> Tensor:
        """One optimiser step; returns the norm of the whole gradient before clipping."""
        for name, parameter in self.trained.items():
            parameter.grad = gradients[name].clone()
        unscaled = torch.amp.GradScaler("cpu", enabled=False)
        parameters = list(self.trained.values())
        return apply_gradients(self._optimizer, parameters, self._clip_norm, unscaled, self._decay)

    def run(self, batches: list[Batch]) -> Figures:
        """One optimiser step per batch."""
        losses, norms, after = [], [], {}
        for step, batch in enumerate(batches, start=1):
            loss = self.loss(batch)
            norms.append(self.step(self.gradients(loss)))
            losses.append(loss.detach())
            for name in self.trained:
                after[f"{name} after step {step}"] = self.official(name)
        return {LOSSES: _by_step(losses), WHOLE: _by_step(norms), AFTER: after}

    def official(self, name: str) -> Tensor:
        """The weight as the official UNet stores it: tuned queries in place of the base's."""
        value = self.trained[name].detach().clone()
        return value + self._base[name] if name.endswith("attn1.to_q.weight") else value


def _rates(info: dict[str, Any]) -> dict[str, float]:
    """Learning rate, decay and clipping where the fixture names them; else those of the paper."""
    patterns = {
        "learning_rate": r"\blr=",
        "weight_decay": r"\bweight_decay=",
        "clip_norm": r"\bclip_grad_norm_\([^,]*, *(?:max_norm=)?",
    }
    named = {name: float(info[name]) for name in patterns if name in info}
    for name, pattern in patterns.items():
        if found := re.search(pattern + r"([0-9.]+(?:e-?\d+)?)", info.get("optimizer", "")):
            named[name] = float(found[1])
    return named
