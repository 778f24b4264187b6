"""Sample videos and loss plots of a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ClipError
from ..method.adain import PAPER, AdaINSchedule
from ..method.noise import draw_noise, share_noise
from ..method.sampling import sample
from ..plain import log
from .compare import write_picture
from .latents import LatentClips
from .loop import Training
from .plots import loss_plot
from .session import Say
from .stopping import SampleScores


def sample_clip(
    training: Training,
    first: Tensor,
    text: Tensor,
    empty: Tensor | None = None,
    *,
    steps: int = 20,
    guidance: float = 12.5,
    schedule: AdaINSchedule = PAPER,
    seed: int = 0,
) -> Tensor:
    """Sample the motion so far on a first frame: with averaged parameters, shared noise (paper
    eq. 6) of a fixed seed, and the training's precision. It does not change the training or its
    random numbers.

    Args:
        first: `c h w`, clean scaled latents of frame 1.
        text, empty: `1 n d`, the prompt and the negative prompt; without `empty` there is no
            guidance.

    Returns:
        Scaled latents `f c h w`; frame 1 is `first`.
    """
    config, device = training.config, training.device
    channels, height, width = first.shape
    noise = share_noise(draw_noise(config.frames, channels, height, width, seed))
    with torch.no_grad(), training.average.shown():
        return sample(
            training.host,
            training.motion,
            first[None].to(device),
            noise.to(device),
            text.to(device),
            None if empty is None else empty.to(device),
            steps=steps,
            guidance=guidance,
            schedule=schedule,
            groupnorm=config.groupnorm,
        )


class Samples:
    """Writes a sample video and the loss plot into a run's folder each time it is called.

    The sample shows the first clip's prompt, always from the same first frame.

    Args:
        decode: scaled latents `f c h w` -> frames `f h w 3` in 0..1.
        first: `c h w`, scaled latents of the first frame; by default the first clip's own.
        say: receives warnings.
    """

    def __init__(
        self,
        folder: Path,
        latents: LatentClips,
        decode: Callable[[Tensor], Tensor],
        guidance: float,
        first: Tensor | None = None,
        say: Say = log.warning,
    ) -> None:
        self._folder, self._decode, self._guidance = folder, decode, guidance
        self._size, self._say, self._coarse = latents.clips.size(0), say, False
        self._first = latents.posteriors[0].mean[0] * latents.scale if first is None else first
        self._text, self._empty = latents.text[latents.clips.captions[0]], latents.text[""]
        self._fps = latents.clips.sample_rate
        self._scores = SampleScores(latents.clips)

    def __call__(self, training: Training) -> Tensor:
        """Sample the motion as it is now.

        Returns:
            The sample's frames `f h w 3` in 0..1.

        Raises:
            LampError: a file cannot be written.
        """
        video = sample_clip(training, self._first, self._text, self._empty, guidance=self._guidance)
        frames = self._decode(video)
        save_animation(self._folder / f"sample-step{training.step:06}.webp", frames, self._fps)
        save_loss_plot(self._folder / "loss.png", training.losses, training.validation)
        if self._has_clip_size(frames):
            try:
                training.sample_scores.append((training.step, self._scores(frames)))
            except ClipError as error:  # the clips are gone; they are trained on as latents
                if training.config.patience:
                    raise
                self._say(f"{error} The samples have no scores.")
        return frames

    def _has_clip_size(self, frames: Tensor) -> bool:
        """Motion is measured in the pixels of the clips, which a preview in place of the VAE's
        picture does not have."""
        height, width = frames.shape[1:3]
        coarse = (width, height) != self._size
        if coarse and not self._coarse:
            self._say(
                f"There is no memory for the VAE beside the training: samples are previews of "
                f"{width} x {height} pixels without scores, and patience looks at the held-out "
                "loss alone."
            )
        self._coarse = coarse
        return not coarse


def save_loss_plot(
    path: Path, losses: Sequence[float], validation: Sequence[tuple[int, float]] = ()
) -> Path:
    """Write `loss_plot` as a picture.

    Raises:
        LampError: it cannot be written.
    """
    return write_picture(path, _images(loss_plot(losses, validation)))


def save_animation(path: Path, frames: Tensor, fps: float) -> Path:
    """Write frames `f h w 3` in 0..1 as an animated WebP that loops.

    Raises:
        LampError: it cannot be written.
    """
    return write_picture(path, _images(frames), duration=round(1000 / fps), loop=0, quality=90)


def _images(frames: Tensor) -> list[Any]:
    from PIL import Image

    pixels = (frames.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(picture) for picture in pixels.numpy()]
