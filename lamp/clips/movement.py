"""How much clips move, before anything is learned from them: optical flow, change, cuts."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT_SIDE = 96
"""Height or width at which clips are looked at. OpenCV's flow crashes on much smaller pictures."""
LONGEST = 4
"""Longest side that is looked at, in short sides; beyond it pictures are squeezed for the look."""
CUT_LEAST = 0.06
CUT_FACTOR = 3.0
CUT_REACH = 6
STILL_FLOW = 0.25
STILL_CHANGE = 0.2
UNLIKE = 3.0


@dataclass(frozen=True)
class Movement:
    """What moves in a clip, from one learned frame to the next.

    - ``flow``: pixels of the trained size by which the fastest tenth of the picture moves, which
      is the moving thing where it is small; None without OpenCV;
    - ``change``: mean absolute change of the colours in percent of full scale;
    - ``cuts``: frames (from 0) that begin another shot. Steps across them are not counted.
    """

    flow: float | None
    change: float
    cuts: tuple[int, ...] = ()


def look_size(width: int, height: int) -> tuple[int, int]:
    """The size (width, height) at which a clip is to be shown to a ``MotionMeter``."""
    scale = SHORT_SIDE / min(width, height)
    most = SHORT_SIDE * LONGEST
    return min(round(width * scale), most), min(round(height * scale), most)


class MotionMeter:
    """Watches a clip frame by frame and keeps no more of them than the stride.

    ``width`` and ``height`` are those that the clip is trained at.
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
        """The next frame, ``h w 3`` uint8 of the ``look_size``."""
        coarse = F.avg_pool2d(picture.movedim(-1, 0).float() / 255, 8)
        before = coarse if self._coarse is None else self._coarse
        self._jumps.append((coarse - before).abs().mean().item())
        self._coarse = coarse
        if len(self._seen) == self._seen.maxlen:
            change = (picture.short() - self._seen[0]).abs().float().mean().item() / 2.55
            self._steps.append((self._flow(self._seen[0], picture), change))
        self._seen.append(picture)

    def result(self) -> Movement:
        """What was seen so far."""
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
    """Frames whose change from the frame before (0..1, the first frame's is 0) stands out.

    A cut is large by itself and against all its neighbours, so that neither fast motion nor a
    flash, which changes the picture twice, counts, nor a film of few different frames a second.
    """
    found = []
    for number, jump in enumerate(jumps):
        near = jumps[max(number - CUT_REACH, 1) : number] + jumps[number + 1 :][:CUT_REACH]
        if jump >= CUT_LEAST and jump >= CUT_FACTOR * max(near, default=1.0):
            found.append(number)
    return tuple(found)


def movement_hints(names: list[str], movements: list[Movement]) -> list[str]:
    """What the user should know: clips that stand still, jump, or move unlike the others."""
    hints = []
    for name, movement in zip(names, movements, strict=True):
        if movement.cuts:
            frames = " and ".join(f"frame {cut + 1}" for cut in movement.cuts[:3])
            more = f" and {len(movement.cuts) - 3} more" if len(movement.cuts) > 3 else ""
            hints.append(
                f"'{name}' jumps to another picture at {frames}{more}: a cut would be learned as "
                "part of the motion. Split the clip there."
            )
        if movement.change == 0:
            hints.append(f"'{name}' does not move at all.")
        elif movement.change < STILL_CHANGE and (movement.flow or 0) < STILL_FLOW:
            hints.append(f"'{name}' hardly moves.")
    return hints + _unlike_the_others(names, movements)


def _unlike_the_others(names: list[str], movements: list[Movement]) -> list[str]:
    # Without flow nothing is said: a fast clip of pale colours changes them less than a slow one.
    amounts = [movement.flow for movement in movements if movement.flow is not None]
    if len(amounts) < max(len(movements), 3):
        return []
    hints = []
    for number, (name, amount) in enumerate(zip(names, amounts, strict=True)):
        others = statistics.median(amounts[:number] + amounts[number + 1 :])
        change = movements[number].change
        # What only changes its brightness has no flow, and is no slow clip for that.
        little = 0 < change <= statistics.median(m.change for m in movements)
        if little and amount * UNLIKE < others:
            hints.append(
                f"'{name}' moves much less than the others ({amount:.1f} px, the others "
                f"{others:.1f} px) and teaches little. Consider leaving it out."
            )
        if amount > UNLIKE * max(others, STILL_FLOW):
            hints.append(
                f"'{name}' moves far more than the others ({amount:.1f} px, the others "
                f"{others:.1f} px): a shaking camera, or another speed? Consider leaving it out."
            )
    return hints


def grey(picture: Tensor) -> Any:
    """``h w`` bytes of a picture ``h w 3``, for the flow engine."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    return (picture.float() @ weights).round().byte().numpy()


def flow_engine() -> Any:
    """OpenCV's dense inverse search; None where OpenCV is missing or, as happens, half there."""
    try:
        import cv2

        opencv: Any = cv2  # its types leave out what some builds leave out
        return opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_MEDIUM)
    except (ImportError, AttributeError):
        return None
