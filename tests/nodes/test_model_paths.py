"""The motion folders are ordered as the host orders its own, with any extra_model_paths.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamp.errors import LampError

KIND, LIKE = "lamp_motion", "loras"
# KIND must be treated as the host treats its own kind LIKE; {k} stands for either.
YAMLS = {
    "none": None,
    "not default": "a:\n  base_path: BASE/big\n  {k}: m/{k}\n",
    "default": "a:\n  base_path: BASE/big\n  is_default: true\n  {k}: m/{k}\n",
    "no base path": "a:\n  is_default: true\n  {k}: BASE/abs/{k}\n",
    "relative": "a:\n  base_path: rel\n  is_default: true\n  {k}: m/../n/{k}\n",
    "relative to the file": "a:\n  is_default: true\n  {k}: here/{k}\n",
    "several lines": "a:\n  base_path: BASE\n  is_default: true\n  {k}: |\n    x/{k}\n    y/{k}\n",
    "false": "a:\n  base_path: BASE\n  is_default: false\n  {k}: x/{k}\n",
    "default second": "a:\n  base_path: BASE/a\n  {k}: {k}\n"
    "b:\n  base_path: BASE/b\n  is_default: true\n  {k}: {k}\n",
    "two defaults": "a:\n  base_path: BASE/a\n  is_default: true\n  {k}: {k}\n"
    "b:\n  base_path: BASE/b\n  is_default: true\n  {k}: {k}\n",
    "default for others": "a:\n  base_path: BASE/a\n  is_default: true\n  vae: vae\n"
    "b:\n  base_path: BASE/b\n  {k}: {k}\n",
    "an empty section": "a:\nb:\n  base_path: BASE/b\n  {k}: {k}\n",
    "a variable": "a:\n  base_path: $LAMP_DISK\n  is_default: yes\n  {k}: {k}\n",
    "the standard one, named": "a:\n  base_path: MODELS\n  {k}: {k}\n",
    "the standard one as default": "a:\n  base_path: BASE/a\n  is_default: true\n  {k}: {k}\n"
    "b:\n  base_path: MODELS\n  is_default: true\n  {k}: {k}\n",
}


@pytest.fixture
def folders(pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that returns the folders of KIND and LIKE for a yaml file."""
    import folder_paths
    from comfy.cli_args import args
    from comfyui_lamp.nodes.model_paths import register_motion_folder
    from utils.extra_config import load_extra_path_config

    models = tmp_path / "ComfyUI" / "models"
    like = {LIKE: ([str(models / LIKE)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", like)
    monkeypatch.setattr(folder_paths, "models_dir", str(models))
    monkeypatch.setattr(folder_paths, "base_path", str(models.parent))
    monkeypatch.setenv("LAMP_DISK", str(tmp_path / "disk"))

    def given(text: str | None) -> tuple[list[str], list[str]]:
        if text is not None:
            text = text.replace("BASE", str(tmp_path)).replace("MODELS", str(models))
            file = tmp_path / "extra.yaml"
            both = [line.replace("{k}", kind) for line in _sections(text) for kind in (LIKE, KIND)]
            file.write_text("".join(both), encoding="utf-8")
            monkeypatch.setattr(args, "extra_model_paths_config", [[str(file)]])
            load_extra_path_config(str(file))
        register_motion_folder()
        return tuple(folder_paths.get_folder_paths(kind) for kind in (KIND, LIKE))  # type: ignore

    return given


def _sections(text: str) -> list[str]:
    """The sections of a yaml file, each once per kind, under different names."""
    parts = text.replace("\na:", "\0a:").replace("\nb:", "\0b:").split("\0")
    return [part.rstrip("\n").replace(":", "_{k}:", 1) + "\n" for part in parts]


@pytest.mark.parametrize("name", YAMLS)
def test_motion_folders_are_ordered_as_the_hosts_own(folders: Any, name: str) -> None:
    from comfyui_lamp.nodes.model_paths import BUNDLED, motion_root

    ours, theirs = folders(YAMLS[name])
    assert ours[-1] == str(BUNDLED)
    assert ours[:-1] == [path.replace(LIKE, KIND) for path in theirs]
    assert str(motion_root()) == ours[0] and Path(ours[0]).is_dir()
    again, _ = folders(None)  # registering twice has no effect
    assert again == ours


@pytest.mark.parametrize("name", ["none", "default"])
def test_messages_name_the_folder_that_is_used(
    folders: Any, tmp_path: Path, node_classes: dict[str, Any], name: str
) -> None:
    from comfyui_lamp.nodes.common import motion_folder

    root = Path(folders(YAMLS[name])[0][0])
    inside = root.is_relative_to(tmp_path / "ComfyUI")
    words = "models/lamp_motion" if inside else str(root)
    told = node_classes["LAMP_LoadMotion"].validate_inputs(motion_name="gone.safetensors")
    assert words in told and "gone.safetensors" in told
    with pytest.raises(LampError) as caught:
        motion_folder("../outside")
    assert words in str(caught.value)


def test_an_unreadable_yaml_file_is_ignored(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import args

    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [", encoding="utf-8")
    gone = str(tmp_path / "gone.yaml")
    monkeypatch.setattr(args, "extra_model_paths_config", [[str(broken)], [gone]])
    ours, _ = folders(None)
    assert ours[0].endswith(os.path.join("models", KIND))
