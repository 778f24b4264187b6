"""Train one motion in several processes, started by `accelerate launch`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from ...training.loop import StepReport, Training
from ...training.session import RunFolder


def is_launched() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class AccelerateGroup:
    """A `ProcessGroup` of accelerate; each process has its own device.

    A request to stop is sent with the gradients, so that all processes stop after the same step and
    none waits for another.

    Args:
        device: `cuda`, `cpu`, or `auto` for cuda if available.
        asked: whether this process was asked to stop.

    Raises:
        LampError: accelerate is not installed, or cannot join the processes on this device.
    """

    def __init__(self, device: str, asked: Callable[[], bool] = lambda: False) -> None:
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise LampError(
                "Several processes need the package accelerate: pip install accelerate."
            ) from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._state = PartialState(cpu=device == "cpu")
        self._asked = asked
        self.stopping = False
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.device: torch.device = self._state.device
        if self.device.type != device or self.count != int(os.environ["WORLD_SIZE"]):
            raise LampError(
                f"accelerate started {self.count} process on {self.device.type}, not "
                f"{os.environ['WORLD_SIZE']} on {device}: set device to cuda or cpu, as in the "
                "configuration of accelerate."
            )

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, with one message for all tensors."""
        stop = torch.full((1,), float(self._asked()), device=tensors[0].device)
        flat = torch.cat([stop, *(tensor.reshape(-1).float() for tensor in tensors)])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        self.stopping = flat[0].item() > 0
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, flat[1:].split(sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers. All of them have to call it."""
        numbers = torch.tensor([number], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MIN)
        return int(numbers.item())

    def check_same(self, text: str) -> None:
        """Check that a text is the same in all processes, which all have to call it.

        Raises:
            LampError: it is not; in each process.
        """
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        least, most = self.least(number), -self.least(-number)  # both in all processes
        if least != most:
            raise LampError(
                "The processes have different settings or clips, and would train different "
                "motions: give all of them the same settings file, clips and image model."
            )

    def main_first(self) -> AbstractContextManager[Any]:
        """The main process runs the block before the others."""
        return self._state.main_process_first()

    def leave(self) -> None:
        """Wait for all processes, then leave the group."""
        self._state.wait_for_everyone()
        self._state.destroy_process_group()


class WorkerFolder(RunFolder):
    """The run's folder in all processes except the main one, which write nothing."""

    def __init__(self) -> None:
        super().__init__(Path(), {})

    def save_state(self, training: Training) -> Path:
        """The main process saves the state."""
        return self.path

    def log(self, report: StepReport, **more: float) -> None:
        """The main process writes the log."""
