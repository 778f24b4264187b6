"""Train a motion on eight toy clips in ComfyUI and apply it to unseen pictures: `make demo`.

Starts a ComfyUI server on loopback, queues the bundled workflow lamp_toy_train_and_generate once
per picture (the motion is trained only the first time), and writes pictures, the motion file and
its score to build/demo. Exit status 0 only if the motion was learned.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from lamp.cli.terminal import Terminal
from lamp.toy.scenes.cases import evaluation_cases
from lamp.toy.scenes.score import SceneScore, score_video, still_video
from scripts.demo_pictures import Film, write_pictures
from scripts.server.host import ROOT, HostMissing
from scripts.server.run import Event, PromptRejected, RunResult
from scripts.server.server import ComfyServer, ServerFailed
from scripts.workflows import load_api

WORKFLOW = "lamp_toy_train_and_generate"
OUT = ROOT / "build" / "demo"
PICTURES = ("motion.webp", "motion.mp4", "contact_sheet.png", "loss.png")
# A still video has 0 for both. Looser than benchmarks.scenes, which averages more runs.
MARKS = {"motion": 0.5, "followed": 0.75}
_NAMES = {"motion": "motion", "followed": "share followed"}
_FRAMES = "frames"  # the node that the demo adds to the workflow to get single frames


class Failed(RuntimeError):
    """The demo cannot continue; the message says why."""


def node_of(prompt: dict[str, Any], kind: str) -> str:
    """The id of the only node of a type."""
    (found,) = [number for number, node in prompt.items() if node["class_type"] == kind]
    return found


def toy_prompt(seed: int, number: int) -> dict[str, Any]:
    """The bundled workflow for one picture."""
    prompt = load_api(WORKFLOW)
    prompt[node_of(prompt, "LAMP_ToyClips")]["inputs"]["seed"] = seed
    chosen = prompt[node_of(prompt, "LAMP_ToyObject")]["inputs"]
    chosen |= {"seed": seed, "number": number}
    shown = {"images": [node_of(prompt, "VAEDecode"), 0]}
    prompt[_FRAMES] = {"class_type": "PreviewImage", "inputs": shown}
    return prompt


class Watch:
    """Shows the progress of a run."""

    def __init__(self, line: Terminal, prompt: dict[str, Any], label: str) -> None:
        self._line, self._label = line, label
        self._trainer, self._sampler = (
            node_of(prompt, kind) for kind in ("LAMP_Trainer", "LAMP_KSampler")
        )
        self._loss = ""

    def __call__(self, event: Event) -> None:
        data = event["data"]
        if event["type"] == "progress_text" and data["node"] == self._trainer:
            # Before the first step the node reports on clips and memory.
            self._loss = data["text"] if data["text"].startswith("loss") else ""
        if event["type"] != "progress":
            return
        done, total = data["value"], max(data["max"], 1)
        if data["node"] == self._trainer:
            job = "training" if self._loss else "encoding the clips"
            self._line.progress(job, done, total, self._loss)
        elif data["node"] == self._sampler:
            self._line.progress(self._label, done, total)


def run_pictures(server: ComfyServer, args: argparse.Namespace, line: Terminal) -> list[Film]:
    """Train once and animate every picture; also fetches the loss plot and the motion file."""
    bundled = load_api(WORKFLOW)
    kind = bundled[node_of(bundled, "LAMP_ToyClips")]["inputs"]["motion"]
    cases = evaluation_cases(args.seed, kind, args.pictures)
    films = []
    for number, case in enumerate(cases):
        prompt = toy_prompt(args.seed, number)
        label = f"picture {number + 1}/{len(cases)}"
        result = server.queue(prompt, Watch(line, prompt, label), timeout=args.timeout).check()
        if number == 0:
            _fetch_training(server, prompt, result, args.out)
            line.say(f"trained '{case.motion}' on 8 clips in {result.seconds:.0f} s")
        files = [Image.open(io.BytesIO(server.view(file))) for file in result.files(_FRAMES)]
        if not files:
            raise Failed("The workflow ended without a video.")
        films.append(Film(case, np.stack([np.asarray(file.convert("RGB")) for file in files])))
        found = films[-1].score
        verdict = "followed" if found.followed else "NOT followed"
        line.say(f"{label}  {case.caption}: {verdict}, motion {found.motion:.2f}")
    return films


def _fetch_training(
    server: ComfyServer, prompt: dict[str, Any], result: RunResult, out: Path
) -> None:
    """The loss plot that the trainer shows, and the motion file that it writes."""
    plots = result.files(node_of(prompt, "LAMP_Trainer"))
    if plots:
        (out / "loss.png").write_bytes(server.view(plots[0]))
    motions = sorted((server.base / "models" / "lamp_motion").rglob("*.safetensors"))
    if not motions:
        raise Failed("The trainer ended without a motion file.")
    for motion in motions:
        shutil.copy(motion, out / motion.name)


def measure(films: list[Film]) -> dict[str, dict[str, float]]:
    """Mean scores, and those of still videos."""
    still = [score_video(still_video(film.case), film.case) for film in films]
    return {"learned": _means([film.score for film in films]), "still": _means(still)}


def _means(scores: list[SceneScore]) -> dict[str, float]:
    columns = {name: [float(getattr(score, name)) for score in scores] for name in MARKS}
    return {name: round(float(np.mean(values)), 4) for name, values in columns.items()}


def missed(figures: dict[str, float]) -> list[str]:
    """The marks that are not reached, as text."""
    return [
        f"{_NAMES[name]} is {figures[name]:.2f}, the mark is {mark:.2f}"
        for name, mark in MARKS.items()
        if figures[name] < mark
    ]


def report(films: list[Film], files: list[Path], out: Path) -> int:
    """Print the score and the files; the exit status."""
    figures = measure(films)
    (out / "score.json").write_text(json.dumps({"marks": MARKS, **figures}, indent=2) + "\n")
    learned, still, count = figures["learned"], figures["still"], len(films)
    print(f"\nMotion score on {count} unseen pictures (a still video in brackets):")
    for name, words in _NAMES.items():
        print(f"  {words:<16} {learned[name]:.2f}  ({still[name]:.2f})")
    print("\nResults:")
    for path in files:
        print(f"  {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    if faults := missed(learned):
        print("\nThe motion was NOT learned: " + "; ".join(faults), file=sys.stderr)
        return 1
    print(f"\nThe motion was learned: {round(learned['followed'] * count)} of {count} followed.")
    return 0


def run(args: argparse.Namespace) -> int:
    made = [args.out / name for name in PICTURES]
    args.out.mkdir(parents=True, exist_ok=True)
    for path in [*made, *args.out.glob("*.safetensors")]:  # of an earlier run
        path.unlink(missing_ok=True)
    line, started = Terminal(sys.stdout), time.monotonic()
    print(f"LAMP demo: train a motion on 8 clips, then animate {args.pictures} unseen pictures.")
    line.say("starting ComfyUI")
    with ComfyServer(log=args.out / "server.log") as server:
        line.say(f"ComfyUI runs at {server.url} ({time.monotonic() - started:.0f} s)")
        with line:
            films = run_pictures(server, args, line)
    write_pictures(films, args.out)
    line.say(f"done in {time.monotonic() - started:.0f} s")
    return report(films, [*made, *sorted(args.out.glob("*.safetensors"))], args.out)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="chooses clips and pictures")
    parser.add_argument("--pictures", type=int, default=8, choices=range(1, 25), metavar="1..24")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds per picture")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    try:
        return run(parse(arguments))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (Failed, HostMissing, ServerFailed, TimeoutError) as error:
        print(f"\n{error}", file=sys.stderr)
    except (PromptRejected, RuntimeError, requests.RequestException) as error:
        print(f"\nThe workflow failed: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
