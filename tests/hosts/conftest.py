"""Fixtures of tests that sample in ComfyUI; a file names those that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.samples.comfy_runs import count_hooks


@pytest.fixture
def in_inference_mode() -> Iterator[None]:
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture
def no_hook_is_left(plain: Any) -> Iterator[None]:
    """Whatever a test does, the UNet is as it was."""
    yield
    assert count_hooks(plain) == 0
