"""Start a training from the weights of a motion file (`TrainConfig.start_from`).

Unlike a resumed run, it starts at step 0 with a new optimizer, and may use other clips, settings
and checkpoints of the same family. Only the weights come from the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import IncompatibleModelError, LampError
from ..method.architecture import SiteMap
from ..method.motion import Motion
from ..motion_file.compress import Factors
from ..motion_file.file import MotionFile, load_motion_file
from .low_rank import factored_tensors, factorise
from .recipe import TrainConfig

_EXACT = 5e-3
"""Largest relative error of factors of a matrix; rounding to bf16 alone gives about 2e-3."""


def load_start(
    config: TrainConfig,
    sites: SiteMap | None = None,
    find: Callable[[str], Path] = Path,
) -> MotionFile | None:
    """The motion file of `start_from`, or None if it is empty.

    Args:
        sites: of the UNet that is trained on, if it is loaded already.
        find: the path of the file from its name in the settings.

    Raises:
        MotionFileError: the file is missing or damaged, or does not fit the UNet.
        IncompatibleModelError: it is for another model family or another groupnorm mode.
    """
    if not config.start_from:
        return None
    file = load_motion_file(find(config.start_from), sites)
    if file.config.groupnorm != config.groupnorm:
        raise IncompatibleModelError(
            f"start_from is {file.name}, which was trained with groupnorm {file.config.groupnorm}, "
            f"but this run has groupnorm {config.groupnorm}: choose the same."
        )
    return file


@torch.no_grad()
def start_from(motion: Motion, file: MotionFile, config: TrainConfig) -> None:
    """Load a motion file into a new `motion`, in place, and factorise it if there is a rank.

    Raises:
        MotionFileError, IncompatibleModelError: it does not fit the motion's UNet.
        LampError: it has matrices of a higher rank than the training.
    """
    file.check_against(motion.sites)
    motion.load_state_dict(file.state)
    if not config.rank:
        return
    known = {
        name: _factors(weight, config.rank, name, file)
        for name, weight in factored_tensors(motion, config.rank).items()
    }
    factorise(motion, config.rank, config.seed, known)


def _factors(weight: Tensor, rank: int, name: str, file: MotionFile) -> Factors | None:
    """`up` and `down` of a matrix, scaled as `Product.right_inverse` does. None for zeros, which
    start as in a new motion."""
    flat = weight.detach().flatten(1).float().cpu()
    if not flat.any():
        return None
    with torch.random.fork_rng(devices=[]):  # a full SVD would take minutes with SD 1.x
        torch.manual_seed(0)
        u, values, v = torch.svd_lowrank(flat, q=rank, niter=4)
    error = (flat - (u * values) @ v.T).norm()
    if error > _EXACT * flat.norm():
        raise LampError(
            f"start_from is {file.name}, which has full matrices ('{name}' has a rank above "
            f"{rank}), but this run has rank {rank}: choose rank 0, or start from a motion that "
            f"was trained with a rank of at most {rank}."
        )
    # Rows of `down` get the standard deviation 1/sqrt(rank).
    scale = (flat.shape[1] / rank) ** 0.5
    up, down = (u * values).T / scale, v.T * scale
    return up.contiguous(), down.unflatten(1, weight.shape[1:]).contiguous()
