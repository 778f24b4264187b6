"""Half precision: the UNet's last GroupNorm computes in fp32 in training.

Of the error of the gradients that autocast does not have, nearly all comes from this one norm
(docs/performance.md). Its input is needed once more in fp32, until the backward pass begins.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method.architecture import SiteMap
from ..method.overrides import Hooks, Replaced


def keep_last_norm_exact(unet: nn.Module, sites: SiteMap, hooks: Hooks) -> None:
    """Let the norm before `conv_out` compute in fp32 until `hooks` closes."""
    (site,) = (norm for norm in sites.norms if norm.name == "conv_norm_out")

    def make(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            with Replaced(F.group_norm, _in_fp32):
                return own(x)

        return forward

    hooks.wrap_forward(unet.get_submodule(site.module), make)


def _in_fp32(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return NotImplemented
    return F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)
