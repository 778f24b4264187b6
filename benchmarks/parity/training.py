"""The cases about training, run through the project's own training code.

What the official code recorded and what is computed here are both brought into one form, figures by
group and key, and compared group by group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
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

from .fixtures import Fixture, Measure, expand, largest, relative, to_frames, to_video, worst_of
from .hosts import COND, DiffusersModel, Model, watched

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
    """What the UNet sees and says, losses, gradients, and parameters after some steps."""
    theirs = _recorded(fixture)
    with model.tuning() as host:
        ours = _tune(host, model, fixture)
        rounding = _Rounding(fixture)
        for group, figures in theirs.items():
            yield _compare(group, ours[group], figures, fixture.info, rounding)
        yield _decay(host, model, fixture)


def _decay(host: Host, model: Model, fixture: Fixture) -> Measure:
    """Strong weight decay, which a short run with the paper's hardly shows: the same gradients go
    through PyTorch's AdamW on the whole weights, as the official code holds and decays them."""
    tuner = _Tuner(host, model, fixture, torch.float32, SHARP)
    theirs = {name: nn.Parameter(tuner.official(name)) for name in tuner.trained}
    adamw = torch.optim.AdamW(theirs.values(), SHARP["learning_rate"], weight_decay=0.1)
    for batch in _batches(fixture, torch.float32):
        gradients = tuner.gradients(tuner.loss(batch))
        tuner.step(gradients)
        for name, parameter in theirs.items():
            parameter.grad = gradients[name].clone()
        nn.utils.clip_grad_norm_(theirs.values(), SHARP["clip_norm"])
        adamw.step()
    errors = {name: largest(tuner.official(name), value) for name, value in theirs.items()}
    return worst_of("whole weights, lr 1e-3, decay 0.1, clip 0.05", errors, PARAMETERS)


def _compare(
    group: str,
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    info: dict[str, Any],
    rounding: Callable[[str], float],
) -> Measure:
    errors = {key: _distance(group)(ours[key], value) for key, value in theirs.items()}
    if group in (SEEN, SAID, LOSSES, SECOND_LOSS):
        return worst_of(group, errors, FORWARD)
    bound = PARAMETERS if group == AFTER else _gradient_bound(_recorded_floor(info))
    if max(errors.values()) <= bound:
        return worst_of(group, errors, bound)
    floor = rounding(group)
    # Both results are off by their own rounding, and one sample of it tells no more than its size.
    wider = max(PARAMETERS, 3 * floor) if group == AFTER else _gradient_bound(floor)
    return worst_of(f"{group} (fp32 rounding {floor:.1e})", errors, max(bound, wider))


def _recorded_floor(info: dict[str, Any]) -> float:
    return info.get("grad_rel_err_fp32_vs_fp64_max", 0.0)


def _gradient_bound(floor: float) -> float:
    """1e-3; but where the gradients of some tensor differ between fp32 and fp64 by a similar amount
    (more than a quarter of it), that would measure rounding: 2e-2 then."""
    return GRADIENTS if floor <= GRADIENTS / 4 else NOISY_GRADIENTS


def _distance(group: str) -> Callable[[Tensor, Tensor], float]:
    return largest if group == AFTER else relative


class _Rounding:
    """How far fp32 is from fp64 in a group of figures, computed only when a bound is exceeded.

    AdamW divides each gradient by its own size: where an element's gradient is mere rounding, so
    is the direction of its step, and two correct programs differ by a good part of it. The
    official figures play no part in this, so that no distance from them can excuse itself.
    """

    def __init__(self, fixture: Fixture) -> None:
        self._fixture = fixture

    @cached_property
    def _both(self) -> tuple[Figures, Figures]:
        model = DiffusersModel(Fixture(self._fixture.model_path))
        single = _tune(model.host, model, self._fixture)
        model.host.unet.double()
        return single, _tune(model.host, model, self._fixture, torch.float64)

    def __call__(self, group: str) -> float:
        single, double = (figures[group] for figures in self._both)
        names = _recorded(self._fixture)[group]
        return max(_distance(group)(single[name], double[name]) for name in names)


