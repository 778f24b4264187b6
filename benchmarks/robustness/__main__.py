"""Bad files, bad prompts, long use, load and sudden death.

    python -m benchmarks.robustness                      all parts
    python -m benchmarks.robustness hostile prompts      some parts

- kills: kill -9 at random moments of training, saving and caching. All files must be complete, and
  the training must end with the same bits as one that was never killed.
- files: damaged files for everything that reads files of strangers (benchmarks/robustness/
  loaders.py). Each must load or be refused with a readable message, within 5 CPU seconds and three
  times the file's size of memory (clips, which may be 8K: a minute and a gigabyte); nothing may be
  written, started or unpickled. File number n of a loader depends on n and --seed only.
- hostile: well-formed malicious files (benchmarks/robustness/hostile.py), each kind under several
  names; also with every other PyAV whose folder (`pip install --target FOLDER av==14.2.0`) is in
  PYAV_PATHS.
- runs: mixed runs in one ComfyUI: plain, with a motion, LoRA, ControlNet, patches such as FreeU,
  clones, few and many frames, refused, cancelled, failed. No hook, patch or wrapper may be left,
  the plain model must give the same picture bit for bit, objects and memory must not grow.
- prompts: prompts to a real server with strange values for every text and number of every node.
  The server must work afterwards, with nothing outside its own folders (input, output, models, temp
  and user) changed and nothing of a folder beside them read.
- load: 500 queued prompts, 200 cancels, ten motions on one MODEL, two servers in one folder, a
  cache that is deleted during training, clips that are replaced while they are read, a clock that
  jumps. `--load 0.1` is a tenth of it.

Prints a line per part with its problems, a line of JSON, and last the counts. Exit status 0 only if
there are no problems.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import parser

from .watch import Result

PARTS = ("kills", "files", "hostile", "runs", "prompts", "load")
_STUCK = 120  # seconds on the clock for one file: busy machines are slow
_KINDS_OF_RUNS = 11
_OBJECTS, _BYTES = 1, 10 * 1024  # per run, the noise of allocators
_SHOWN = 20  # problems of a part


# --- bad files, read in processes that may die ------------------------------------------------


def try_files(count: int, seed: int) -> Result:
    """Damaged files for every loader."""
    from .loaders import LOADERS

    result = Result()
    for loader in LOADERS:
        own = _collect(loader.name, max(round(count * loader.share), 1), seed)
        _print_part(f"  {loader.name}", own)
        result.counts += own.counts
        result.problems += own.problems
    return result


def try_hostile(seed: int) -> Result:
    """Malicious files, with each PyAV."""
    from .hostile import hostile_files

    result, count = Result(), sum(len(file.names) for file in hostile_files())
    folders = ["", *filter(None, os.environ.get("PYAV_PATHS", "").split(os.pathsep))]
    for folder in folders:
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        own = _collect("hostile", count, seed, {"PYTHONPATH": path})
        result.counts += own.counts
        result.problems += [f"PyAV {folder or 'as installed'}: {told}" for told in own.problems]
    result.figures["decoders"] = len(folders)
    return result


def _collect(suite: str, count: int, seed: int, env: dict[str, str] | None = None) -> Result:
    result = Result()
    for outcome in _outcomes(suite, count, seed, env or {}):
        result.counts[outcome["became"]] += 1
        result.problems += [f"{outcome['label']}: {told}" for told in outcome["problems"]]
    return result


def _outcomes(suite: str, count: int, seed: int, env: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One per file; a worker that dies or hangs is a problem, and another one continues."""
    done = 0
    while done < count:
        command = [sys.executable, "-m", "benchmarks.robustness", "--worker", suite]
        command += ["--seed", str(seed), "--first", str(done), "--files", str(count)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
        ) as worker:
            for line in worker.stdout or ():
                yield json.loads(line)
                done += 1
        if worker.returncode:
            problem = f"the process ended with status {worker.returncode}"
            yield {"became": "crashed", "label": f"number {done}", "problems": [problem]}
            done += 1


