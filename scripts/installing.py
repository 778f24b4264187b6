"""What the steps of `make setup` share: how they report, fail and call pip.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_LARGE_MB = 20.0
_DOWNLOAD = re.compile(r"\s*(?:Downloading|Using cached) (\S+) \(([\d.]+) ([MG])B\)")


class SetupFailed(RuntimeError):
    """A step did not work; the message says what to do."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def pip(*arguments: str) -> None:
    """Run pip in this environment. Shows large downloads only, and pip's last lines if it fails.

    Raises:
        SetupFailed: pip ended with an error.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            size = _DOWNLOAD.match(line)
            if size and (size[3] == "G" or float(size[2]) >= _LARGE_MB):
                say(f"  {size[1].rsplit('/', 1)[-1].split('-')[0]} ({size[2]} {size[3]}B)")
            elif line.startswith("Installing collected packages"):
                say("  installing")
    if process.returncode:
        print("\n".join(lines[-30:]), file=sys.stderr)
        raise SetupFailed(
            f"pip {arguments[0]} ended with status {process.returncode}. Check the network and the "
            "free disk space, then run setup again: finished steps are not repeated."
        )
