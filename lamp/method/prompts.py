"""A prompt as one tensor, also for SD-XL, whose UNet takes a pooled embedding too.

The pooled embedding is appended to each token, `b n d+p`, so that prompts of all families are
cached, batched and repeated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def join_pooled(text: Tensor, pooled: Tensor) -> Tensor:
    """`b n d` and `b p` -> `b n d+p`."""
    everywhere = pooled[:, None].expand(-1, text.shape[1], -1)
    return torch.cat([text, everywhere.to(text)], dim=-1)


def split_pooled(prompt: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """`b n d+p` -> `b n d` and `b p`, d being `width`."""
    return prompt[..., :width], prompt[:, 0, width:]


def stack_prompts(prompts: Sequence[Tensor]) -> Tensor:
    """Batch prompts `b n d` of any length.

    Long prompts have several chunks of 77 tokens. Repeating tokens does not change attention.
    """
    length = math.lcm(*(prompt.shape[1] for prompt in prompts))
    return torch.cat([prompt.repeat(1, length // prompt.shape[1], 1) for prompt in prompts])
