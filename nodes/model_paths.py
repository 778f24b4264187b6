"""The motion folders, registered with the host in the order that its users chose."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.folders import shown_folders
from ..lamp.plain import log

MOTION_FOLDER = "lamp_motion"
# Where the authors list their checkpoints and clips.
PUBLISHED = "https://github.com/RQ-Wu/LAMP"
BUNDLED = Path(__file__).resolve().parent.parent / "lamp" / "toy" / "motions"
"""The folder of the bundled motion; nothing is written there."""


def register_motion_folder() -> None:
    """Make `models/lamp_motion` a model folder of the host, as well as extra_model_paths.yaml's.

    The host reads that file before it loads packs. For its own kinds of models, it puts folders of
    sections with `is_default` before `models/KIND` and all others after it. So does this function.
    """
    standard = os.path.join(folder_paths.models_dir, MOTION_FOLDER)
    folder_paths.add_model_folder_path(MOTION_FOLDER, standard)
    paths, extensions = folder_paths.folder_names_and_paths[MOTION_FOLDER]
    defaults = set(_default_folders(MOTION_FOLDER))
    if standard not in defaults:
        paths.remove(standard)
        paths.insert(sum(path in defaults for path in paths), standard)
    folder_paths.add_model_folder_path(MOTION_FOLDER, str(BUNDLED))
    # Without extensions the host would list every file.
    extensions.add(".safetensors")
    try:
        os.makedirs(paths[0], exist_ok=True)
    except OSError as error:
        log.warning("LAMP: cannot create the folder %s: %s", paths[0], error)


def _default_folders(kind: str) -> Iterator[str]:
    """The folders of a kind of models for which extra_model_paths.yaml sets `is_default`.

    The host does not store that. Paths are joined as in its `load_extra_path_config`.
    """
    for file in _path_files():
        for section in _sections(file):
            base = os.path.expandvars(os.path.expanduser(str(section.get("base_path") or "")))
            root = os.path.join(os.path.dirname(os.path.abspath(file)), base)
            if section.get("is_default"):
                for line in str(section.get(kind) or "").splitlines():
                    if line:
                        yield os.path.normpath(os.path.join(root, line))


def _path_files() -> Iterator[str]:
    """ComfyUI's own extra_model_paths.yaml and those of its command line."""
    from comfy.cli_args import args

    own = Path(folder_paths.__file__).with_name("extra_model_paths.yaml")
    if own.is_file():
        yield str(own)
    yield from itertools.chain(*(args.extra_model_paths_config or ()))


def _sections(file: str) -> list[Mapping[str, Any]]:
    import yaml

    try:
        with open(file, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        log.warning("LAMP: cannot read %s: %s", file, error)
        return []
    found = content.values() if isinstance(content, Mapping) else ()
    return [section for section in found if isinstance(section, Mapping)]


def motion_root() -> Path:
    """The folder to which motions are saved."""
    return Path(os.path.abspath(folder_paths.get_folder_paths(MOTION_FOLDER)[0]))


def motion_path(name: str) -> Path:
    """The path of a file in the motion folders.

    Raises:
        LampError: there is none.
    """
    try:
        path = folder_paths.get_full_path(MOTION_FOLDER, name)
    except (OSError, ValueError):  # another drive of Windows, a NUL, a name that is too long
        path = None
    if path is None:
        folders = shown_folders(MOTION_FOLDER, hidden=BUNDLED)
        raise LampError(
            f"There is no motion file '{name[:100]}' in {folders}. Put it there and "
            "press R. To get one, train it with LAMP Trainer, or download a checkpoint "
            f"from {PUBLISHED} and convert it with Convert Official LAMP Checkpoint."
        )
    return Path(path)
