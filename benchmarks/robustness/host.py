"""Many mixed runs in one ComfyUI: afterwards everything is as it was before."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import combinations
from random import Random
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    conditioning,
    count_hooks,
    ksampler,
    lamp_ksampler,
    moving,
)
from benchmarks.samples.ecosystem import PATCHES, host_node, sample
from benchmarks.samples.tiny_models import random_motion, tiny_patcher, video_latent
from benchmarks.samples.tiny_patches import lora_state, tiny_control
from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule

from .watch import Result

Run = Callable[[Random], object]
_CARRIED = (
    "attachments", "wrappers", "callbacks", "additional_models", "injections", "hook_patches",
    "object_patches", "patches", "weight_wrapper_patches", "model_options",
)  # fmt: skip
# Modules of ComfyUI whose functions and classes packs like to replace.
_PATCHABLE = (
    "comfy.conds", "comfy.ldm.modules.attention",
    "comfy.ldm.modules.diffusionmodules.openaimodel", "comfy.model_base",
    "comfy.model_management", "comfy.model_patcher", "comfy.ops", "comfy.sample",
    "comfy.sampler_helpers", "comfy.samplers", "comfy.utils", "latent_preview", "torch.nn",
    "torch.nn.functional",
)  # fmt: skip


class _Stopped(RuntimeError):
    """An error of another pack in the middle of a step."""


class MixedRuns:
    """One image model, used in all the ways that users have, in any order."""

    def __init__(self) -> None:
        self.plain = tiny_patcher()
        self._files = [random_motion(self.plain, seed) for seed in (1, 2)]
        self._lora = lora_state(self.plain)
        self._control = tiny_control(self.plain)
        self.kinds: dict[str, Run] = {
            "plain": lambda random: ksampler(self.plain),
            "stock sampler": lambda random: ksampler(
                self._moving(random), random.choice(("euler", "ddim", "dpmpp_2m_sde", "lcm")),
                random.choice((1.0, 5.0)), samples=video_latent(random.choice((2, 3, 6, 9)))
            ),
            "LAMP sampler": lambda random: lamp_ksampler(
                self._moving(random), video_latent(random.choice((2, 5, 8))),
                schedule=AdaINSchedule(random.choice(("paper", "official", "off")))
            ),
            "clone": lambda random: ksampler(self._moving(random).clone().clone()),
            "LoRA": lambda random: ksampler(self._with_lora(self._moving(random))),
            "LoRA alone": lambda random: ksampler(self._with_lora(self.plain)),
            "ControlNet": lambda random: sample(
                self._moving(random), positive=self._hinted(random),
                samples=video_latent(random.choice((2, 4, 7)))
            ),
            "patch": lambda random: sample(PATCHES[random.choice(sorted(PATCHES))](
                self._moving(random)
            )),
            "error": self._fail,
            "cancel": self._cancel,
            "refused": self._be_refused,
        }  # fmt: skip

    def _moving(self, random: Random) -> Any:
        return moving(self.plain, random.choice(self._files), strength=random.choice((0.5, 1.0)))

    def _hinted(self, random: Random) -> Any:
        hints = torch.rand(
            random.choice((1, 3, 7)), 64, 64, 3, generator=torch.Generator().manual_seed(1)
        )
        node = {"control_net": self._control, "image": hints, "strength": random.choice((0.5, 1.0))}
        return host_node("nodes", "ControlNetApply", conditioning=conditioning()[0], **node)

    def _with_lora(self, model: Any) -> Any:
        from comfy.sd import load_lora_for_models

        return load_lora_for_models(model, None, self._lora, 0.7, 0.0)[0]

    def _stop(self, random: Random, how: Callable[[], None]) -> None:
        """Call `how` in the middle of a UNet call, while the motion's hooks are attached."""
        model, calls = self._moving(random).clone(), [random.randrange(1, 12)]

        def in_attention(q: Tensor, k: Tensor, v: Tensor, options: Any) -> Any:
            calls[0] -= 1
            if not calls[0]:
                how()
            return q, k, v

        model.set_model_attn2_patch(in_attention)
        ksampler(model)

    def _fail(self, random: Random) -> None:
        def fail() -> None:
            raise _Stopped

        with suppress(_Stopped):
            self._stop(random, fail)

    def _cancel(self, random: Random) -> None:
        import comfy.model_management as management

        def cancel() -> None:
            management.interrupt_current_processing(True)
            management.throw_exception_if_processing_interrupted()

        with suppress(management.InterruptProcessingException):
            self._stop(random, cancel)

    def _be_refused(self, random: Random) -> None:
        wrong = random.choice((video_latent(1), torch.zeros(4, 4, 8, 8), torch.ones(6, 16, 8, 8)))
        with suppress(LampError):
            ksampler(self._moving(random), samples=wrong)


