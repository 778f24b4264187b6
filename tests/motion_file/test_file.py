"""Motion files: what is saved loads again, and a bad file is refused by name."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.parity.fixtures import split_official
from lamp.errors import IncompatibleModelError, MotionFileError
from lamp.method.architecture import BlockSite, ConvSite, SiteMap
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
SITES = SiteMap(
    (ConvSite("conv_in", "conv_in", 6),), (BlockSite(BLOCK, BLOCK, 8, 2),), (), (), "sd1"
)
CONFIG = MotionConfig(
    family="sd1", prompt="a horse runs – ↑", captions=["one", "two"], steps=7, learning_rate=3e-5
)


def motion_state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = Motion(SITES).state_dict()
    return {k: torch.randn(v.shape, generator=generator) for k, v in state.items()}


def header(**config: object) -> dict[str, str]:
    return {"lamp.format": "1", "lamp.config": json.dumps(asdict(CONFIG) | config)}


def check(path: Path, sites: SiteMap = SITES) -> MotionFile:
    """Read a file and check it against the UNet, as loading a motion does."""
    file = load_motion_file(path)
    file.check_against(sites)
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "walk.safetensors"


def test_round_trip_in_fp32_is_exact(path: Path) -> None:
    state = motion_state()
    assert save_motion(path, state, CONFIG, dtype=torch.float32) == path
    file = check(path)
    assert file.config == CONFIG
    assert file.name == "walk.safetensors"
    assert file.state.keys() == state.keys()
    assert all(torch.equal(file.state[name], state[name]) for name in state)


def test_fp16_is_the_default_and_half_the_size(path: Path) -> None:
    state = motion_state()
    save_motion(path, state, CONFIG)
    file = check(path)
    for name, tensor in file.state.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, state[name].half())


def test_tensors_that_overflow_fp16_stay_in_fp32(path: Path) -> None:
    state = motion_state()
    state["conv_in.conv1d.bias"][0] = 1e6
    save_motion(path, state, CONFIG)
    stored = check(path).state["conv_in.conv1d.bias"]
    assert stored.dtype == torch.float32
    assert torch.equal(stored, state["conv_in.conv1d.bias"])


def test_header_names_model_and_extra_entries(path: Path) -> None:
    save_motion(
        path, motion_state(), CONFIG, title="Walk", license_name="CC0", extra={"prompt": "{}"}
    )
    metadata = check(path).metadata
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lamp-motion"
    assert metadata["modelspec.title"] == "Walk"
    assert metadata["modelspec.license"] == "CC0"
    assert metadata["prompt"] == "{}"


def test_other_users_can_read_the_file(path: Path) -> None:
    save_motion(path, motion_state(), CONFIG)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_disk_without_rights_of_files_keeps_the_motion(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some shares and FAT disks, where only the owner of the mount may change rights."""

    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    save_motion(path, motion_state(), CONFIG)
    assert check(path).config == CONFIG


def test_saving_creates_the_folder(tmp_path: Path) -> None:
    path = save_motion(tmp_path / "new" / "folder" / "m.safetensors", motion_state(), CONFIG)
    assert check(path).config == CONFIG


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_motion(path, motion_state(), CONFIG)
    before = path.read_bytes()

    def disk_full(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", disk_full)
    with pytest.raises(MotionFileError, match="walk.safetensors.*No space left.*disk space"):
        save_motion(path, motion_state(1), CONFIG)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_diverged_motion_is_not_saved(path: Path) -> None:
    state = motion_state()
    state["conv_in.conv1d.bias"][0] = float("nan")
    with pytest.raises(MotionFileError, match="conv_in.conv1d.bias.*NaN"):
        save_motion(path, state, CONFIG)
    assert not list(path.parent.iterdir())


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(MotionFileError, match="walk.safetensors"):
        load_motion_file(path)


def test_a_foreign_file_is_named(path: Path) -> None:
    save_file({"lora.up": torch.zeros(2)}, path)
    with pytest.raises(MotionFileError, match="walk.safetensors.*lamp.format"):
        load_motion_file(path)


@pytest.mark.parametrize("keep", [0, 5, 40, -7])
def test_a_truncated_file_is_named(path: Path, keep: int) -> None:
    save_motion(path, motion_state(), CONFIG)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MotionFileError, match="walk.safetensors"):
        load_motion_file(path)


