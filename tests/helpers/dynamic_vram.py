"""Dynamic VRAM of newer hosts without a GPU: their own patcher and layers, with CPU memory in the
place of the driver's pages and streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cpu", 0)  # another one than "cpu", so that the host takes it for a GPU


class Pages:
    """An address space of a device, of which `limit` bytes may be resident."""

    def __init__(self, size: int, index: int) -> None:
        self.end, self.limit, self.faults = 0, 2**60, 0
        self.resident: dict[int, tuple[Tensor, tuple[int]]] = {}

    def alloc(self, size: int) -> tuple[Pages, int, int]:
        place = (self, self.end, size)
        self.end += size
        return place

    def fault(self, place: int, size: int) -> tuple[int] | None:
        if place not in self.resident:
            if self.loaded_size() + size > self.limit:
                return None
            self.faults += 1
            self.resident[place] = (torch.empty(size, dtype=torch.uint8), (self.faults,))
        return self.resident[place][1]

    def loaded_size(self) -> int:
        return sum(len(page) for page, _ in self.resident.values())

    def free_memory(self, size: float) -> int:
        freed = 0
        for place in sorted(self.resident, reverse=True):
            if freed >= size:
                break
            page, _ = self.resident.pop(place)
            page.fill_(255)  # what still looks at it sees NaN, where a GPU would fault
            freed += len(page)
        return freed

    def prioritize(self, *_: Any) -> None: ...


class _Buffer:
    def __init__(self, *_: Any) -> None:
        self.size = 0


class _Stream:
    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None: ...

    def as_context(self, stream: Any) -> Any:
        return contextlib.nullcontext()


@pytest.fixture
def dynamic_class(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The host's patcher class that streams weights, for models on `DEVICE`."""
    import comfy.model_management as management
    import comfy.model_patcher as patchers

    if not hasattr(patchers, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM (ModelPatcherDynamic)")
    pages = pytest.importorskip("comfy_aimdo.model_vbar")
    memory = pytest.importorskip("comfy_aimdo.torch")
    monkeypatch.setattr(pages, "ModelVBAR", Pages)
    monkeypatch.setattr(pages, "vbar_fault", lambda place: place[0].fault(*place[1:]))
    monkeypatch.setattr(pages, "vbar_unpin", lambda place: None)
    monkeypatch.setattr(pages, "vbar_signature_compare", lambda a, b: a is not None and a == b)
    monkeypatch.setattr(memory, "aimdo_to_tensor", lambda at, device: at[0].resident[at[1]][0])
    with contextlib.suppress(ImportError):
        import comfy_aimdo.host_buffer

        monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", _Buffer)
    stream = _Stream()
    for name, stand_in in {
        "is_device_cpu": lambda device: False,
        "get_torch_device": lambda: DEVICE,
        "get_offload_stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "sync_stream": lambda *_: None,
        "synchronize": lambda: None,
        "soft_empty_cache": lambda force=False: None,
        "device_supports_non_blocking": lambda device: False,
        "pin_memory": lambda tensor: False,
        "pinned_hostbuf_size": lambda size: size,
    }.items():
        monkeypatch.setattr(management, name, stand_in, raising=False)
    yield patchers.ModelPatcherDynamic
    management.current_loaded_models.clear()
