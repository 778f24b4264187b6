"""The names that `lamp` itself offers: cheap to import, and used as its docstring shows."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lamp
from benchmarks.samples.clip_files import write_numbered

ROOT = Path(__file__).resolve().parents[2]


def test_importing_lamp_imports_no_heavy_package() -> None:
    code = "import lamp, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "lamp" in loaded
    assert not loaded & {"torch", "numpy", "av", "PIL", "safetensors", "diffusers", "comfy"}


def test_every_public_name_is_the_one_of_its_module() -> None:
    from lamp.method.motion import Motion
    from lamp.method.sampling import sample
    from lamp.training.loop import train

    assert (lamp.Motion, lamp.sample, lamp.train) == (Motion, sample, train)
    for name in lamp.__all__:
        assert getattr(lamp, name).__name__ == name
        assert name in dir(lamp)


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="tain"):
        lamp.tain  # noqa: B018


@pytest.mark.slow
def test_the_example_of_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = inspect.cleandoc(lamp.__doc__ or "").split("::\n", 1)[1].split("\nTensors:")[0]
    script = tmp_path / "example.py"
    script.write_text(textwrap.dedent(example).replace("500", "2").replace("20)", "2)"))
    (tmp_path / "clips").mkdir()
    for number in range(2):
        write_numbered(tmp_path / "clips" / f"{number}.mp4", 10)
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path(str(script))
    assert (tmp_path / "right.safetensors").is_file()
    assert made["video"].shape == (8, 32, 32, 3)
    assert made["video"].isfinite().all() and made["video"].std() > 0
