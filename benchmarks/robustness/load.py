"""Long queues, many cancels, shared folders, files and clocks that change meanwhile: nothing is
lost, nothing is left behind, and memory does not grow."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.samples.clip_files import write_numbered
from lamp.errors import LampError
from lamp.motion_file.file import load_motion_file
from scripts.server.server import ComfyServer

from .client import Client, End
from .watch import Result

_LEVEL = 96 * 2**20  # bytes that the second half of a queue may add: ComfyUI's history grows


@dataclass(frozen=True)
class Size:
    """How much of each."""

    prompts: int = 500
    cancels: int = 200
    stacked: int = 10
    shared: int = 20
    replaced: int = 40


def run_load(size: Size) -> Result:
    """All of it."""
    load = Result()
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder) / "base") as server:
        load_server(server, size, load)
        with ComfyServer(server.base, log=server.base / "second.log") as second:
            _shared_folder(Client(server), Client(second), size, load)
        left = [*server.base.rglob("*.part")]
        left += [p for p in (server.base / "output").rglob(".lock") if p.stat().st_size]
        load.expect(not left, f"left behind: {left[:5]}")
    load_process(size, load)
    return load


def load_server(server: ComfyServer, size: Size, load: Result) -> None:
    """The parts with one server."""
    client = Client(server)
    for part in (_many_prompts, _many_cancels, _stacked, _cache_deleted):
        part(client, size, load)


def load_process(size: Size, load: Result) -> None:
    """The parts in this process: files and a clock that change."""
    with tempfile.TemporaryDirectory() as folder:
        _clips_replaced(Path(folder), size, load)
        _clock_jumps_back(Path(folder), load)


@contextmanager
def _meanwhile(act: Callable[[], None], pause: float) -> Iterator[None]:
    """Call `act` again and again in another thread."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(pause):
            act()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _expect_done(load: Result, what: str, ends: list[End]) -> None:
    load.counts[what] += len(ends)
    others = Counter(f"{end.status} {end.message[:200]}" for end in ends if end.status != "done")
    load.expect(not others, f"{what}: {dict(others)}")


def _licenses(folder: Path, names: str) -> set[str]:
    """The licence of each motion file, by which it is told apart."""
    return {load_motion_file(p).metadata["modelspec.license"] for p in folder.glob(names)}


# --- one or two servers -----------------------------------------------------------------------


