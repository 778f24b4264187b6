"""Long queues, storms of cancels, shared folders, files and clocks that change meanwhile: nothing
is lost, nothing is left, and memory stays level."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import requests

from benchmarks.robustness.prompts import every_node, write_motion
from lamp.errors import LampError
from lamp.motion_file.file import load_motion_file
from scripts.server.server import ComfyServer
from scripts.workflows.convert import default_of, input_specs, is_widget

Graph = dict[str, dict[str, Any]]
_PATIENCE = 600.0
_LEVEL = 96 * 2**20  # bytes that the second half of a queue may add: the host's history grows


@dataclass
class Load:
    """What was done, and what was found wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def expect(self, sound: bool, problem: str) -> None:
        """Note a problem unless `sound`."""
        if not sound:
            self.problems.append(problem)


@dataclass(frozen=True)
class Size:
    """How much of each."""

    prompts: int = 500
    cancels: int = 200
    stacked: int = 10
    shared: int = 20
    replaced: int = 40


class Client:
    """Sends prompts to a server without waiting for them."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        infos = server.object_info()
        self.graph: Graph = {}
        for key, node in every_node("sound.safetensors").items():
            specs = input_specs(infos[node["class_type"]])
            widgets = {name: default_of(spec) for name, spec in specs.items() if is_widget(spec)}
            self.graph[key] = {**node, "inputs": widgets | node["inputs"]}

    def nodes(self, *keys: str, **changes: dict[str, Any]) -> Graph:
        """These nodes and what they come from, some inputs changed."""
        found: Graph = {}
        for key in keys:
            node = self.graph[key]
            inputs = {**node["inputs"], **changes.get(key, {})}
            for value in inputs.values():
                if isinstance(value, list) and value and value[0] in self.graph:
                    found |= self.nodes(value[0], **changes)
            found[key] = {**node, "inputs": inputs}
        return found

    def send(self, graph: Graph, shown: str = "") -> str:
        """Queue it; `shown` is a node whose first output makes it a result."""
        if shown:
            graph = {
                **graph,
                "shown": {"class_type": "PreviewAny", "inputs": {"source": [shown, 0]}},
            }
        answer = requests.post(f"{self.server.url}/prompt", json={"prompt": graph}, timeout=120)
        answer.raise_for_status()
        return str(answer.json()["prompt_id"])

    def ended(self, names: list[str]) -> dict[str, str]:
        """How each of them ended, once all have."""
        until, known = time.monotonic() + _PATIENCE, {}
        while len(known) < len(names) and time.monotonic() < until:
            history = self.server.get("/history", max_items=10_000)
            known = {name: _status(history[name]) for name in names if name in history}
            time.sleep(0.1)
        return {name: known.get(name, "lost") for name in names}

    def memory(self) -> int:
        """Of the server, in bytes."""
        for line in Path(f"/proc/{self.server.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0


def _status(entry: dict[str, Any]) -> str:
    events = dict(entry["status"]["messages"])
    if error := events.get("execution_error"):
        return f"failed: {error['exception_message'][:200]}"
    return "cancelled" if "execution_interrupted" in events else "done"


def run_load(size: Size) -> Load:
    """All of it."""
    load = Load()
    with tempfile.TemporaryDirectory() as folder, ComfyServer(Path(folder) / "base") as server:
        load_server(server, size, load)
        with ComfyServer(server.base, log=server.base / "second.log") as second:
            _shared_folder(Client(server), Client(second), size, load)
        load.expect(not _left(server.base), f"left behind: {_left(server.base)[:5]}")
    load_process(size, load)
    return load


def load_server(server: ComfyServer, size: Size, load: Load) -> None:
    """What one server has to bear."""
    write_motion(server.base)
    client = Client(server)
    for part in (_many_prompts, _many_cancels, _stacked, _cache_deleted):
        part(client, size, load)


def load_process(size: Size, load: Load) -> None:
    """Files and a clock that change under our hands."""
    with tempfile.TemporaryDirectory() as folder:
        _clips_replaced(Path(folder), size, load)
        _clock_jumps_back(Path(folder), load)


def _left(base: Path) -> list[str]:
    return [str(path) for path in base.rglob("*.part")] + [
        str(path) for path in (base / "output").rglob(".lock") if path.stat().st_size
    ]


def _many_prompts(client: Client, size: Size, load: Load) -> None:
    """Each leaves a file of its own, under one name."""
    names, memory = [], []
    for number in range(size.prompts):
        graph = client.nodes("save", save={"filename_prefix": "many/m", "license": f"{number}"})
        names.append(client.send(graph))
    half = client.ended(names[: size.prompts // 2])
    memory.append(client.memory())
    ended = half | client.ended(names)
    memory.append(client.memory())
    load.counts["prompts"] += len(names)
    load.expect(set(ended.values()) == {"done"}, f"prompts: {Counter(ended.values())}")
    files = sorted((client.server.base / "models/lamp_motion/many").glob("*.safetensors"))
    licenses = {load_motion_file(path).metadata["modelspec.license"] for path in files}
    load.expect(len(files) == len(licenses) == len(names), f"{len(files)} of {len(names)} files")
    load.expect(memory[1] - memory[0] < _LEVEL, f"memory grew by {memory[1] - memory[0]:,} bytes")


def _many_cancels(client: Client, size: Size, load: Load) -> None:
    """While sampling, training, saving and between; a run after them is as one before."""
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
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            client.server.interrupt()
            if name in (history := client.server.get(f"/history/{name}")):
                ended = _status(history[name])
                load.expect(ended in ("cancelled", "done"), f"a cancelled run {ended}")
                break
            time.sleep(0.02)
        else:
            load.problems.append("a cancel was not heard")
    load.counts["cancels"] += size.cancels
    load.expect(_picture(client) == before, "another picture after the cancels")
    for path in (client.server.base / "models/lamp_motion").glob("stopped*.safetensors"):
        load_motion_file(path)


def _picture(client: Client) -> bytes:
    """Sampled anew: `free` lets the server forget."""
    client.server.free()
    graph = client.nodes("sample")
    graph["decoded"] = {"class_type": "VAEDecode",
                        "inputs": {"samples": ["sample", 0], "vae": ["base", 2]}}  # fmt: skip
    graph["saved"] = {"class_type": "SaveImage",
                      "inputs": {"images": ["decoded", 0], "filename_prefix": "look"}}  # fmt: skip
    result = client.server.queue(graph).check()
    from PIL import Image

    pixels = b""
    for file in result.files("saved"):
        with Image.open(client.server.base / "output" / file["filename"]) as picture:
            pixels += picture.convert("RGB").tobytes()
    return pixels


def _stacked(client: Client, size: Size, load: Load) -> None:
    """As many motions on one MODEL, three times: the memory is level from the second on."""
    memory = []
    for turn in range(4):
        graph = client.nodes("sample", sample={"seed": turn})
        model = ["load", 0]
        for number in range(size.stacked - 1):
            graph[f"more{number}"] = {
                "class_type": "LAMP_LoadMotion",
                "inputs": {**graph["load"]["inputs"], "model": model, "strength": 0.1},
            }
            model = [f"more{number}", 0]
        graph["sample"]["inputs"]["model"] = model
        ended = client.ended([client.send(graph, "sample")])
        load.expect(set(ended.values()) == {"done"}, f"stacked motions: {ended}")
        client.server.free()
        memory.append(client.memory())
    load.counts["stacked motions"] += size.stacked
    load.expect(memory[3] - memory[1] < _LEVEL, f"stacked motions keep {memory[3] - memory[1]:,}")


def _cache_deleted(client: Client, size: Size, load: Load) -> None:
    """The folder of encoded clips goes while trainings read and fill it."""
    cache, gone = client.server.base / "user" / "__lamp_cache", threading.Event()

    def delete() -> None:
        while not gone.is_set():
            shutil.rmtree(cache, ignore_errors=True)
            time.sleep(0.01)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        names = [
            client.send(client.nodes("train", world={"seed": number}, train={"name": "cached"}))
            for number in range(max(size.shared // 4, 2))
        ]
        ended = client.ended(names)
    finally:
        gone.set()
        thread.join()
    load.counts["trainings without their cache"] += len(names)
    load.expect(set(ended.values()) == {"done"}, f"cache deleted: {Counter(ended.values())}")


def _shared_folder(first: Client, second: Client, size: Size, load: Load) -> None:
    """Two servers write under the same names into the same folders."""
    names: dict[Client, list[str]] = {first: [], second: []}
    for number in range(size.shared):
        for client, sent in names.items():
            mark = f"{number} {client is first}"
            sent.append(client.send(
                client.nodes("save", save={"filename_prefix": "both/m", "license": mark})
            ))  # fmt: skip
            if number % 5 == 0:
                run = {"name": "both/run", "seed": number}
                sent.append(client.send(client.nodes("train", train=run)))
    ended = [status for client, sent in names.items() for status in client.ended(sent).values()]
    load.counts["prompts to two servers"] += len(ended)
    load.expect(set(ended) == {"done"}, f"two servers: {Counter(ended)}")
    folder = first.server.base / "models/lamp_motion/both"
    motions = {load_motion_file(path).metadata["modelspec.license"] for path in folder.glob("m_*")}
    load.expect(len(motions) == 2 * size.shared, f"{len(motions)} motions of {2 * size.shared}")
    runs, wanted = list(folder.glob("run_*")), 2 * len(range(0, size.shared, 5))
    load.expect(len(runs) == wanted, f"{len(runs)} trained motions of {wanted}")
    logs = list((first.server.base / "output/lamp_training/both").glob("run_*/log.jsonl"))
    load.expect(len(logs) == wanted, f"{len(logs)} logs of {wanted} trainings")
    for log in logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        load.expect([line["step"] for line in lines] == [1], f"{log} is of several runs")


# --- in this process ------------------------------------------------------------------------------


def _clips_replaced(folder: Path, size: Size, load: Load) -> None:
    """Between listing and reading, by another clip, by text, by nothing: a clip or a sentence."""
    from benchmarks.samples.clip_files import write_numbered
    from lamp.clips.load import load_clips

    clips, others = folder / "clips", folder / "others"
    clips.mkdir()
    others.mkdir()
    sources = [write_numbered(others / f"{count}.mp4", count) for count in (4, 12)]
    text = others / "text.mp4"
    text.write_text("no clip")
    done = threading.Event()

    def replace() -> None:
        number = 0
        while not done.is_set():
            source, number = (*sources, text, None)[number % 4], number + 1
            with suppress(OSError):
                if source is None:
                    (clips / "a.mp4").unlink()
                else:
                    shutil.copy(source, folder / "next.mp4")
                    os.replace(folder / "next.mp4", clips / "a.mp4")
            time.sleep(0.003)

    write_numbered(clips / "b.mp4", 8)
    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(size.replaced):
            try:
                found = load_clips(clips, "", 4, width=64, height=48)
                for number in range(len(found)):
                    for _ in found.chunks(number):
                        pass
                load.counts["replaced clips read"] += 1
            except LampError:
                load.counts["replaced clips refused"] += 1
    finally:
        done.set()
        thread.join()


def _clock_jumps_back(folder: Path, load: Load) -> None:
    """In the middle of a run by a day: it goes on from its last step, and nothing is negative."""
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
    with _jumping_clock():
        run_training(training, run, SaveConfig(2, 9, 0), seen.append)
    for step, path in enumerate(sorted(run.path.glob("state-*"))):
        os.utime(path, (10**9 - 10**5 * step,) * 2)
    found = newest_state([run.path])
    load.counts["jumps of the clock"] += 1
    load.expect(found is not None and found[1].step == 6, "the newest state is not the last one")
    load.expect(all(r.seconds_per_step >= 0 and r.seconds_left >= 0 for r in seen), "negative time")


@contextmanager
def _jumping_clock() -> Iterator[None]:
    real, calls = time.time, iter(range(10**9))
    with mock.patch("time.time", lambda: real() - 86_400 * next(calls)):
        yield
