"""Converted official checkpoints give the outputs of the official model."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.parity import cases as parity_cases
from benchmarks.parity.fixtures import Fixture, split_official
from benchmarks.parity.hosts import two_dimensional
from benchmarks.samples.official_files import official_state
from benchmarks.samples.official_files import write_official as write
from lamp.cli import main
from lamp.errors import IncompatibleModelError, LampError, MotionFileError
from lamp.hosts.diffusers import single_file
from lamp.hosts.diffusers.unet import build_host
from lamp.method.architecture import base_hash, map_unet
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.motion_file.convert import LICENSE, convert_official
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import MotionFile, load_motion_file
from lamp.motion_file.provenance import save_motion_file
from tests.helpers.sd1_files import CONFIGS, random_source, write_file, write_folder
from tests.helpers.small_models import CONFIG, TEXT_WIDTH, random_motion, random_state

pytestmark = pytest.mark.slow  # many of them

State = dict[str, Tensor]
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
CONV = "conv_in.conv1d.weight"


@dataclass(frozen=True)
class Case:
    base: State
    unet: nn.Module
    learned: State
    official: State


@pytest.fixture(scope="module")
def case() -> Case:
    base = random_state()
    unet = _unet(base)
    learned = dict(random_motion(unet).state_dict())
    return Case(base, unet, learned, official_state(base, learned, unet))


def _unet(base: State) -> nn.Module:
    return build_host(CONFIG, base).unet


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_the_trained_parts_are_extracted(case: Case, tmp_path: Path, ending: str) -> None:
    folder = write(tmp_path / "horse", case.official, f"diffusion_pytorch_model.{ending}")
    for place in (folder, folder / "unet"):
        file = convert_official(place, case.unet, base_model="sd", base_hash="x", prompt="it runs")
        file.check_against(map_unet(case.unet))
        for name, tensor in case.learned.items():
            torch.testing.assert_close(file.state[name], tensor, rtol=0, atol=1e-7)
    assert (file.config.prompt, file.config.base_model, file.config.base_hash) == (
        "it runs",
        "sd",
        "x",
    )
    assert file.config.groupnorm == "pooled"
    saved = load_motion_file(save_motion_file(tmp_path / "converted.safetensors", file))
    # Nobody told what it was learned from, neither to the motion nor to its file.
    for config in (file.config, saved.config):
        assert config.frames == config.width == config.height == config.fps == 0
    told = {"frames", "width", "height", "fps"} & json.loads(saved.metadata["lamp.config"]).keys()
    assert not told and "modelspec.resolution" not in saved.metadata
    facts = dict(line.split(": ", 1) for line in describe_motion(saved).splitlines())
    assert facts["Trained on"] == "not recorded" and "Training" not in facts


def test_on_its_base_it_equals_the_tuned_queries(case: Case, tmp_path: Path) -> None:
    file = convert_official(write(tmp_path, case.official), case.unet)
    tuned, without = split_official(case.official)

    def predicted(base: State, state: State) -> Tensor:
        host = build_host(CONFIG, base)
        motion = Motion(map_unet(host.unet)).requires_grad_(False)
        motion.load_state_dict(state)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, 4, 8, 8, generator=generator)
        text = torch.randn(1, 5, TEXT_WIDTH, generator=generator)
        with torch.no_grad(), motion.attached(host.unet, FrameLayout(4)):
            return host.predict(x, torch.tensor([400]), text)

    ours, theirs = predicted(case.base, file.state), predicted(tuned, without)
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


@pytest.mark.parametrize(
    ("name", "host", "ending"),
    [
        ("tinyA", "diffusers", "bin"),
        ("tinyB", "diffusers", "safetensors"),
        ("tinyB", "comfy", "bin"),
    ],
)
def test_outputs_match_the_official_model(
    shared_dir: Path, comfy: Any, tmp_path: Path, name: str, host: str, ending: str
) -> None:
    """The base has other queries than the official model, like a checkpoint before tuning."""
    fixture = Fixture(shared_dir / "fixtures" / f"{name}_model.safetensors")
    base, _ = split_official(fixture.tensors)
    generator = torch.Generator().manual_seed(0)
    for key in [key for key in base if key.endswith(".attn1.to_q.weight")]:
        base[key] = base[key] + 0.1 * torch.randn(base[key].shape, generator=generator)
    model = _HostModel(host, two_dimensional(fixture.info["config"]), base)
    folder = write(tmp_path / name, fixture.tensors, f"diffusion_pytorch_model.{ending}")
    out = save_motion_file(
        tmp_path / "m.safetensors", convert_official(folder, model.host.unet), dtype=torch.float32
    )
    model.learned = load_motion_file(out).state
    forward = Fixture(shared_dir / "fixtures" / f"{name}_forward.safetensors")
    measures = list(parity_cases.forward(model, forward))
    assert len(measures) == 7
    assert [measure for measure in measures if not measure.holds] == []


class _HostModel:
    """See `benchmarks.parity.hosts.Model`, with a base of its own."""

    def __init__(self, host: str, config: dict[str, Any], base: State) -> None:
        self.base, self.learned, self.patcher = base, {}, None
        if host == "diffusers":
            self.host: Any = build_host(config, base)
        else:
            from lamp.hosts.comfy.models import build_patcher
            from lamp.hosts.comfy.training import ComfyHost

            self.patcher = build_patcher(config, base)
            self.host = ComfyHost(self.patcher)

    def motion(self, learned: State) -> Motion:
        motion = Motion(map_unet(self.host.unet))
        motion.load_state_dict(learned)
        return motion.requires_grad_(False).eval()

    tuning = sample = None


# --- what the file tells --------------------------------------------------------------------------


def test_the_licence_is_kept_in_the_file(case: Case, tmp_path: Path) -> None:
    file = convert_official(write(tmp_path / "horse_run", case.official), case.unet)
    saved = load_motion_file(save_motion_file(tmp_path / "m.safetensors", file))
    assert saved.metadata["modelspec.license"] == LICENSE == "CC BY-NC 4.0"
    source = "the official LAMP checkpoint 'horse_run' (CC BY-NC 4.0)"
    assert saved.metadata["lamp.source"] == source
    told = describe_motion(saved)
    assert f"Converted from: {source}" in told and "License: CC BY-NC 4.0" in told


# --- untrusted files --------------------------------------------------------------------------


def refused(case: Case, tmp_path: Path, state: Any, words: str) -> None:
    folder = write(tmp_path / "horse", state)
    with pytest.raises(MotionFileError, match=words):
        convert_official(folder, case.unet)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop(CONV), f"'{CONV}'"),
        (lambda s: s.pop("conv_in.conv2d.bias"), "conv_in.conv2d.bias"),
        (lambda s: s.update(more=torch.zeros(1)), "'more'"),
        (lambda s: s.update({CONV: torch.zeros(6, 6, 3)}), r"shape \(6, 6, 3\), .* \(32, 32, 3\)"),
        (lambda s: s.update({CONV: s[CONV] * float("nan")}), f"'{CONV}' holds NaN"),
        (lambda s: s.update({CONV: s[CONV].long()}), f"'{CONV}' holds torch.int64"),
        (lambda s: s.update({CONV: s[CONV].to_sparse()}), f"'{CONV}'.*floats"),
        (lambda s: s.update({CONV: "text"}), "diffusion_pytorch_model.bin"),
    ],
    ids=["missing", "base missing", "alien", "shape", "nan", "integers", "sparse", "text"],
)
def test_wrong_tensors_are_named(
    case: Case, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    state = dict(case.official)
    change(state)
    refused(case, tmp_path, state, words)


def test_other_contents_are_named(case: Case, tmp_path: Path) -> None:
    refused(case, tmp_path, case.base, "conv1d.weight")
    refused(case, tmp_path, [1, 2], "diffusion_pytorch_model.bin")
    for file in (b"", b"PK\x03\x04 half"):
        (tmp_path / "horse/unet/diffusion_pytorch_model.bin").write_bytes(file)
        with pytest.raises(MotionFileError, match="diffusion_pytorch_model.bin"):
            convert_official(tmp_path / "horse", case.unet)


def test_a_pickle_is_never_run(case: Case, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder = write(tmp_path / "horse", {CONV: Bomb()})
    for path in (folder / "unet" / "diffusion_pytorch_model.bin",):
        for data in (path.read_bytes(), pickle.dumps(Bomb())):
            path.write_bytes(data)
            with pytest.raises(MotionFileError, match="diffusion_pytorch_model.bin"):
                convert_official(folder, case.unet)
    assert not (tmp_path / "exploded").exists()


def test_a_compressed_archive_is_not_opened(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "horse", case.official) / "unet" / "diffusion_pytorch_model.bin"
    with zipfile.ZipFile(path) as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as squeezed:
        for name, content in entries.items():
            squeezed.writestr(name, content)
    monkeypatch.setattr(torch, "load", lambda *given, **more: pytest.fail("it was opened"))
    with pytest.raises(MotionFileError, match="compressed"):
        convert_official(tmp_path / "horse", case.unet)


def test_a_hostile_header_is_refused(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "horse" / "unet"
    folder.mkdir(parents=True)
    long = json.dumps({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}).encode()
    file = struct.pack("<Q", len(long)) + long + bytes(4)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(file)
    with pytest.raises(MotionFileError, match="8 dimensions"):
        convert_official(tmp_path / "horse", case.unet)


@pytest.mark.parametrize("content", [b"\0" * 4096, "archive"], ids=["zeros", "archive"])
def test_nothing_is_unpacked(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    """PyTorch's oldest format is a tar archive, for which it creates a folder before refusing."""
    path = write(tmp_path / "horse", case.official) / "unet" / "diffusion_pytorch_model.bin"
    if content == "archive":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("../storages"))
    else:
        path.write_bytes(content)
    made: list[object] = []
    monkeypatch.setattr("tempfile.mkdtemp", lambda *given, **more: made.append(given))
    with pytest.raises(MotionFileError, match="tar archive"):
        convert_official(tmp_path / "horse", case.unet)
    assert not made


