"""The settings of a tuning run: the published recipe, a faster one, and any other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LampError
from ..method.motion import GROUPNORM_MODES

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
RATE_SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("adamw", "adamw8bit")
QUERY_DECAYS = ("whole", "change")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a tuning run; the defaults are the published recipe (paper sec. 4.1).

    - ``batch`` clips go through the model at once, ``accumulate`` times before each optimiser step;
    - ``conv_rate``, ``attention_rate``, ``query_rate`` are factors on the learning rate of the
      motion convolutions with their gates, of temporal attention, and of the tuned queries;
    - ``reference_width``: the learning rate is meant for layers of so many channels and falls as
      1/width in wider ones (the rule for Adam of Yang et al. 2021); 0 takes it as it is;
    - ``query_decay``: what weight decay pulls towards 0 in the tuned queries: the ``whole`` query,
      base + change, as the published code, which holds no other, or the ``change`` alone;
    - ``rank``: each matrix is learned as two factors of this rank (`lamp.training.low_rank`), which
      makes a small file; 0 learns it as a whole;
    - ``min_snr`` (Hang et al. 2023) caps the weight of clean timesteps at this signal-to-noise
      ratio; 0 weighs all alike, as the paper does;
    - ``ema`` averages the parameters over the steps, 0 is off;
    - ``hold_out`` clips are not learned from: the loss on them shows over-fitting.

    Raises LampError for a value outside its range.
    """

    steps: int = 30_000
    frames: int = 16
    batch: int = 1
    accumulate: int = 1
    learning_rate: float = 3e-5
    conv_rate: float = 1.0
    attention_rate: float = 1.0
    query_rate: float = 1.0
    reference_width: int = 0
    weight_decay: float = 1e-2
    query_decay: str = "whole"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    warmup: int = 0
    rate_schedule: str = "constant"
    ema: float = 0.0
    min_snr: float = 0.0
    optimizer: str = "adamw"
    rank: int = 0
    hold_out: int = 0
    seed: int = 0
    groupnorm: str = "pooled"
    precision: str = "fp32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10**7),
            ("frames", 2, 1024),
            ("batch", 1, 1024),
            ("accumulate", 1, 1024),
            ("learning_rate", 1e-12, 1.0),
            ("conv_rate", 0.0, 1000.0),
            ("attention_rate", 0.0, 1000.0),
            ("query_rate", 0.0, 1000.0),
            ("reference_width", 0, 10**6),
            ("weight_decay", 0.0, 1.0),
            ("clip_norm", 1e-6, 1e6),
            ("warmup", 0, self.steps),
            ("ema", 0.0, 0.99999),
            ("min_snr", 0.0, 1e6),
            ("rank", 0, 1024),
            ("hold_out", 0, 1024),
            ("seed", 0, 2**64 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise LampError(f"{name} is {value}: choose a value from {low} to {high}.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise LampError(f"betas are {self.betas}: choose two values from 0 to below 1.")
        for name, known in (
            ("rate_schedule", RATE_SCHEDULES),
            ("precision", tuple(PRECISIONS)),
            ("optimizer", OPTIMIZERS),
            ("query_decay", QUERY_DECAYS),
            ("groupnorm", GROUPNORM_MODES),
        ):
            if getattr(self, name) not in known:
                raise LampError(f"{name} is '{getattr(self, name)}': choose {' or '.join(known)}.")


def preset(name: str, steps: int) -> dict[str, Any]:
    """The settings that a named recipe fixes, for a run of `steps` steps.

    `paper`: the published one. `fast`: higher rates that follow the width of each layer, a short
    warm-up and a cosine to zero, and less weight on nearly clean timesteps, which teach little of
    where things are; on the toy base it learns in a fifth of the steps or fewer
    (`python -m benchmarks.recipe`). Its rates would shrink the queries of the image model by up to
    a hundredth, which the motion would carry to other checkpoints, so only the change decays.

    Raises:
        LampError: no recipe has that name.
    """
    if name == "paper":
        return {}
    if name == "fast":
        return {
            "learning_rate": 2e-3,
            "reference_width": 64,
            "warmup": min(100, steps // 15),
            "rate_schedule": "cosine",
            "min_snr": 1.0,
            "query_decay": "change",
        }
    raise LampError(f"There is no recipe '{name}': choose {' or '.join(PRESETS)}.")


PRESETS = ("paper", "fast")


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate in step number `step` (from 0)."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.rate_schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def choose_precision(wanted: str, computes: torch.dtype | None, has_bf16: bool) -> str:
    """The precision to train in: `wanted`, or for `auto` the one that suits the host.

    `auto` is fp32 where the UNet computes in fp32, whatever its weights are stored in; otherwise
    bf16 if the UNet or the device has it, and fp16 if not.

    Args:
        computes: the only dtype in which the UNet computes; None if any will do.
        has_bf16: whether the device is fast in bf16.

    Raises:
        LampError: fp32 is wanted, but the UNet computes in half precision.
    """
    if wanted == "auto":
        if computes == torch.float32:
            return "fp32"
        return "bf16" if has_bf16 or computes == torch.bfloat16 else "fp16"
    if wanted == "fp32" and computes not in (None, torch.float32):
        raise LampError(
            f"precision is fp32, but the MODEL computes in {computes}: choose auto, bf16 or "
            "fp16, or start ComfyUI with --force-fp32."
        )
    return wanted