@torch.inference_mode()
def soak(rounds: int, seed: int) -> Result:
    """Every kind of run once per round, in random order; needs an importable ComfyUI.

    Its figures are objects and bytes per run.
    """
    mixed, random, result = MixedRuns(), Random(seed), Result()
    before = ksampler(mixed.plain)
    for kind in mixed.kinds:  # what is built on first use is not growth
        mixed.kinds[kind](random)
    for patch in PATCHES.values():
        sample(patch(mixed.plain))
    host, model = _host_code(), belongings(mixed.plain)
    sizes = [_sizes()]
    for _ in range(rounds):
        for kind in random.sample(sorted(mixed.kinds), len(mixed.kinds)):
            mixed.kinds[kind](random)
            result.counts[kind] += 1
            hooks = count_hooks(mixed.plain)
            result.expect(not hooks, f"{hooks} hooks are left after {kind}")
            same = belongings(mixed.plain) == model
            result.expect(same, f"the plain model carries something after {kind}")
        same = torch.equal(ksampler(mixed.plain), before)
        result.expect(same, "the plain model gives another picture")
        sizes.append(_sizes())
    changed = sorted(key for key, value in _host_code().items() if host.get(key) != value)
    result.expect(not changed, f"code of the host was replaced: {', '.join(changed)}")
    for name, values in zip(("objects", "bytes"), zip(*sizes, strict=True), strict=True):
        result.figures[f"{name}_per_run"] = growth(values) / len(mixed.kinds)
    return result


def growth(values: Sequence[float]) -> float:
    """Growth from one value to the next: the median slope between all pairs (Theil-Sen), which a
    single jump of the allocator does not move.

    The first third is left out: shapes and samplers are random, and what libraries keep for each
    of them is complete only after some rounds.
    """
    settled = list(enumerate(values))[len(values) // 3 :]
    return median((b - a) / (j - i) for (i, a), (j, b) in combinations(settled, 2))


def belongings(patcher: Any) -> dict[str, Any]:
    """All that a user of the model might have attached to it."""
    own = {name: repr(getattr(patcher, name, None)) for name in _CARRIED}
    forwards = {
        name: repr(vars(module).get("forward"))
        for name, module in patcher.model.named_modules()
        if "forward" in vars(module)
    }
    return {**own, **forwards}


def _host_code() -> dict[str, int]:
    """The identity of every function and class of `_PATCHABLE`."""
    found: dict[str, int] = {}
    for module in _PATCHABLE:
        for name, value in vars(importlib.import_module(module)).items():
            parts = vars(value).items() if isinstance(value, type) else ()
            for part, inner in ((name, value), *((f"{name}.{key}", each) for key, each in parts)):
                if callable(inner):
                    found[f"{module}.{part}"] = id(inner)
    return found


def _sizes() -> tuple[int, int]:
    """Objects, and bytes in use."""
    import psutil  # a requirement of ComfyUI

    gc.collect()
    return len(gc.get_objects()), psutil.Process().memory_info().rss
