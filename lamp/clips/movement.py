"""Measure the motion in clips before training: optical flow, colour change, cuts."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT_SIDE = 96
"""Shorter side of the analysed pictures. OpenCV's flow crashes on much smaller ones."""
MAX_ASPECT = 4
"""Largest aspect ratio of the analysed pictures; longer ones are squeezed."""
CUT_LEAST = 0.06
CUT_FACTOR = 3.0
CUT_REACH = 6
STILL_FLOW = 0.25
STILL_CHANGE = 0.2
UNLIKE = 3.0


@dataclass(frozen=True)
class Movement:
    """The motion in a clip, from one training frame to the next.

    - ``flow``: shift of the fastest tenth of the picture, in pixels of the training size, so that
      small moving objects count; None without OpenCV;
    - ``change``: mean absolute change of the colours in percent of full scale;
    - ``cuts``: frames (from 0) that start another shot. Steps across them do not count.
    """

    flow: float | None
    change: float
    cuts: tuple[int, ...] = ()


def look_size(width: int, height: int) -> tuple[int, int]:
    """The size (width, height) of the pictures that a ``MotionMeter`` takes."""
    scale = SHORT_SIDE / min(width, height)
    most = SHORT_SIDE * MAX_ASPECT
    return min(round(width * scale), most), min(round(height * scale), most)


class MotionMeter:
    """Measures a clip frame by frame, holding only as many frames as the stride.

    ``width`` and ``height`` are the training size.
    """

    def __init__(self, width: int, height: int, stride: int) -> None:
        looked = look_size(width, height)
        self._scale = torch.tensor([width / looked[0], height / looked[1]])
        self._engine = flow_engine()
        self._seen: deque[Tensor] = deque(maxlen=stride)
        self._coarse: Tensor | None = None
        self._jumps: list[float] = []
        self._steps: list[tuple[float, float]] = []

    def see(self, picture: Tensor) -> None:
        """Take in the next frame, ``h w 3`` uint8 of the ``look_size``."""
        coarse = F.avg_pool2d(picture.movedim(-1, 0).float() / 255, 8)
        before = coarse if self._coarse is None else self._coarse
        self._jumps.append((coarse - before).abs().mean().item())
        self._coarse = coarse
        if len(self._seen) == self._seen.maxlen:
            change = (picture.short() - self._seen[0]).abs().float().mean().item() / 2.55
            self._steps.append((self._flow(self._seen[0], picture), change))
        self._seen.append(picture)

    def result(self) -> Movement:
        """The motion so far."""
        cuts = find_cuts(self._jumps)
        stride = self._seen.maxlen or 1
        within = [
            step
            for first, step in enumerate(self._steps)
            if not any(first < cut <= first + stride for cut in cuts)
        ]
        steps = torch.tensor(within or self._steps or [(0.0, 0.0)])
        flow, change = steps.mean(0).tolist()
        return Movement(flow if self._engine else None, change, cuts)

    def _flow(self, before: Tensor, after: Tensor) -> float:
        if self._engine is None:
            return 0.0
        flow = torch.from_numpy(self._engine.calc(grey(before), grey(after), None))
        speed = (flow * self._scale).norm(dim=-1).flatten()
        return speed.topk(max(len(speed) // 10, 1)).values.mean().item()


def find_cuts(jumps: list[float]) -> tuple[int, ...]:
    """Frames that start another shot, from each frame's change to the frame before (0..1, the first
    frame's is 0).

    A cut is large in itself and compared to its neighbours. So fast motion, a flash (two changes)
    and films with few distinct frames per second do not count.
    """
    found = []
    for number, jump in enumerate(jumps):
        near = jumps[max(number - CUT_REACH, 1) : number] + jumps[number + 1 :][:CUT_REACH]
        if jump >= CUT_LEAST and jump >= CUT_FACTOR * max(near, default=1.0):
            found.append(number)
    return tuple(found)


def movement_hints(names: list[str], movements: list[Movement]) -> list[str]:
    """Warnings about clips that stand still, have cuts, or move unlike the others."""
    hints = []
    for name, movement in zip(names, movements, strict=True):
        if movement.cuts:
            frames = " and ".join(f"frame {cut + 1}" for cut in movement.cuts[:3])
            more = f" and {len(movement.cuts) - 3} more" if len(movement.cuts) > 3 else ""
            hints.append(
                f"'{name}' jumps to another picture at {frames}{more}. The cut would be learned as "
                "part of the motion: split the clip there."
            )
        if movement.change == 0:
            hints.append(f"'{name}' does not move at all.")
        elif movement.change < STILL_CHANGE and (movement.flow or 0) < STILL_FLOW:
            hints.append(f"'{name}' hardly moves.")
    return hints + _unlike_the_others(names, movements)


def _unlike_the_others(names: list[str], movements: list[Movement]) -> list[str]:
    # Only by flow: a fast clip of pale colours changes less than a slow one of strong colours.
    amounts = [movement.flow for movement in movements if movement.flow is not None]
    if len(amounts) < max(len(movements), 3):
        return []
    hints = []
    for number, (name, amount) in enumerate(zip(names, amounts, strict=True)):
        others = statistics.median(amounts[:number] + amounts[number + 1 :])
        change = movements[number].change
        # A change of brightness alone has no flow, but is not slow motion.
        little = 0 < change <= statistics.median(m.change for m in movements)
        if little and amount * UNLIKE < others:
            hints.append(
                f"'{name}' moves much less than the others ({amount:.1f} px, the others "
                f"{others:.1f} px) and contributes little. Consider removing it."
            )
        if amount > UNLIKE * max(others, STILL_FLOW):
            hints.append(
                f"'{name}' moves far more than the others ({amount:.1f} px, the others "
                f"{others:.1f} px): a shaking camera or another speed? Consider removing it."
            )
    return hints


def grey(picture: Tensor) -> Any:
    """A picture ``h w 3`` in grey, ``h w`` uint8, for the flow engine."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (picture.float() @ weights).round().byte().numpy()


def flow_engine() -> Any:
    """OpenCV's dense inverse search flow; None where OpenCV is missing or incomplete."""
    try:
        import cv2

        opencv: Any = cv2  # its type stubs are incomplete
        return opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_MEDIUM)
    except (ImportError, AttributeError):
        return None