def test_random_bytes_are_named(path: Path) -> None:
    data = torch.randint(256, (4096,), generator=torch.Generator().manual_seed(0))
    path.write_bytes(bytes(data.tolist()))
    with pytest.raises(MotionFileError, match="walk.safetensors"):
        load_motion_file(path)


def test_a_header_that_is_not_utf8_is_refused(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 8) + b"\xff\xfe{\x00\x80}\xff\xff")
    with pytest.raises(MotionFileError, match="walk.safetensors"):
        load_motion_file(path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(MotionFileError, match="walk"):
        load_motion_file(path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [1] * 300_000, "data_offsets": [0, 4]}, "8 dim"),
        ({"dtype": "F32", "shape": ["a"] * 130_000, "data_offsets": [0, 4]}, "120,000 strings"),
        ({"dtype": "F32", "shape": [], "data_offsets": [0, 4], "x": [0] * 10**6}, "header"),
        (
            {"dtype": "F32", "shape": [], "data_offsets": [0, 4], "x": "x" * 2**23},
            "8,389,\\d+ bytes",
        ),
    ],
)
def test_a_hostile_header_is_refused(path: Path, entry: dict[str, object], reason: str) -> None:
    text = json.dumps({"__metadata__": header(), "conv_in.conv1d.bias": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(MotionFileError, match=f"walk.safetensors.*{reason}"):
        load_motion_file(path)


def test_entries_too_long_for_the_header_are_left_out(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trained motion is saved whatever is attached to it, and loads again."""
    long = replace(CONFIG, captions=["x" * 600_000])
    extra = {"workflow": "w" * 5 * 2**20, "prompt": "p" * 2**20, "notes": "n" * 6 * 2**20}
    save_motion(path, motion_state(), long, extra=extra)
    file = check(path)
    assert file.config == replace(CONFIG, captions=[])
    assert not {"workflow", "notes"} & set(file.metadata)
    assert file.metadata["prompt"] == extra["prompt"]
    lost = ("captions", "'workflow'", "'notes'")  # one warning each
    assert all(name in record.message for name, record in zip(lost, caplog.records, strict=True))


@pytest.mark.parametrize("version", ["3", "99", "one", "-1", "", "٣", "1" * 5000])
def test_a_newer_format_is_named(path: Path, version: str) -> None:
    save_file(motion_state(), path, metadata=header() | {"lamp.format": version})
    with pytest.raises(MotionFileError, match=f"'{version[:20]}'.* 2\\b"):
        load_motion_file(path)


@pytest.mark.parametrize(
    "config",
    [
        "{not json",
        "",
        "[]",
        "null",
        "7",
        '"text"',
        "{}",
        '{"family": 3}',
        '{"family": "sd1", "frames": "16"}',
        '{"family": "sd1", "captions": [1]}',
        '{"family": "sd1", "fps": true}',
        '{"family": "sd1", "fps": NaN}',
        '{"family": "sd1", "frames": -1}',
        '{"family": "sd1", "width": -512}',
        '{"family": "sd1", "learning_rate": Infinity}',
        '{"family": "sd1", "learning_rate": 1' + "0" * 400 + "}",
        '{"family": "sd1", "prompt": "\\ud83d"}',
        '{"family": "sd1", "captions": ["\\ud83d"]}',
        '{"family": "sd1", "x": [' + "[]," * 200_000 + "[]]}",
        "[" * 100_000,
        '{"family": ' + "[" * 100_000,
    ],
)
def test_a_damaged_header_is_named(path: Path, config: str) -> None:
    save_file(motion_state(), path, metadata={"lamp.format": "1", "lamp.config": config})
    with pytest.raises(MotionFileError, match="walk.safetensors.*lamp.config"):
        load_motion_file(path)


def test_a_header_without_config_is_named(path: Path) -> None:
    save_file(motion_state(), path, metadata={"lamp.format": "1"})
    with pytest.raises(MotionFileError, match="walk.safetensors.*lamp.config"):
        load_motion_file(path)


def test_an_unknown_groupnorm_is_named(path: Path) -> None:
    save_file(motion_state(), path, metadata=header(groupnorm="spherical"))
    with pytest.raises(MotionFileError, match="spherical.*pooled.*frame"):
        load_motion_file(path)


def test_the_words_of_the_longest_captions_are_found_at_once() -> None:
    """Of a header at its limit of 2^19 characters; the server waits for them."""
    words = 60_000
    captions = ["b " * words + "c a", "a " * words + "c c"]
    started = time.process_time()
    assert MotionConfig("sd1", captions=captions).trigger == "c"
    assert time.process_time() - started < 2.0


def test_unknown_fields_are_ignored(path: Path) -> None:
    save_file(motion_state(), path, metadata=header(weather="fair", fps=12))
    config = check(path).config
    assert config.fps == 12.0
    assert isinstance(config.fps, float)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(path: Path, value: float) -> None:
    state = motion_state()
    state["conv_in.conv_gate.bias"][0] = value
    save_file(state, path, metadata=header())
    with pytest.raises(MotionFileError, match="conv_in.conv_gate.bias.*NaN"):
        load_motion_file(path)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
def test_other_dtypes_are_named(path: Path, dtype: torch.dtype) -> None:
    state = motion_state()
    state["conv_in.conv_gate.bias"] = torch.ones(1, dtype=dtype)
    save_file(state, path, metadata=header())
    with pytest.raises(MotionFileError, match=f"conv_in.conv_gate.bias.*{dtype}"):
        load_motion_file(path)


def test_a_missing_tensor_is_named(path: Path) -> None:
    state = motion_state()
    del state["conv_in.conv1d.weight"]
    save_motion(path, state, CONFIG)
    with pytest.raises(MotionFileError, match="conv_in.conv1d.weight"):
        check(path)


def test_a_tensor_of_another_shape_is_named(path: Path) -> None:
    state = motion_state() | {"conv_in.conv1d.bias": torch.zeros(7)}
    save_motion(path, state, CONFIG)
    with pytest.raises(MotionFileError, match=r"conv_in.conv1d.bias.*\(7,\).*\(6,\)"):
        check(path)


def test_an_unknown_tensor_is_named(path: Path) -> None:
    save_motion(path, motion_state() | {"surprise.weight": torch.zeros(1)}, CONFIG)
    with pytest.raises(MotionFileError, match="surprise.weight"):
        check(path)


def test_another_family_is_named(path: Path) -> None:
    save_motion(path, motion_state(), CONFIG)
    sd2 = SiteMap(SITES.convs, SITES.blocks, (), (), "sd2")
    with pytest.raises(IncompatibleModelError, match="walk.safetensors.*SD 1.x.*SD 2.x"):
        check(path, sd2)


def test_sdxl_is_recommended_for_the_first_frame_only(path: Path) -> None:
    save_motion(path, motion_state(), CONFIG)
    sdxl = SiteMap(SITES.convs, SITES.blocks, (), (), "sdxl")
    with pytest.raises(IncompatibleModelError, match="SD-XL only for the first frame"):
        check(path, sdxl)


def test_an_official_unet_is_split() -> None:
    query = torch.randn(8, 8)
    official = {
        "conv_in.conv2d.weight": torch.randn(6, 4, 3, 3),
        "conv_in.conv1d.weight": torch.randn(6, 6, 3),
        "conv_in.conv_gate.weight": torch.randn(1, 6, 3, 3),
        f"{BLOCK}.attn1.to_q.weight": query,
        f"{BLOCK}.attn_temp.to_q.weight": torch.randn(8, 8),
        f"{BLOCK}.norm_temp.weight": torch.randn(8),
    }
    base, learned = split_official(official)
    assert set(base) == {"conv_in.weight", f"{BLOCK}.attn1.to_q.weight"}
    assert set(learned) == set(official) - {"conv_in.conv2d.weight"}
    tuned = base[f"{BLOCK}.attn1.to_q.weight"] + learned[f"{BLOCK}.attn1.to_q.weight"]
    assert torch.equal(tuned, query)