def test_folders_without_or_with_too_many_weights_are_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(MotionFileError, match="unet/diffusion_pytorch_model.bin"):
        convert_official(tmp_path, case.unet)
    for name in ("diffusion_pytorch_model.bin", "other.bin"):
        write(tmp_path, case.official, name)
    with pytest.raises(MotionFileError, match="other.bin"):
        convert_official(tmp_path, case.unet)


def test_another_base_is_refused_and_one_in_half_precision_is_not(
    case: Case, tmp_path: Path
) -> None:
    folder = write(tmp_path, case.official)
    with pytest.raises(IncompatibleModelError, match="%"):
        convert_official(folder, _unet(random_state(seed=5)))
    for dtype in (torch.float16, torch.bfloat16):
        half = _unet({name: tensor.to(dtype).float() for name, tensor in case.base.items()})
        file = convert_official(folder, half)
        query = half.get_submodule(QUERY.removesuffix(".weight")).weight
        torch.testing.assert_close(
            query + file.state[QUERY], case.official[QUERY], rtol=0, atol=1e-7
        )


# --- command and node -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_command_takes_a_folder_or_a_file_as_base(
    comfy: Any,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    source = random_source()
    monkeypatch.setattr(single_file, "CONFIGS", CONFIGS)
    tokenizer = Path(comfy.__path__[0]) / "sd1_tokenizer"
    base = (
        write_folder(source, tmp_path / "base", tokenizer)
        if kind == "folder"
        else write_file(source, tmp_path / "base.safetensors")
    )
    learned = dict(random_motion(source.unet).state_dict())
    state = official_state(dict(source.unet.state_dict()), learned, source.unet)
    folder = write(tmp_path / "horse", state)
    out = tmp_path / "horse.safetensors"
    options = ["--base", str(base), "--prompt", "a horse runs", "--precision", "fp32"]
    assert main(["convert", str(folder), str(out), *options]) == 0
    told = capsys.readouterr()
    assert "Prompt: a horse runs" in told.out and "converting" in told.err
    file = load_motion_file(out)
    assert file.config.base_model == base.name
    assert file.config.base_hash == base_hash(source.unet)
    for name, tensor in learned.items():
        torch.testing.assert_close(file.state[name], tensor, rtol=0, atol=1e-6)


