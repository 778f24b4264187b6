"""Clips are read alike with the oldest PyAV that a supported host takes: the tests of reading
again, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from scripts.server.host import ROOT
from scripts.setup_host import OLDEST_PYAV, PYAV_FOLDER

# Of pictures, which PyAV does not read; it takes seconds.
OTHERS = "tests/clips/test_clip_scripts.py::" + (
    "test_a_large_picture_takes_little_more_memory_than_its_pixels"
)
READING = (
    "test_clip_colours.py",
    "test_clip_complete.py",
    "test_clip_streams.py",
    "test_clip_times.py",
    "test_clip_listing.py",
    "test_clip_oddities.py",
    "test_clip_parts.py",
    "test_clip_scripts.py",
    "test_video.py",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_clips_are_read_alike_with_the_oldest_pyav() -> None:
    if not (PYAV_FOLDER / "av").is_dir():
        pytest.skip(f"needs {OLDEST_PYAV}, which `make setup` installs where it can")
    others = {**os.environ, "PYTHONPATH": str(PYAV_FOLDER)}
    found = subprocess.run(
        [sys.executable, "-c", "import av; print(av.__version__)"],
        env=others, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == OLDEST_PYAV.partition("==")[2]
    files = [f"tests/clips/{name}" for name in READING]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-vx", "-p", "no:cacheprovider", "--deselect", OTHERS,
         *files],
        env=others, cwd=ROOT, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    passed = Counter(re.findall(r"^tests/clips/(\w+\.py)::.* PASSED", run.stdout, re.MULTILINE))
    assert {name for name in READING if passed[name] <= 20} == set()
