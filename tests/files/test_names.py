"""File names that users choose: valid on every system, never outside their folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lamp.files.names import is_plain_name


@pytest.mark.parametrize(
    "name",
    ["horse", "horses/run", "a b", "骑马/跑", "größe – 1", "🐎", ".hidden", "v1.5", "a'b",
     "x" * 160, "console", "common/null", "com10", "%width%x%height%", "it's (1) & co, #2 = 100%"],
)  # fmt: skip
def test_names_valid_on_every_system(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "a/..", "/etc/x", "a//b", "a/", "C:/x", "C:x", "c:\\x",
     "a\\b", "\\\\host\\share\\x", "//host/share/x", "\\\\?\\C:\\x", "\\\\.\\nul", "..\\x", "x.",
     "x ", " x", "a./b", "a /b", "...", "nul", "NUL", "con.txt", "Aux.a.b", "a/prn", "com1",
     "lpt9.log", "COM¹", "nul .txt", "conin$", "a:stream", "a::$DATA", "what?", "a*b", "a|b", "<a>",
     '"a"', "a\nb", "a\tb", "a\0b", "\x1b[31m", "\ud800", "x" * 161, "跑" * 54],
)  # fmt: skip
def test_names_that_some_system_changes_or_refuses(name: str) -> None:
    assert not is_plain_name(name)


@pytest.mark.slow
@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(some.text("ab./\\: ~cCnNuUlL*\0\U0001f40e", max_size=12))
def test_a_plain_name_stays_below_its_folder_on_posix_and_windows(name: str) -> None:
    """Checked with the standard library's path rules."""
    if not is_plain_name(name):
        return
    for kind, root in ((PurePosixPath, "/lamp/motions"), (PureWindowsPath, "D:\\lamp\\motions")):
        joined = kind(root) / name
        assert joined.is_relative_to(root) and joined != kind(root)
        assert ".." not in joined.parts
        assert joined.relative_to(root).as_posix() == name
