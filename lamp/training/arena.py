"""GPU memory without gaps.

PyTorch's allocator takes segments from the driver as they are needed, and keeps them. The first
step of a training leaves gaps: the optimizer allocates its state between the gradients, and large
tensors do not fit into segments of smaller ones. `Arena` arranges the memory once, after the first
update: the state in new segments, and one segment as large as a step needs. Simulated, this takes
0.1 to 0.4 GiB less (docs/performance.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .optimizer_state import optimizer_state, restore_optimizer

MARGIN = 1.02
"""Size of the segment for a step, relative to what the step allocates at most."""


class Arena:
    """Arranges the memory of a training on CUDA and ROCm. On other devices it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.waits = device.type == "cuda"
        """Whether the memory is still to be arranged."""
        self._needed = 0

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measure what the forward and backward pass in the block allocate at most."""
        if not self.waits:
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        yield
        self._needed = torch.cuda.max_memory_allocated(self._device) - before

    def arrange(self, optimizer: torch.optim.Optimizer, state_device: torch.device) -> None:
        """Arrange the memory after an update, if that has not been done. No gradients are left.

        Args:
            state_device: see `restore_optimizer`.
        """
        if not self.waits or not optimizer.state:
            return
        self.waits = False
        states = [
            {
                name: value.cpu() if isinstance(value, Tensor) else value
                for name, value in each.items()
            }
            for each in optimizer_state(optimizer)
        ]
        optimizer.state.clear()
        torch.cuda.empty_cache()
        restore_optimizer(optimizer, states, state_device)
        with contextlib.suppress(torch.OutOfMemoryError):  # the step may still fit in parts
            torch.empty(int(MARGIN * self._needed), dtype=torch.uint8, device=self._device)
