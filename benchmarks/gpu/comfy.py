"""ComfyUI as host, where it can be found."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.models import DTYPES
from lamp.method.architecture import map_unet
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from scripts.server.host import HostMissing, make_base_directory, use_host

from .sampling import Call
from .session import Session, fill


def comfyui(session: Session) -> None:
    """A guided call of ComfyUI's UNet with ComfyUI's layers."""
    if session.device.kind not in ("cuda", "cpu"):
        session.skip("ComfyUI", f"not measured on {session.device.kind}")
        return
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as base:
            use_host(make_base_directory(Path(base)))
            name = session.half[0]
            session.case("ComfyUI", f"{name}, guided", lambda: _call(session, name), 60)
    except HostMissing as missing:
        session.skip("ComfyUI", str(missing))
    finally:
        logging.disable(logging.NOTSET)


def _call(session: Session, name: str) -> dict[str, Any]:
    import comfy.ops

    from lamp.hosts.comfy.models import build_patcher
    from lamp.hosts.comfy.training import ComfyHost

    kind, dtype, shape = session.device.kind, DTYPES[name], session.sizes.shape
    call = Call(session, dtype, shape)
    state = {key: value.float().cpu() for key, value in call.unet.state_dict().items()}
    patcher = build_patcher(session.sizes.config, state)
    unet = patcher.model.diffusion_model.to(kind, dtype)
    unet.dtype = dtype
    host = ComfyHost(patcher)
    host.dtype = dtype
    motion = Motion(map_unet(unet), comfy.ops.manual_cast, dtype=dtype, device=kind)
    fill(motion, 1)
    motion.requires_grad_(False).eval()
    layout = FrameLayout(shape.frames, 2)

    @torch.inference_mode()
    def lamp() -> None:
        with motion.attached(unet, layout):
            host.predict(*call.given)

    @torch.inference_mode()
    def plain() -> None:
        host.predict(*call.given)

    peak = session.device.peak(lamp)
    taken = {"lamp_seconds": session.seconds(lamp), "plain_seconds": session.seconds(plain)}
    return {
        **taken, "tax": taken["lamp_seconds"] / taken["plain_seconds"],
        "lamp_allocated_bytes": peak.allocated, "lamp_reserved_bytes": peak.reserved,
    }  # fmt: skip
