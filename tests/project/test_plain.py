"""Texts that carry values from outside: in errors, logs, terminals, nodes."""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from lamp.cli import FAILED, main
from lamp.cli.terminal import Terminal
from lamp.clips.captions import find_caption
from lamp.errors import ClipError, IncompatibleModelError, LampError, MotionFileError
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import MotionFile
from lamp.plain import LONGEST, log, plain, plain_error, plain_lines

ROOT = Path(__file__).parents[2]
# A title, a clipboard, a cleared screen, a line over another one, half a character, bytes that are
# no text, text turned around, nothing to see, tags, C1, line separators, a soft hyphen.
HARMFUL = [
    "\x1b]0;title\x07", "\x1b]52;c;aGk=\x07", "\x1b[2J", "good\rbad", "\ud800", "\udcff", "\x00",
    "a\u202eb", "\u2066a\u2069", "\u200b", "\ufeff", "\U000e0041", "\x9b31m", "\x85", "\u2028",
    "\u2029", "\xad", "\u061c", "\u115f", "\u3164", "\u2800", "\ufe0f", "\U000e0100", "\x7f", "\b",
    "\n", "\u180e", "\U0001d173", "\ufff9", "\ue000",
]  # fmt: skip
HONEST = [
    "a horse runs",
    "骑马",
    "跑　步",
    "Pferd läuft",
    "حصان يجري",
    "🐎 runs",
    "it’s “so”",
    "e\u0301",
]


def harmless(text: str, lines: bool = False) -> bool:
    """As a terminal and a log need it, by Unicode's own table."""
    text.encode("utf-8")
    kinds = {unicodedata.category(letter) for letter in text if not (lines and letter == "\n")}
    return not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize("text", HARMFUL)
def test_what_harms_is_shown_as_its_code(text: str) -> None:
    shown = plain(f"the clip '{text}' is short")
    assert harmless(shown) and shown.startswith("the clip '") and shown.endswith("' is short")
    bad = next(letter for letter in text if letter in "".join(HARMFUL) and letter not in shown)
    assert f"{ord(bad):x}" in shown or repr(bad)[1:-1] in shown
    assert plain(shown) == shown


@pytest.mark.parametrize("text", HONEST)
def test_words_of_any_language_stay(text: str) -> None:
    assert plain(text) == text


@pytest.mark.slow
def test_every_character_is_harmless_once_it_is_plain() -> None:
    for start in range(0, 0x110000, 256):
        shown = plain("".join(map(chr, range(start, start + 256))), 5000)
        assert harmless(shown), hex(start)


@pytest.mark.parametrize("letter", ["x", "\x1b", "\U000e0041", "\n"])
def test_a_megabyte_is_cut_and_the_end_of_the_sentence_stays(letter: str) -> None:
    shown = plain(f"'{letter * 2**20}' is no name: choose another.")
    assert len(shown) <= LONGEST and shown.endswith("is no name: choose another.")
    assert all(len(line) <= LONGEST for line in plain_lines(letter * 2**20).split("\n")[:3])


@pytest.mark.parametrize("kind", [LampError, MotionFileError, IncompatibleModelError, ClipError])
@pytest.mark.parametrize("text", HARMFUL)
def test_errors_are_plain_whoever_makes_them(kind: type[LampError], text: str) -> None:
    assert harmless(str(kind(f"'{text}' is missing.")))


# --- what stands behind an error ---------------------------------------------------------------


class Stubborn(Exception):
    """Puts its text together as it likes."""

    def __str__(self) -> str:
        return "told \ud800 \x1b[2J"