def test_the_node_converts_a_folder_of_models_diffusers(
    node_classes: dict[str, Any], case: Case, tmp_path: Path
) -> None:
    import folder_paths

    from lamp.hosts.comfy.models import build_patcher

    node = node_classes["LAMP_ConvertOfficial"]
    patcher = build_patcher(CONFIG, case.base)
    write(tmp_path / "horse run", case.official)
    paths = folder_paths.folder_names_and_paths["diffusers"][0]
    before = list(paths)
    paths[:] = [str(tmp_path)]
    try:
        options = node.INPUT_TYPES()["required"]["folder"][1]["options"]
        assert options == ["horse run"]
        file: MotionFile = node.execute(patcher, "horse run", " a horse runs ")[0]
        read = node.fingerprint_inputs(folder="horse run")
        assert read == node.fingerprint_inputs(folder="horse run", prompt="x")
        for path in (tmp_path / "horse run/unet").iterdir():
            os.utime(path, ns=(0, 0))
        assert node.fingerprint_inputs(folder="horse run") != read
        for name in ("../x", "none", ""):
            with pytest.raises(LampError, match="^Convert Official LAMP Checkpoint: There is no"):
                node.execute(patcher, name)
    finally:
        paths[:] = before
    assert file.config.prompt == "a horse runs"
    assert file.config.base_hash == base_hash(patcher.model.diffusion_model)
    for name, tensor in case.learned.items():
        torch.testing.assert_close(file.state[name], tensor, rtol=0, atol=1e-7)


def test_a_lora_of_another_run_that_is_still_loaded_does_no_harm(
    node_classes: dict[str, Any],
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import comfy.model_management as management
    import folder_paths

    from lamp.hosts.comfy.models import build_patcher

    patcher = build_patcher(CONFIG, case.base)
    plain = base_hash(patcher.model.diffusion_model)
    with_lora = patcher.clone()
    changes = {
        f"diffusion_model.{name}": ("diff", (torch.full_like(weight, 0.01),))
        for name, weight in patcher.model.diffusion_model.named_parameters()
        if name.endswith(".to_q.weight")
    }
    assert changes and set(with_lora.add_patches(changes)) == set(changes)
    write(tmp_path / "horse", case.official)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], set()))
    motions = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lamp_motion", motions)
    management.load_models_gpu([with_lora])
    try:
        assert base_hash(patcher.model.diffusion_model) != plain
        file: MotionFile = node_classes["LAMP_ConvertOfficial"].execute(patcher, "horse")[0]
        save_motion_file(tmp_path / "m.safetensors", file)
        node_classes["LAMP_LoadMotion"].execute(patcher, "m.safetensors")
    finally:
        management.unload_all_models()
    assert file.config.base_hash == plain and "the connected one is another" not in caplog.text
    for name, tensor in case.learned.items():
        torch.testing.assert_close(file.state[name], tensor, rtol=0, atol=1e-7)
