"""Histogram matching of decoded frames to a reference image, on the device of the frames."""

import torch
from torch import Tensor

from ..errors import LampError

LEVELS = 256


def match_histograms(frames: Tensor, reference: Tensor, strength: float = 1.0) -> Tensor:
    """Give every frame the colour distribution of ``reference`` (supplement alg. 1, last loop).

    ``frames`` is ``f h w c``, ``reference`` ``h w c`` (any size), both in 0..1. In each channel,
    each of 256 levels maps to the lowest level at which the reference's cumulative distribution is
    at least as large; the bytes equal those of the official code. ``strength`` blends from
    unchanged (0) to matched (1). A frame equal to the reference is returned unchanged. Frames are
    processed one at a time, so that the working memory does not grow with their number.
    Raises LampError for other shapes, a strength outside 0..1, or values that are not finite.
    """
    _check(frames, reference, strength)
    if strength == 0.0 or frames.shape[0] == 0:
        return frames
    reference = reference.to(frames.device, frames.dtype)
    counts = torch.stack([_counts(_levels(image)) for image in (reference, *frames)])
    maps = _level_maps(counts[1:], counts[:1]).to(frames.device)
    pairs = zip(frames, maps, strict=True)
    return torch.stack([_move(frame, levels, reference, strength) for frame, levels in pairs])


def _move(frame: Tensor, level_map: Tensor, reference: Tensor, strength: float) -> Tensor:
    """One frame ``h w c`` with its levels mapped by ``level_map`` ``c 256``."""
    if frame.shape == reference.shape and torch.equal(frame, reference):
        return frame
    moved = level_map.gather(1, _levels(frame)).T.reshape(frame.shape)
    matched = (moved.float() / (LEVELS - 1)).to(frame.dtype)
    return torch.lerp(frame, matched, strength)


def _levels(image: Tensor) -> Tensor:
    """``h w c`` in 0..1 -> ``c (h w)`` levels 0..255; truncated, as a cast to uint8 does."""
    scaled = image.float().clamp(0.0, 1.0) * (LEVELS - 1)
    return scaled.long().reshape(-1, image.shape[-1]).T


def _counts(levels: Tensor) -> Tensor:
    """``c n`` levels -> ``c 256`` number of pixels at each level."""
    counts = levels.new_zeros(levels.shape[0], LEVELS)
    return counts.scatter_add_(1, levels, torch.ones_like(levels))


def _level_maps(counts: Tensor, reference: Tensor) -> Tensor:
    """``f c 256`` maps from the frames' levels to the reference's (counts ``1 c 256``).

    Always on the CPU in float64: where two shares are equal, the official result depends on the
    rounding of a sequential running sum, and a parallel device adds in another order.
    """
    shares = _cumulated_shares(counts)
    target = _cumulated_shares(reference).expand_as(shares).contiguous()
    # A running sum may end slightly above the reference's. The search then runs past the end and
    # the brightest level of a frame becomes white, as in the official results.
    return torch.searchsorted(target, shares, side="left").clamp_(max=LEVELS - 1)


def _cumulated_shares(counts: Tensor) -> Tensor:
    counts = counts.cpu().double()
    return (counts / counts.sum(-1, keepdim=True)).cumsum(-1)


def _check(frames: Tensor, reference: Tensor, strength: float) -> None:
    if frames.ndim != 4 or reference.ndim != 3:
        raise LampError(
            "Histogram matching takes frames f h w c and one reference image h w c, not "
            f"{tuple(frames.shape)} and {tuple(reference.shape)}."
        )
    if frames.shape[-1] != reference.shape[-1]:
        raise LampError(
            f"The frames have {frames.shape[-1]} channels, the reference has "
            f"{reference.shape[-1]}. Use RGB images for both."
        )
    if not 0.0 <= strength <= 1.0:
        raise LampError(f"Histogram strength must lie between 0 and 1, not {strength:g}.")
    for name, images in (("frames", frames), ("reference", reference)):
        if not torch.isfinite(images).all():
            raise LampError(
                f"The {name} for histogram matching contain NaN or infinite values: decoding or "
                "sampling failed. Run the VAE in float32 or lower the guidance."
            )
