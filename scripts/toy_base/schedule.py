"""Learning rates and checkpoints of both phases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lamp.files.atomic import write_file


def save_atomic(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint atomically, so that a killed run leaves the old one."""
    write_file(path, lambda temporary: torch.save(state, temporary))


def learning_rate(step: int, steps: int, peak: float, warm: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warm:
        return peak * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share))))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def trapezoid(step: int, steps: int, peak: float, warm: int = 300, fall: float = 0.25) -> float:
    """Warm-up, plateau, and linear decay over the last quarter, so that a run can be prolonged."""
    left = (steps - step) / max(1.0, fall * steps)
    return peak * max(0.01, min(1.0, (step + 1) / warm, left))
