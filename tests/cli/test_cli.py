"""The command line itself: help, mistakes, what a config file may say, progress, `inspect`."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.samples.small_training import small_host
from lamp.cli import COMMANDS, main
from lamp.cli.place import find_place
from lamp.cli.stopping import StopRequest
from lamp.cli.terminal import LogLines, Terminal, describe_step
from lamp.cli.train_config import TABLES, RunSettings, read_settings
from lamp.errors import LampError
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import save_motion
from lamp.motion_file.provenance import SCORES_KEY
from lamp.training.loop import StepReport
from lamp.training.recipe import RunChoices, TrainConfig, preset

ROOT = Path(__file__).resolve().parents[2]


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence on stderr."""
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    return printed.err.removeprefix("error: ").strip()


# --- commands --------------------------------------------------------------------------------


def test_help_comes_without_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; import lamp.__main__"
    probe = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    result = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("False\n")
    for command in COMMANDS:
        assert re.search(rf"^    {command.NAME} +{re.escape(command.HELP)}$", result.stdout, re.M)


def test_each_command_tells_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command.NAME, "--help"])
        assert ended.value.code == 0
        assert "--debug" in capsys.readouterr().out


def test_a_mistyped_command_or_argument_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    told = failing(["trian"], capsys)
    assert "'trian'" in told and "'train'" in told
    assert "train, inspect" in failing(["xyz"], capsys)
    assert failing(["train"], capsys).endswith("CONFIG.toml. See python -m lamp train --help.")


def test_an_error_shows_its_place_only_when_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.safetensors" in failing(["inspect", "none.safetensors"], capsys)
    with pytest.raises(LampError):
        main(["inspect", "none.safetensors", "--debug"])


def test_what_nobody_thought_of_is_a_sentence_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("lamp.motion_file.file.load_motion_file", crash)
    sentence = failing(["inspect", "x"], capsys)
    assert "ZeroDivisionError: by zero)" in sentence and "--debug" in sentence


def test_inspect_tells_what_a_motion_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motion = Motion(map_unet(small_host().unet)).initialise(0)
    about = MotionConfig(motion.sites.family, frames=3, prompt="rain falls", steps=77)
    path = save_motion(tmp_path / "rain.safetensors", motion.state_dict(), about)
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert "Prompt: rain falls" in told and "77 steps" in told
    other = save_motion(
        tmp_path / "snow.safetensors",
        motion.state_dict(),
        replace(about, steps=88),
        extra={SCORES_KEY: '{"held_out_loss": 0.25}'},
    )
    assert main(["inspect", str(path), str(other)]) == 0
    told = capsys.readouterr().out
    assert told.index("77 steps") < told.index("88 steps") < told.index("held out loss 0.25")


# --- config files ----------------------------------------------------------------------------


