"""A prompt as one tensor, also where the UNet takes a pooled embedding beside the text (SD-XL).

The pooled embedding follows each token's, `b n d+p`: so a prompt is cached, batched and repeated as
any other.
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
    """Prompts `b n d` of any lengths as one batch.

    Long prompts come in several chunks of 77 tokens; repeating them changes nothing.
    """
    length = math.lcm(*(prompt.shape[1] for prompt in prompts))
    return torch.cat([prompt.repeat(1, length // prompt.shape[1], 1) for prompt in prompts])
