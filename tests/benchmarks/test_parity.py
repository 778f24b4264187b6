"""The comparison with the official code passes, and detects defects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lamp.method.layers
from benchmarks.parity.__main__ import main
from benchmarks.parity.cases import Rounding
from benchmarks.parity.fixtures import Fixture, Measure, find_fixtures, to_frames, to_video
from lamp.method.adain import AdaINSchedule
from lamp.method.host import Host
from lamp.method.inversion import invert
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample, with_first_frame
from lamp.method.schedule import ddim_timesteps
from lamp.training.loop import noise_later_frames
from tests.helpers.small_models import CONFIG, TEXT_WIDTH, build, random_motion, random_state

pytestmark = pytest.mark.slow  # many of them

FIGURES = Path(__file__).parents[1] / "data" / "parity"


def compare(capsys: pytest.CaptureFixture[str], folder: Path, host: str) -> tuple[int, list[str]]:
    status = main(["--fixtures", str(folder), "--host", host])
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("host", ["diffusers", "comfy"])
def test_layers_and_pictures_are_the_official_ones(capsys, comfy, host: str) -> None:
    status, lines = compare(capsys, FIGURES, host)
    summary = json.loads(lines[-1])
    assert status == 0, lines
    assert summary["pass"] is True
    assert summary["cases"] == len(lines) - 1 >= 18
    assert any(line.startswith(host) and "units: block" in line for line in lines)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("host", ["diffusers", "comfy"])
def test_everything_is_the_official_one(capsys, comfy, shared_dir: Path, host: str) -> None:
    status, lines = compare(capsys, shared_dir / "fixtures", host)
    assert status == 0, lines
    assert json.loads(lines[-1])["cases"] > 40


def test_a_defect_is_noticed(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporal convolution with its taps in the wrong order."""
    right = lamp.method.layers.causal_conv1d
    wrong = lambda y, weight, bias: right(y, weight.flip(-1), bias)  # noqa: E731
    monkeypatch.setattr(lamp.method.layers, "causal_conv1d", wrong)
    status, lines = compare(capsys, FIGURES, "diffusers")
    assert status == 1
    assert json.loads(lines[-1])["pass"] is False
    failed = [line for line in lines if "FAIL" in line]
    assert any("units: conv3_s1" in line for line in failed)
    assert not any("units: attn1" in line for line in failed)


def official_names(state: dict[str, Tensor], motion: Motion) -> dict[str, Tensor]:
    """A UNet and a motion under the names of the official code."""
    convs = {site.name for site in motion.sites.convs}
    whole = {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        whole[f"{module}.conv2d.{parameter}" if module in convs else key] = value
    learned = {k: v for k, v in motion.state_dict().items() if k not in whole}
    return {name: value.clone() for name, value in (whole | learned).items()}


def write(folder: Path, name: str, tensors: dict[str, Tensor], **info: object) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(info))


@pytest.fixture
def other_shape(tmp_path: Path) -> Path:
    """Figures in the official format for a model with two levels, two videos at once, other steps
    and guidance. The diffusers host makes them, so they test ComfyUI."""
    state = random_state(11)
    host = build("diffusers", state)
    motion = random_motion(host.unet)
    config = CONFIG | {
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
        "_class_name": "UNet3DConditionModel",
    }
    model = "deep one.safetensors"
    write(tmp_path, "deep one", official_names(state, motion), config=config)
    # The recorded queries are those of the image model, so the deltas of the motion are zero.
    for name, parameter in motion.named_parameters():
        if name.endswith("attn1.to_q.weight"):
            parameter.zero_()

    draw = torch.Generator().manual_seed(0)
    text, other = torch.randn(2, 1, 7, TEXT_WIDTH, generator=draw)
    first = torch.randn(2, 4, 16, 8, generator=draw)
    noise = draw_noise(5, 4, 16, 8, seed=3, videos=2)
    steps: list[Tensor] = []
    final = sample(
        host,
        motion,
        first,
        share_noise(noise, frames=5),
        text.expand(2, -1, -1),
        other.expand(2, -1, -1),
        steps=3,
        guidance=4.0,
        schedule=AdaINSchedule("official"),
        callback=lambda _, x: steps.append(to_video(x, 2)),
    )
    started = with_first_frame(share_noise(noise, frames=5), first)
    sampled = {
        "noise": to_video(noise, 2),
        "first_frame_latents": first[:, :, None],
        "init_latents": to_video(started, 2),
        "steps": torch.cat(steps),
        "final": to_video(final, 2),
        "timesteps": torch.tensor(ddim_timesteps(3)),
        "cond": text,
        "uncond": other,
    }
    write(tmp_path, "any_name", sampled, model=model, guidance=4, generator_seed=3)
    edited = inverted_and_edited(host, motion, text, other, first)
    write(tmp_path, "back", edited, model=model, guidance=4)
    batch = {
        "latents": to_video(torch.randn(10, 4, 16, 8, generator=draw), 2),
        "noise": to_video(torch.randn(10, 4, 16, 8, generator=draw), 2),
        "timesteps": torch.tensor([7, 800]),
        "text": text,
    }
    alphas = host.alphas_cumprod[batch["timesteps"]]
    noisy = noise_later_frames(to_frames(batch["latents"]), to_frames(batch["noise"]), alphas)
    with torch.no_grad(), motion.attached(host.unet, FrameLayout(5, 2)):
        said = host.predict(noisy, batch["timesteps"], text.expand(2, -1, -1))
    target = batch["noise"][:, :, 1:]
    loss = (to_video(said, 2)[:, :, 1:] - target).square().mean().item()
    recorded = {"noisy_latents": to_video(noisy, 2), "model_pred": to_video(said, 2)}
    write(tmp_path, "tuned", batch | recorded, model=model, loss=[loss])
    return tmp_path