@pytest.fixture()
def config(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    path = tmp_path / "run.toml"
    path.write_text('[base]\npath = "toy"\n[data]\nfolder = "clips"\n', encoding="utf-8")
    return path


def read(config: Path, *changes: str) -> RunSettings:
    return read_settings(config, list(changes))


def test_what_is_not_said_has_the_papers_value(config: Path) -> None:
    settings = read(config)
    assert settings.config == TrainConfig(frames=16)
    assert settings.clips_folder == config.parent / "clips"
    assert settings.folder == config.parent / "output"
    assert (settings.name, settings.resume, settings.cache) == ("motion", "none", None)
    assert settings.choices == RunChoices()


def test_a_preset_is_taken_and_single_settings_over_it(config: Path) -> None:
    text = '[recipe]\npreset = "fast"\nsteps = 300\nreference_width = 32\nbetas = [0.9, 0.99]\n'
    config.write_text(config.read_text() + text)
    expected = {**preset("fast", 300), "reference_width": 32, "betas": (0.9, 0.99)}
    assert read(config).config == TrainConfig(frames=16, steps=300, **expected)


def test_every_setting_of_the_recipe_can_be_given() -> None:
    names = {field.name for field in fields(TrainConfig)} - {"frames", "gradient_checkpointing"}
    assert names <= set(TABLES["recipe"].model_fields)


def test_set_goes_over_the_file_and_needs_no_quotes(config: Path) -> None:
    changes = ("data.frames=8", "data.prompt=a red star", "recipe.ema=0.99", "data.flip=true")
    settings = read(config, *changes, "output.name=horses/run", "recipe.steps=3", "recipe.steps=4")
    assert (settings.clips.frames, settings.config.frames, settings.config.steps) == (8, 8, 4)
    assert (settings.prompt, settings.name) == ("a red star", "horses/run")
    assert settings.config.ema == 0.99 and settings.clips.flip


def test_paths_start_at_the_files_own_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = read(Path("../run.toml"), "output.cache=kept", f"output.folder={tmp_path / 'out'}")
    assert settings.clips_folder.resolve() == tmp_path / "clips"
    assert settings.cache is not None and settings.cache.resolve() == tmp_path / "kept"
    assert settings.folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("frame = 8", ["[data] frame ", "'frames'"]),
        ("steps = 8", ["[data] steps ", "[recipe]"]),
        ("xyz = 8", ["[data] xyz ", "folder", "max_frames"]),
        ("frames = '8'", ["[data] frames", "'8'", "integer"]),
        ("frames = 8.0", ["[data] frames", "8.0", "integer"]),
        ("flip = 1", ["[data] flip", " 1,", "boolean"]),
        ("fps = true", ["[data] fps", "true", "number"]),
        ("fit = 'cover'", ["[data] fit", "'cover'", "'crop', 'pad' or 'stretch'"]),
        ("width = 100", ["[data]", "width", "100"]),
        ("[recipes]\nsteps = 8", ["[recipes]", "'recipe'"]),
        ("[recipe]\nframes = 8", ["[recipe] frames", "[data]"]),
        ("[recipe]\nbetas = [0.9]", ["[recipe] betas", "[0.9]"]),
        ("[recipe]\nbetas = [0.9, 'b']", ["[recipe] betas", "'b'", "number"]),
        ("[recipe]\npreset = 'slow'", ["[recipe] preset", "'slow'", "'paper' or 'fast'"]),
        ("[recipe]\nwarmup = 10\nsteps = 5", ["[recipe]", "warmup", "10", "5"]),
        ("[recipe]\ngroupnorm = 'x'", ["[recipe] groupnorm", "'pooled' or 'frame'"]),
        ("[output]\nkeep = 0", ["[output] keep", " 0,", " 1"]),
        ("[output]\nname = '../x'", ["[output] name", "'../x'"]),
        ("[output]\nname = 'con.x'", ["[output] name", "'con.x'"]),
        ("[output]\nresume = 'gone'", ["[output] resume", "gone'"]),
        ("fps = nan", ["[data] fps", "nan"]),
        ("fps = 1e999", ["[data] fps", "inf"]),
        (f"frames = 0x{'f' * 9000}", ["[data] frames"]),
        (f"max_frames = 0x{'f' * 9000}", ["[data] max_frames"]),
        ("[recipe]\nbetas = [0.9, 1.0]", ["[recipe]", "betas", "1.0"]),
        ("[recipe]\nseed = -1", ["[recipe] seed", "-1"]),
        ("[output]\ncache = '~nobody-is-here/x'", ["[output] cache", "'~nobody-is-here/x'"]),
        (f"[output]\nresume = '{'x' * 5000}'", ["[output] resume", "x" * 100]),
        ('[output]\nresume = "a\\u0000b"', ["[output] resume"]),
        (f"frames = {'[' * 5000}", ["recursion"]),
        (f"frames = {'1' * 5000}", ["digits"]),
        (f"{'a.' * 9990}a = 1", [" bytes", "20,000"]),
        ("frames = 8\nframes = 9", ["line 6"]),
        ("prompt = horse", ["line 5"]),
    ],
)
def test_a_mistake_is_named_with_key_and_value(config: Path, added: str, named: list[str]) -> None:
    config.write_text(config.read_text() + added + "\n")
    with pytest.raises(LampError) as refused:
        read(config)
    message = str(refused.value)
    assert [part for part in ["run.toml", *named] if part not in message] == [], message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path = 'toy'\n", ["path", "[base]"]),
        ("data = 5\n[base]\npath = 'toy'", ["[data]", "5"]),
        ("[base]\npath = 'toy'\n", ["[data] folder"]),
        ("[base]\npath = 'toy'\n[data]\nfoldr = 'clips'", ["[data] foldr", "'folder'"]),
        ("[data]\nfolder = 'clips'\n", ["[base] path", ".safetensors"]),
        ("[data]\nfolder = 'clips'\n[base]\npath = 'x.safetensors'\n", ["[base] path", "x.safe"]),
        ("[base]\npath = 'toy'\n[data]\nfolder = 'none'\n", ["[data] folder", "none'"]),
    ],
)
def test_what_is_missing_is_named(config: Path, text: str, named: list[str]) -> None:
    config.write_text(text)
    with pytest.raises(LampError) as refused:
        read(config)
    message = str(refused.value)
    assert [part for part in ["run.toml", *named] if part not in message] == [], message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("steps=5", ["TABLE.KEY=VALUE", "recipe.steps"]),
        ("recipe.steps", ["TABLE.KEY=VALUE", "recipe.steps"]),
        ("receipt.steps=5", ["base, data, recipe, output"]),
        ("recipe.step=5", ["--set recipe.step ", "'steps'"]),
        ("recipe.steps=many", ["--set recipe.steps", "'many'", "integer"]),
        ("recipe.steps=0", ["--set recipe.steps", " 0,"]),
        ("recipe.warmup=40000", ["--set recipe.warmup", "40000"]),
        ("recipe.betas=[0.9, 1.0]", ["--set recipe.betas", "1.0"]),
        ("data.stride=0", ["--set data.stride", "0"]),
    ],
)
def test_a_mistake_in_set_is_named(config: Path, change: str, named: list[str]) -> None:
    with pytest.raises(LampError) as refused:
        read(config, change)
    message = str(refused.value)
    assert [part for part in ["--set", *named] if part not in message] == [], message


