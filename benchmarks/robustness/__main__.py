"""Does it stand bad files, bad prompts, long use, load and sudden death?

    python -m benchmarks.robustness                      all of it
    python -m benchmarks.robustness hostile prompts      some of it

- files: so many damaged files go to everything that reads files of strangers (the table in
  benchmarks/robustness/loaders.py). Each has to be refused with a sentence of ours or loaded, in
  5 seconds of computing and three times the file's size of memory (clips, which may be of 8K, in
  a minute and a gigabyte), with nothing written, started or unpickled. File number n of a loader
  depends on --seed alone.
- runs: so many runs in one ComfyUI: plain, with a motion, with a LoRA, a ControlNet, patches such
  as FreeU, cloned, of few and many frames, refused, cancelled, ended by an error. No hook, patch or
  wrapper may be left, the plain model must give the same picture to the bit, objects and memory
  must not grow from round to round.
- kills: kill -9 at so many random moments of training, of saving and of caching. All files that
  are there must be whole, and the training must end with the same bits as one never killed.

- hostile: whole files that mean harm (benchmarks/robustness/hostile.py), each kind under several
  names, each in a process of its own; with every other PyAV too whose folder (`pip install --target
  FOLDER av==14.2.0`) PYAV_PATHS names. None may be opened beyond itself, start or ask for anything.
- prompts: so many prompts over the API of a real server, with what no widget gives in every text
  and number of every node. The server works afterwards, and nothing outside of its own folders
  (input, output, models, and its temp and user) was changed; of a folder beside them not a file was
  read.
- load: 500 queued prompts, 200 cancels, ten motions on one MODEL, two servers in one folder,
    a cache
  that is deleted under trainings, clips that are replaced while they are read, a clock that jumps.
  `--load 0.1` is a tenth of it.

Prints what was tried, a line of JSON, and last the counts and the number of problems. Exit status 0
only if there are none.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STUCK = 60  # seconds on the clock for one file: busy machines are slow
_KINDS_OF_RUNS = 11
_OBJECTS, _BYTES = 1, 10 * 1024  # that may be more after each run: the noise of allocators
_WORKER = "benchmarks.robustness"
_PARTS = ("kills", "files", "hostile", "runs", "prompts", "load")


def try_files(count: int, seed: int) -> dict[str, Any]:
    """Damaged files for every loader, read in a process of their own that may die."""
    from benchmarks.robustness.loaders import LOADERS

    tried, results = 0, {}
    for loader in LOADERS:
        share = max(round(count * loader.share), 1)
        counts: Counter[str] = Counter()
        problems: list[str] = []
        for number, outcome in enumerate(_outcomes(loader.name, share, seed)):
            counts[outcome["became"]] += 1
            problems += [f"file {number} ({outcome['damage']}): {p}" for p in outcome["problems"]]
        tried += share
        results[loader.name] = {"tried": share, **counts, "problems": problems}
        print(
            f"{loader.name:12} {share:6} tried, {counts['refused']:6} refused, "
            f"{counts['loaded']:6} loaded, {len(problems)} problems", flush=True
        )  # fmt: skip
        for problem in problems[:20]:
            print(f"    {problem}")
    return {"tried": tried, "loaders": results,
            "problems": sum(len(result["problems"]) for result in results.values())}  # fmt: skip


def _outcomes(loader: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """One a file; a worker that died or hung is one more problem, and the next one goes on."""
    done = 0
    while done < count:
        command = [sys.executable, "-m", _WORKER, "--worker", loader, "--seed", str(seed)]
        command += ["--first", str(done), "--files", str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout or ():
                yield json.loads(line)
                done += 1
        if worker.returncode:
            problem = f"the process ended with status {worker.returncode}"
            yield {"became": "crashed", "damage": "?", "problems": [problem]}
            done += 1


def work(name: str, first: int, count: int, seed: int) -> None:
    """Print one line of JSON for each file from `first` to `count`."""
    import torch

    from benchmarks.robustness.loaders import LOADERS, Trial

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "files"
        place.mkdir()
        os.chdir(folder)
        trial = Trial(next(loader for loader in LOADERS if loader.name == name), place, seed)
        _limit_memory(trial.room)
        for number in range(first, count):
            faulthandler.dump_traceback_later(_STUCK, exit=True)
            outcome, damage = trial.run(number)
            became = "loaded" if outcome.loaded else "refused" if outcome.refusal else "failed"
            line = {"became": became, "damage": damage, "problems": outcome.problems}
            print(json.dumps(line), flush=True)
        faulthandler.cancel_dump_traceback_later()


def _limit_memory(room: int) -> None:
    """Let demands for gigabytes fail, even those that are never touched."""
    try:
        import resource
    except ImportError:  # Windows
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.name == "posix" else 0
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 2**30 + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_mixed(count: int, seed: int) -> dict[str, Any]:
    """Mixed runs in ComfyUI, in this process."""
    from scripts.server.host import make_base_directory, use_host

    with tempfile.TemporaryDirectory() as folder:
        use_host(make_base_directory(Path(folder)))
        logging.disable(logging.WARNING)
        from benchmarks.robustness.host import soak

        result = soak(max(count // _KINDS_OF_RUNS, 1), seed)
    if result.objects_per_run > _OBJECTS or result.bytes_per_run > _BYTES:
        result.problems.append("memory grows")
    print(
        f"{sum(result.runs.values())} mixed runs: {result.objects_per_run:.1f} objects and "
        f"{result.bytes_per_run / 1024:.1f} kB more a run, {len(result.problems)} problems"
    )
    return _told(vars(result))


def run_kills(count: int, seed: int) -> dict[str, Any]:
    """Kills, in processes of their own."""
    import torch

    from benchmarks.robustness.kills import kill_often

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = kill_often(count, seed, Path(folder))
    killed = ", ".join(f"{name} {times}" for name, times in result.killed.items())
    print(f"{sum(result.killed.values())} killed ({killed}), {len(result.problems)} problems")
    return _told(vars(result))


def try_hostile(seed: int) -> dict[str, Any]:
    """Files that mean harm, with each PyAV that is there."""
    folders = ["", *filter(None, os.environ.get("PYAV_PATHS", "").split(os.pathsep))]
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for folder in folders:
        counts.update(_hostile_outcomes(folder, problems))
    result = {"tried": counts.total(), **counts, "decoders": len(folders), "problems": problems}
    print(f"hostile: {counts.total()} tried with {len(folders)} PyAV, {len(problems)} problems")
    return _told(result)


def _hostile_outcomes(folder: str, problems: list[str]) -> Counter[str]:
    from benchmarks.robustness.hostile import hostile_files

    counts: Counter[str] = Counter()
    names = [(file.kind, name) for file in hostile_files() for name in file.names]
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    while (done := counts.total()) < len(names):
        command = [sys.executable, "-m", _WORKER, "--worker", "hostile", "--first", str(done)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": path}) as worker:  # fmt: skip
            for line in worker.stdout or ():
                kind, name = names[counts.total()]
                outcome = json.loads(line)
                counts[outcome["became"]] += 1
                where = f"{kind}, {name!r}, PyAV {folder or 'as installed'}"
                problems += [f"{where}: {problem}" for problem in outcome["problems"]]
        if worker.returncode:
            kind, name = names[min(counts.total(), len(names) - 1)]
            problems.append(f"{kind}, {name!r}: the process ended with status {worker.returncode}")
            counts["crashed"] += 1
    return counts


def work_hostile(first: int) -> None:
    """Print one line of JSON for each hostile file from `first` on."""
    import torch

    from benchmarks.robustness.hostile import hostile_files, warm_up

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warm_up()
    cases = [(file, name) for file in hostile_files() for name in file.names]
    for file, name in cases[first:]:
        faulthandler.dump_traceback_later(2 * _STUCK, exit=True)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            place = Path(folder) / "files"
            place.mkdir()
            outcome = file.outcome(place, name)
            left = sorted(set(os.listdir()) - {"files", "outside"})
            outcome.problems += [f"left {left}"] if left else []
            os.chdir("/")
        became = "loaded" if outcome.loaded else "refused" if outcome.refusal else "failed"
        print(json.dumps({"became": became, "problems": outcome.problems}), flush=True)
    faulthandler.cancel_dump_traceback_later()


def try_prompts(count: int, seed: int) -> dict[str, Any]:
    """Prompts of strangers, to a real server."""
    from benchmarks.robustness.prompts import TRACE, Attack
    from scripts.server.server import ComfyServer

    with tempfile.TemporaryDirectory() as folder:
        with ComfyServer(Path(folder) / "base", extra_nodes=[TRACE]) as server:
            tried = Attack(server).run(count)
    told = ", ".join(f"{count} {how}" for how, count in sorted(tried.counts.items()))
    print(f"prompts: {tried.counts.total()} sent ({told}), {len(tried.problems)} problems")
    return _told({"tried": tried.counts.total(), **tried.counts, "problems": tried.problems})


def try_load(share: float, seed: int) -> dict[str, Any]:
    """Long queues and everything that changes meanwhile."""
    from benchmarks.robustness.load import Size, run_load

    full = vars(Size())
    size = Size(**{name: max(round(share * count), 2) for name, count in full.items()})
    load = run_load(size)
    told = ", ".join(f"{count} {what}" for what, count in load.counts.items())
    print(f"load: {told}, {len(load.problems)} problems")
    return _told({"tried": load.counts.total(), **load.counts, "problems": load.problems})


def _told(result: dict[str, Any]) -> dict[str, Any]:
    for problem in result["problems"][:20]:
        print(f"    {problem}")
    return {**result, "first_problems": result["problems"][:20],
            "problems": len(result["problems"])}  # fmt: skip


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(_PARTS)}; by default all")
    parser.add_argument(
        "--files", type=int, default=10_000, help="damaged files; a tenth as many clips more"
    )
    parser.add_argument("--runs", type=int, default=200, help="mixed runs in ComfyUI")
    parser.add_argument("--kills", type=int, default=50, help="kills")
    parser.add_argument("--prompts", type=int, default=10_000, help="prompts at most")
    parser.add_argument("--load", type=float, default=1.0, help="share of the load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        if args.worker == "hostile":
            work_hostile(args.first)
        else:
            work(args.worker, args.first, args.files, args.seed)
        return 0
    if unknown := set(args.parts) - set(_PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    asked = {
        "kills": (args.kills, lambda: run_kills(args.kills, args.seed)),
        "files": (args.files, lambda: try_files(args.files, args.seed)),
        "hostile": (1, lambda: try_hostile(args.seed)),
        "runs": (args.runs, lambda: run_mixed(args.runs, args.seed)),
        "prompts": (args.prompts, lambda: try_prompts(args.prompts, args.seed)),
        "load": (args.load, lambda: try_load(args.load, args.seed)),
    }
    chosen = [name for name in asked if asked[name][0] and name in (args.parts or _PARTS)]
    result = {name: asked[name][1]() for name in chosen}
    problems = sum(part["problems"] for part in result.values())
    print(json.dumps({"benchmark": "robustness", "seed": args.seed, **result}))
    told = [f"{name} {part.get('tried', '')}".rstrip() for name, part in result.items()]
    print(f"{', '.join(told)}: {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
