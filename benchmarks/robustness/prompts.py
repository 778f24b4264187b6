"""Strange values for every text and number of every node, sent to a real server.

Afterwards the server works as before, and nothing outside its own folders was touched.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.server.host import PACK_FOLDER
from scripts.server.server import ComfyServer
from scripts.workflows.convert import input_specs, is_widget

from .client import Client
from .watch import Result, is_readable

TRACE = Path(__file__).parent / "trace_nodes"
_OWN = ("input", "output", "models", "temp", "user")
_TEXTS = ("STRING", "COMBO")
_ELSEWHERE = ("/dev/", "/proc/")  # where a server may write as well
_MOST_PROBLEMS = 100


def strange_texts(outside: Path) -> list[str]:
    """Paths that leave a folder, devices, lone surrogates, and far too much text."""
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


def strange_numbers(options: Mapping[str, Any]) -> list[Any]:
    """Out of range, not numbers at all, and numbers of 4,000 digits."""
    low, high = options.get("min", 0), options.get("max", 2**64)
    return [
        float("nan"), float("inf"), float("-inf"), low - 1, high + 1, -(2**63) - 1, 2**64,
        10**4000, -1e308, "abc", "\ud800", "", "nan", "1e999", "9" * 4000, None, [], [1], {},
        {"__value__": float("nan")}, {"__value__": [1, 2, 3]}, {"__value__": "\ud800"}, "\uff19\0",
    ]  # fmt: skip


class Attack:
    """A server, a folder with bait beside its own, and what is sent to it."""

    def __init__(self, server: ComfyServer) -> None:
        self.client, self.result = Client(server), Result()
        self.base = server.base
        self.outside = self.base.parent / f"{self.base.name}-outside"
        lay_bait(self.outside)
        _write_official(self.base)
        self._bait = state_of(self.outside)
        self.inputs = len({case[:2] for case in self.cases()})

    def cases(self) -> Iterator[tuple[str, str, Any]]:
        """Node, input and value, in rounds over the inputs. The first round tries each input once,
        and most of the values."""
        rows: list[list[tuple[str, str, Any]]] = []
        turns = Counter[bool]()
        for key, node in self.client.graph.items():
            if not node["class_type"].startswith("LAMP_"):
                continue
            for name, spec in input_specs(self.client.infos[node["class_type"]]).items():
                if is_widget(spec):
                    texts = spec[0] in _TEXTS
                    values = strange_texts(self.outside) if texts else strange_numbers(spec[1])
                    begin = turns[texts] % len(values)
                    turns[texts] += 1
                    turned = [*values[begin:], *values[:begin]]
                    rows.append([(key, name, value) for value in turned])
        for place in range(max(map(len, rows))):
            yield from (row[place] for row in rows if place < len(row))

    def run(self, most: int) -> Result:
        """At most so many prompts, with normal ones in between and at the end."""
        self._normal(every=True)
        result, seen = self.result, self._trace().stat().st_size
        for number, (key, name, value) in enumerate(self.cases()):
            if number >= most or len(result.problems) > _MOST_PROBLEMS:
                break
            where = f"{self.client.graph[key]['class_type']}.{name} = {value!r:.80}"
            end = self.client.end(
                self.client.post(self.client.nodes(key, **{key: {name: value}}), key)
            )
            result.counts[end.status] += 1
            if end.status == "lost":
                result.problems.append(f"no prompt runs any more after {where}")
                return result
            if end.status == "failed":
                ours = PACK_FOLDER in end.error
                result.expect(ours, f"{where}: {end.error}: {end.message[:200]}")
                readable = not ours or is_shown(end.message)
                result.expect(readable, f"{where}: unreadable message: {end.message[:200]!r}")
            if number % 50 == 49:
                self._normal()
        self._normal(every=True)
        result.problems += self.touched(seen)
        return result

    def _normal(self, every: bool = False) -> None:
        """A valid prompt, or one for each node, must run to its end."""
        for key in self.client.graph if every else ("score",):
            end = self.client.end(self.client.post(self.client.nodes(key), key))
            told = f"a normal prompt for {key} {end.status}: {end.message[:300]}"
            self.result.expect(end.status == "done", told)

    def _trace(self) -> Path:
        return self.base / "trace.jsonl"

    def touched(self, start: int) -> list[str]:
        """Bait that was read, changes outside the server's folders, programs, connections."""
        problems = []
        with self._trace().open("rb") as file:
            file.seek(start)
            for line in map(json.loads, file):
                paths = [Path(os.path.abspath(path)) for path in line["paths"]]
                told = f"{line['event']} {line['details']}"
                if any(path.is_relative_to(self.outside) for path in paths):
                    problems.append(f"the bait was touched: {told}")
                elif line["kind"] == "change" and not all(map(self._may_change, paths)):
                    problems.append(f"outside the server's folders: {told}")
                # The event loop has sockets of its own.
                elif line["kind"] == "run" and not (
                    "127.0.0.1" in line["details"] or line["event"] == "pickle.find_class"
                ):
                    problems.append(told)
        if state_of(self.outside) != self._bait:
            problems.append("the bait was changed")
        return list(dict.fromkeys(problems))

    def _may_change(self, path: Path) -> bool:
        base = self.base.resolve()
        own = path.is_relative_to(base) and path.relative_to(base).parts[:1]
        # Modules that are imported late are compiled, which is no prompt's doing.
        cache = "__pycache__" in path.parts
        return bool(own and own[0] in _OWN) or str(path).startswith(_ELSEWHERE) or cache


def is_shown(message: str) -> bool:
    """Whether the first line of a node's error is a readable sentence."""
    first = message.split("\n")[0]
    return len(message) < 4000 and first.isprintable() and is_readable(first)


def lay_bait(folder: Path) -> None:
    from PIL import Image

    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for name in ("bait", "bait.safetensors", "bait.txt"):
        (folder / name).write_bytes(b"not yours")
    Image.new("RGB", (32, 32)).save(folder / "clips" / "0.png")


def state_of(folder: Path) -> list[tuple[str, int, bytes]]:
    """Paths, modification times and contents."""
    return [
        (str(path.relative_to(folder)), path.stat().st_mtime_ns,
         path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]  # fmt: skip


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