def inverted_and_edited(
    host: Host, motion: Motion, text: Tensor, other: Tensor, first: Tensor
) -> dict[str, Tensor]:
    """DDIM inversion of two clips, and sampling from another frame 1."""
    frames = torch.randn(10, 4, 16, 8, generator=torch.Generator().manual_seed(1))
    ups: list[Tensor] = [frames]
    downs: list[Tensor] = []
    cond, uncond = text.expand(2, -1, -1), other.expand(2, -1, -1)
    keep = lambda _, x: ups.append(x)  # noqa: E731
    last = invert(host, motion, frames, uncond, steps=4, callback=keep)
    final = sample(
        host,
        motion,
        first,
        last,
        cond,
        uncond,
        steps=4,
        guidance=4.0,
        schedule=AdaINSchedule("official"),
        callback=lambda _, x: downs.append(to_video(x, 2)),
    )
    return {
        "video_latent": to_video(frames, 2),
        "uncond": other,
        "cond": text,
        "all": torch.cat([to_video(x, 2) for x in ups]),
        "last": to_video(last, 2),
        "timesteps": torch.tensor(ddim_timesteps(4)),
        "edit.first_frame_latents": first[:, :, None],
        "edit.init_latents": to_video(with_first_frame(last, first), 2),
        "edit.steps": torch.cat(downs),
        "edit.final": to_video(final, 2),
    }


@pytest.mark.parametrize("host", ["diffusers", "comfy"])
def test_a_model_of_another_shape(capsys, comfy, other_shape: Path, host: str) -> None:
    status, lines = compare(capsys, other_shape, host)
    assert status == 0, lines
    assert json.loads(lines[-1])["cases"] == 17
    groups = ["whole weights, lr 1e-3, decay 0.1, clip 0.05"]
    groups += ["final", "steps", "timesteps", "noise of the seed", "losses", "prediction"]
    groups += ["inversion steps", "inverted", "edit: steps", "edit: final"]
    for group in groups:
        assert any(f": {group} " in line for line in lines), group