class Broken(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def noted() -> Exception:
    error = ValueError("fine")
    error.__notes__ = ["a note \u202e"]
    return error


def originals() -> list[Exception]:
    surrogate = "a\ud800"
    found: list[Exception] = [ValueError(surrogate), RuntimeError(f"\x1b]52;c;aGk=\x07{surrogate}"),
        TypeError(surrogate), KeyError(surrogate), OSError(2, surrogate, surrogate), Stubborn(),
        Broken(), noted(), SyntaxError("bad", ("f\ud800", 1, 1, "\x1b[2J\ud800")),
        ValueError("x" * 2**20), LookupError("\u202e", surrogate)]  # fmt: skip
    for act in (lambda: Path(surrogate).exists(), surrogate.encode, lambda: int(surrogate),
                lambda: open(f"/none/{surrogate}"), lambda: find_caption(Path("\0"))):  # fmt: skip
        try:
            act()
        except Exception as error:
            found.append(error)
    return found


@pytest.mark.parametrize("number", range(len(originals())))
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_traceback_is_plain_down_to_the_first_error(number: int, depth: int) -> None:
    """As the host prints and sends it: with all that stands behind an error."""
    error: BaseException = originals()[number]
    for level in range(depth):
        try:
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("outer \ud801") from (inner if level else None)
        except RuntimeError as outer:
            error = outer
    shown = plain_error(error)
    told = "".join(traceback.format_exception(type(shown), shown, shown.__traceback__))
    assert harmless(told, lines=True)
    assert all(len(line) < 3 * LONGEST for line in told.split("\n"))


def test_a_plain_error_stays_what_it_is() -> None:
    error = OSError(28, "No space left on device", "/tmp/x")  # noqa: S108
    error.__cause__ = cause = MemoryError("7 bytes")
    assert plain_error(error) is error and error.__cause__ is cause
    assert error.args == (28, "No space left on device") and error.filename == "/tmp/x"  # noqa: S108
    circle = ValueError("\ud800")
    circle.__context__ = error
    error.__context__ = circle
    assert plain_error(circle) is circle and harmless(str(circle))


def test_an_error_keeps_its_kind_which_the_host_acts_upon() -> None:
    assert type(plain_error(torch.OutOfMemoryError("\ud800"))) is torch.OutOfMemoryError


# --- where texts go ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HARMFUL)
def test_the_log_is_plain(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "lamp"):
        log.warning("'%s' is damaged", text)
        log.warning(f"{text}: %d", 1)
        try:
            raise ValueError(text)
        except ValueError:
            log.debug("reading %s", text, exc_info=True)
    assert len(caplog.records) == 3 and harmless(caplog.text, lines=True)


def test_there_is_no_other_logger() -> None:
    found = [call for folder in ("lamp", "nodes") for path in (ROOT / folder).rglob("*.py")
             for call in re.findall(r"getLogger\((.*)\)", path.read_text("utf-8"))]  # fmt: skip
    assert found and set(found) == {'"lamp"'}


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("make", [io.StringIO, _Screen])
@pytest.mark.parametrize("text", HARMFUL)
def test_terminals_show_and_do_not_obey(make: Any, text: str) -> None:
    stream = make()
    with Terminal(stream) as terminal:
        terminal.say(f"first {text} last")
        terminal.progress(f"job {text}", 1, 2, f"detail {text}")
        terminal.progress(f"job {text}", 2, 2, f"[red]detail {text}")
    shown = stream.getvalue()
    if make is _Screen:
        shown = shown.replace("\r", "\n")  # tqdm's own
    assert harmless(shown, lines=True)


def test_a_motion_describes_itself_in_lines_that_it_cannot_forge() -> None:
    words = f"a{''.join(HARMFUL)}\nLicense: MIT"
    config = MotionConfig(family=words, prompt=words, captions=[words] * 3, base_model=words)
    headers = {"modelspec.license": words, "lamp.source": words,
               "lamp.parents": '[{"name": "a\\u001b\\nLicense: MIT", "weight": 1}]'}  # fmt: skip
    for metadata in ({}, headers):
        text = describe_motion(MotionFile({}, config, metadata, words))
        assert harmless(text, lines=True)
        lines = text.split("\n")
        assert not [line for line in lines if line.startswith("License: MIT")]
        assert len([line for line in lines if line.startswith("  ")]) == 3


def test_long_captions_are_cut_where_they_are_shown() -> None:
    config = MotionConfig(family="sd1", prompt="x" * 500_000, captions=["y" * 500_000] * 20)
    assert len(describe_motion(MotionFile({}, config))) < 10_000


@pytest.mark.parametrize("text", HARMFUL)
def test_the_command_line_prints_plain_errors(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["inspect", f"x{text}.safetensors"], [text], ["train", "x", text],
                      ["compress", f"{text}.safetensors", text, "--size", text]):  # fmt: skip
        assert main(arguments) == FAILED
        assert harmless(capsys.readouterr().err, lines=True)

    def crash(path: Path) -> None:
        raise ZeroDivisionError(text)

    monkeypatch.setattr("lamp.motion_file.file.load_motion_file", crash)
    assert main(["inspect", "x"]) == FAILED
    assert harmless(capsys.readouterr().err, lines=True)
    with pytest.raises((ZeroDivisionError, RuntimeError)) as caught:
        main(["inspect", "x", "--debug"])
    assert harmless("".join(traceback.format_exception(caught.value)), lines=True)


# --- nodes ---------------------------------------------------------------------------------------


def test_every_node_lets_plain_errors_out_only(node_classes: dict[str, Any]) -> None:
    """The host prints them with all that stands behind them, from a handler of its own."""
    for name, node in node_classes.items():
        for method in ("execute", "validate_inputs", "fingerprint_inputs"):
            own = node.__dict__.get(method)
            if own is None:
                continue
            assert hasattr(own.__func__, "__wrapped__"), (name, method)


class Bare:
    """A node without inputs."""

    @staticmethod
    def define_schema() -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(inputs=[])


@pytest.mark.parametrize("number", range(len(originals())))
def test_what_a_node_raises_can_be_printed(pack: Any, number: int) -> None:
    from comfyui_lamp.nodes.common import named_errors, plain_errors

    def fail(node: Any) -> None:
        try:
            raise originals()[number]
        except Exception as error:
            if number % 2:
                raise
            raise LampError(f"It failed: {error.args}.") from error

    for guarded in (named_errors("A Node")(fail), plain_errors(fail)):
        with pytest.raises(Exception) as caught:  # noqa: B017, PT011
            guarded(Bare)
        assert harmless("".join(traceback.format_exception(caught.value)), lines=True)


@pytest.mark.parametrize("text", HARMFUL)
def test_what_a_node_shows_is_plain(pack: Any, text: str) -> None:
    from comfy_api.latest import io as comfy_io
    from comfy_api.latest import ui
    from comfyui_lamp.nodes.common import named_errors

    shown = ui.PreviewText(f"a\n{text}")
    for given in (shown, {**shown.as_dict(), "images": []}):
        output = named_errors("A Node")(lambda node, given=given: comfy_io.NodeOutput(ui=given))(
            Bare
        )
        told = output.ui if isinstance(output.ui, dict) else output.ui.as_dict()
        assert harmless(told["text"][0], lines=True)


@pytest.mark.parametrize("text", HARMFUL)
def test_lines_under_a_node_can_be_sent_whatever_its_name_in_the_graph(
    pack: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the host sends them: both encoded into one message."""
    from types import SimpleNamespace

    from comfyui_lamp.nodes.progress import NodeProgress

    sent: list[str] = []
    instance = SimpleNamespace(send_progress_text=lambda line, node: sent.extend((line, node)))
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", server)
    NodeProgress(text).announce(f"reading {text}")
    NodeProgress("7").say("reading")
    # Front ends before 1.48 draw it as HTML.
    NodeProgress(None).warn("x")
    NodeProgress("8").warn(f"<img src=x onerror=alert(1)> {text}")
    assert "<" not in sent.pop(-2) and sent.pop() == "8"
    assert all(harmless(part, lines=True) for part in sent) and sent[2:] == ["reading", "7"]
