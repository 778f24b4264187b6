"""ComfyUI with this pack, for a browser: `make run`. ARGS="--port 8200" passes arguments to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from scripts.server.host import (
    BASE_DIRECTORY,
    HostMissing,
    host_version,
    make_base_directory,
    ready_host,
)


def main() -> int:
    try:
        host = ready_host()
    except HostMissing as error:
        print(error, file=sys.stderr)
        return 1
    base = make_base_directory(BASE_DIRECTORY)
    print(f"ComfyUI {host_version(host)} in {host}")
    print(f"Models go below {base / 'models'}. Press Ctrl-C to stop.", flush=True)
    try:
        return subprocess.run(command(host, base), cwd=host, check=False).returncode
    except KeyboardInterrupt:
        return 0


def command(host: Path, base: Path) -> list[str]:
    """The command line. Everything that ComfyUI writes goes below `base`, its database, too.

    Each version has a database of its own, since an older one cannot read that of a newer one.
    """
    file = base / "user" / f"comfyui-{host_version(host)}.db"
    database = f"sqlite:///{file.as_posix()}"
    line = [sys.executable, str(host / "main.py"), "--base-directory", str(base)]
    line += ["--database-url", database]
    return line + ([] if _gpu_available() else ["--cpu"]) + sys.argv[1:]


def _gpu_available() -> bool:
    kinds = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", None))
    return any(kind is not None and kind.is_available() for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
