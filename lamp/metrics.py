"""Metrics of videos: the paper's three (section 4.2), and two from optical flow.

The paper's metrics use CLIP embeddings and are multiplied by 100, as in its table 1. It calls the
third one a distance, but its values, lower for more diverse videos, are similarities.
`video_similarity` is not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .clips.images import fit_small
from .clips.movement import MotionMeter, flow_engine, grey, look_size
from .errors import LampError
from .plain import plain

UNCHANGED = 80.0
"""Decibels of a background that does not change, and the highest value of the metric."""
_GRAIN = 12
_MARGIN = 5
# Frames per call of the encoder.
_CHUNK = 16

ImageEncoder = Callable[[Tensor], Tensor]
"""CLIP's image encoder: frames ``f h w 3`` in 0..1 -> embeddings ``f d``."""
TextEncoder = Callable[[str], Tensor]
"""CLIP's text encoder: a prompt -> its embedding ``d``, in the same space."""


# --- from the paper --------------------------------------------------------------------------


def text_alignment(frames: Tensor, text: Tensor) -> float:
    """Mean CLIP score of the frames: 100 x the cosine of embeddings ``f d`` and ``d``.

    Higher is better. Section 4.2: "we average each frame's CLIP score".
    """
    return 100 * (_unit(frames) @ _unit(text)).mean().item()


def frame_consistency(frames: Tensor) -> float:
    """100 x the mean cosine over all pairs of frames, of embeddings ``f d``.

    Higher is better; a still video scores 100. Section 4.2: "the mean cosine similarity of CLIP
    image embedding across all frame pairs", not only neighbours.

    Raises:
        LampError: there is only one frame.
    """
    if len(frames) < 2:
        raise LampError("Frame consistency compares frames: a video needs at least 2, not 1.")
    return 100 * _mean_over_pairs(_unit(frames))


def diversity(videos: Sequence[Tensor]) -> float:
    """100 x the mean product over all pairs of videos, of embeddings ``f d`` each (or ``n f d``).

    A video is the mean of its frames' embeddings of unit length. As in the published code, this
    mean is not normalised again, so the value is the mean cosine over all pairs of frames of two
    videos. Lower is better: the videos differ more. Section 4.2: "the average CLIP image embedding
    of all frames to represent a video, subsequently computing and averaging the cosine distance
    across all video pairs". The paper's second version does so for each motion, so pass the videos
    of one motion.

    Raises:
        LampError: there is only one video.
    """
    return 100 * _mean_over_pairs(_video_means(videos))


def video_similarity(videos: Sequence[Tensor]) -> float:
    """100 x the mean cosine over all pairs of videos: `diversity` with means of unit length.

    Two equal videos score 100 whatever they show, so it does not fall if the frames of a video
    differ. The paper's values are not computed in this way.

    Raises:
        LampError: there is only one video.
    """
    return 100 * _mean_over_pairs(_unit(_video_means(videos)))


def _video_means(videos: Sequence[Tensor]) -> Tensor:
    if len(videos) < 2:
        raise LampError("Diversity compares videos: it needs at least 2, not 1.")
    return torch.stack([_unit(video).mean(0) for video in videos])


def _unit(embeddings: Tensor) -> Tensor:
    vectors = embeddings.detach().cpu().double()
    if not vectors.isfinite().all():
        raise LampError(
            "CLIP returned embeddings with NaN or Inf: its weights are damaged, or it overflows in "
            "fp16. Load it again, in fp32 if possible."
        )
    return F.normalize(vectors, dim=-1)


def _mean_over_pairs(vectors: Tensor) -> float:
    """Mean dot product over all pairs of different rows of ``n d``."""
    count = len(vectors)
    products = vectors.sum(0).square().sum() - vectors.square().sum()
    return products.item() / (count * (count - 1))


# --- from optical flow ----------------------------------------------------------------------


def motion_amount(frames: Tensor) -> float | None:
    """Pixels per frame by which the fastest tenth of the picture moves.

    For frames ``f h w 3`` in 0..1 or bytes. Cuts do not count. None without OpenCV.
    """
    height, width = frames.shape[1:3]
    meter = MotionMeter(width, height, 1)
    for picture in _downscaled(frames):
        meter.see(picture)
    return meter.result().flow


