"""Sanitise texts with values from outside for errors, logs, terminals and nodes.

A name or prompt may contain lone surrogates, which cannot be encoded; escape sequences, which
control a terminal; marks that reverse the direction of text; or a megabyte. `plain` handles all of
these. It is applied to errors (`LampError`), records of `log`, texts of nodes (`nodes.common`) and
the output of the command line (`cli.terminal`).
"""

from __future__ import annotations

import logging
import re
import traceback
import unicodedata

LONGEST = 2000
"""The most characters of a line that are shown."""
_LEFT_OUT = " ... "
# Invisible, though Unicode counts them as letters and marks (Default_Ignorable).
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)


def plain(value: object, most: int = LONGEST) -> str:
    """One line in which characters that cannot be encoded or seen, and line breaks, are escaped as
    in Python (`\\ud800`, `\\x1b`, `\\u202e`). The middle of a long text is left out.

    A text that is plain already is returned unchanged.
    """
    text = _cut(str(value), most)
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    # An escape takes up to ten characters.
    return _cut("".join(map(_shown, text)), most)


def plain_lines(value: object, most: int = LONGEST) -> str:
    """Apply `plain` to each line of a text."""
    return "\n".join(plain(line, most) for line in str(value).split("\n"))


def plain_error(error: BaseException) -> BaseException:
    """The error with plain texts, including its causes, because loggers print them all.

    An error that cannot be changed in place (its class may build its text in any way) is replaced
    by a `RuntimeError` with the same text.
    """
    return _plain_error(error, {})


class _PlainRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = plain_lines(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = plain_lines(logging.Formatter().formatException(record.exc_info))
        return True


log = logging.getLogger("lamp")
"""The package's only logger; its records are plain."""
log.addFilter(_PlainRecords())


def _cut(text: str, most: int) -> str:
    """Leave out the middle; the end says what to do."""
    if len(text) <= most:
        return text
    end = most // 4
    return text[: most - end - len(_LEFT_OUT)] + _LEFT_OUT + text[-end:]


def _shown(letter: str) -> str:
    # Spaces other than U+0020 count as not printable, but are harmless.
    seen = letter.isprintable() or unicodedata.category(letter) == "Zs"
    if seen and not _UNSEEN.match(letter):
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def _plain_error(error: BaseException, known: dict[int, BaseException]) -> BaseException:
    if id(error) in known:
        return known[id(error)]
    known[id(error)] = error
    hidden = error.__suppress_context__
    behind = [
        None if each is None else _plain_error(each, known)
        for each in (error.__cause__, error.__context__)
    ]
    found = error if _is_plain(error) or _made_plain(error) else _replacement(error)
    known[id(error)] = found
    found.__cause__, found.__context__ = behind
    found.__suppress_context__ = hidden
    return found


def _traceback_text(error: BaseException) -> str:
    """The text of an error in a traceback."""
    try:
        own = "".join(traceback.format_exception_only(type(error), error))
    except Exception:  # its class may do anything
        own = "\x00"
    return own + "".join(_traceback_text(each) for each in getattr(error, "exceptions", ()))


def _is_plain(error: BaseException) -> bool:
    text = _traceback_text(error).replace("\t", " ")
    return text == plain_lines(text)


def _made_plain(error: BaseException) -> bool:
    try:
        error.args = tuple(plain_lines(a) if isinstance(a, str) else a for a in error.args)
        if notes := getattr(error, "__notes__", None):
            notes[:] = [plain_lines(note) for note in notes]
    except Exception:  # as above
        return False
    return _is_plain(error)


def _replacement(error: BaseException) -> RuntimeError:
    try:
        text = plain_lines(error)
    except Exception:  # as above
        text = "no message"
    return RuntimeError(f"{type(error).__name__}: {text}").with_traceback(error.__traceback__)
