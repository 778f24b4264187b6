"""Where a motion acts: the activity of its gated residuals, as a heat map and as a mask."""

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

# A temporal convolution looks two frames back and sees zeros before frame 1, so its residuals of
# frames 1 and 2 differ from the others everywhere, moving or not.
_SETTLED = 2
# Otsu's threshold separates moving from still; below this share of it the mask is 0.
_RAMP = 0.8
# In the corners the layers see their padding, and their residuals vary several times more than
# elsewhere. These few positions must determine neither the threshold (hence logarithms) nor the
# colours.
_BRIGHTEST = 0.97
_LEAST = 1e-6
# Of the heat map, from still to moving.
_COLOURS = (
    (0.0, 0.0, 0.02),
    (0.34, 0.06, 0.43),
    (0.74, 0.21, 0.33),
    (0.98, 0.55, 0.04),
    (0.99, 1.0, 0.64),
)


class Activity:
    """The activity of a motion, recorded by `record_activity`."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._seen = 0

    def add(self, residual: Tensor, frames: int) -> None:
        """Record how much a layer's residual `(b f) c h w` changes over the frames."""
        video = residual.unflatten(0, (-1, frames))[:, _SETTLED:].float()
        change = video.var(1, correction=0).mean((0, 1)).sqrt()
        if not change.mean() > 0:
            return
        size = (change.shape[0], change.shape[1])
        # Layers differ in scale; weigh them equally.
        share = change / change.mean()
        self._sums[size] = self._sums[size] + share if size in self._sums else share
        self._seen += 1

    def map(self, height: int, width: int) -> Tensor:
        """The mean over layers and calls, `height width`, 1 on average.

        Raises:
            LampError: no residual changed over the frames.
        """
        if not self._seen:
            raise LampError(
                "The motion has no effect here, so there is no activity to show: use a strength "
                "other than 0 and a video of at least 4 frames."
            )
        maps = [
            resize_masks(part[None, None].cpu(), (height, width)) for part in self._sums.values()
        ]
        return torch.stack(maps).sum(0)[0, 0] / self._seen


@contextmanager
def record_activity(*motions: Motion) -> Iterator[Activity]:
    """Record the temporal convolutions of motions by hooks, removed when the block ends."""
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
    """A mask `h w` in 0..1 of where a motion acts, for `MotionMask`.

    Args:
        activity: `h w`.
        sensitivity: above 1 includes fainter activity.
        margin: how far the mask extends beyond the activity, as a share of the shorter side.
    """
    whole = math.exp(otsu_threshold(activity.clamp(min=_LEAST).log())) / sensitivity
    mask = ((activity / whole - _RAMP) / (1 - _RAMP)).clamp(0, 1)
    reach = round(margin * min(mask.shape))
    wider = F.max_pool2d(mask[None], (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(wider, (1, 2 * reach + 1), 1, (0, reach))[0]


def otsu_threshold(values: Tensor) -> float:
    """The threshold that splits values into two groups of least variance (Otsu 1979)."""
    ordered = values.flatten().double().sort().values
    sums, count = ordered.cumsum(0), len(ordered)
    below = torch.arange(1, count, dtype=torch.float64)
    gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / (count - below)
    best = int((below * (count - below) * gap**2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def heat_map(activity: Tensor) -> Tensor:
    """Colours `h w 3` in 0..1 of an activity `h w`, from dark (least) to bright (most)."""
    values = activity.flatten()  # torch.quantile takes no more than 16 million
    low, high = values.min(), values.kthvalue(math.ceil(_BRIGHTEST * len(values))).values
    share = ((activity - low) / (high - low).clamp(min=_LEAST)).clamp(0, 1)
    place = share * (len(_COLOURS) - 1)
    below = place.floor().clamp(max=len(_COLOURS) - 2).long()
    colours = torch.tensor(_COLOURS)
    return torch.lerp(colours[below], colours[below + 1], (place - below)[..., None])
