"""CPU time and packages that this pack adds to ComfyUI's start.

    python -m benchmarks.import_cost --runs 5

Each run is a new process: it imports ComfyUI's own node modules, then loads this pack as ComfyUI
does, up to all schemas. Prints each run, and last one line of JSON. Exit status 0 only if the
median is below 0.2 s and the pack imports no package that ComfyUI had not imported itself.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import finish, parser
from scripts.server.host import (
    PACK_MODULE,
    ROOT,
    make_base_directory,
    make_type_check_directory,
    use_host,
)

MOST_SECONDS = 0.2


def measure() -> dict[str, Any]:
    """CPU seconds and newly imported packages in this process."""
    with tempfile.TemporaryDirectory() as base:
        use_host(make_base_directory(Path(base)))
        importlib.import_module("nodes")
        importlib.import_module("comfy_api.latest")
        sys.path.append(str(make_type_check_directory()))
        before = packages()
        started = time.process_time()
        asyncio.run(_load())
        seconds = time.process_time() - started
    return {"seconds": seconds, "packages": sorted(packages() - before - {PACK_MODULE})}


async def _load() -> None:
    extension = await importlib.import_module(PACK_MODULE).comfy_entrypoint()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()


def packages() -> set[str]:
    """Top-level imported packages, without the standard library."""
    names = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    return {name for name in names if name not in sys.stdlib_module_names and name[0] != "_"}


def main() -> int:
    command = parser("import_cost", __doc__)
    command.add_argument("--runs", type=int, default=5)
    command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = command.parse_args()
    if args.worker:
        print(json.dumps(measure()))
        return 0
    worker = [sys.executable, "-m", "benchmarks.import_cost", "--worker"]
    runs = []
    for _ in range(args.runs):
        done = subprocess.run(worker, cwd=ROOT, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{runs[-1]['seconds']:.3f} s  {', '.join(runs[-1]['packages']) or 'no package'}")
    median = statistics.median(run["seconds"] for run in runs)
    added = sorted({name for run in runs for name in run["packages"]})
    passed = median < MOST_SECONDS and not added
    found = {"benchmark": "import_cost", "pass": passed, "seconds": median, "packages": added}
    return finish(found)


if __name__ == "__main__":
    sys.exit(main())
