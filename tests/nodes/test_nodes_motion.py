"""Nodes that load, save and describe motions, and their folder."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.samples.tiny_models import random_motion, tiny_patcher
from lamp.errors import IncompatibleModelError, LampError, MotionFileError
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion

Nodes = dict[str, Any]


@pytest.fixture(scope="module")
def motion(plain: Any) -> MotionFile:
    file = random_motion(plain)
    config = dataclasses.replace(file.config, prompt="a horse runs", frames=6, captions=["one"] * 9)
    return dataclasses.replace(file, config=config)


@pytest.fixture
def folder(pack: Any, tmp_path: Path) -> Iterator[Path]:
    """An empty motion folder in place of the host's."""
    import folder_paths

    place = tmp_path / "models with spaces 模型"
    place.mkdir()
    paths = folder_paths.folder_names_and_paths["lamp_motion"][0]
    before = list(paths)
    paths[:] = [str(place)]
    yield place
    paths[:] = before


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


# --- the folder ---------------------------------------------------------------------------------


def test_the_folder_is_a_model_folder_of_the_host(pack: Any, tmp_path: Path) -> None:
    import folder_paths

    paths, extensions = folder_paths.folder_names_and_paths["lamp_motion"]
    assert paths[0] == os.path.join(folder_paths.models_dir, "lamp_motion")
    assert extensions == {".safetensors"}
    assert Path(paths[0]).is_dir()


# --- Save LAMP Motion -----------------------------------------------------------------------------


def save(nodes: Nodes, motion: MotionFile, prefix: str = "LAMP/motion", **options: Any) -> Path:
    return Path(nodes["LAMP_SaveMotion"].execute(motion, prefix, **options)[0])


def test_a_saved_motion_loads_again(
    node_classes: Nodes, motion: MotionFile, folder: Path, plain: Any
) -> None:
    path = save(node_classes, motion)
    assert path == folder / "LAMP" / "motion_00001.safetensors"
    options = node_classes["LAMP_LoadMotion"].INPUT_TYPES()["required"]["motion_name"][1]["options"]
    assert options == [os.path.join("LAMP", "motion_00001.safetensors")]
    model, loaded = node_classes["LAMP_LoadMotion"].execute(plain, options[0]).result
    assert loaded.config == motion.config
    for name, tensor in motion.state.items():
        assert torch.equal(loaded.state[name], tensor.half())
    assert model is not plain and model.get_attachment("lamp_motion").strength == 1.0


def test_existing_files_are_never_overwritten(
    node_classes: Nodes, motion: MotionFile, folder: Path
) -> None:
    (folder / "run_00007-step000100-stopped.safetensors").write_bytes(b"saved on cancel")
    names = [save(node_classes, motion, "run").name for _ in range(2)]
    assert names == ["run_00008.safetensors", "run_00009.safetensors"]
    assert save(node_classes, motion, "run.safetensors").name == "run_00010.safetensors"
    assert sorted(file.suffix for file in folder.iterdir()) == [".safetensors"] * 4


def test_the_date_is_filled_in(node_classes: Nodes, motion: MotionFile, folder: Path) -> None:
    assert save(node_classes, motion, "%year%/马 run").parent.name.isdecimal()


@pytest.mark.parametrize(
    "prefix", ["../outside", "a/../../b", "/etc/x", "..", ".", "", "a/", "C:\\x", "a\0b", "..\\x"]
)
def test_a_path_outside_is_refused(
    node_classes: Nodes, motion: MotionFile, folder: Path, prefix: str
) -> None:
    before = set(folder.parent.rglob("*"))
    with pytest.raises(LampError, match="^Save LAMP Motion: .*LAMP/motion"):
        save(node_classes, motion, prefix)
    assert set(folder.parent.rglob("*")) == before


def test_an_unwritable_folder_is_reported(
    node_classes: Nodes, motion: MotionFile, folder: Path
) -> None:
    (folder / "taken").write_text("a file")
    with pytest.raises(LampError, match="^Save LAMP Motion: .*'taken/x'"):
        save(node_classes, motion, "taken/x")


def test_nan_is_never_saved(node_classes: Nodes, motion: MotionFile, folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in motion.state.items()}
    next(iter(state.values()))[0] = float("nan")
    broken = dataclasses.replace(motion, state=state)
    with pytest.raises(MotionFileError, match="^Save LAMP Motion: .*NaN"):
        save(node_classes, broken, "broken")
    assert [f for f in folder.rglob("*") if f.is_file()] == []


