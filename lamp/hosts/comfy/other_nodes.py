"""Refuse ComfyUI nodes that do not work with a motion, and say what to do instead."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import LampError
from .deferred import DeferredChecks
from .run import KEY


class OneGpuOnly(LampError, RuntimeError):
    """A motion cannot be copied to another GPU.

    It is a RuntimeError because Select Model Device expects one and then does not move the MODEL.
    MultiGPU CFG Split shows it to the user.
    """

    def __init__(self) -> None:
        super().__init__(
            "A LAMP motion works on one GPU: remove MultiGPU CFG Split from this MODEL."
        )


def keep_on_one_gpu(weights: Any) -> None:
    """Let ComfyUI fail clearly if it copies a motion's `ModelPatcher` to another GPU."""
    weights.cached_patcher_init = (_no_copy, ())


def _no_copy(**_: Any) -> None:
    raise OneGpuOnly


def check_other_nodes(guider: Any) -> None:
    """Refuse nodes with which a motion would fail or silently give a wrong result.

    Raises:
        LampError: there is such a node on the MODEL or in the guider.
    """
    model = guider.model_patcher
    if guider.model_options.get("context_handler") is not None:
        raise LampError(
            "Context windows split the video into parts without frame 1, which a LAMP motion "
            "needs: remove the Context Windows node from this MODEL and use LAMP Anchored Windows."
        )
    if model.get_additional_models_with_key("multigpu"):
        raise OneGpuOnly
    # Dual Model CFG Guider applies the wrappers of its first MODEL to both.
    negative = getattr(guider, "uncond_model_patcher", None)
    motion = None if negative is None else negative.get_attachment(KEY)
    if motion is not None and motion is not model.get_attachment(KEY):
        raise LampError(
            "Dual Model CFG Guider uses the motion of its input model for both models, so the "
            "other motion, on model_negative, would be ignored: connect model_negative without it."
        )


def check_one_noise_level(sigmas: Tensor, checks: DeferredChecks) -> None:
    """Refuse a prediction (`sigmas`: `f`) that treats the frames as separate images.

    Raises:
        LampError: the frames have different noise levels.
    """

    def explain() -> LampError:
        low, high = (sigma.item() for sigma in sigmas.aminmax())
        return LampError(
            f"A node calls this MODEL with noise levels from {low:.4g} to {high:.4g} at once, and "
            "a LAMP motion needs one level for all frames. Train LoRA does so: connect the MODEL "
            "to it without the motion."
        )

    checks.add((sigmas == sigmas[0]).all(), explain)
