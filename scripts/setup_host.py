"""Everything `make setup` makes: .venv, ComfyUI with what it requires, and the development tools.

Each step remembers its input and is skipped while that is unchanged. Start it with any Python 3.10
or newer; it continues inside the virtual environment. Only .venv, .comfyui and build are written:
a ComfyUI that COMFYUI_PATH names, and the Python environment that it usually runs in, stay as
they are.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.fetch_comfyui import fetch_comfyui
from scripts.installing import SetupFailed, pip, say
from scripts.server.host import (
    BASE_DIRECTORY,
    ROOT,
    HostMissing,
    host_path,
    host_requirements,
    host_version,
    make_base_directory,
    make_type_check_directory,
    package_name,
)

VENV = ROOT / ".venv"
DONE = VENV / "lamp-setup.json"
# The oldest one that the supported hosts take; .venv has the newest. Both read clips in the tests.
OLDEST_PYAV = "av==14.2.0"
PYAV_FOLDER = ROOT / "build" / "oldest_pyav"


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - the one file an older Python may start
        print("setup needs Python 3.10 or newer")
        return 1
    if Path(sys.prefix).resolve() != VENV.resolve():
        if not venv_python().exists():
            say("virtual environment .venv")
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        command = [str(venv_python()), "-m", "scripts.setup_host"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    try:
        install_everything()
    except (SetupFailed, HostMissing) as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 1
    return 0


def install_everything() -> None:
    if not os.environ.get("COMFYUI_PATH"):
        fetch_comfyui()
    install_requirements(host_path())
    tools = extras()
    step("extras", "tools for training, tests and checks", tools, lambda: pip("install", *tools))
    fetch_oldest_pyav()
    make_base_directory(BASE_DIRECTORY)
    make_type_check_directory()


def install_requirements(host: Path) -> None:
    """Install the host's own requirements.txt into .venv; it alone decides on PyTorch.

    torchaudio comes last and by itself. It is no longer released, so that it may not fit the
    newest PyTorch.
    """
    lines = host_requirements(host)
    audio = [line for line in lines if package_name(line) == "torchaudio"]
    others = [line for line in lines if line not in audio]
    title = f"what ComfyUI {host_version(host)} requires; PyTorch is gigabytes, takes minutes"
    step("host", title, others, lambda: pip("install", *others))
    if audio:
        made_from = (audio, importlib.metadata.version("torch"))
        step("torchaudio", "torchaudio", made_from, lambda: install_torchaudio(audio, host))


def install_torchaudio(lines: list[str], host: Path) -> None:
    """Install torchaudio; if it does not fit the installed PyTorch, the last pair that fits.

    Raises:
        SetupFailed: there is no such pair for this Python and platform.
    """
    try:
        pip("install", *lines)
        if can_import("torchaudio"):
            return
        last = importlib.metadata.version("torchaudio").split("+")[0]
        # They share the minor release only: there is a torchaudio 2.11.1, but no PyTorch 2.11.1.
        line = ".".join(last.split(".")[:2])
        say(f"  torchaudio {last} does not fit the installed PyTorch; installing PyTorch {line}")
        pip("install", f"torch=={line}.*", "torchvision", f"torchaudio=={last}")
        if can_import("torchaudio"):
            return
        reason = "it cannot be imported"
    except SetupFailed as error:
        reason = str(error)
    python = ".".join(map(str, sys.version_info[:2]))
    raise SetupFailed(
        f"ComfyUI {host_version(host)} in {host} requires torchaudio, and no version works with "
        f"Python {python} here: {reason} Use another Python version (delete .venv, then "
        "`make setup PYTHON=python3.12`), or set COMFYUI_PATH to a ComfyUI whose requirements.txt "
        "does not name torchaudio."
    )


def can_import(module: str) -> bool:
    """Whether a new process of this Python can import `module`."""
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fetch_oldest_pyav() -> None:
    """Put it into a folder of its own, if it is not there; it needs no other package."""
    name, _, version = OLDEST_PYAV.partition("==")
    if (PYAV_FOLDER / f"{name}-{version}.dist-info").is_dir():
        return
    say(f"{OLDEST_PYAV}, for the tests, beside the newest")
    shutil.rmtree(PYAV_FOLDER, ignore_errors=True)
    place = ("--target", str(PYAV_FOLDER))
    try:
        pip("install", "--no-deps", "--only-binary", ":all:", *place, OLDEST_PYAV)
    except SetupFailed:  # not built for every Python; the tests that use it are skipped then
        say(f"  {OLDEST_PYAV} could not be installed here")


def step(name: str, title: str, made_from: object, action: Callable[[], None]) -> None:
    """Run `action` unless it already ran for the same input."""
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()
    done = json.loads(DONE.read_text(encoding="utf-8")) if DONE.exists() else {}
    if done.get(name) == key:
        return
    say(title)
    started = time.monotonic()
    action()
    done[name] = key
    DONE.write_text(json.dumps(done, indent=1), encoding="utf-8")
    say(f"  done in {time.monotonic() - started:.0f} s")


def extras() -> list[str]:
    """The packages of the extras `diffusers` and `dev` in pyproject.toml."""
    groups = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    return sorted({*groups["diffusers"], *groups["dev"]})


def read_toml(path: Path) -> dict[str, Any]:
    # Python 3.10 has no TOML reader of its own, but pip brings one.
    reader = "tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"
    return importlib.import_module(reader).loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
