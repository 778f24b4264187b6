"""The loss on clips that are not learned from, at noise that never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clips.clip_set import Window
from ..errors import LampError
from ..method.schedule import TRAIN_TIMESTEPS
from .batches import Batch, prompts
from .latents import LatentClips

# Evenly spread, so that a clip's loss is a mean over all noise levels.
TIMESTEPS = tuple(range(TRAIN_TIMESTEPS // 10, TRAIN_TIMESTEPS, TRAIN_TIMESTEPS // 5))
WINDOWS = 2


def split_clips(count: int, hold_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Which clips are learned from, and which are held out.

    Raises:
        LampError: no clip would be left to learn from.
    """
    if hold_out >= count:
        raise LampError(
            f"hold_out is {hold_out}, but there are {count} clips: keep some to learn from."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[hold_out:]), sorted(order[:hold_out])


class Validation:
    """Windows of held-out clips with their noise, drawn once."""

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
