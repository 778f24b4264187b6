"""Find the calls of the model with which the steps of a sampler begin, by a rehearsal.

AdaIN changes the state between two steps, but sees only the sampler's calls of the model: one per
step (euler), several (heun), or any number (dpm_adaptive). So the sampler first runs on a few
numbers with a trivial model, which takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import LampError

_TOLERANCE = 1e-3


def step_starts(name: str, sampler: Any, model: Any, sigmas: Tensor) -> list[int]:
    """The indices (from 0) of the calls with which the steps begin.

    Args:
        name: of the sampler, for messages.
        sampler: a KSAMPLER of ComfyUI.
        model: the model of the run; only its attributes are read.
        sigmas: descending noise levels of the run.

    Raises:
        LampError: the sampler chooses its own noise levels, or does not continue from a state that
            is changed between its steps.
    """
    if len(sigmas) < 2:
        return []
    sigmas = sigmas.detach().cpu().float()
    # With a constant prediction, or a constant derivative, each step multiplies every earlier
    # change of the state by the same factor. Samplers with memory keep past predictions or past
    # derivatives, so one of the two holds; a state rebuilt from memory fails in both.
    with torch.random.fork_rng(devices=[]):
        runs = [_Rehearsal(sampler, model, sigmas, world) for world in (_zero, _no_slope)]
    if not all(run.follows_levels for run in runs):
        raise LampError(
            f"The sampler '{name}' chooses its own noise levels, so AdaIN cannot follow its steps: "
            "choose another sampler (ddim and euler equal the paper's) or set AdaIN to off."
        )
    if not any(run.keeps_changes for run in runs):
        raise LampError(
            f"The sampler '{name}' rebuilds its state from earlier steps, which would undo AdaIN: "
            "choose another sampler (ddim and euler equal the paper's) or set AdaIN to off."
        )
    return runs[0].starts


def _zero(x: Tensor, sigma: Tensor) -> Tensor:
    """A model with a constant prediction."""
    return torch.zeros_like(x)


def _no_slope(x: Tensor, sigma: Tensor) -> Tensor:
    """A model with a constant derivative (x - prediction) / sigma."""
    return x - sigma[:, None, None, None]


class _Rehearsal:
    """Two runs of a sampler: unchanged, and with the state changed at the beginning of every step,
    each time in another component."""

    def __init__(
        self, sampler: Any, model: Any, sigmas: Tensor, world: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self._sampler, self._model, self._sigmas, self._world = sampler, model, sigmas, world
        plain, calls = self._run({})
        self.starts = calls.starts
        levels = torch.tensor([calls.levels[call] for call in self.starts])
        same_number = len(levels) == len(sigmas) - 1
        self.follows_levels = same_number and torch.allclose(levels, sigmas[:-1], rtol=1e-4)
        self.keeps_changes = False
        if self.follows_levels:
            changed, _ = self._run({call: step for step, call in enumerate(self.starts)})
            self.keeps_changes = _by_one_factor(
                [(b - a).flatten() for a, b in zip(plain, changed, strict=True)]
            )

    def _run(self, changes: dict[int, int]) -> tuple[list[Tensor], _Calls]:
        """The states at the beginning of each step and at the end, and the calls."""
        steps = len(self._sigmas) - 1
        x = torch.ones(1, steps, 1, 1) * self._sigmas[0]
        extra = {"model_options": {"transformer_options": {}}, "seed": 0, "denoise_mask": None}
        calls = _Calls(self._model, self._world, changes)
        torch.default_generator.manual_seed(0)  # not CUDA's, which patches of the run draw from
        end = self._sampler.sampler_function(
            calls,
            x,
            self._sigmas.clone(),
            extra_args=extra,
            callback=calls.note_step,
            disable=True,
            **self._sampler.extra_options,
        )
        return [*(calls.states[call] for call in calls.starts), end], calls


def _by_one_factor(changes: list[Tensor]) -> bool:
    """Whether each step multiplies all changes of the state by one factor, including the newest.

    Args:
        changes: difference of the states at the beginning of each step and at the end, `steps`
            numbers each; component i was changed at the beginning of step i.
    """
    for step, (now, then) in enumerate(zip(changes, changes[1:], strict=False)):
        reached = slice(step + 1)
        if not now[0]:
            return False  # nothing to compare with
        error = then[reached] - then[0] / now[0] * now[reached]
        if (error.abs() > _TOLERANCE * now[reached].abs()).any():
            return False
    return True


class _Calls:
    """Replaces the model and records its calls."""

    def __init__(
        self, model: Any, world: Callable[[Tensor, Tensor], Tensor], changes: dict[int, int]
    ) -> None:
        self._model, self._world, self._changes = model, world, changes
        self.states: list[Tensor] = []
        self.levels: list[float] = []
        self.starts: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(
        self, x: Tensor, sigma: Tensor, model_options: dict[str, Any] | None = None, **_: Any
    ) -> Tensor:
        step = self._changes.get(len(self.states))
        if step is not None:
            x[:, step] += 1.0
        self.states.append(x.clone())
        self.levels.append(sigma.flatten()[0].item())
        denoised = self._world(x, sigma)
        # CFG++ samplers get the prediction without guidance here.
        for function in (model_options or {}).get("sampler_post_cfg_function", []):
            denoised = function(
                {
                    "denoised": denoised,
                    "cond_denoised": denoised,
                    "uncond_denoised": denoised,
                    "sigma": sigma,
                    "input": x,
                    "cond_scale": 1.0,
                    "model": self._model,
                    "model_options": model_options,
                }
            )
        return denoised

    def note_step(self, _: dict[str, Any]) -> None:
        """Callback of the sampler, which reports a step after the call that begins it."""
        self.starts.append(len(self.states) - 1)
