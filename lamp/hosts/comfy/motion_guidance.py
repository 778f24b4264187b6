"""Motion guidance in the calls of ComfyUI's UNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...errors import LampError
from ...method.layout import FrameLayout
from ...method.motion_guidance import guide_motion, unconditional_scale
from .run import Run


def scale_for_guider(guider: Any, options: dict[str, Any], motion_guidance: float) -> float | None:
    """`unconditional_scale`, if a prediction is made by plain classifier-free guidance.

    Args:
        guider: the host's guider, which makes the prediction.
        options: the model options of the prediction.

    Returns:
        None where the UNet has to be called twice: the guider combines its predictions in a way of
        its own (DualCFGGuider), or a node or a CFG++ sampler reads the unconditional one.
    """
    import comfy.samplers

    plain = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
    if not plain or options.get("sampler_cfg_function") or options.get("sampler_post_cfg_function"):
        return None
    return unconditional_scale(guider.cfg, motion_guidance)


def call_guided(
    call: Callable[[Any], Tensor],
    control: dict[str, list[Any]] | None,
    run: Run,
    layout: FrameLayout,
    options: dict[str, Any],
    motion_guidance: float,
) -> Tensor:
    """Call the UNet so that the prediction which is made of it has motion guidance.

    Args:
        call: runs the UNet with the motion attached, given the outputs of ControlNets. The UNet
            takes these out of their lists.
        options: transformer options, in which ComfyUI says of each video in the batch whether it
            belongs to the prompt (0) or to the unconditional prediction (1).

    Raises:
        LampError: a cache answered in place of the UNet.
    """
    scale = run.unconditional_scale
    kinds = options.get("cond_or_uncond", ())
    # In a batch of another size, such as one of tiles, the order of the videos is not known.
    if scale is not None and len(kinds) == layout.videos:
        with layout.scaled_by([scale if kind == 1 else 1.0 for kind in kinds]):
            return call(control)

    def predict() -> Tensor:
        before = run.layers_seen
        out = call(None if control is None else {key: [*part] for key, part in control.items()})
        if run.layers_seen - before < 2:
            raise LampError(
                f"motion_guidance is {motion_guidance:g}, and a cache on this MODEL (EasyCache, "
                "first-block cache) answers calls that differ in the motion alone: remove the "
                "cache, or set motion_guidance to 1."
            )
        return out

    return guide_motion(predict, layout, motion_guidance)
