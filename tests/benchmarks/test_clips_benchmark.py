"""`python -m benchmarks.clips`: how every clip of a folder is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.clips import main, number_in, order
from benchmarks.samples.clip_files import write_video


def counted(number: int, width: int = 128, height: int = 96) -> np.ndarray:
    """A frame that shows its number as six bits, with a red corner."""
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[: height // 4, : width // 4] = (220, 30, 30)
    for bit in range(6):
        left = (bit + 1) * width // 8
        frame[height // 4 : height // 2, left : left + width // 8] = (
            235 if number >> bit & 1 else 20
        )
    return frame


def test_a_folder_is_told_of_as_a_table_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4", [counted(number) for number in range(12)])
    write_video(
        tmp_path / "b.avi", [counted(n) for n in (3, 4, 4, 9)], codec="mjpeg", pixels="yuvj444p"
    )
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    monkeypatch.setattr(sys, "argv", ["clips", str(tmp_path)])
    assert main() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    first, second = json.loads(last)["clips"]
    assert (first["frames"], first["width"], first["height"], first["fps"]) == (12, 128, 96, 10)
    assert np.abs(np.array(first["corners"][0]) - (220, 30, 30)).max() < 4
    assert (first["order"], second["order"]) == ("0-11", "3-4, 4, 9")
    assert json.loads(last)["left_out"] and any("notes.pdf" in line for line in lines)
    assert any("a.mp4" in line and "0-11" in line for line in lines)

    (tmp_path / "c.mp4").write_bytes(b"nothing")
    monkeypatch.setattr(sys, "argv", ["clips", str(tmp_path), "--fps", "5"])
    assert main() == 1
    found = {
        row["name"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["clips"]
    }
    assert "c.mp4" in found["c.mp4"]["error"]
    assert found["a.mp4"]["order"] == "0, 2, 4, 6, 8, 10"


def test_frames_without_a_number_have_none() -> None:
    import torch

    assert number_in(torch.from_numpy(counted(37))) == 37
    assert number_in(torch.full((48, 64, 3), 100)) is None
    assert order([None, None, 5, 6, 6]) == "-, 5-6, 6"
