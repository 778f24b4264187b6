"""Names of ComfyUI's folders for messages."""

from __future__ import annotations

import os
from pathlib import Path


def shown(path: Path) -> str:
    """A path relative to ComfyUI's folder, or the full path if it is elsewhere."""
    import folder_paths

    base = Path(os.path.abspath(folder_paths.base_path))
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def shown_folders(kind: str, hidden: Path | None = None) -> str:
    """The folders in which ComfyUI looks for a kind of models, joined by "or".

    Args:
        hidden: a folder to leave out.
    """
    import folder_paths

    folders = [Path(os.path.abspath(path)) for path in folder_paths.get_folder_paths(kind)]
    return " or ".join(shown(folder) for folder in folders if folder != hidden)
