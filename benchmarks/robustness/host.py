"""Many mixed runs in one ComfyUI: whatever happens in them, it is afterwards as it was before."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import conditioning, count_hooks, ksampler, lamp_ksampler, moving
from benchmarks.samples.ecosystem import PATCHES, host_node, sample
from benchmarks.samples.tiny_models import random_motion, tiny_patcher, video_latent
from benchmarks.samples.tiny_patches import tiny_control
from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule

Run = Callable[[Random], object]


class _Stopped(RuntimeError):
    """As an error of another pack, in the middle of a step."""


class MixedRuns:
    """One image model of the host, used in every way that its users have, in any order."""

    def __init__(self) -> None:
        self.plain = tiny_patcher()
        self._files = [random_motion(self.plain, seed) for seed in (1, 2)]
        self._lora = _lora(self.plain)
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
        """Call `how` in the middle of a UNet call, while the motion's hooks are in place."""
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


def _lora(patcher: Any) -> dict[str, Tensor]:
    """Low-rank changes to the keys of self-attention."""
    generator, lora = torch.Generator().manual_seed(5), {}
    for name, weight in patcher.model.state_dict().items():
        if name.endswith("attn1.to_k.weight"):
            base = name.removesuffix(".weight")
            lora[f"{base}.lora_up.weight"] = torch.randn(len(weight), 2, generator=generator)
            lora[f"{base}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator)
    return lora


@dataclass
class Soak:
    """What was run, and what was found to have changed."""

    runs: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    objects_per_run: float = 0.0
    bytes_per_run: float = 0.0


@torch.inference_mode()
def soak(rounds: int, seed: int) -> Soak:
    """Every kind of run once a round, in a random order; ComfyUI has to be importable."""
    mixed, random, result = MixedRuns(), Random(seed), Soak()
    before = ksampler(mixed.plain)
    for kind in mixed.kinds:  # what is built on first use is no growth
        mixed.kinds[kind](random)
    for patch in PATCHES.values():
        sample(patch(mixed.plain))
    host, model = _host_code(), belongings(mixed.plain)
    objects, memory = [_objects()], [_memory()]
    for _ in range(rounds):
        for kind in random.sample(sorted(mixed.kinds), len(mixed.kinds)):
            mixed.kinds[kind](random)
            result.runs[kind] = result.runs.get(kind, 0) + 1
            if hooks := count_hooks(mixed.plain):
                result.problems.append(f"{hooks} hooks are left after {kind}")
            if belongings(mixed.plain) != model:
                result.problems.append(f"the plain model carries something after {kind}")
        if not torch.equal(ksampler(mixed.plain), before):
            result.problems.append("the plain model gives another picture")
        objects.append(_objects())
        memory.append(_memory())
    if changed := sorted(key for key, value in _host_code().items() if host.get(key) != value):
        result.problems.append(f"code of the host was replaced: {', '.join(changed)}")
    result.objects_per_run = growth(objects) / len(mixed.kinds)
    result.bytes_per_run = growth(memory) / len(mixed.kinds)
    return result


def growth(values: Sequence[float]) -> float:
    """How much is added from one value to the next: the median slope between all pairs (Theil and
    Sen), which a single jump of the allocator does not move.

    The first third is left out: shapes and samplers are drawn at random, and what is kept for each
    of them (libraries, compiled kernels) is complete only after some rounds.
    """
    settled = list(enumerate(values))[len(values) // 3 :]
    return median((b - a) / (j - i) for (i, a), (j, b) in combinations(settled, 2))


def belongings(patcher: Any) -> dict[str, Any]:
    """All that a user of the model might have hung on it."""
    own = {
        name: repr(getattr(patcher, name, None))
        for name in ("attachments", "wrappers", "callbacks", "additional_models", "injections",
                     "hook_patches", "object_patches", "patches", "weight_wrapper_patches",
                     "model_options")
    }  # fmt: skip
    forwards = {
        name: repr(vars(module).get("forward"))
        for name, module in patcher.model.named_modules()
        if "forward" in vars(module)
    }
    return {**own, **forwards}


def _host_code() -> dict[str, int]:
    """Every function and class of those modules of the host that patches like to replace."""
    import comfy.conds
    import comfy.ldm.modules.attention
    import comfy.ldm.modules.diffusionmodules.openaimodel
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    import comfy.sample
    import comfy.sampler_helpers
    import comfy.samplers
    import comfy.utils
    import latent_preview

    found: dict[str, int] = {}
    for module in (
        comfy.conds, comfy.ldm.modules.attention,
        comfy.ldm.modules.diffusionmodules.openaimodel, comfy.model_base,
        comfy.model_management, comfy.model_patcher, comfy.ops, comfy.sample,
        comfy.sampler_helpers, comfy.samplers, comfy.utils, latent_preview,
        torch.nn, torch.nn.functional,
    ):  # fmt: skip
        for name, value in vars(module).items():
            if callable(value):
                found[f"{module.__name__}.{name}"] = id(value)
            if isinstance(value, type):
                for part, inner in vars(value).items():
                    if callable(inner):
                        found[f"{module.__name__}.{name}.{part}"] = id(inner)
    return found


def _objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def _memory() -> int:
    """Bytes in use now."""
    import psutil  # ComfyUI requires it

    return psutil.Process().memory_info().rss
