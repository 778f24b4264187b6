"""Every text and number of every node, sent over the API of a real server with what no widget
gives: afterwards the server works as before, and nothing but its own folders was touched."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from scripts.server.host import PACK_FOLDER
from scripts.server.server import ComfyServer
from scripts.workflows.convert import default_of, input_specs, is_widget

Graph = dict[str, dict[str, Any]]
TRACE = Path(__file__).parent / "trace_nodes"
_PATIENCE = 120  # seconds for one prompt: busy machines are slow
_OWN = ("input", "output", "models", "temp", "user")
_TEXTS, _NUMBERS = ("STRING", "COMBO"), ("INT", "FLOAT", "BOOLEAN")
# Where the server may write besides its folders: devices, and what Python and its libraries keep.
_ELSEWHERE = ("/dev/", "/proc/")


def hostile_texts(outside: Path) -> list[str]:
    """Names that lead out of a folder, devices, halves of characters, and far too much."""
    bait = f"{outside.name}/bait"
    return [
        "\ud800", f"a\udcff{chr(0xdfff)}.safetensors", "a\0b", "\0", "x" * 2**20,
        *("../" * up + bait for up in range(1, 6)), *("..\\" * up + bait for up in (1, 3)),
        f"{outside}/bait", f"{outside}/bait.safetensors", f"file://{outside}/bait.safetensors",
        f"input/../../{bait}", f"a/../../../{bait}.safetensors", f"./../{bait}",
        "../" * 2000 + bait,
        "\\\\127.0.0.1\\share\\bait", "//127.0.0.1/share/bait.safetensors", "\\\\?\\C:\\bait",
        "\\\\.\\PhysicalDrive0", "C:\\Windows\\win.ini", "C:bait", "/etc/passwd", "~/bait",
        "/dev/zero",
        "CON", "NUL.safetensors", "aux", "COM1.txt", "LPT\u00b9", "CONIN$", "nul .safetensors",
        "http://127.0.0.1:9/bait", "", " ", ".", "..", "/", "a/", "name:stream", "a" * 300,
        "a/" * 3000, "%year%/../../../x", "%s%n{0}{}%width%", "$(touch bait)", "`id`", "'\";--",
        "*?<>|",
        "\x1b]52;c;aGk=\x07\x1b[2J", "a\u202eb\u2066", "a\r\nb", "\u200b\ufeff", "\U0001f40e",
        "-rf", "none\n",
    ]  # fmt: skip


def hostile_numbers(options: Mapping[str, Any]) -> list[Any]:
    """Outside of the range, no numbers at all, and numbers of 4,000 digits."""
    low, high = options.get("min", 0), options.get("max", 2**64)
    return [
        float("nan"), float("inf"), float("-inf"), low - 1, high + 1, -(2**63) - 1, 2**64,
            10**4000, -1e308,
        "abc", "\ud800", "", "nan", "1e999", "9" * 4000, None, [], [1], {},
        {"__value__": float("nan")},
        {"__value__": [1, 2, 3]}, {"__value__": "\ud800"}, "\uff19\0",
    ]  # fmt: skip


def every_node(motion: str) -> Graph:
    """All nodes of the pack beside each other, each with inputs that work."""
    conditioned = {"model": ["load", 0], "positive": ["text", 0], "negative": ["text", 0]}
    links: dict[str, tuple[str, dict[str, Any]]] = {
        "base": ("LAMP_LoadToyBase", {}),
        "world": ("LAMP_ToyClips", {"clips": 4}),
        "object": ("LAMP_ToyObject", {}),
        "clips": ("LAMP_TrainingClips", {"images": ["world", 0], "prompt": "moves", "frames": 4,
                                         "width": 32, "height": 32}),
        "recipe": ("LAMP_TrainingRecipe", {}),
        "train": ("LAMP_Trainer", {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2],
                                   "clips": ["clips", 0], "own_recipe": ["recipe", 0], "steps": 1,
                                   "sample_every": 0, "name": "tried"}),
        "load": ("LAMP_LoadMotion", {"model": ["base", 0], "motion_name": motion}),
        "save": ("LAMP_SaveMotion", {"motion": ["load", 1], "filename_prefix": "tried"}),
        "info": ("LAMP_MotionInfo", {"motion": ["load", 1]}),
        "merge": ("LAMP_MergeMotions", {"first": ["load", 1], "second": ["load", 1]}),
        "convert": ("LAMP_ConvertOfficial", {"model": ["base", 0], "folder": "official"}),
        "first": ("LAMP_FirstFrameCondition", {"vae": ["base", 2], "image": ["object", 0],
                                               "width": 32, "height": 32, "frames": 4}),
        "noise": ("LAMP_SharedNoise", {"latent": ["first", 0]}),
        "schedule": ("LAMP_AdaINSchedule", {}),
        "sampler": ("LAMP_Sampler", {"adain_schedule": ["schedule", 0]}),
        "scheduler": ("LAMP_Scheduler", {"model": ["base", 0], "steps": 2}),
        "sample": ("LAMP_KSampler", {**conditioned, "latent": ["first", 0], "steps": 2}),
        "windows": ("LAMP_AnchoredWindows", {"model": ["load", 0]}),
        "longer": ("LAMP_ExtendVideo", {**conditioned, "latent": ["sample", 0], "steps": 2,
                                        "frames": 3, "times": 1}),
        "inverted": ("LAMP_DDIMInversion", {"model": ["load", 0], "conditioning": ["text", 0],
                                            "latent": ["encoded", 0], "steps": 2}),
        "matched": ("LAMP_HistogramMatch", {"images": ["object", 2]}),
        "map": ("LAMP_MotionMap", {**conditioned, "latent": ["first", 0], "steps": 2}),
        "metrics": ("LAMP_VideoMetrics", {"images": ["object", 2], "prompt": "moves"}),
        "score": ("LAMP_ToyScore", {"images": ["object", 2], "case": ["object", 3]}),
        "text": ("CLIPTextEncode", {"clip": ["base", 1], "text": "moves"}),
        "encoded": ("VAEEncode", {"pixels": ["object", 2], "vae": ["base", 2]}),
    }  # fmt: skip
    return {
        key: {"class_type": kind, "inputs": dict(given)} for key, (kind, given) in links.items()
    }


@dataclass
class Tried:
    """How many prompts ended in which way, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Attack:
    """A server, a folder beside its own with files to be had, and what is sent to it."""

    def __init__(self, server: ComfyServer) -> None:
        self.server, self.tried = server, Tried()
        self.outside = server.base.parent / f"{server.base.name}-outside"
        _lay_bait(self.outside)
        self._infos = server.object_info()
        graph = every_node(write_motion(server.base))
        _write_official(server.base)
        self.graph = {key: self._filled(node) for key, node in graph.items()}
        self._bait = _state_of(self.outside)
        self.inputs = len({case[:2] for case in self.cases()})

    def _filled(self, node: dict[str, Any]) -> dict[str, Any]:
        specs = input_specs(self._infos[node["class_type"]])
        widgets = {name: default_of(spec) for name, spec in specs.items() if is_widget(spec)}
        return {**node, "inputs": widgets | node["inputs"]}

    def cases(self) -> Iterator[tuple[str, str, Any]]:
        """Node, input and value; those of one input lie far apart, so that few of them try all."""
        rows = []
        for key, node in self.graph.items():
            if not node["class_type"].startswith("LAMP_"):
                continue
            for name, spec in input_specs(self._infos[node["class_type"]]).items():
                if is_widget(spec):
                    texts = spec[0] in _TEXTS
                    values = hostile_texts(self.outside) if texts else hostile_numbers(spec[1])
                    rows.append([(key, name, value) for value in values])
        for place in range(max(map(len, rows))):
            yield from (row[place] for row in rows if place < len(row))

    def run(self, most: int) -> Tried:
        """So many prompts at most; between and after them, normal ones."""
        self._normal(every=True)
        seen = self._trace().stat().st_size
        for number, (key, name, value) in enumerate(self.cases()):
            if number >= most or len(self.tried.problems) > 100:
                break
            where = f"{self.graph[key]['class_type']}.{name} = {value!r:.80}"
            if (ended := self._one(key, name, value, where)) == "dead":
                self.tried.problems.append(f"no prompt runs any more after {where}")
                return self.tried
            self.tried.counts[ended] += 1
            if number % 50 == 49:
                self._normal()
        self._normal(every=True)
        self.tried.problems += self.touched(seen)
        return self.tried

    def _one(self, key: str, name: str, value: Any, where: str) -> str:
        node = self.graph[key]
        changed = {**node, "inputs": {**node["inputs"], name: value}}
        answer = self._send({**self._below(key), key: changed}, key)
        status, message, kind = self._end(answer)
        if status == "failed" and PACK_FOLDER not in kind:
            self.tried.problems.append(f"{where}: {kind}: {message[:200]}")
        elif status == "failed" and not _is_sentence(message):
            self.tried.problems.append(f"{where}: no sentence: {message[:200]!r}")
        return status

    def _normal(self, every: bool = False) -> None:
        """A prompt of sound values, or one for each node, has to run to its end."""
        for key in self.graph if every else ("score",):
            answer = self._send(self._below(key) | {key: self.graph[key]}, key)
            status, message, _ = self._end(answer)
            if status != "done":
                self.tried.problems.append(f"a normal prompt for {key} {status}: {message[:300]}")

    def _below(self, key: str) -> Graph:
        """What a node's inputs come from."""
        found: Graph = {}
        for value in self.graph[key]["inputs"].values():
            if isinstance(value, list) and value and value[0] in self.graph:
                found |= self._below(value[0]) | {value[0]: self.graph[value[0]]}
        return found

    def _send(self, graph: Graph, key: str) -> requests.Response:
        shown = {"class_type": "PreviewAny", "inputs": {"source": [key, 0]}}
        if self._infos[self.graph[key]["class_type"]]["output"]:
            graph = {**graph, "shown": shown}
        # As a program would: with numbers that JSON does not have, and halves of characters.
        body = json.dumps({"prompt": graph, "client_id": "attack"})
        return requests.post(f"{self.server.url}/prompt", data=body, timeout=_PATIENCE,
                             headers={"Content-Type": "application/json"})  # fmt: skip

    def _end(self, answer: requests.Response) -> tuple[str, str, str]:
        """How a prompt ended, with its error's message and type."""
        if answer.status_code >= 400:
            return "rejected", answer.text, ""
        if answer.json().get("node_errors"):
            return "rejected", json.dumps(answer.json()["node_errors"]), ""
        name, until = answer.json()["prompt_id"], time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if found := self.server.get(f"/history/{name}").get(name):
                events = dict(found["status"]["messages"])
                if error := events.get("execution_error"):
                    return "failed", error["exception_message"].strip(), error["exception_type"]
                return "done", "", ""
            time.sleep(0.005)
        return "dead", "", ""

    def _trace(self) -> Path:
        return self.server.base / "trace.jsonl"

    def touched(self, start: int) -> list[str]:
        """What was read of the bait, changed outside of the server's folders, run or connected."""
        problems = []
        base = self.server.base.resolve()
        with self._trace().open("rb") as file:
            file.seek(start)
            for line in map(json.loads, file):
                paths = [Path(os.path.abspath(path)) for path in line["paths"]]
                if any(path.is_relative_to(self.outside) for path in paths):
                    problems.append(f"the bait was touched: {line['event']} {line['details']}")
                elif line["kind"] == "change" and not all(self._may_change(p, base) for p in paths):
                    problems.append(f"outside of its folders: {line['event']} {line['details']}")
                elif line["kind"] == "run" and not _is_common(line):
                    problems.append(f"{line['event']} {line['details']}")
        if _state_of(self.outside) != self._bait:
            problems.append("the bait was changed")
        return list(dict.fromkeys(problems))

    def _may_change(self, path: Path, base: Path) -> bool:
        """Modules that are imported late are compiled, which is no prompt's doing."""
        own = path.is_relative_to(base) and path.relative_to(base).parts[:1]
        return bool(own and own[0] in _OWN) or str(path).startswith(_ELSEWHERE) or (
            "__pycache__" in path.parts
        )  # fmt: skip