def _many_prompts(client: Client, size: Size, load: Result) -> None:
    """Each writes its own file under the same name."""
    marks = [{"filename_prefix": "many/m", "license": f"{n}"} for n in range(size.prompts)]
    ids = [client.send(client.nodes("save", save=mark)) for mark in marks]
    client.ended(ids[: size.prompts // 2])
    half = client.memory()
    _expect_done(load, "prompts", client.ended(ids))
    grown = client.memory() - half
    found = _licenses(client.server.base / "models/lamp_motion/many", "*.safetensors")
    load.expect(len(found) == len(ids), f"{len(found)} of {len(ids)} files")
    load.expect(grown < _LEVEL, f"memory grew by {grown:,} bytes")


def _many_cancels(client: Client, size: Size, load: Result) -> None:
    """During sampling, training and saving, and in between; later runs give the same picture."""
    before = _picture(client)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("sample", {"steps": 400}),
        ("train", {"steps": 300, "name": "stopped"}),
        ("map", {"steps": 20}),
    ]
    for number in range(size.cancels):
        kind, change = kinds[number % len(kinds)]
        name = client.send(client.nodes(kind, **{kind: {**change, "seed": number}}), kind)
        time.sleep(0.02 * (number % 7))
        with _meanwhile(client.server.interrupt, 0.02):
            (end,) = client.ended([name])
        good = end.status in ("cancelled", "done")
        load.expect(good, f"a cancelled run {end.status}: {end.message[:200]}")
    load.counts["cancels"] += size.cancels
    load.expect(_picture(client) == before, "another picture after the cancels")
    _licenses(client.server.base / "models/lamp_motion", "stopped*.safetensors")


def _picture(client: Client) -> bytes:
    """Pixels of a video, sampled again: `free` clears the server's cache."""
    from PIL import Image

    client.server.free()
    graph = client.nodes("sample")
    graph["decoded"] = {"class_type": "VAEDecode",
                        "inputs": {"samples": ["sample", 0], "vae": ["base", 2]}}  # fmt: skip
    graph["saved"] = {"class_type": "SaveImage",
                      "inputs": {"images": ["decoded", 0], "filename_prefix": "look"}}  # fmt: skip
    pixels = b""
    for file in client.server.queue(graph).check().files("saved"):
        with Image.open(client.server.base / "output" / file["filename"]) as picture:
            pixels += picture.convert("RGB").tobytes()
    return pixels


def _stacked(client: Client, size: Size, load: Result) -> None:
    """Many motions on one MODEL, four times: memory is level from the second time on."""
    memory = []
    for turn in range(4):
        graph = client.nodes("sample", sample={"seed": turn})
        model = ["load", 0]
        for number in range(size.stacked - 1):
            inputs = {**graph["load"]["inputs"], "model": model, "strength": 0.1}
            graph[f"more{number}"] = {"class_type": "LAMP_LoadMotion", "inputs": inputs}
            model = [f"more{number}", 0]
        graph["sample"]["inputs"]["model"] = model
        _expect_done(load, "stacked motions", client.ended([client.send(graph, "sample")]))
        client.server.free()
        memory.append(client.memory())
    load.expect(memory[3] - memory[1] < _LEVEL, f"stacked motions keep {memory[3] - memory[1]:,}")


def _cache_deleted(client: Client, size: Size, load: Result) -> None:
    """The cache folder is deleted again and again while trainings use it."""
    cache = client.server.base / "user" / "__lamp_cache"
    with _meanwhile(lambda: shutil.rmtree(cache, ignore_errors=True), 0.01):
        ids = [
            client.send(client.nodes("train", world={"seed": number}, train={"name": "cached"}))
            for number in range(max(size.shared // 4, 2))
        ]
        _expect_done(load, "trainings without their cache", client.ended(ids))


def _shared_folder(first: Client, second: Client, size: Size, load: Result) -> None:
    """Two servers write under the same names into the same folders."""
    sent: dict[Client, list[str]] = {first: [], second: []}
    for number in range(size.shared):
        for client, ids in sent.items():
            mark = {"filename_prefix": "both/m", "license": f"{number} {client is first}"}
            ids.append(client.send(client.nodes("save", save=mark)))
            if number % 5 == 0:
                run = {"name": "both/run", "seed": number}
                ids.append(client.send(client.nodes("train", train=run)))
    for client, ids in sent.items():
        _expect_done(load, "prompts to two servers", client.ended(ids))
    folder = first.server.base / "models/lamp_motion/both"
    motions, wanted = _licenses(folder, "m_*"), 2 * size.shared
    load.expect(len(motions) == wanted, f"{len(motions)} motions of {wanted}")
    runs, wanted = list(folder.glob("run_*")), 2 * len(range(0, size.shared, 5))
    load.expect(len(runs) == wanted, f"{len(runs)} trained motions of {wanted}")
    logs = list((first.server.base / "output/lamp_training/both").glob("run_*/log.jsonl"))
    load.expect(len(logs) == wanted, f"{len(logs)} logs of {wanted} trainings")
    for log in logs:
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        load.expect(steps == [1], f"{log} holds several runs")


# --- this process -----------------------------------------------------------------------------


def _clips_replaced(folder: Path, size: Size, load: Result) -> None:
    """Clips are replaced between listing and reading: they are read or refused."""
    from lamp.clips.load import load_clips

    clips, others = folder / "clips", folder / "others"
    clips.mkdir()
    others.mkdir()
    sources = [write_numbered(others / f"{count}.mp4", count) for count in (4, 12)]
    (text := others / "text.mp4").write_text("no clip")
    turns = iter(range(10**9))

    def replace() -> None:
        source = (*sources, text, None)[next(turns) % 4]
        with suppress(OSError):
            if source is None:
                (clips / "a.mp4").unlink()
            else:
                shutil.copy(source, folder / "next.mp4")
                os.replace(folder / "next.mp4", clips / "a.mp4")

    write_numbered(clips / "b.mp4", 8)
    with _meanwhile(replace, 0.003):
        for _ in range(size.replaced):
            try:
                found = load_clips(clips, "", 4, width=64, height=48)
                for number in range(len(found)):
                    for _ in found.chunks(number):
                        pass
                load.counts["replaced clips read"] += 1
            except LampError:
                load.counts["replaced clips refused"] += 1


def _clock_jumps_back(folder: Path, load: Result) -> None:
    """By a day at every look during a run: it still resumes from its last step, and no time is
    negative."""
    from benchmarks.samples.small_training import FRAMES, small_clips, small_host
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion
    from lamp.training.loop import Training
    from lamp.training.recipe import TrainConfig
    from lamp.training.session import RunFolder, SaveConfig, newest_state, run_training

    host, seen = small_host(), []
    motion, config = Motion(map_unet(host.unet)).initialise(0), TrainConfig(steps=6, frames=FRAMES)
    training = Training(host, motion, small_clips(), config)
    run = RunFolder(folder / "clock", {"base": "a", "clips": "b"}, keep=9)
    real, calls = time.time, iter(range(10**9))
    with mock.patch("time.time", lambda: real() - 86_400 * next(calls)):
        run_training(training, run, SaveConfig(2, 9, 0), seen.append)
    for step, path in enumerate(sorted(run.path.glob("state-*"))):
        os.utime(path, (10**9 - 10**5 * step,) * 2)
    found = newest_state([run.path])
    load.counts["jumps of the clock"] += 1
    load.expect(found is not None and found[1].step == 6, "the newest state is not the last one")
    load.expect(all(r.seconds_per_step >= 0 and r.seconds_left >= 0 for r in seen), "negative time")
