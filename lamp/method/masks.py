"""Restrict a motion to a part of the picture or to some frames."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LampError
from .layout import FrameLayout

_SAME_SHAPE = 1.05  # ratio of two aspect ratios
_PLAIN = 1e-3  # difference in a mask without edges


class MotionMask:
    """A factor on the residuals of a motion at each position and frame.

    The residuals also keep the background still; without them it flickers. Outside the mask the
    predicted clean frames are therefore replaced by frame 1 (`hold`).

    Args:
        mask: `h w` or `n h w` in 0..1, of any size: one for all frames, or one per frame. A mask of
            ones equals no mask.
        feather: width of the soft edge on both sides, as a share of the mask's shorter side.
        hold: how strongly the picture outside the mask is held to frame 1; 0 leaves it to the
            image model.
        strengths: a factor per frame; if there are fewer than frames, they are interpolated.

    Raises:
        LampError: the mask is empty or has NaN, or the strengths are missing or not finite.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        *,
        feather: float = 0.0,
        hold: float = 1.0,
        strengths: Sequence[float] = (1.0,),
    ) -> None:
        self.mask = None if mask is None else _prepare_mask(mask, feather)
        self.hold = hold
        self.strengths = torch.tensor(strengths, dtype=torch.float32)
        if not len(strengths) or not self.strengths.isfinite().all():
            raise LampError(
                f"The strengths of the frames are {list(strengths)[:8]}: give finite numbers, "
                "such as 1, 1, 0.5."
            )
        self._cache: dict[tuple[object, ...], Tensor] = {}

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether it changes nothing: the factor is 1 everywhere."""
        return self.mask is None and bool((self.strengths == 1).all())

    @property
    def holds(self) -> bool:
        """Whether the picture outside the mask is held to frame 1."""
        return self.mask is not None and self.hold > 0.0

    def check(self, frames: int) -> None:
        """Raises LampError if masks or strengths do not match a video of `frames` frames."""
        if self.mask is not None and len(self.mask) not in (1, frames):
            raise LampError(
                f"There are {len(self.mask)} masks for a video of {frames} frames: give one mask "
                f"for all frames, or {frames}."
            )
        if len(self.strengths) > frames:
            raise LampError(
                f"There are {len(self.strengths)} strengths for a video of {frames} frames: give "
                "at most one per frame."
            )

    def differs_from(self, size: tuple[int, int]) -> str:
        """What to say if the masks have another shape than pictures of this `size` (h, w; in any
        unit), so that they are stretched; empty if not, or if they have no edges."""
        if self.mask is None or _same_shape(self.mask, size):
            return ""
        high, wide = self.mask.shape[-2:]
        return (
            f"The mask is {wide} x {high} and is stretched to the shape of the video, which is "
            f"{size[1] / size[0]:.2f} to 1. This fits a first frame with fit stretch. With crop or "
            "pad the mask lies elsewhere than painted: crop or pad picture and mask alike before."
        )

    def for_features(self, y: Tensor, layout: FrameLayout) -> Tensor:
        """The factor for features `(b f) c h w`, as `(b f) 1 h w` or `(b f) 1 1 1`."""
        return self._factor(layout, (y.shape[-2], y.shape[-1]), y)

    def for_tokens(self, x: Tensor, layout: FrameLayout, size: tuple[int, int]) -> Tensor:
        """The factor for tokens `(b f) n c` on a grid of `size`, as `(b f) n 1` or `(b f) 1 1`.

        Raises:
            LampError: there is a mask, and another patch has split or merged the tokens.
        """
        if self.mask is not None and x.shape[1] != size[0] * size[1]:
            raise LampError(
                "A mask on the motion does not work with patches that split the picture into tiles "
                "or merge tokens (HyperTile, Token Merging): remove the patch or the mask."
            )
        factor = self._factor(layout, size, x).flatten(2).transpose(1, 2)
        return factor.repeat_interleave(len(x) // len(factor), dim=0)

    def forget(self) -> None:
        """Drop the factors cached for a run; they are on the device."""
        self._cache.clear()

    def free(self, size: tuple[int, int]) -> Tensor:
        """1 where the motion acts freely, 0 where frame 1 is held: `n 1 h w`, n is 1 or frames."""
        if self.mask is None:
            return torch.ones(1, 1, *size)
        return 1 - self.hold * (1 - resize_masks(self.mask, size).clamp(0, 1))

    def _factor(self, layout: FrameLayout, size: tuple[int, int], like: Tensor) -> Tensor:
        """Layers of one size share a factor in all steps, so it is computed once."""
        size = (1, 1) if self.mask is None else size
        total = layout.frames if layout.total is None else layout.total
        key = (
            size,
            layout.frames,
            layout.videos,
            layout.frame_indices,
            total,
            like.dtype,
            like.device,
        )
        if key not in self._cache:
            self.check(total)
            every = F.interpolate(
                self.strengths[None, None], total, mode="linear", align_corners=True
            ).reshape(total, 1, 1, 1)
            if self.mask is not None:
                every = every * resize_masks(self.mask, size).clamp(0, 1)
            shown = every if layout.frame_indices is None else every[list(layout.frame_indices)]
            self._cache[key] = shown.to(like).repeat(layout.videos, 1, 1, 1)
        return self._cache[key]


def all_hold(motion_masks: Sequence[MotionMask | None]) -> bool:
    """Whether every motion has a mask that holds; a motion without a mask acts everywhere."""
    return bool(motion_masks) and all(
        motion_mask is not None and motion_mask.holds for motion_mask in motion_masks
    )


def hold_first_frame(
    predicted: Tensor,
    first: Tensor,
    motion_masks: Sequence[MotionMask | None],
    frame_indices: Sequence[int] | None = None,
) -> Tensor:
    """Predicted clean latents `(b f) c h w`, replaced by `first` (b c h w) where all masks hold.

    Args:
        frame_indices: indices (from 0) of the frames in the longer video that the masks cover.
    """
    if not all_hold(motion_masks):
        return predicted
    video = predicted.unflatten(0, (len(first), -1))
    free = _free(video, motion_masks, frame_indices)
    # lerp is exact where the mask is 0 or 1, a sum of products is not
    return torch.lerp(first[:, None].to(predicted), video, free).flatten(0, 1)


def restore_held(
    x: Tensor,
    predicted: Tensor,
    motion_masks: Sequence[MotionMask | None],
    frame_indices: Sequence[int] | None = None,
    videos: int = 1,
) -> Tensor:
    """Finished videos `(b f) c h w`, replaced by the last held prediction where all masks hold.

    A schedule may leave noise after its last step, and AdaIN changes whole frames; both would show
    where the picture has to stand still.
    """
    if not all_hold(motion_masks):
        return x
    x, predicted = (each.unflatten(0, (videos, -1)) for each in (x, predicted))
    return torch.lerp(predicted, x, _free(x, motion_masks, frame_indices)).flatten(0, 1)


def _free(
    video: Tensor, motion_masks: Sequence[MotionMask | None], frame_indices: Sequence[int] | None
) -> Tensor:
    """`MotionMask.free` of all masks together for `b f c h w`, as `1 f 1 h w`."""
    size = (video.shape[-2], video.shape[-1])
    areas = []
    for motion_mask in motion_masks:
        if motion_mask is not None:
            area = motion_mask.free(size)
            areas.append(
                area if frame_indices is None or len(area) == 1 else area[list(frame_indices)]
            )
    free = functools.reduce(torch.maximum, areas)
    return free.expand(video.shape[1], -1, -1, -1)[None].to(video)


def parse_strengths(text: str) -> list[float]:
    """Parse numbers separated by commas, semicolons or white space.

    Raises:
        LampError: the text is not a list of numbers.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise LampError(
            f"'{text[:60]}' is not a list of strengths: write numbers such as 1, 1, 0.5."
        ) from error


