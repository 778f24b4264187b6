"""Sends prompts to a real server: every node of the pack with valid inputs, and how a run ended."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from scripts.server.server import ComfyServer
from scripts.workflows.convert import default_of, input_specs, is_widget

Graph = dict[str, dict[str, Any]]


def every_node(motion: str) -> Graph:
    """All nodes of the pack, each with valid inputs."""
    conditioned = {"model": ["load", 0], "positive": ["text", 0], "negative": ["text", 0]}
    small = {"frames": 4, "width": 32, "height": 32}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "base": ("LAMP_LoadToyBase", {}),
        "world": ("LAMP_ToyClips", {"clips": 4}),
        "object": ("LAMP_ToyObject", {}),
        "toy clip": ("LAMP_LoadToyClip", {}),
        "clips": ("LAMP_TrainingClips", {"images": ["world", 0], "prompt": "moves", **small}),
        "recipe": ("LAMP_TrainingRecipe", {}),
        "preset": ("LAMP_TrainingPreset", {"model": ["base", 0]}),
        "train": ("LAMP_Trainer", {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2],
                                   "clips": ["clips", 0], "own_recipe": ["recipe", 0], "steps": 1,
                                   "sample_every": 0, "name": "tried"}),
        "load": ("LAMP_LoadMotion", {"model": ["base", 0], "motion_name": motion}),
        "save": ("LAMP_SaveMotion", {"motion": ["load", 1], "filename_prefix": "tried"}),
        "info": ("LAMP_MotionInfo", {"motion": ["load", 1]}),
        "merge": ("LAMP_MergeMotions", {"first": ["load", 1], "second": ["load", 1]}),
        "convert": ("LAMP_ConvertOfficial", {"model": ["base", 0], "folder": "official"}),
        "first": ("LAMP_FirstFrameCondition", {"vae": ["base", 2], "image": ["object", 0],
                                               **small}),
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
    return {key: {"class_type": kind, "inputs": given} for key, (kind, given) in nodes.items()}


@dataclass(frozen=True)
class End:
    """How a prompt ended: `done`, `rejected`, `failed`, `cancelled` or `lost`, and its error."""

    status: str
    message: str = ""
    error: str = ""


class Client:
    """A server with a motion file, and a graph of all nodes."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.infos = server.object_info()
        self.graph: Graph = {}
        for key, node in every_node(write_motion(server.base)).items():
            specs = input_specs(self.infos[node["class_type"]])
            widgets = {name: default_of(spec) for name, spec in specs.items() if is_widget(spec)}
            self.graph[key] = {**node, "inputs": widgets | node["inputs"]}

    def nodes(self, *keys: str, **changes: dict[str, Any]) -> Graph:
        """These nodes and their sources, with some inputs changed."""
        found: Graph = {}
        for key in keys:
            node = self.graph[key]
            for value in node["inputs"].values():
                if isinstance(value, list) and value and value[0] in self.graph:
                    found |= self.nodes(value[0], **changes)
            found[key] = {**node, "inputs": {**node["inputs"], **changes.get(key, {})}}
        return found

    def post(self, graph: Graph, shown: str = "") -> requests.Response:
        """Queue it; the first output of node `shown` is shown, which makes it a result."""
        if shown and self.infos[graph[shown]["class_type"]]["output"]:
            show = {"class_type": "PreviewAny", "inputs": {"source": [shown, 0]}}
            graph = {**graph, "shown": show}
        # Not requests' own JSON, which refuses NaN and lone surrogates.
        body = json.dumps({"prompt": graph, "client_id": "benchmark"})
        return requests.post(f"{self.server.url}/prompt", data=body, timeout=120,
                             headers={"Content-Type": "application/json"})  # fmt: skip

    def send(self, graph: Graph, shown: str = "") -> str:
        """Queue a valid prompt; its id."""
        answer = self.post(graph, shown)
        answer.raise_for_status()
        return str(answer.json()["prompt_id"])

    def end(self, answer: requests.Response, patience: float = 120.0) -> End:
        """Wait for the end of a prompt."""
        if answer.status_code >= 400:
            return End("rejected", answer.text)
        if errors := answer.json().get("node_errors"):
            return End("rejected", json.dumps(errors))
        return self.ended([answer.json()["prompt_id"]], patience)[0]

    def ended(self, ids: list[str], patience: float = 600.0) -> list[End]:
        """Wait for the ends of prompts."""
        until, known = time.monotonic() + patience, dict[str, End]()
        while len(known) < len(ids) and time.monotonic() < until:
            path = f"/history/{ids[0]}" if len(ids) == 1 else "/history"
            history = self.server.get(path, max_items=10_000)
            known = {name: _end_of(history[name]) for name in ids if name in history}
            time.sleep(0.005 if len(ids) == 1 else 0.1)
        return [known.get(name, End("lost")) for name in ids]

    def memory(self) -> int:
        """Resident bytes of the server."""
        for line in Path(f"/proc/{self.server.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0


def _end_of(entry: dict[str, Any]) -> End:
    events = dict(entry["status"]["messages"])
    if error := events.get("execution_error"):
        return End("failed", error["exception_message"].strip(), error["exception_type"])
    return End("cancelled" if "execution_interrupted" in events else "done")


def write_motion(base: Path) -> str:
    """A motion for the toy base in the server's folder; its name."""
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
    return save_motion(folder / "valid.safetensors", state, MotionConfig(sites.family)).name
