"""The GPU benchmark in its tiny form on the CPU, and its own UNet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import accurate, main
from benchmarks.gpu.device import Device
from benchmarks.gpu.report import markdown
from benchmarks.gpu.session import TINY, Session
from benchmarks.gpu.unet import PlainUNet
from benchmarks.speed.models import SD15_CONFIG, empty_unet
from lamp.toy.base import UNET_CONFIG, build_unet


@torch.no_grad()
def test_the_plain_unet_is_that_of_diffusers() -> None:
    torch.manual_seed(0)
    theirs = build_unet()
    ours = PlainUNet(UNET_CONFIG)
    ours.load_state_dict(theirs.state_dict())
    x, text = torch.randn(3, 4, 16, 16), torch.randn(3, 77, 64)
    given = (x, torch.tensor([3, 500, 900]))
    expected = theirs(*given, encoder_hidden_states=text).sample
    torch.testing.assert_close(ours(*given, encoder_hidden_states=text)[0], expected)
    with torch.device("meta"):
        full = PlainUNet(SD15_CONFIG)
    shapes = [
        {name: tensor.shape for name, tensor in unet.state_dict().items()}
        for unet in (full, empty_unet(SD15_CONFIG))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_the_tiny_form_measures_and_writes(tmp_path: Path) -> None:
    parts = ["accuracy", "sampling", "training"]
    assert main(["--device", "cpu", "--out", str(tmp_path), "--parts", *parts]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    rows = {(row["part"], row["case"]): row for row in found["rows"]}
    assert rows["sampling", "bf16, guided"]["lamp_seconds"] > 0
    assert rows["sampling", "bf16, guided"]["lamp_allocated_bytes"] > 2**19
    checkpointed, whole = (
        rows["training", f"bf16, {how}"] for how in ("checkpointing", "no checkpointing")
    )
    assert checkpointed["allocated_bytes"] < whole["allocated_bytes"]
    page = (tmp_path / "gpu.md").read_text("utf-8")
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(table) == len(found["rows"]) + 1
    assert all(line.count("|") == 4 for line in table)


def test_what_fails_is_named_and_the_rest_is_measured() -> None:
    session = Session(Device("cpu"), TINY, ends=float("inf"))

    def fail() -> dict[str, float]:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    session.case("part", "large", fail, 1)
    session.case("part", "small", lambda: {"tax": 1.5}, 1)
    assert [row["case"] for row in session.rows] == ["small"]
    assert len(session.skipped) == 1 and "out of memory" in session.skipped[0]


def test_what_does_not_fit_in_the_time_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Device("cpu"), TINY, ends=0.0)
    monkeypatch.setattr(session.device, "kind", "cuda")
    session.case("part", "late", lambda: pytest.fail("ran"), 20)
    assert not session.rows and len(session.skipped) == 1


def test_an_inaccurate_motion_or_kernel_fails() -> None:
    good = {"part": "accuracy", "case": "fp16", "lamp_error": 0.002, "image_model_error": 0.001}
    kernel = {"part": "fused kernels", "case": "fp16", "used": True, "call_error": 0.002}
    assert accurate([good, kernel])
    assert not accurate([good | {"lamp_error": 0.02}, kernel])
    assert not accurate([good, kernel | {"call_error": 0.2}])


def test_a_row_without_a_figure_leaves_it_out() -> None:
    machine = {"name": "card", "memory": 2**33, "pytorch": "2", "rocm": None, "cuda": "12"}
    row = {
        "part": "sampling",
        "case": "fp16",
        "tax": 1.25,
        "lamp_reserved_bytes": None,
        "took": 3.0,
    }
    page = markdown(
        {"machine": machine, "size": "small", "seconds": 9.0, "rows": [row], "skipped": []}
    )
    assert "1.25" in page and "None" not in page and "took" not in page.split("|", 1)[1]
