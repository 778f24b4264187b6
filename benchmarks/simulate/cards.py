"""A roofline of graphics cards: the least time of a list of kernels, by speed and bandwidth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .kernels import FLASH, Kernel

# Queries, keys and channels in one tile of FlashAttention, by channels of a head: shorter sequences
# and narrower heads cost as much as full tiles.
_FLASH_TILES = {40: (128, 128, 64), 80: (128, 64, 96), 160: (64, 64, 160)}
_FLASH_SPEED = {FLASH: 0.45, f"{FLASH}_backward": 0.35}  # share of the card's speed
_MIN_CHANNELS = 64  # of convolutions whose layout cuDNN changes


@dataclass(frozen=True)
class Card:
    """A graphics card.

    - ``speed``: FLOP/s in half precision with fp32 sums, and the share that products reach, of
      PyTorch's libraries and of Triton;
    - ``bandwidth``: bytes/s, and the share that kernels reach;
    - ``launch``: seconds that a kernel takes at least.
    """

    name: str
    speed: float
    product_share: float
    triton_share: float
    bandwidth: float
    memory_share: float
    launch: float

    def seconds(self, kernels: Iterable[Kernel]) -> float:
        """Time of kernels one after another."""
        return sum(self._one(kernel) for kernel in kernels)

    def _one(self, kernel: Kernel) -> float:
        moving = kernel.bytes / (self.bandwidth * self.memory_share)
        if kernel.name in ("aten::native_group_norm", "lamp::pooled_norm"):
            moving *= 1.5  # it reads its input twice
        computing = 0.0
        if kernel.is_flash_attention:
            share = _FLASH_SPEED.get(kernel.name, min(_FLASH_SPEED.values()))
            computing = _padded(kernel) / (self.speed * share)
        elif kernel.is_product:
            share = self.triton_share if kernel.is_fused else self.product_share
            computing = kernel.operations / (self.speed * share)
        return max(computing, moving, self.launch) + self._layout(kernel)

    def _layout(self, kernel: Kernel) -> float:
        """cuDNN converts input and output to channels last and back."""
        if not kernel.is_convolution:
            return 0.0
        backward = kernel.name.endswith("backward")
        one, other = kernel.shapes[0], kernel.shapes[1 if backward else -1]
        if min(one[1], other[1]) < _MIN_CHANNELS:
            return 0.0
        copied = 2 * 2 * (math.prod(one) + math.prod(other))
        return copied / (self.bandwidth * self.memory_share)


def _padded(kernel: Kernel) -> float:
    """Operations of FlashAttention including those on padding."""
    q, k = kernel.shapes[1:3] if kernel.name.endswith("backward") else kernel.shapes[:2]
    tile = _FLASH_TILES.get(q[3], (128, 64, q[3]))
    sizes = zip((q[2], k[2], q[3]), tile, strict=True)
    padding = math.prod(-(-size // side) * side / size for size, side in sizes)
    return kernel.operations * padding


# Triton: 0.8 of the libraries' speed on the H100, else 0.9. Published comparisons of products of
# 2048 to 4096 rows are mostly above (triton-lang/triton issues 3672 and 6523).
CARDS = (
    Card("H100", 989e12, 0.55, 0.44, 3350e9, 0.80, 3.0e-6),
    Card("RTX 4090", 165e12, 0.75, 0.675, 1008e9, 0.88, 3.0e-6),
    Card("RTX 3060", 25.5e12, 0.85, 0.765, 360e9, 0.88, 3.5e-6),
)
