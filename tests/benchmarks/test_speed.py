"""The speed benchmark: the independent baseline, operation counts and options."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.speed import __main__ as speed
from benchmarks.speed import literal, processes, scaling
from benchmarks.speed.literal import LiteralUNet, literal_weights
from benchmarks.speed.measure import interleaved, work_of
from benchmarks.speed.models import Shape, Subject
from benchmarks.speed.runs import difference, forward_runs, gradient_difference, sample_runs
from lamp.method import layers
from lamp.method.layers import MotionConv
from tests.helpers.small_models import CONFIG, build, random_motion, random_state

SHAPE = Shape(frames=3, height=8, width=16)


@pytest.fixture(params=["diffusers", "comfy"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "comfy":
        request.getfixturevalue("comfy")
    host = build(request.param, random_state())
    motion = random_motion(host.unet)
    baseline = LiteralUNet(CONFIG, literal_weights(host.unet, motion))
    return Subject(host, motion, baseline, None, CONFIG, torch.float32, "cpu")


@pytest.mark.slow
def test_the_literal_layout_gives_our_numbers(subject: Subject) -> None:
    runs = forward_runs(subject, SHAPE)
    assert difference(runs) < 2e-5
    plain = runs["plain"]()
    assert (runs["lamp"]() - plain).abs().max() > 0.01 * plain.abs().max()


def test_the_literal_layout_gives_our_gradients(subject: Subject) -> None:
    assert gradient_difference(subject, SHAPE) < 1e-3
    assert not any(p.requires_grad for p in subject.motion.parameters())


@pytest.mark.slow
def test_the_literal_layout_gives_our_video(subject: Subject) -> None:
    for guidance in (1.0, 7.5):
        assert difference(sample_runs(subject, SHAPE, steps=3, guidance=guidance)) < 1e-4


def test_a_difference_is_noticed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline in which each frame has its own keys and values."""
    monkeypatch.setattr(literal, "_of_first_frame", lambda tokens, f: tokens)
    assert difference(forward_runs(subject, SHAPE)) > 1e-4


@pytest.mark.parametrize("channels", [8, 128], ids=["maps", "rows"])
def test_operations_of_a_motion_convolution_are_the_formula(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where products are slow, convolutions pad the frames and take more, but faster, operations.
    monkeypatch.setattr(layers, "_SLOW_PRODUCTS", False)
    frames, videos, positions = 5, 2, 4 * 6
    y = torch.randn(videos * frames, channels, 4, 6)
    with torch.no_grad():
        counted = work_of(lambda: MotionConv(channels)(y, frames), "cpu").flop
    taps = frames + (frames - 1) + (frames - 2)  # the zeros before frame 1 take no operations
    temporal = videos * taps * positions * channels**2
    gate = videos * frames * positions * channels * 9
    assert counted == 2 * (temporal + gate)


def test_runs_take_turns_back_and_forth() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    found = interleaved(runs, repeats=3, device="cpu")
    assert "".join(order) == "abc" + "cba" + "abc"
    assert found.keys() == runs.keys()


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--height", "100"], "64"),
        (["--size", "toy", "--width", "12"], "multiple of 8"),
        (["--frames", "1"], "--frames is 1"),
        (["--what", "train", "--dtype", "fp16"], "fp32"),
    ],
)
def test_arguments_are_checked(capsys, arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit):
        speed.parse(arguments)
    assert told in capsys.readouterr().err


def test_the_default_is_the_case_of_16_latents() -> None:
    assert (speed.parse([]).height, speed.parse(["--size", "toy"]).width) == (128, 32)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["forward", "train"])
def test_a_small_run_prints_its_figures(capsys, what: str) -> None:
    given = ["--what", what, "--host", "diffusers", "--size", "toy", "--frames", "2"]
    assert speed.main([*given, "--height", "8", "--repeats", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["pass"] and found["difference"] < 1e-4
    assert all(row["gflop"] > 0 and row["peak_mb"] > 0 for row in found["runs"].values())
    assert found["literal / lamp"] > 0


@pytest.mark.slow
def test_several_processes_share_a_step(capsys) -> None:
    given = ["--processes", "2", "--batch", "2", "--frames", "2", "--steps", "1"]
    assert processes.main(given) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["processes"] for row in found["rows"]] == [2]
    assert all(row["seconds"] > 0 < row["cpu_seconds"] for row in found["rows"])


@pytest.mark.slow
def test_windows_keep_the_memory_of_a_long_video(subject: Subject) -> None:
    """31 frames in windows take as much memory as the 16 of one window."""
    peaks = [
        work_of(scaling.call(subject, Shape(frames, 8, 8), windows), "cpu").peak
        for frames, windows in ((16, None), (31, scaling.WINDOWS), (31, None))
    ]
    assert peaks[1] < 1.1 * peaks[0] < 1.2 * peaks[0] < peaks[2]
