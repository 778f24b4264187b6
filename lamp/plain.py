"""Texts that carry a value from outside, made fit to be shown: in an error, a log, a terminal, a
node.

A name or a prompt may hold half a character, which ends whatever encodes it; escape sequences,
which move a terminal's cursor or fill its clipboard; marks that turn the direction of the text
behind them; or a megabyte. `plain` is the one place that deals with all of them, and it stands
where such texts pass: errors when they are made (`LampError`), records of `log`, what the nodes
show (`nodes.common`) and what the command line prints (`cli.terminal`).
"""

from __future__ import annotations

import logging
import re
import traceback
import unicodedata

LONGEST = 2000
"""Characters of a line that are shown."""
_LEFT_OUT = " ... "
# Drawn as nothing, though Unicode counts them among letters and marks (Default_Ignorable).
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)


def plain(value: object, most: int = LONGEST) -> str:
    """One line: characters that cannot be encoded or seen are written as in Python's source
    (`\\ud800`, `\\x1b`, `\\u202e`), line breaks too; of a longer text the middle is left out.

    A text that is plain already stays as it is.
    """
    text = _cut(str(value), most)
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    # An escape takes up to ten characters.
    return _cut("".join(map(_shown, text)), most)


def plain_lines(value: object, most: int = LONGEST) -> str:
    """As `plain`, of each line of a text that may have several."""
    return "\n".join(plain(line, most) for line in str(value).split("\n"))


def plain_error(error: BaseException) -> BaseException:
    """The error with plain texts, also of those that it came from: whoever logs it prints them all.

    What cannot be made plain in its place (an error's class may put its text together as it likes)
    becomes a `RuntimeError` that says the same.
    """
    return _plain_error(error, {})


class _PlainRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = plain_lines(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = plain_lines(logging.Formatter().formatException(record.exc_info))
        return True


log = logging.getLogger("lamp")
"""The only logger: what goes through it is plain."""
log.addFilter(_PlainRecords())


def _cut(text: str, most: int) -> str:
    """The end stays, where sentences tell what to do."""
    if len(text) <= most:
        return text
    end = most // 4
    return text[: most - end - len(_LEFT_OUT)] + _LEFT_OUT + text[-end:]


def _shown(letter: str) -> str:
    # Spaces other than the common one count as not printable, and are harmless.
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
    found = error if _is_plain(error) or _made_plain(error) else _stand_in(error)
    known[id(error)] = found
    found.__cause__, found.__context__ = behind
    found.__suppress_context__ = hidden
    return found


def _told(error: BaseException) -> str:
    """What a traceback prints of it."""
    try:
        own = "".join(traceback.format_exception_only(type(error), error))
    except Exception:  # its class may do anything
        own = "\x00"
    return own + "".join(_told(each) for each in getattr(error, "exceptions", ()))


def _is_plain(error: BaseException) -> bool:
    told = _told(error).replace("\t", " ")
    return told == plain_lines(told)


def _made_plain(error: BaseException) -> bool:
    try:
        error.args = tuple(plain_lines(a) if isinstance(a, str) else a for a in error.args)
        if notes := getattr(error, "__notes__", None):
            notes[:] = [plain_lines(note) for note in notes]
    except Exception:  # as above
        return False
    return _is_plain(error)


def _stand_in(error: BaseException) -> RuntimeError:
    try:
        text = plain_lines(error)
    except Exception:  # as above
        text = "it cannot be told"
    return RuntimeError(f"{type(error).__name__}: {text}").with_traceback(error.__traceback__)