def background_stability(frames: Tensor) -> float | None:
    """PSNR of the background against frame 1, in dB, at most `UNCHANGED`.

    The background is the stillest half of the picture, where the flow between neighbouring frames,
    in both directions, is never large. There, frames 2.. are compared with frame 1:
    10 log10 (1 / mean squared difference). Noise with std s gives -20 log10 s. Drift and changes of
    colour count too. An object that fills more than half of the picture counts in part.

    For frames ``f h w 3`` in 0..1 or bytes. None without OpenCV.

    Raises:
        LampError: there is only one frame.
    """
    if len(frames) < 2:
        raise LampError("Background stability compares frames: a video needs at least 2, not 1.")
    background = _background(frames)
    if background is None:
        return None
    first = _floats(frames[0])[background]
    errors = [(_floats(frame)[background] - first).square().mean() for frame in frames[1:]]
    error = torch.stack(errors).double().mean().clamp(min=10 ** (-UNCHANGED / 10))
    return -10 * error.log10().item()


def _background(frames: Tensor) -> Tensor | None:
    """The stillest half of the picture as booleans ``h w``; slightly more if values tie."""
    engine = flow_engine()
    if engine is None:
        return None
    speed, before = torch.zeros(()), None
    for picture in _downscaled(frames):
        after = grey(_with_grain(picture))
        if before is not None:
            for pair in ((before, after), (after, before)):
                flow = torch.from_numpy(engine.calc(*pair, None))
                speed = torch.maximum(speed, flow.norm(dim=-1))
        before = after
    # The edges of the flow are blurred, and an object's shadow moves with it.
    speed = F.max_pool2d(speed[None, None], _MARGIN, 1, _MARGIN // 2)
    full = F.interpolate(speed, tuple(frames.shape[1:3]), mode="nearest")[0, 0]
    return full <= full.flatten().kthvalue((full.numel() + 1) // 2).values


def _with_grain(picture: Tensor) -> Tensor:
    """Add faint grain, the same in every frame. Without it the flow mistakes flicker of a plain
    background, which has no texture to track, for motion."""
    seeded = torch.Generator().manual_seed(0)
    grain = torch.rand(picture.shape[:2], generator=seeded)[..., None] * 2 * _GRAIN
    return (picture * (1 - 2 * _GRAIN / 255) + grain).round().byte()


def _downscaled(frames: Tensor) -> list[Tensor]:
    height, width = frames.shape[1:3]
    size = look_size(width, height)
    small = (fit_small(_floats(frame)[None], *size, "stretch")[0] for frame in frames)
    return [(picture * 255).round().byte() for picture in small]


def _floats(frames: Tensor) -> Tensor:
    """``... 3`` in 0..1 on the CPU."""
    values = frames[..., :3].cpu().float()
    return (values if frames.is_floating_point() else values / 255).clamp(0, 1)


# --- several videos at once -----------------------------------------------------------------


MEASURES = {
    "text_alignment": "text alignment {:.2f}",
    "frame_consistency": "frame consistency {:.2f}",
    "motion": "motion {:.2f} px",
    "background": "background {:.1f} dB",
}
"""Names of the metrics in `VideoScore`, and their text in reports."""
SIMILARITY = "not in the paper: equal videos score 100"


@dataclass(frozen=True)
class VideoScore:
    """Metrics of one video; None if not available."""

    name: str
    text_alignment: float | None
    frame_consistency: float | None
    motion: float | None
    background: float | None


@dataclass(frozen=True)
class Metrics:
    """Metrics of several videos. ``missing`` says for each unavailable metric what it needs, or for
    which videos it is missing."""

    videos: tuple[VideoScore, ...]
    diversity: float | None
    video_similarity: float | None
    missing: dict[str, str]

    def mean(self, measure: str) -> float | None:
        """The mean of one of `MEASURES` over the videos."""
        values = [getattr(video, measure) for video in self.videos]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def report(self) -> str:
        """A text with one line per video."""
        lines = [
            f"{plain(video.name)}: {_in_words({name: getattr(video, name) for name in MEASURES})}"
            for video in self.videos
        ]
        if len(self.videos) > 1:
            lines.append(f"mean: {_in_words({name: self.mean(name) for name in MEASURES})}")
        if self.diversity is not None:
            lines.append(f"diversity: {self.diversity:.2f} (lower: the videos differ more)")
        if self.video_similarity is not None:
            lines.append(f"video similarity: {self.video_similarity:.2f} ({SIMILARITY})")
        return "\n".join([*lines, *dict.fromkeys(self.missing.values())])


def measure(
    videos: Sequence[Tensor],
    names: Sequence[str],
    prompts: Sequence[str] = (),
    encode_image: ImageEncoder | None = None,
    encode_text: TextEncoder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Metrics:
    """Compute all available metrics of videos ``f h w 3`` in 0..1 or bytes.

    Args:
        names: display names of the videos.
        prompts: one for all videos, or one each; a video with an empty one gets no alignment.
        encode_image, encode_text: CLIP's image and text encoder.

    Raises:
        LampError: a video has one frame or NaN values, or the number of prompts is wrong.
    """
    _check(videos, names, prompts)
    given = [prompt.strip() for prompt in prompts]
    each = given * len(videos) if len(given) == 1 else given
    each = each if len(each) == len(videos) else [""] * len(videos)
    texts = (
        {prompt: encode_text(prompt) for prompt in each if prompt}
        if encode_image and encode_text
        else {}
    )
    scores, embeddings = [], []
    for number, (video, name) in enumerate(zip(videos, names, strict=True)):
        progress(number, len(videos))
        seen = _embed(video, encode_image) if encode_image else None
        scores.append(
            VideoScore(
                name,
                _alignment(seen, texts.get(each[number])),
                None if seen is None else frame_consistency(seen),
                motion_amount(video),
                background_stability(video),
            )
        )
        embeddings += [] if seen is None else [seen]
    progress(len(videos), len(videos))
    found = diversity(embeddings) if len(embeddings) > 1 else None
    alike = video_similarity(embeddings) if len(embeddings) > 1 else None
    return Metrics(tuple(scores), found, alike, _missing(scores, found, encode_image, encode_text))


def _alignment(seen: Tensor | None, text: Tensor | None) -> float | None:
    return None if seen is None or text is None else text_alignment(seen, text)


def _check(videos: Sequence[Tensor], names: Sequence[str], prompts: Sequence[str]) -> None:
    given = len(prompts)
    if given not in (0, 1, len(videos)) and any(map(str.strip, prompts)):
        raise LampError(
            f"There are {given} prompts for {len(videos)} videos: give one for all, or one each."
        )
    for video, name in zip(videos, names, strict=True):
        if len(video) < 2:
            raise LampError(
                f"'{name}' has one frame, but a video needs at least 2: connect all frames as one "
                "batch."
            )
        if not video.isfinite().all():
            raise LampError(
                f"'{name}' contains NaN or Inf: generate it again with the VAE in fp32."
            )


@torch.no_grad()
def _embed(video: Tensor, encode_image: ImageEncoder) -> Tensor:
    return torch.cat([encode_image(_floats(chunk)).cpu() for chunk in video.split(_CHUNK)])


def _missing(
    scores: Sequence[VideoScore],
    found: float | None,
    encode_image: ImageEncoder | None,
    encode_text: TextEncoder | None,
) -> dict[str, str]:
    lost = {name for name in MEASURES if getattr(scores[0], name) is None}
    flow = "Motion and background need OpenCV: pip install opencv-python-headless."
    missing: dict[str, str] = {name: flow for name in ("motion", "background") if name in lost}
    image = "Frame consistency and diversity need CLIP's image encoder."
    if "frame_consistency" in lost:
        missing["frame_consistency"] = image
    unasked = [score.name for score in scores if score.text_alignment is None]
    if 0 < len(unasked) < len(scores):
        which = ", ".join(map(plain, unasked))
        missing["text_alignment"] = f"Text alignment covers the videos with a prompt, not {which}."
    elif unasked:
        both = "Text alignment needs CLIP's image and text encoder."
        missing["text_alignment"] = (
            "Text alignment needs a prompt." if encode_image and encode_text else both
        )
    if found is None:
        missing["diversity"] = "Diversity needs two videos or more." if encode_image else image
    return missing


def _in_words(values: dict[str, float | None]) -> str:
    found = [MEASURES[name].format(v) for name, v in values.items() if v is not None]
    return ", ".join(found) or "nothing could be measured"
