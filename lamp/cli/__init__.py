"""The command line: `python -m lamp COMMAND`, run in the pack's folder.

A command is a module of this package, listed in `COMMANDS`. Heavy imports happen when it runs, so
that the help appears at once.
"""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from ..errors import LampError
from ..plain import plain, plain_error
from . import compress, convert, inspect_motion, merge, metrics, share, train

DONE, FAILED, CANCELLED = 0, 1, 130


class Command(Protocol):
    """A subcommand: `NAME` and `HELP` (one line) for the list, and two functions."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the description and the arguments."""
        ...

    def run(self, args: argparse.Namespace) -> None:
        """Run it. A `LampError` ends the program with its message."""
        ...


COMMANDS: tuple[Command, ...] = (
    train,
    inspect_motion,
    merge,
    convert,
    compress,
    share,
    metrics,
)

_ABOUT = """\
LAMP: train a motion on a few clips, without ComfyUI.

Run it in the pack's folder. The motion files are the same as those of the ComfyUI nodes."""
_MORE = """\
python -m lamp COMMAND --help describes a command.

exit status: 0 success, 1 error (explained on stderr), 130 cancelled"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One message and status 1, as for any other error."""
        raise LampError(f"{message.rstrip('.')}. See {self.prog} --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    _print_anything()
    try:
        args = _parser(given).parse_args(given)
        args.run(args)
    except KeyboardInterrupt:
        return CANCELLED
    except ModuleNotFoundError as error:
        failed: BaseException = LampError(
            f"The package {error.name} is missing: pip install {error.name}."
        )
    except Exception as error:
        failed = plain_error(error)
    else:
        return DONE
    if debug:
        raise failed
    sys.stderr.write(f"error: {_message(failed)}\n")
    return FAILED


def _print_anything() -> None:
    """Print characters that the stream cannot encode as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _parser(given: list[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lamp",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda args: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        own = commands.add_parser(
            command.NAME,
            help=command.HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.add_argument("--debug", action="store_true", help="show the traceback of an error")
        own.set_defaults(run=command.run)
        command.add_arguments(own)
    _check_command(given)
    return parser


def _check_command(given: list[str]) -> None:
    names = [command.NAME for command in COMMANDS]
    if not given or given[0].startswith("-") or given[0] in names:
        return
    close = difflib.get_close_matches(given[0], names, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(names)}."
    raise LampError(f"Unknown command '{given[0]}': {hint}")


def _message(error: BaseException) -> str:
    if isinstance(error, LampError):
        return str(error)
    first = plain(str(error).strip().split("\n")[0], 300).rstrip(".")
    return (
        f"Unexpected error ({type(error).__name__}: {first}). Run it again with --debug and report "
        "the traceback."
    )
