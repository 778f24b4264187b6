"""The same run in the LAMP Trainer node of the real server and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamp.cli import DONE, main
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.motion_file.file import MotionFile, load_motion_file
from lamp.toy.base import load_toy_base
from scripts.server.server import ComfyServer
from tests.helpers.toy_runs import write_clips, write_config
from tests.host.test_train import clips, training

Run = tuple[list[float], list[float], MotionFile]


def result(folder: Path, motion: Path) -> Run:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses, rates = ([line[name] for line in lines] for name in ("loss", "learning_rate"))
    return losses, rates, load_motion_file(motion)


def in_the_node(server: ComfyServer) -> Run:
    write_clips(server.base / "input" / "parity")
    graph = training("parity", recipe="fast", steps=6, batch=2, hold_out=1)
    del graph["train"]["inputs"]["own_recipe"], graph["recipe"], graph["world"]
    graph["clips"] = clips(folder="input/parity", prompt="moves right", frames=4)
    server.queue(graph).check()
    return result(
        server.base / "output/lamp_training/parity_00001",
        server.base / "models/lamp_motion/parity_00001.safetensors",
    )


def on_the_command_line(folder: Path) -> Run:
    config = write_config(folder)
    text = config.read_text(encoding="utf-8").replace("steps = 3", "steps = 6")
    same = 'preset = "fast"\nbatch = 2\nhold_out = 1'
    config.write_text(text.replace("learning_rate = 2e-3", same), encoding="utf-8")
    assert main(["train", str(config)]) == DONE
    return result(folder / "output/right_00001", folder / "output/right_00001.safetensors")


def test_node_and_command_line_train_the_same_motion(server: ComfyServer, tmp_path: Path) -> None:
    node_losses, node_rates, node = in_the_node(server)
    losses, rates, line = on_the_command_line(tmp_path)
    assert len(losses) == 6
    assert node_rates == rates
    assert node_losses == pytest.approx(losses, rel=1e-3)
    assert node.config.base_hash == line.config.base_hash
    assert node.config.captions == line.config.captions
    assert node.state.keys() == line.state.keys()
    fresh = Motion(map_unet(load_toy_base().unet)).initialise(5).state_dict()
    apart = learned = 0.0
    for name, weight in node.state.items():
        apart += (line.state[name].float() - weight.float()).square().sum().item()
        learned += (weight.float() - fresh[name]).square().sum().item()
    # Relative to the change of the weights since the first step.
    assert apart**0.5 < 1e-3 * learned**0.5