def test_float64_shows_the_distance_of_fp32(capsys, other_shape: Path) -> None:
    assert main(["--fixtures", str(other_shape), "--float64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["pass"] is True
    for group in ("steps", "final", "inverted", "edit: steps"):
        line = next(line for line in lines if f": {group} " in line)
        error = float(line.split(f": {group} ")[1].split()[0])
        off = float(line.split("fp32 is ")[1].split()[0])
        # The recorded figures are fp32, so the distance is its rounding.
        assert 0 < error < 3 * off < 1e-4
    assert not any("losses" in line for line in lines)


def test_float64_is_for_diffusers(capsys, adain_only: Path) -> None:
    assert main(["--fixtures", str(adain_only), "--float64", "--host", "comfy"]) == 2


@pytest.mark.parametrize(
    ("error", "floor", "holds"),
    [(5e-5, 0.0, True), (5e-4, 0.0, False), (5e-4, 2e-4, True), (5e-4, 1e-4, False)]
    + [(float("nan"), 1.0, False)],
)
def test_a_bound_is_wider_by_the_rounding_of_fp32_only(
    monkeypatch: pytest.MonkeyPatch, error: float, floor: float, holds: bool
) -> None:
    """The bound does not depend on the recorded figures."""
    rounding = Rounding(None, None, None)  # type: ignore[arg-type]
    monkeypatch.setitem(rounding.__dict__, "_floors", {"step 0": floor})
    figures = {"step 0": torch.ones(2)}
    measure = rounding.compare("steps", figures, {"step 0": figures["step 0"] + error})
    assert measure.holds is holds
    exact = {"step 0": figures["step 0"].double() + error}
    assert rounding.compare("steps", figures, exact).holds is (error < 1e-4)


def test_models_that_comfyui_cannot_hold_are_skipped(capsys, comfy, other_shape: Path) -> None:
    about = other_shape / "deep one.json"
    about.write_text(about.read_text().replace('"norm_num_groups": 32', '"norm_num_groups": 16'))
    status, lines = compare(capsys, other_shape, "comfy")
    assert status == 1
    assert "skipped" in lines[0] and "16" in lines[0]
    assert json.loads(lines[-1])["cases"] == 0


@pytest.fixture
def adain_only(tmp_path: Path) -> Path:
    for name in ("post_adain.safetensors", "post_adain.json"):
        shutil.copy(FIGURES / name, tmp_path / name)
    return tmp_path


def test_a_figure_that_is_not_a_number_fails(capsys, adain_only: Path) -> None:
    path = adain_only / "post_adain.safetensors"
    tensors = load_file(path)
    tensors["adain0.content"][0, 0, 0, 0] = float("nan")
    save_file(tensors, path)
    status, lines = compare(capsys, adain_only, "diffusers")
    assert status == 1
    assert json.loads(lines[-1])["worst"]["error"] == "nan"


def test_a_damaged_file_fails_and_the_others_run(capsys, adain_only: Path) -> None:
    (adain_only / "units.safetensors").write_bytes(b"no such thing")
    status, lines = compare(capsys, adain_only, "diffusers")
    assert status == 1
    assert "units" in lines[0] and "FAIL" in lines[0]
    assert json.loads(lines[-1])["cases"] == 8


def test_figures_without_their_model_are_not_counted(capsys, adain_only: Path) -> None:
    save_file({"a.latents": torch.zeros(1)}, adain_only / "x_forward.safetensors")
    (adain_only / "x_forward.json").write_text('{"model": "../x_model.safetensors"}')
    status, lines = compare(capsys, adain_only, "diffusers")
    assert status == 0
    assert any("skipped" in line and "x_model.safetensors" in line for line in lines)
    assert json.loads(lines[-1])["cases"] == 7


def test_unknown_files_are_not_counted(capsys, tmp_path: Path) -> None:
    save_file({"surprise": torch.zeros(1)}, tmp_path / "y.safetensors")
    status, lines = compare(capsys, tmp_path, "diffusers")
    assert status == 1  # nothing was compared
    assert " y: skipped" in lines[0]
    assert json.loads(lines[-1]) == {"pass": False, "cases": 0, "worst": None}


@pytest.mark.parametrize("name", ["", "missing"])
def test_an_empty_or_missing_folder(capsys, tmp_path: Path, name: str) -> None:
    status, lines = compare(capsys, tmp_path / name, "diffusers")
    assert status == 2
    assert str(tmp_path / name) in lines[0]


def test_files_are_classified_by_content() -> None:
    kinds = {fixture.name: fixture.kind for fixture in find_fixtures(FIGURES)}
    assert kinds == {
        "post_adain": "adain",
        "post_first_frame": "first_frame",
        "post_hismatch": "histogram",
        "units": "units",
    }
    assert Fixture(FIGURES / "units.safetensors").info["cases"]["attn1"]


@pytest.mark.parametrize(
    ("error", "bound", "holds"),
    [(1e-6, 1e-5, True), (2e-5, 1e-5, False), (0.0, 0.0, True), (float("nan"), 1.0, False)],
)
def test_a_measure_holds_within_its_bound(error: float, bound: float, holds: bool) -> None:
    assert Measure("case", error, bound).holds is holds