def _same_shape(masks: Tensor, size: tuple[int, int]) -> bool:
    """Whether masks `n 1 h w` cover a picture of this shape: of nearly its aspect ratio, as sizes
    are rounded, or without edges, which fit any."""
    high, wide = masks.shape[-2:]
    ratio = (wide / high) / (size[1] / size[0])
    values = masks.flatten(1)
    plain = bool((values.amax(1) - values.amin(1) < _PLAIN).all())
    return plain or 1 / _SAME_SHAPE < ratio < _SAME_SHAPE


def feather_masks(masks: Tensor, feather: float) -> Tensor:
    """Blur masks `n h w` with a Gaussian that reaches `feather` of the shorter side."""
    reach = round(feather * min(masks.shape[-2:]))
    if reach == 0:
        return masks
    offsets = torch.arange(-reach, reach + 1, dtype=masks.dtype)
    weights = torch.exp(-2 * (offsets / reach) ** 2)
    weights = (weights / weights.sum())[None, None, None]
    for _ in range(2):  # rows, then columns
        padded = F.pad(masks[:, None], (reach, reach, 0, 0), mode="replicate")
        masks = F.conv2d(padded, weights)[:, 0].transpose(1, 2)
    return masks.clamp(0, 1)


def _prepare_mask(mask: Tensor, feather: float) -> Tensor | None:
    """`n 1 h w` on the CPU, or None if the mask is 1 everywhere."""
    if mask.ndim < 2 or not mask.numel() or not mask.isfinite().all():
        raise LampError(
            f"The mask of shape {tuple(mask.shape)} is empty or has NaN values: connect a mask of "
            "the picture, white where the motion may act."
        )
    masks = mask.detach().reshape(-1, *mask.shape[-2:]).float().cpu().clamp(0, 1)
    if (masks == 1).all():
        return None
    return feather_masks(masks, feather)[:, None]


def resize_masks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `n 1 h w` with antialiasing, so that each value is a mean over its area."""
    return F.interpolate(maps, size, mode="bilinear", antialias=True)
