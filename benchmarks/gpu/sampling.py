"""Calls of the UNet: accuracy in half precision, speed, memory, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.models import DTYPES, TEXT_TOKENS, Shape
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method import fused
from lamp.method.architecture import text_width
from lamp.method.layout import FrameLayout

from .session import Session


class Call:
    """One call of the UNet for `videos` prompts, with the motion or as the image model."""

    def __init__(self, session: Session, dtype: torch.dtype, shape: Shape, videos: int = 2) -> None:
        self.unet = session.unet(dtype)
        self.host = DiffusersHost(self.unet)
        self.motion = session.motion(self.unet, dtype)
        self.layout = FrameLayout(shape.frames, videos)
        generator = torch.Generator().manual_seed(2)
        size = (videos * shape.frames, 4, shape.height, shape.width)
        x = torch.randn(size, generator=generator)
        text = torch.randn(videos, TEXT_TOKENS, text_width(self.unet), generator=generator)
        kind = session.device.kind
        self.given = (x.to(kind, dtype), torch.full((videos,), 500), text.to(kind, dtype))

    @torch.no_grad()
    def lamp(self) -> Tensor:
        """With the motion."""
        with self.motion.attached(self.unet, self.layout):
            return self.host.predict(*self.given)

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The image model alone."""
        return self.host.predict(*self.given)

    def literal(self, config: dict[str, Any]) -> Callable[[], Tensor]:
        """The official layout on the same weights.

        Raises:
            ModuleNotFoundError: einops is not installed.
        """
        from benchmarks.speed.literal import LiteralUNet, literal_weights

        unet = LiteralUNet(config, literal_weights(self.unet, self.motion))
        x, _, text = self.given
        videos = self.layout.videos
        times = torch.full((videos,), 500, device=x.device)

        @torch.no_grad()
        def run() -> Tensor:
            video = x.unflatten(0, (videos, -1)).transpose(1, 2).contiguous()
            return unet(video, times, text).transpose(1, 2).flatten(0, 1).float()

        return run


def accuracy(session: Session) -> None:
    """Half precision against fp32 on the same weights, and fused kernels against plain ones."""
    exact = Call(session, torch.float32, session.sizes.small)
    expected, image = exact.lamp(), exact.plain()
    for name in session.half:
        # The image model's own error is what the motion's is compared with.
        session.case("accuracy", name, partial(_accuracy, session, name, expected, image), 20)
    for name in ("fp32", *session.half):
        session.case("fused kernels", name, partial(_fused, session, name), 20)


def _accuracy(session: Session, name: str, expected: Tensor, image: Tensor) -> dict[str, Any]:
    call = Call(session, DTYPES[name], session.sizes.small)
    return {
        "lamp_error": _apart(call.lamp(), expected),
        "image_model_error": _apart(call.plain(), image),
    }


def _fused(session: Session, name: str) -> dict[str, Any]:
    """The largest error of a kernel, and that of a call with them against one without."""
    call = Call(session, DTYPES[name], session.sizes.small)
    with torch.no_grad():
        used = fused.ready(call.given[0])
    if not used:
        return {"used": False}
    found = fused.differences(session.device.kind, DTYPES[name])
    with fused.only_on():
        plain = call.lamp()
    return {
        "used": True,
        "kernel_error": max(found.values()),
        "call_error": _apart(call.lamp(), plain),
    }


def _apart(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of the expected values."""
    error = (got.float() - expected.float()).pow(2).mean() / expected.float().pow(2).mean()
    return error.sqrt().item()


def speed(session: Session) -> None:
    """A guided call: lamp, the image model, and the literal baseline, with peaks of memory."""
    for name in session.half:
        session.case("sampling", f"{name}, guided", partial(_speed, session, name, 2), 40)
    session.case(
        "sampling", f"{session.half[0]}, cfg 1", lambda: _speed(session, session.half[0], 1), 20
    )


def _speed(session: Session, name: str, videos: int) -> dict[str, Any]:
    device, call = session.device, Call(session, DTYPES[name], session.sizes.shape, videos)
    plain_peak, lamp_peak = device.peak(call.plain), device.peak(call.lamp)
    figures: dict[str, Any] = {
        "lamp_seconds": session.seconds(call.lamp), "plain_seconds": session.seconds(call.plain),
    }  # fmt: skip
    figures["tax"] = figures["lamp_seconds"] / figures["plain_seconds"]
    with fused.only_on():
        figures["unfused_seconds"] = session.seconds(call.lamp)
    try:
        literal = call.literal(session.sizes.config)
        figures["literal_seconds"] = session.seconds(literal)
        figures["literal / lamp"] = figures["literal_seconds"] / figures["lamp_seconds"]
        figures["difference"] = _apart(call.lamp(), literal())
    except ModuleNotFoundError as missing:
        session.skip(f"literal baseline, {name}", str(missing))
    return figures | {
        "lamp_allocated_bytes": lamp_peak.allocated, "lamp_reserved_bytes": lamp_peak.reserved,
        "plain_allocated_bytes": plain_peak.allocated, "plain_reserved_bytes": plain_peak.reserved,
    }  # fmt: skip


def compiled(session: Session) -> None:
    """The UNet under torch.compile with the motion attached outside of the compiled call."""
    on_cpu = session.device.kind == "cpu"
    name, need = ("fp32", 0) if on_cpu else (session.half[0], 240)
    session.case("torch.compile", name, lambda: _compiled(session, name), need)


def _compiled(session: Session, name: str) -> dict[str, Any]:
    on_cpu = session.device.kind == "cpu"
    call = Call(session, DTYPES[name], session.sizes.small if on_cpu else session.sizes.shape)
    backend = "eager" if on_cpu else "inductor"  # a CPU may have no compiler
    expected, eager = call.lamp(), 0.0 if on_cpu else session.seconds(call.lamp)
    fast = torch.compile(call.unet, backend=backend)
    host = DiffusersHost(call.unet)
    host.unet = fast
    with torch.no_grad(), call.motion.attached(call.unet, call.layout):
        run = lambda: host.predict(*call.given)  # noqa: E731
        first = session.device.seconds(run)
        figures = {
            "backend": backend,
            "compile_seconds": first,
            "difference": _apart(run(), expected),
        }
        if not on_cpu:
            figures |= {"lamp_seconds": eager, "compiled_seconds": session.seconds(run)}
    torch.compiler.reset()
    return figures