def test_license_thumbnail_and_graph_are_in_the_header(
    node_classes: Nodes, motion: MotionFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import args
    from PIL import Image

    node = node_classes["LAMP_SaveMotion"]
    hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})
    monkeypatch.setattr(node, "hidden", hidden)
    red = torch.zeros(3, 400, 600, 3)
    red[0, ..., 0] = 1.0
    path = save(node_classes, motion, license=" CC-BY-4.0 ", thumbnail=red)
    found = header(path)
    assert found["modelspec.license"] == "CC-BY-4.0"
    assert found["modelspec.trigger_phrase"] == "a horse runs"
    assert json.loads(found["prompt"]) == {"1": {}}
    assert json.loads(found["workflow"]) == {"nodes": []}
    kind, data = found["modelspec.thumbnail"].split(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.size == (256, 171)
    assert all(abs(a - b) < 4 for a, b in zip(picture.getpixel((9, 9)), (255, 0, 0), strict=True))

    # metadata of a file is kept when it is saved again
    again = header(save(node_classes, load_motion_file(path), "again"))
    assert again["modelspec.license"] == "CC-BY-4.0"
    assert again["modelspec.thumbnail"] == found["modelspec.thumbnail"]

    monkeypatch.setattr(args, "disable_metadata", True)
    assert {"prompt", "workflow"}.isdisjoint(header(save(node_classes, motion)))


# --- Load LAMP Motion -----------------------------------------------------------------------------


def load(nodes: Nodes, model: Any, name: str = "m.safetensors", **options: Any) -> Any:
    return nodes["LAMP_LoadMotion"].execute(model, name, **options)


def refused(nodes: Nodes, model: Any, facts: str, name: str = "m.safetensors") -> None:
    with pytest.raises(LampError, match=f"^Load LAMP Motion: .*{facts}"):
        load(nodes, model, name)


def test_the_settings_reach_the_model(
    node_classes: Nodes, motion: MotionFile, folder: Path, plain: Any
) -> None:
    config = dataclasses.replace(motion.config, groupnorm="frame")
    save_motion(folder / "m.safetensors", motion.state, config)
    settings = {"strength": 0.7, "alpha": 0.1, "start_percent": 0.2, "end_percent": 0.9}
    settings |= {"motion_guidance": 1.5}
    assert node_classes["LAMP_LoadMotion"].validate_inputs(motion_name="m.safetensors") is True
    model, file = load(node_classes, plain, **settings).result
    bound = model.get_attachment("lamp_motion")
    assert {name: getattr(bound, name) for name in settings} == settings
    assert bound.groupnorm == "frame" and file.name == "m.safetensors"
    assert plain.get_attachment("lamp_motion") is None


def test_a_changed_file_is_read_again(
    node_classes: Nodes, motion: MotionFile, folder: Path
) -> None:
    fingerprint = node_classes["LAMP_LoadMotion"].fingerprint_inputs
    path = save_motion(folder / "m.safetensors", motion.state, motion.config)
    first = fingerprint(motion_name="m.safetensors", strength=1.0, model=None)
    assert fingerprint(motion_name="m.safetensors") == first
    os.utime(path, ns=(0, 0))
    assert fingerprint(motion_name="m.safetensors") != first
    assert fingerprint(motion_name="gone.safetensors") == fingerprint(motion_name=None)


def test_other_files_are_refused(
    node_classes: Nodes, motion: MotionFile, folder: Path, plain: Any
) -> None:
    path = folder / "m.safetensors"
    refused(node_classes, plain, "'m.safetensors'.*Convert Official LAMP Checkpoint")
    check = node_classes["LAMP_LoadMotion"].validate_inputs
    assert "'m.safetensors'" in check(motion_name="m.safetensors")
    assert check(motion_name=None) is True  # the value comes from a link
    for name in ("../../secret.safetensors", "a\0b", "x" * 5000, "C:\\x", "\\\\host\\x"):
        assert isinstance(check(motion_name=name), str)
    path.write_bytes(b"not a safetensors file at all")
    refused(node_classes, plain, "m.safetensors")
    save_file({"lora_up.weight": torch.zeros(2)}, path)
    refused(node_classes, plain, "m.safetensors.*lamp.format")
    save_motion(path, motion.state, motion.config, extra={"lamp.format": "99"})
    refused(node_classes, plain, "'99'")
    save_motion(path, motion.state, motion.config, extra={"lamp.config": "{"})
    refused(node_classes, plain, "m.safetensors.*lamp.config")
    whole = save_motion(path, motion.state, motion.config).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(node_classes, plain, "m.safetensors")


def test_motions_that_do_not_fit_are_refused(
    node_classes: Nodes, motion: MotionFile, folder: Path, plain: Any
) -> None:
    path = folder / "m.safetensors"
    sd1 = dataclasses.replace(motion.config, family="sd1")
    save_motion(path, motion.state, sd1)
    refused(node_classes, tiny_patcher(2048), "SD 1.x.*SD-XL")
    refused(node_classes, tiny_patcher(1024), "SD 1.x.*SD 2.x")
    less = dict(list(motion.state.items())[1:])
    save_motion(path, less, motion.config)
    refused(node_classes, plain, next(iter(motion.state)))
    save_motion(path, {**motion.state, "more.weight": torch.zeros(1)}, motion.config)
    refused(node_classes, plain, "more.weight")
    no_unet = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(IncompatibleModelError, match="Linear.*UNet"):
        load(node_classes, no_unet)


def test_nan_in_a_file_is_refused(
    node_classes: Nodes, motion: MotionFile, folder: Path, plain: Any
) -> None:
    path = save_motion(folder / "m.safetensors", motion.state, motion.config)
    kept = torch.contiguous_format
    state = {name: value.clone(memory_format=kept) for name, value in motion.state.items()}
    state["conv_in.conv1d.weight"][0, 0, 0] = float("nan")
    save_file(state, path, metadata=header(path))
    refused(node_classes, plain, "'conv_in.conv1d.weight'.*NaN")


def test_an_empty_range_of_percentages_is_refused(node_classes: Nodes, plain: Any) -> None:
    with pytest.raises(LampError, match="start_percent .*0.6 .*end_percent .*0.4"):
        load(node_classes, plain, start_percent=0.6, end_percent=0.4)


def test_another_checkpoint_is_logged(
    node_classes: Nodes,
    motion: MotionFile,
    folder: Path,
    plain: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from lamp.method.architecture import base_hash

    trained_on = base_hash(plain.model.diffusion_model)
    config = dataclasses.replace(motion.config, base_hash=trained_on, base_model="a.safetensors")
    save_motion(folder / "m.safetensors", motion.state, config)
    with caplog.at_level(logging.WARNING):
        load(node_classes, plain)
        assert not caplog.text
        load(node_classes, tiny_patcher(seed=1))
    assert "'a.safetensors'" in caplog.text


# --- LAMP Motion Info -----------------------------------------------------------------------------


def test_the_info_shows_all_facts(node_classes: Nodes, motion: MotionFile) -> None:
    config = MotionConfig(
        "sd1",
        *(16, 512, 320, 8.0),
        prompt="马 a horse runs",
        steps=300,
        captions=["a", "b"],
        base_model="sd.ckpt",
    )
    file = MotionFile(motion.state, config, {"modelspec.license": "MIT"}, "run.safetensors")
    out = node_classes["LAMP_MotionInfo"].execute(file)
    text = out[0]
    for fact in (
        "run.safetensors",
        "马 a horse runs",
        "SD 1.x",
        "16 frames of 512 x 320 at 8 fps",
        "300 steps",
        "sd.ckpt",
        "MIT",
        "Captions (2 clips)",
    ):
        assert fact in text
    trained = [n for n in file.state if "norm_temp" not in n]
    assert f"{sum(file.state[n].numel() for n in trained):,} trained" in text
    assert out.ui.as_dict()["text"] == (text,)
    many = node_classes["LAMP_MotionInfo"].execute(motion)[0]
    assert many.count("\n  one") == 8 and many.endswith("...")


# --- schemas --------------------------------------------------------------------------------------


def test_a_saved_graph_without_motion_guidance_goes_on_without_it(node_classes: Nodes) -> None:
    """The host fills a missing input with its default, so a new default would change old graphs."""
    inputs = {each.id: each for each in node_classes["LAMP_LoadMotion"].GET_SCHEMA().inputs}
    assert inputs["motion_guidance"].optional and inputs["motion_guidance"].default == 1.0


def test_every_node_and_field_has_a_text(node_classes: Nodes) -> None:
    for node_id, node in node_classes.items():
        schema = node.GET_SCHEMA()
        assert node_id.startswith("LAMP_") and schema.category.startswith("LAMP/")
        assert schema.display_name and schema.description.endswith(".")
        for part in (*schema.inputs, *schema.outputs):
            assert part.tooltip and part.tooltip.endswith("."), f"{node_id} {part.id}"


def test_upstream_names(pack: Any) -> None:
    from comfyui_lamp.nodes.common import upstream_name

    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "LAMP_Trainer", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "LAMP_Trainer", "inputs": {"model": ["5", 0]}},
        "5": {"class_type": "LAMP_LoadToyBase", "inputs": {}},
        "6": {"class_type": "Round", "inputs": {"model": ["6", 0]}},
        "7": {"class_type": "Gone", "inputs": {"model": ["99", 0]}},
    }
    assert upstream_name(prompt, "3", "model") == "sd15.safetensors"
    assert upstream_name(prompt, 4, "model") == "LAMP_LoadToyBase"
    assert upstream_name(prompt, "6", "model") == "Round"
    assert upstream_name(prompt, "7", "model") == ""
    assert upstream_name(None, None, "model") == ""
