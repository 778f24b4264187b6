"""Optimizers besides AdamW: what they learn, what a state keeps, what is refused by name."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.samples.small_training import small_training
from lamp.errors import LampError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.settings import find_setting
from lamp.training import optimizers
from lamp.training.latents import LatentClips
from lamp.training.loop import Training
from lamp.training.optimizer_state import optimizer_state, restore_optimizer
from lamp.training.optimizers import check_optimizer, installed_optimizers
from lamp.training.recipe import TrainConfig, preset
from lamp.training.state import read_state, restore, take_state, write_state

pytestmark = pytest.mark.slow  # many of them

WHO = {"base": "abc", "clips": "def"}
MODULES = {"prodigy": "prodigyopt", "schedulefree": "schedulefree", "came": "came_pytorch"}
PACKAGES = {**MODULES, "came": "came-pytorch", "adamw8bit": "bitsandbytes"}


def begin(host: DiffusersHost, clips: LatentClips, **settings: Any) -> Training:
    given = {"steps": 40, "learning_rate": 3e-3, "hold_out": 1, **settings}
    return small_training(host, clips, **given)


def needed(optimizer: str) -> None:
    if optimizer in MODULES:
        pytest.importorskip(MODULES[optimizer])


@pytest.mark.parametrize("optimizer", [*MODULES, "muon"])
def test_it_learns(host: DiffusersHost, clips: LatentClips, optimizer: str, capsys: Any) -> None:
    needed(optimizer)
    training = begin(host, clips, optimizer=optimizer)
    assert MODULES.get(optimizer, optimizer) in type(training.optimizer).__module__
    before = training.validate()
    for _ in range(40):
        training.advance()
    after = training.validate()
    assert before is not None and after is not None and after < 0.99 * before
    assert not capsys.readouterr().out  # Prodigy prints


@pytest.mark.parametrize("optimizer", [*MODULES, "muon"])
def test_a_run_in_two_halves_equals_one_bit_for_bit(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, optimizer: str
) -> None:
    needed(optimizer)
    straight, half = (begin(host, clips, optimizer=optimizer) for _ in range(2))
    for _ in range(6):
        straight.advance()
    for _ in range(3):
        half.advance()
    half.validate()  # changes nothing
    write_state(tmp_path / "state", take_state(half, WHO))
    rest = begin(host, clips, optimizer=optimizer)
    restore(rest, read_state(tmp_path / "state"), WHO)
    for _ in range(3):
        rest.advance()
    assert rest.losses == straight.losses
    for name, tensor in straight.motion.state_dict().items():
        assert torch.equal(tensor, rest.motion.state_dict()[name]), name


class InMemoryOrder(torch.optim.Optimizer):
    """Momentum as the kernels of bitsandbytes see it: numbers in the order of the memory, whatever
    their strides, with blocks of their own size beside them."""

    def __init__(self, params: Any, lr: float, weight_decay: float, **_: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p] = {"m": torch.zeros_like(p), "blocks": torch.ones(p.numel())}
                p.data = p.data.contiguous()  # as bitsandbytes does
                flat, m = (torch.as_strided(t, (t.numel(),), (1,)) for t in (p, self.state[p]["m"]))
                blocks = self.state[p]["blocks"]
                m.mul_(0.9).add_(p.grad.contiguous().flatten())
                flat.sub_(group["lr"] * m * blocks)
                blocks.mul_(1 + m.abs())


@pytest.mark.parametrize("within", [True, False], ids=["arranged", "resumed"])
def test_the_state_of_kernels_without_strides_stays_with_its_weights(
    host: DiffusersHost,
    clips: LatentClips,
    tmp_path: Path,
    within: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizers, "_library", lambda name: InMemoryOrder)
    given = {"optimizer": "adamw8bit", "learning_rate": 1e-3}
    straight, rest = (begin(host, clips, **given) for _ in range(2))
    for _ in range(3):
        straight.advance()
    for _ in range(2):
        rest.advance()
    if within:  # what the arena does after the first update
        states, rest.optimizer.state = optimizer_state(rest.optimizer), defaultdict(dict)
        restore_optimizer(rest.optimizer, states, rest.device)
    else:
        write_state(tmp_path / "state", take_state(rest, WHO))
        rest = begin(host, clips, **given)
        restore(rest, read_state(tmp_path / "state"), WHO)
    rest.advance()
    for name, tensor in straight.motion.state_dict().items():
        assert torch.equal(tensor, rest.motion.state_dict()[name]), name


def test_the_average_of_schedulefree_is_what_is_shown(
    host: DiffusersHost, clips: LatentClips
) -> None:
    pytest.importorskip("schedulefree")
    training = begin(host, clips, optimizer="schedulefree")
    for _ in range(5):
        training.advance()
    inside = [p.detach().clone() for p in training.trained]
    with training.average.shown():
        shown = [p.detach().clone() for p in training.trained]
    for before, average, after in zip(inside, shown, training.trained, strict=True):
        z = training.optimizer.state[after]["z"]
        # y = 0.9 x + 0.1 z (Defazio et al. 2024, eq. 1)
        torch.testing.assert_close(before, 0.9 * average + 0.1 * z)
        assert torch.equal(before, after)
    assert any((a != b).any() for a, b in zip(inside, shown, strict=True))
    training.finish()
    assert all(torch.equal(p, x) for p, x in zip(training.trained, shown, strict=True))


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (*MODULES.values(), "pytorch_optimizer", "bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, f"{module}.optim", None)
    return


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("optimizer", PACKAGES)
def test_a_missing_package_is_named(
    host: DiffusersHost, clips: LatentClips, optimizer: str, node_classes: dict[str, Any]
) -> None:
    with pytest.raises(LampError, match=f"{optimizer}.*pip install {PACKAGES[optimizer]}"):
        begin(host, clips, optimizer=optimizer)
    answer = node_classes["LAMP_Trainer"].validate_inputs(optimizer=optimizer)
    assert f"pip install {PACKAGES[optimizer]}" in answer


def test_the_node_refuses_what_does_not_exist(node_classes: dict[str, Any]) -> None:
    check = node_classes["LAMP_Trainer"].validate_inputs
    assert "sgd" in check(optimizer="sgd")
    assert "gone.safetensors" in check(start_from="gone.safetensors")
    assert check(optimizer="adamw", start_from="none") is True


def test_only_what_is_there_is_listed(
    monkeypatch: pytest.MonkeyPatch, node_classes: dict[str, Any]
) -> None:
    import importlib.util

    there = {"schedulefree", "pytorch_optimizer"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in there or None)
    wanted = ["adamw", "muon", "schedulefree", "came"]
    assert installed_optimizers() == wanted
    listed = node_classes["LAMP_Trainer"].INPUT_TYPES()["required"]["optimizer"]
    assert list(listed[1]["options"]) == wanted
    known = find_setting(TrainConfig, "optimizer").metadata["choices"]
    assert {*PACKAGES, "adamw", "muon"} == {*known}


@pytest.mark.parametrize(
    ("optimizer", "settings", "named"),
    [
        ("prodigy", preset("fast", 100), "reference_width"),
        ("prodigy", {"conv_rate": 2.0}, "conv_rate"),
        ("schedulefree", preset("fast", 100), "cosine"),
        ("schedulefree", {"ema": 0.9}, r"0\.9"),
    ],
)
def test_settings_that_do_not_go_with_it(
    optimizer: str, settings: dict[str, Any], named: str
) -> None:
    pytest.importorskip(MODULES[optimizer])
    with pytest.raises(LampError, match=named):
        check_optimizer(TrainConfig(optimizer=optimizer, **settings))


def test_prodigy_takes_a_frozen_part(host: DiffusersHost, clips: LatentClips) -> None:
    pytest.importorskip("prodigyopt")
    training = begin(host, clips, optimizer="prodigy", query_rate=0.0)
    before = training.motion.state_dict()
    before = {name: value.clone() for name, value in before.items() if ".to_q." in name}
    for _ in range(3):
        training.advance()
    queries = [name for name in before if ".attn1." in name]
    assert all(torch.equal(before[n], training.motion.state_dict()[n]) for n in queries)