def work(suite: str, first: int, count: int, seed: int) -> None:
    """A worker: print one line of JSON for each file from `first` to `count`."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "files"
        place.mkdir()
        os.chdir(folder)
        trial = _trial(suite, place, seed)
        if trial.room:
            _limit_memory(trial.room)
        for number in range(first, count):
            faulthandler.dump_traceback_later(_STUCK, exit=True)
            print(json.dumps(vars(trial.run(number))), flush=True)
        faulthandler.cancel_dump_traceback_later()
        os.chdir("/")


def _trial(suite: str, place: Path, seed: int) -> Any:
    if suite == "hostile":
        from .hostile import HostileTrial

        return HostileTrial()
    from .loaders import LOADERS, Trial

    return Trial(next(loader for loader in LOADERS if loader.name == suite), place, seed)


def _limit_memory(room: int) -> None:
    """Make requests for gigabytes fail even if the memory is never touched."""
    try:
        import resource
    except ImportError:  # Windows
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.name == "posix" else 0
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 2**30 + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# --- the other parts --------------------------------------------------------------------------


def run_mixed(count: int, seed: int) -> Result:
    """Mixed runs in ComfyUI, in this process."""
    from scripts.server.host import make_base_directory, use_host

    with tempfile.TemporaryDirectory() as folder:
        use_host(make_base_directory(Path(folder)))
        logging.disable(logging.WARNING)
        from .host import soak

        result = soak(max(count // _KINDS_OF_RUNS, 1), seed)
    objects, size = (result.figures[f"{what}_per_run"] for what in ("objects", "bytes"))
    result.expect(objects <= _OBJECTS and size <= _BYTES, "memory grows")
    return result


def run_kills(count: int, seed: int) -> Result:
    import torch

    from .kills import kill_often

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return kill_often(count, seed, Path(folder))


def try_prompts(count: int, seed: int) -> Result:
    from scripts.server.server import ComfyServer

    from .prompts import TRACE, Attack

    with tempfile.TemporaryDirectory() as folder:
        with ComfyServer(Path(folder) / "base", extra_nodes=[TRACE]) as server:
            return Attack(server).run(count)


def try_load(share: float, seed: int) -> Result:
    from .load import Size, run_load

    full = vars(Size())
    return run_load(Size(**{name: max(round(share * n), 2) for name, n in full.items()}))


def _print_part(name: str, result: Result) -> None:
    told = [f"{count} {what}" for what, count in result.counts.items()]
    told += [f"{value:.1f} {what}" for what, value in result.figures.items()]
    problems = len(result.problems)
    print(f"{name}: {result.counts.total()} ({', '.join(told)}), {problems} problems", flush=True)


def main() -> int:
    command = parser("robustness", __doc__)
    command.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    command.add_argument(
        "--files", type=int, default=10_000, help="damaged files, and a tenth as many clips"
    )
    command.add_argument("--runs", type=int, default=200, help="mixed runs in ComfyUI")
    command.add_argument("--kills", type=int, default=50)
    command.add_argument("--prompts", type=int, default=10_000, help="the most prompts")
    command.add_argument("--load", type=float, default=1.0, help="share of the load")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--worker", help="internal")
    command.add_argument("--first", type=int, default=0, help="internal")
    args = command.parse_args()
    if args.worker:
        work(args.worker, args.first, args.files, args.seed)
        return 0
    if unknown := set(args.parts) - set(PARTS):
        command.error(f"unknown part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    run: dict[str, tuple[Any, Callable[[Any, int], Result]]] = {
        "kills": (args.kills, run_kills),
        "files": (args.files, try_files),
        "hostile": (1, lambda _, seed: try_hostile(seed)),
        "runs": (args.runs, run_mixed),
        "prompts": (args.prompts, try_prompts),
        "load": (args.load, try_load),
    }
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in PARTS if run[name][0] and name in (args.parts or PARTS)):
        size, part = run[name]
        result = part(size, args.seed)
        _print_part(name, result)
        for problem in result.problems[:_SHOWN]:
            print(f"    {problem}")
        found[name] = {"tried": result.counts.total(), **result.counts, **result.figures}
        found[name] |= {"first_problems": result.problems[:_SHOWN]}
        found[name]["problems"] = len(result.problems)
    problems = sum(part["problems"] for part in found.values())
    print(json.dumps({"benchmark": "robustness", "seed": args.seed, **found}))
    told = [f"{name} {part['tried']}" for name, part in found.items()]
    print(f"{', '.join(told)}: {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
