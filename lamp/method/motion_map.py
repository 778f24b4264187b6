"""Where a motion is at work: the activity of its gated residuals, as a picture and as a mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LampError
from .layers import MotionConv
from .masks import resize_masks
from .motion import Motion

# A temporal convolution looks two frames back, and sees zeros before frame 1: what it adds to
# frames 1 and 2 differs from the rest wherever something moves or not.
_SETTLED = 2
# Otsu's threshold parts the moving from the still; below this share of it nothing moves.
_RAMP = 0.8
# In the corners the layers see their padding, and what they add varies several times more than
# anywhere else: a few places that must rule neither the threshold (hence logarithms) nor the
# colours.
_BRIGHTEST = 0.97
_LEAST = 1e-6
# Of the heat-map, from still to moving.
_COLOURS = (
    (0.0, 0.0, 0.02),
    (0.34, 0.06, 0.43),
    (0.74, 0.21, 0.33),
    (0.98, 0.55, 0.04),
    (0.99, 1.0, 0.64),
)


class Activity:
    """What was seen of a motion by `record_activity`."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._seen = 0

    def add(self, residual: Tensor, frames: int) -> None:
        """Note how much a layer's residual `(b f) c h w` changes from frame to frame."""
        video = residual.unflatten(0, (-1, frames))[:, _SETTLED:].float()
        change = video.var(1, correction=0).mean((0, 1)).sqrt()
        if not change.mean() > 0:
            return
        size = (change.shape[0], change.shape[1])
        # Layers differ in scale; each counts alike.
        share = change / change.mean()
        self._sums[size] = self._sums[size] + share if size in self._sums else share
        self._seen += 1

    def map(self, height: int, width: int) -> Tensor:
        """`height width`: the mean over layers and calls, 1 on average.

        Raises:
            LampError: nothing changed from frame to frame.
        """
        if not self._seen:
            raise LampError(
                "The motion does nothing here, so there is nothing to show: give it a strength "
                "other than 0, and a video of at least 4 frames."
            )
        maps = [
            resize_masks(part[None, None].cpu(), (height, width)) for part in self._sums.values()
        ]
        return torch.stack(maps).sum(0)[0, 0] / self._seen


@contextmanager
def record_activity(*motions: Motion) -> Iterator[Activity]:
    """Watch the temporal convolutions of motions at work; their hooks go when the block ends."""
    activity = Activity()

    def see(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        y, frames, *more = args
        onto = more[1] if len(more) > 1 else y
        activity.add(out - onto, frames)

    with ExitStack() as stack:
        for motion in motions:
            for layer in motion.modules():
                if isinstance(layer, MotionConv):
                    stack.callback(layer.register_forward_hook(see).remove)
        yield activity


def mask_from_activity(activity: Tensor, sensitivity: float = 1.0, margin: float = 0.1) -> Tensor:
    """A mask `h w` in 0..1 of where a motion is at work, for `MotionMask`.

    Args:
        activity: `h w`.
        sensitivity: more than 1 takes in fainter activity.
        margin: how far the mask reaches beyond it, as a share of the shorter side.
    """
    whole = math.exp(otsu_threshold(activity.clamp(min=_LEAST).log())) / sensitivity
    mask = ((activity / whole - _RAMP) / (1 - _RAMP)).clamp(0, 1)
    reach = round(margin * min(mask.shape))
    wider = F.max_pool2d(mask[None], (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(wider, (1, 2 * reach + 1), 1, (0, reach))[0]


def otsu_threshold(values: Tensor) -> float:
    """The threshold that parts values into two groups of least spread (Otsu 1979)."""
    ordered = values.flatten().double().sort().values
    sums, count = ordered.cumsum(0), len(ordered)
    below = torch.arange(1, count, dtype=torch.float64)
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / (count - below)
    best = int((below * (count - below) * gap**2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def heat_map(activity: Tensor) -> Tensor:
    """Colours `h w 3` in 0..1 of an activity `h w`: dark where it is least, bright where most."""
    values = activity.flatten()  # torch.quantile takes no more than 16 million
    low, high = values.min(), values.kthvalue(math.ceil(_BRIGHTEST * len(values))).values
    share = ((activity - low) / (high - low).clamp(min=_LEAST)).clamp(0, 1)
    place = share * (len(_COLOURS) - 1)
    below = place.floor().clamp(max=len(_COLOURS) - 2).long()
    colours = torch.tensor(_COLOURS)
    return torch.lerp(colours[below], colours[below + 1], (place - below)[..., None])
