"""Motion guidance in the calls of ComfyUI's UNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...errors import LampError
from ...method.layout import FrameLayout
from ...method.motion_guidance import guide_motion, unconditional_scale
from .run import Run

# Functions of other nodes that read or change the two predictions, or how they are combined.
_READERS = (
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
)


def has_plain_guidance(guider: Any, options: dict[str, Any]) -> bool:
    """Whether a prediction is e_u + cfg (e_c - e_u), and nothing else reads e_u.

    It is not where the guider combines its predictions in a way of its own (DualCFGGuider), or a
    node or a CFG++ sampler reads the unconditional one.

    Args:
        guider: the host's guider, which makes the prediction.
        options: the model options of the prediction.
    """
    import comfy.samplers

    plain: bool = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
    return plain and not any(options.get(name) for name in _READERS)


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
    # Read at the call: CFG Override changes it for single steps.
    cfg = run.guider.cfg if run.plain_guidance else 1.0
    scale = unconditional_scale(cfg, motion_guidance)
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
