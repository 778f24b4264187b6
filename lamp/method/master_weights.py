"""Layers whose weights may have a higher precision than their input.

A motion is trained in fp32 in a UNet that computes in half precision. These layers cast their
weights when they run, so that gradients and updates are those of the fp32 weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


# The convolutions of a motion cast by themselves.
Conv1d, Conv2d = nn.Conv1d, nn.Conv2d
