"""Random batches of training windows, from a position that can be saved and restored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..clips.clip_set import Window
from ..method.prompts import stack_prompts
from .latents import LatentClips


@dataclass(frozen=True)
class Batch:
    """latents: `(b f) c h w`, scaled; text: `b n d`."""

    latents: Tensor
    text: Tensor


class Batches:
    """Random windows of the clips. Each epoch takes one new window of every clip, as the official
    code does, but in random order, not the folder's. Clips of a batch have the same size.

    `order`: the remaining clips of the epoch.
    """

    def __init__(self, clips: LatentClips, chosen: list[int], generator: torch.Generator) -> None:
        self.clips, self._chosen, self._generator = clips, chosen, generator
        self.order: list[int] = []

    def next(self, count: int) -> Batch:
        """The next `count` videos."""
        windows: list[Window] = []
        for clip in self._next_clips(count):
            windows.append(self.clips.clips.sample_window(self._generator, clip))
        latents = [self.clips.draw(window, self._generator) for window in windows]
        return Batch(torch.cat(latents), prompts(self.clips, windows))

    def _next_clips(self, count: int) -> list[int]:
        clips: list[int] = []
        while len(clips) < count:
            fitting = [i for i in self.order if not clips or self._same_size(i, clips[0])]
            if not fitting:
                self._begin_epoch()
                continue
            clips.append(fitting[0])
            self.order.remove(fitting[0])
        return clips

    def _begin_epoch(self) -> None:
        drawn = torch.randperm(len(self._chosen), generator=self._generator).tolist()
        self.order += [self._chosen[i] for i in drawn]

    def _same_size(self, clip: int, other: int) -> bool:
        means = (self.clips.posteriors[i].mean for i in (clip, other))
        return len({mean.shape[-2:] for mean in means}) == 1


def prompts(clips: LatentClips, windows: list[Window]) -> Tensor:
    """The prompts of the windows' clips, `b n d`."""
    return stack_prompts([clips.text[clips.clips.captions[window.clip]] for window in windows])
