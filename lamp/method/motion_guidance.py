"""Motion guidance: classifier-free guidance (Ho and Salimans, 2022) with the motion as condition.

e = e_off + g (e_on - e_off). Both are predictions for the same input; for e_off the motion's
layers have strength 0, while the keys and values of frame 1 and the pooled norms stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import LampError
from .layout import FrameLayout


def check_motion_guidance(motion_guidance: float) -> None:
    """Raises LampError if a scale is not a number from 1 on, where 1 is off."""
    if not (math.isfinite(motion_guidance) and motion_guidance >= 1.0):
        raise LampError(
            f"motion_guidance is {motion_guidance:g}: use 1 (off) or more, such as 1.5. For less "
            "motion, lower the strength of the motion."
        )


def unconditional_scale(guidance: float, motion_guidance: float) -> float | None:
    """The factor on the motion in the unconditional half that makes guidance amplify the motion.

    If the motion adds D to a prediction and a share k of it to the unconditional one, guidance s
    on the prompt gives e_u + k D + s (e_c + D - e_u - k D), which holds (k + s (1 - k)) D. That is
    g D for k = (s - g) / (s - 1): motion guidance without a further call of the UNet.

    Returns:
        k in 0..1; None where there is none, because s is 1 or less than g.
    """
    if not 1.0 < guidance >= motion_guidance:
        return None
    return (guidance - motion_guidance) / (guidance - 1.0)


def guide_motion(
    predict: Callable[[], Tensor], layout: FrameLayout, motion_guidance: float
) -> Tensor:
    """Predict without and with the motion, and extrapolate; twice the time of one prediction.

    Args:
        predict: calls the UNet with the motion attached; the hooks read `layout`.
    """
    with layout.scaled_by([0.0] * layout.videos):
        off = predict()
    return torch.lerp(off, predict(), motion_guidance)