def _is_common(line: dict[str, Any]) -> bool:
    """The event loop's own sockets."""
    return "127.0.0.1" in line["details"] or line["event"] == "pickle.find_class"


def _is_sentence(message: str) -> bool:
    first = message.split("\n")[0]
    return len(message) < 4000 and first.isprintable() and first.endswith((".", "?"))


def _lay_bait(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for name in ("bait", "bait.safetensors", "bait.txt"):
        (folder / name).write_bytes(b"not yours")
    (folder / "clips").mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(folder / "clips" / "0.png")


def _state_of(folder: Path) -> list[tuple[str, int, int, bytes]]:
    found = []
    for path in sorted(folder.rglob("*")):
        about = path.stat()
        data = path.read_bytes() if path.is_file() else b""
        found.append((str(path.relative_to(folder)), about.st_size, about.st_mtime_ns, data))
    return found


def write_motion(base: Path) -> str:
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion
    from lamp.motion_file.config import MotionConfig
    from lamp.motion_file.file import save_motion
    from lamp.toy.base import load_toy_base

    sites = map_unet(load_toy_base().unet)
    state = {
        name: tensor + 0.01 for name, tensor in Motion(sites).initialise(0).state_dict().items()
    }
    folder = base / "models" / "lamp_motion"
    return save_motion(folder / "sound.safetensors", state, MotionConfig(sites.family)).name


def _write_official(base: Path) -> None:
    from benchmarks.samples.official_files import official_state, write_official
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion
    from lamp.motion_file.convert import canonical_state
    from lamp.toy.base import load_toy_base

    unet = load_toy_base().unet
    learned = Motion(map_unet(unet)).initialise(0).state_dict()
    state = official_state(canonical_state(unet), learned, unet)
    write_official(base / "models" / "diffusers" / "official", state)
