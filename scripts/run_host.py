"""ComfyUI with this pack, for a browser: `make run`, further arguments in ARGS="--port 8200"."""

from __future__ import annotations

import subprocess
import sys

import torch

from scripts.server.host import BASE_DIRECTORY, HostMissing, host_path, make_base_directory


def main() -> int:
    try:
        host = host_path()
    except HostMissing as error:
        print(error, file=sys.stderr)
        return 1
    base = make_base_directory(BASE_DIRECTORY)
    command = [sys.executable, str(host / "main.py"), "--base-directory", str(base)]
    command += [] if torch.cuda.is_available() else ["--cpu"]
    command += sys.argv[1:]
    print(f"Models go below {base / 'models'}; Ctrl-C ends ComfyUI.", flush=True)
    try:
        return subprocess.run(command, cwd=host, check=False).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
