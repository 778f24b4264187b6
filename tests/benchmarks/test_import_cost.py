"""What the pack adds to ComfyUI's start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_no_package_comes_in_that_comfyui_has_not_imported(comfy) -> None:
    command = [sys.executable, "-m", "benchmarks.import_cost", "--worker"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["packages"] == []
    assert result["seconds"] > 0
