"""What `benchmarks.speed` runs: `lamp` (ours), `plain` (the image UNet alone), `literal`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lamp.method.architecture import text_width
from lamp.method.layout import FrameLayout

from .models import TEXT_TOKENS, Subject
from .timing import Runs

# Ours and the literal baseline sum in another order; relative to the largest value.
EQUAL = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Shape:
    """The video: `videos` of them in a batch, height and width of the LATENTS."""

    frames: int
    height: int
    width: int
    videos: int = 1


def forward_runs(subject: Subject, shape: Shape, guided: bool = True) -> Runs:
    """One call of the UNet; `guided`: with and without the prompt, in one batch."""
    videos = shape.videos * (2 if guided else 1)
    x, text = inputs(subject, shape, videos)
    timesteps = torch.full((videos,), 500, device=subject.device)
    host, layout = subject.host, FrameLayout(shape.frames, videos)

    @torch.inference_mode()
    def lamp() -> Tensor:
        with subject.motion.attached(host.unet, layout):
            return host.predict(x, timesteps, text)

    @torch.inference_mode()
    def plain() -> Tensor:
        return host.predict(x, timesteps, text)

    @torch.inference_mode()
    def literal() -> Tensor:
        video = x.unflatten(0, (videos, -1)).transpose(1, 2)
        predicted = subject.literal(video.contiguous(), timesteps, text)
        return predicted.transpose(1, 2).flatten(0, 1).float()

    return {"lamp": lamp, "plain": plain, "literal": literal}


def difference(runs: Runs) -> float:
    """Between ours and the literal baseline, relative to the largest value."""
    ours, literal = runs["lamp"](), runs["literal"]()
    return ((ours - literal).abs().max() / literal.abs().max()).item()


def inputs(subject: Subject, shape: Shape, videos: int) -> tuple[Tensor, Tensor]:
    """Latents `(b f) c h w` and text `b n d`, random."""
    generator = torch.Generator().manual_seed(2)
    size = (videos * shape.frames, 4, shape.height, shape.width)
    x = torch.randn(size, generator=generator)
    width = text_width(subject.host.unet)
    text = torch.randn(videos, TEXT_TOKENS, width, generator=generator)
    return x.to(subject.device, subject.dtype), text.to(subject.device, subject.dtype)