def _recorded(fixture: Fixture) -> Figures:
    """The official figures. A gradient that is zero in truth is rounding only: left out."""
    given, info = fixture.tensors, fixture.info
    excluded = set(info.get("excluded_true_gradient_is_zero", ()))
    second = info.get("b2", {})

    def numbers(values: dict[str, float]) -> dict[str, Tensor]:
        return {k: torch.tensor(v) for k, v in values.items() if k not in excluded}

    after = {
        f"{name} after step {i}": value
        for i in range(1, len(info["loss"]) + 1)
        for name, value in fixture.prefixed(f"after{i}").items()
        if name not in excluded
    }
    figures = {
        SEEN: {key: given[key] for key in ("noisy_latents",) if key in given},
        SAID: {key: given[key] for key in ("model_pred",) if key in given},
        LOSSES: numbers(_by_step(info["loss"])),
        GRADIENT: {k: v for k, v in fixture.prefixed("grad").items() if k not in excluded},
        NORMS: numbers(info.get("grad_norms", {})),
        WHOLE: numbers(_by_step(info.get("grad_norm_before_clip", []))),
        AFTER: after,
        SECOND_LOSS: numbers({"loss": second["loss"]} if "loss" in second else {}),
        SECOND_WHOLE: numbers({"norm": second["grad_norm"]} if "grad_norm" in second else {}),
        SECOND_NORMS: numbers(second.get("grad_norms", {})),
    }
    return {group: values for group, values in figures.items() if values}


def _by_step(values: list[Any]) -> dict[str, Any]:
    return {f"step {i}": value for i, value in enumerate(values, start=1)}


def _tune(
    host: Host, model: Model, fixture: Fixture, dtype: torch.dtype = torch.float32
) -> Figures:
    """All figures of a fixture, in the given precision."""
    batches = _batches(fixture, dtype)
    tuner = _Tuner(host, model, fixture, dtype)
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
    if "b2.latents" in fixture.keys:
        second = _cast(fixture.prefixed("b2"), dtype)
        figures |= _second(_Tuner(host, model, fixture, dtype), second)
    return figures


def _second(tuner: _Tuner, batch: Batch) -> Figures:
    """Two clips in a batch, each with a timestep of its own."""
    loss = tuner.loss(batch)
    gradients = tuner.gradients(loss)
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    whole = torch.stack(list(norms.values())).double().norm()
    return {
        SECOND_LOSS: {"loss": loss.detach()},
        SECOND_WHOLE: {"norm": whole},
        SECOND_NORMS: norms,
    }


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
        self,
        host: Host,
        model: Model,
        fixture: Fixture,
        dtype: torch.dtype,
        rates: dict[str, float] | None = None,
    ) -> None:
        self._host, self._base = host, model.base
        self._motion = Motion(map_unet(host.unet))
        self._motion.load_state_dict(model.learned)
        self._motion.to(dtype)
        self.trained = self._motion.trained_parameters()
        config = TrainConfig(steps=len(fixture.info["loss"]), **(rates or _rates(fixture.info)))
        self._optimizer = make_optimizer(self._motion, config)
        self._decay = QueryDecay(host.unet, self._motion, self._optimizer)
        self._clip_norm = config.clip_norm

    def loss(self, batch: Batch) -> Tensor:
        videos, _, frames = batch["latents"].shape[:3]
        with self._motion.attached(self._host.unet, FrameLayout(frames, videos)):
            return predict_loss(
                self._host,
                to_frames(batch["latents"]),
                to_frames(batch["noise"]),
                batch["timesteps"],
                expand(batch["text"], videos),
            )

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        return dict(zip(self.trained, gradients, strict=True))

    def step(self, gradients: dict[str, Tensor]) -> Tensor:
        """One optimiser step; the norm of the whole gradient before clipping."""
        for name, parameter in self.trained.items():
            parameter.grad = gradients[name].clone()
        unscaled = torch.amp.GradScaler("cpu", enabled=False)
        parameters = list(self.trained.values())
        return apply_gradients(self._optimizer, parameters, self._clip_norm, unscaled, self._decay)

    def run(self, batches: list[Batch]) -> Figures:
        """One optimiser step a batch."""
        losses, norms, after = [], [], {}
        for step, batch in enumerate(batches, start=1):
            loss = self.loss(batch)
            norms.append(self.step(self.gradients(loss)))
            losses.append(loss.detach())
            for name in self.trained:
                after[f"{name} after step {step}"] = self.official(name)
        return {LOSSES: _by_step(losses), WHOLE: _by_step(norms), AFTER: after}

    def official(self, name: str) -> Tensor:
        """As the official UNet holds it: there the tuned query replaces the image model's."""
        value = self.trained[name].detach().clone()
        return value + self._base[name] if name.endswith("attn1.to_q.weight") else value


def _rates(info: dict[str, Any]) -> dict[str, float]:
    """Rate, decay and clipping where the fixture names them; else those of the paper."""
    names = ("learning_rate", "weight_decay", "clip_norm")
    named = {name: float(info[name]) for name in names if name in info}
    number = r"([0-9.]+(?:e-?\d+)?)"
    for ours, theirs in (
        ("learning_rate", r"\blr="),
        ("weight_decay", r"\bweight_decay="),
        ("clip_norm", r"\bclip_grad_norm_\([^,]*, *(?:max_norm=)?"),
    ):
        if found := re.search(theirs + number, info.get("optimizer", "")):
            named[ours] = float(found[1])
    return named
