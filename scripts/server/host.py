"""Where ComfyUI is, what it requires, and how to use it: on a server, or inside this process.

Standard library only, because `make setup` imports it before anything is installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FETCHED_HOST = ROOT / ".comfyui"
BASE_DIRECTORY = ROOT / "build" / "host"
PACK_FOLDER = "lamp-motion"
PACK_MODULE = "comfyui_lamp"

_NOT_COPIED = (".*", "build", "__pycache__")


class HostMissing(RuntimeError):
    """There is no ComfyUI to work with, or it lacks packages; the message says what to do."""


def host_path() -> Path:
    """The folder of the ComfyUI in use: COMFYUI_PATH, else the one that `make setup` fetched.

    Raises:
        HostMissing: there is no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    path = Path(named).expanduser().resolve() if named else FETCHED_HOST
    if not (path / "main.py").is_file():
        cure = "set COMFYUI_PATH to a ComfyUI folder" if named else "run `make setup`"
        raise HostMissing(f"no ComfyUI in {path}: {cure}")
    return path


def ready_host() -> Path:
    """`host_path`, after a check that this Python has every package that ComfyUI requires.

    Raises:
        HostMissing: there is no ComfyUI, or it would fail to start for want of packages.
    """
    host = host_path()
    # Options and lines for certain platforms or Python versions are pip's to judge.
    plain = [line for line in host_requirements(host) if line[0] != "-" and ";" not in line]
    missing = [name for name in map(package_name, plain) if not _installed(name)]
    if missing:
        named = f"COMFYUI_PATH={host} " if os.environ.get("COMFYUI_PATH") else ""
        raise HostMissing(
            f"ComfyUI {host_version(host)} in {host} requires packages that {sys.executable} does "
            f"not have: {', '.join(missing)}. Run `{named}make setup`."
        )
    return host


def host_version(host: Path) -> str:
    """ComfyUI's version as its files give it, `unknown` for versions before 0.3."""
    file = host / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"__version__ = \"([^\"]+)\"", text)
    return found[1] if found else "unknown"


def host_requirements(host: Path) -> list[str]:
    """The lines of ComfyUI's requirements.txt, without comments."""
    file = host / "requirements.txt"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]


def package_name(requirement: str) -> str:
    """The name in a line such as `av>=14.2.0`."""
    return re.split(r"[^\w.-]", requirement)[0]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def make_base_directory(base: Path, extra_nodes: Iterable[Path] = ()) -> Path:
    """Make the folders of ComfyUI's --base-directory, with this pack linked into custom_nodes."""
    base = base.resolve()
    for name in ("custom_nodes", "models/lamp_motion", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    _link(ROOT, base / "custom_nodes" / PACK_FOLDER)
    for folder in extra_nodes:
        _link(Path(folder).resolve(), base / "custom_nodes" / Path(folder).name)
    return base


def make_type_check_directory() -> Path:
    """A folder that holds the repository under the name of a package."""
    folder = ROOT / "build" / "typecheck"
    folder.mkdir(parents=True, exist_ok=True)
    _link(ROOT, folder / PACK_MODULE)
    return folder


def _link(source: Path, place: Path) -> None:
    if place.is_symlink():
        if place.resolve() == source:
            return
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    try:
        place.symlink_to(source, target_is_directory=True)
    except OSError:  # Windows allows links only to administrators and developers
        shutil.copytree(source, place, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def use_host(base_directory: Path, argv: Sequence[str] = ("--cpu",)) -> Path:
    """Make ComfyUI importable in this process. Call it before anything imports `comfy`.

    ComfyUI has top-level modules named `nodes`, `utils`, `app` and `server`, and this repository
    has a folder `nodes`: the host's folder therefore goes first on the path. Of the repository's
    own names only `tests` also exists in the host, so that one is claimed before.

    Raises:
        HostMissing: there is no ComfyUI, or it lacks packages.
    """
    host = ready_host()
    _claim_tests()
    sys.path[:] = [str(host)] + [p for p in sys.path if p != str(host)]
    if "comfy.cli_args" in sys.modules:
        return host

    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    before = sys.argv
    sys.argv = ["main.py", "--base-directory", str(base_directory), *argv]
    try:
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = before
    # As ComfyUI's main.py does. Importing its `nodes` puts another `utils` first on the path.
    importlib.import_module("utils.extra_config")
    return host


def _claim_tests() -> None:
    """Let `tests` mean this repository's folder; ComfyUI has one, too."""
    if "tests" not in sys.modules and (ROOT / "tests").is_dir():
        package = ModuleType("tests")
        package.__path__ = [str(ROOT / "tests")]
        sys.modules["tests"] = package


def load_pack() -> ModuleType:
    """This repository as one package, `comfyui_lamp`, the way ComfyUI loads it.

    `comfyui_lamp.lamp` is the module `lamp` itself, not a second copy: the nodes accept a Motion
    that a caller made with `from lamp import Motion`.
    """
    if PACK_MODULE in sys.modules:
        return sys.modules[PACK_MODULE]
    if not any(isinstance(finder, _SameLamp) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SameLamp())
    spec = importlib.util.spec_from_file_location(
        PACK_MODULE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load the pack from {ROOT}")
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACK_MODULE] = package
    spec.loader.exec_module(package)
    return package


class _SameLamp(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Resolves an import of `comfyui_lamp.lamp...` to the module `lamp...`."""

    _prefix = PACK_MODULE + "."

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        name = fullname.removeprefix(self._prefix)
        if name == fullname or name.split(".")[0] != "lamp":
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.removeprefix(self._prefix))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just set the alias's spec on the module.
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__ = module.__spec__.loader_state