def test_a_mistake_in_the_file_is_not_blamed_on_set(config: Path) -> None:
    config.write_text(f"{config.read_text()}[recipe]\nseed = -1\n")
    with pytest.raises(LampError) as refused:
        read(config, "recipe.steps=10")
    assert "run.toml" in str(refused.value) and "seed" in str(refused.value)


def test_a_byte_order_mark_does_no_harm_and_another_encoding_is_named(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert read(config).base == "toy"
    config.write_bytes("[data]\nprompt = 'æ'".encode("latin-1"))
    with pytest.raises(LampError, match=r"run\.toml.*UTF-8"):
        read(config)


# --- where a run writes ----------------------------------------------------------------------


def test_runs_are_numbered_after_what_is_there(tmp_path: Path) -> None:
    assert find_place(tmp_path, "run", "none").folder == tmp_path / "run_00001"
    (tmp_path / "run_00003").mkdir()
    (tmp_path / "run_00007-step000002-stopped.safetensors").touch()
    (tmp_path / "run_away_00011").mkdir()
    (tmp_path / "run_1st").mkdir()
    assert find_place(tmp_path, "run", "none").folder == tmp_path / "run_00008"
    assert find_place(tmp_path, "run", "latest").folder == tmp_path / "run_00008"
    assert find_place(tmp_path, "[a]/run", "latest").folder == tmp_path / "[a]" / "run_00001"


# --- stopping --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_and_the_second_one_an_order(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        signal.raise_signal(number)
        assert stop.asked
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_launched_process_is_patient() -> None:
    stop = StopRequest(launched=True)
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- progress --------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few_but_tell_the_begin_and_the_end() -> None:
    stream = io.StringIO()
    with Terminal(stream) as terminal:
        for done in range(1001):
            terminal.progress("training", done, 1000, "loss 0.5")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training 1 of 1000, loss 0.5"
    assert lines[-1] == "training 1000 of 1000, loss 0.5"
    assert 40 <= len(lines) <= 43
    assert "\x1b" not in stream.getvalue()


def test_a_short_job_tells_every_step() -> None:
    stream = io.StringIO()
    for done in range(4):
        Terminal(stream).progress("reading", done, 3)
    assert stream.getvalue() == "reading 1 of 3\nreading 2 of 3\nreading 3 of 3\n"


def test_warnings_of_the_method_are_shown() -> None:
    import logging

    stream = io.StringIO()
    logger = logging.getLogger("lamp.tests")
    handler = LogLines(Terminal(stream))
    logger.addHandler(handler)
    logger.warning("the clip %s is short", "a.mp4")
    logger.info("nothing")
    logger.removeHandler(handler)
    assert stream.getvalue() == "warning: the clip a.mp4 is short\n"


def test_a_screen_gets_a_bar_with_loss_speed_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen()
    report = StepReport(3, 4, 0.125, 1e-3, 2.0)
    with Terminal(screen) as terminal:
        terminal.progress("encoding clips", 8, 8)
        terminal.say("a text between")
        terminal.progress("training", 3, 4, describe_step(report))
        terminal.say("another")
    shown = screen.getvalue()
    assert "a text between\n" in shown and "another\n" in shown
    assert "8/8" in shown and "3/4" in shown
    assert "0.1250" in shown and "0.50 steps/s" in shown and "0:00:02" in shown


def test_a_screen_without_tqdm_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    screen = Screen()
    Terminal(screen).progress("reading", 1, 1)
    assert screen.getvalue().endswith("\n") and "\r" not in screen.getvalue()


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(None) as terminal:
        terminal.say("text")
        terminal.progress("reading", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_slow_steps_are_told_in_seconds() -> None:
    told = describe_step(StepReport(1, 3, 0.5, 1e-3, 40.0))
    assert "0.5000" in told and "40.0 s" in told and "0:01:20" in told
