"""A prompt as one tensor, also where the UNet takes a pooled embedding beside the text (SD-XL).

The pooled embedding follows each token's, `b n d+p`: so a prompt is cached, batched and repeated as
any other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def join_pooled(text: Tensor, pooled: Tensor) -> Tensor:
    """`b n d` and `b p` -> `b n d+p`."""
    everywhere = pooled[:, None].expand(-1, text.shape[1], -1)
    return torch.cat([text, everywhere.to(text)], dim=-1)


def split_pooled(prompt: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """`b n d+p` -> `b n d` and `b p`, d being `width`."""
    return prompt[..., :width], prompt[:, 0, width:]
