"""The loss on held-out clips, always with the same noise and timesteps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clips.clip_set import Window
from ..errors import LampError
from ..method.schedule import TRAIN_TIMESTEPS
from .batches import Batch, prompts
from .latents import LatentClips

# Evenly spaced, so that a clip's loss averages over all noise levels.
TIMESTEPS = tuple(range(TRAIN_TIMESTEPS // 10, TRAIN_TIMESTEPS, TRAIN_TIMESTEPS // 5))
WINDOWS = 2


def split_clips(count: int, hold_out: int, seed: int) -> tuple[list[int], list[int]]:
    """The clips to train on, and the held-out ones.

    Raises:
        LampError: no clip would be left to train on.
    """
    if hold_out >= count:
        raise LampError(
            f"hold_out is {hold_out}, but there are only {count} clips: hold out fewer, to "
            "leave some to train on."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[hold_out:]), sorted(order[:hold_out])


class Validation:
    """Windows of held-out clips with noise and timesteps, drawn once."""

    def __init__(self, clips: LatentClips, held_out: list[int], seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.cases: list[tuple[Batch, Tensor, Tensor]] = []
        for clip in held_out:
            starts = clips.clips.starts(clip)
            for start in sorted({starts * i // WINDOWS for i in range(WINDOWS)}):
                window = Window(clip, start)
                batch = Batch(clips.draw(window, draw), prompts(clips, [window]))
                for timestep in TIMESTEPS:
                    noise = torch.randn(batch.latents.shape, generator=draw)
                    self.cases.append((batch, noise, torch.tensor([timestep])))
