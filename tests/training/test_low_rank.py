"""Motions that are learned as low-rank factors: what is learned, kept, and how little it weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.samples.small_training import FRAMES, small_training
from lamp.cli import DONE, main
from lamp.errors import LampError
from lamp.hosts.diffusers.unet import DiffusersHost, shadow_host
from lamp.method.architecture import map_unet
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.motion_file.compress import compress_factors
from lamp.motion_file.encoding import RANK_KEY, Encoding
from lamp.motion_file.file import MotionFile, load_motion_file
from lamp.training.latents import LatentClips
from lamp.training.loop import Training
from lamp.training.low_rank import factorise, factors, whole_state
from lamp.training.memory.estimate import Estimator, MemoryPlan
from lamp.training.outcome import Outcome
from lamp.training.recipe import TrainConfig
from lamp.training.state import StateError, read_state, restore, take_state, write_state

from ..helpers.compact_motions import forms_of
from ..helpers.toy_runs import write_config

pytestmark = pytest.mark.slow  # many of them

WHO = {"base": "abc", "clips": "def"}
RANK = 4
ABOUT = {"family": "text16", "frames": FRAMES}
SD1: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}  # else diffusers' defaults


def fresh(host: DiffusersHost, clips: LatentClips, rank: int = RANK, **settings: Any) -> Training:
    return small_training(host, clips, **{"steps": 6, "rank": rank, **settings})


@pytest.fixture(scope="module")
def trained(host: DiffusersHost, clips: LatentClips) -> Training:
    training = fresh(host, clips)
    for _ in range(3):
        training.advance()
    return training


@torch.no_grad()
def predict(host: DiffusersHost, motion: Motion, **how: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x, text = (torch.randn(size, generator=generator) for size in ((3, 4, 8, 8), (1, 5, 16)))
    with motion.attached(host.unet, FrameLayout(3), **how):
        return host.predict(x, torch.tensor([300]), text)


# --- what is learned -------------------------------------------------------------------------


def test_only_factors_and_what_has_none_are_learned(
    host: DiffusersHost, clips: LatentClips
) -> None:
    training = fresh(host, clips)
    whole = Motion(map_unet(host.unet)).trained_parameters()
    wanted = 0
    for tensor in whole.values():
        size = tensor.numel()
        if tensor.ndim > 1:
            size = min(size, RANK * (len(tensor) + size // len(tensor)))
        wanted += size
    training.advance()
    learned = [p for group in training.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in learned) == wanted
    assert all(p.requires_grad and p.is_leaf for p in learned)
    assert {id(p) for p in learned} == {id(p) for p in training.trained}
    frozen = [p for p in training.motion.parameters() if p.requires_grad]
    assert {id(p) for p in frozen} == {id(p) for p in learned}


def test_a_fresh_one_adds_nothing_and_its_queries_are_noise_as_ever(host: DiffusersHost) -> None:
    whole, motion = (Motion(map_unet(host.unet)).initialise(0) for _ in range(2))
    factorise(motion, RANK, seed=0)
    how = {"groupnorm": "frame", "first_frame": False}
    assert torch.equal(predict(host, motion, **how), predict(host, whole, **how))
    wanted, found = whole.state_dict(), whole_state(motion.state_dict())
    assert found.keys() == wanted.keys()
    for name in found:
        assert found[name].shape == wanted[name].shape
        if ".attn_temp.to_q." in name or ".attn_temp.to_v." in name:
            assert found[name].std().item() == pytest.approx(wanted[name].std().item(), rel=0.35)
        else:
            assert found[name].any() == wanted[name].any(), name


def test_each_learned_tensor_is_the_product_of_its_factors(trained: Training) -> None:
    state, parts = whole_state(trained.motion.state_dict()), factors(trained.motion.state_dict())
    assert {name.split(".")[-2] for name in parts} >= {"conv1d", "to_q", "to_k", "to_v", "0"}
    for name, (up, down) in parts.items():
        product = np.einsum("ro,rn->on", up.numpy(), down.flatten(1).numpy())
        np.testing.assert_allclose(state[name].flatten(1).numpy(), product, rtol=1e-4, atol=1e-6)
        assert np.linalg.matrix_rank(product, tol=1e-5) == RANK
        assert state[name].any()


def test_a_rank_that_saves_nothing_changes_nothing(host: DiffusersHost) -> None:
    motion = Motion(map_unet(host.unet)).initialise(0)
    before = motion.state_dict()
    factorise(motion, 512, seed=0)
    assert not factors(motion.state_dict()) and motion.state_dict().keys() == before.keys()


# --- what is kept ----------------------------------------------------------------------------


def test_what_loads_is_the_product_in_eight_bits(
    host: DiffusersHost, trained: Training, tmp_path: Path
) -> None:
    path = Outcome(tmp_path / "motion", ABOUT).write(trained)
    with safe_open(path, framework="pt") as file:
        forms = forms_of(file.metadata()[RANK_KEY])
    assert all(form[0] == [RANK, 0, 0, 0] for form in forms.values())  # 8 bits, all of them
    found, wanted = load_motion_file(path), whole_state(trained.motion.state_dict())
    found.check_against(map_unet(host.unet))
    for name, tensor in wanted.items():
        if name in forms:
            error = (found.state[name].float() - tensor).norm() / tensor.norm()
            assert error < 0.02, name
        else:
            assert torch.equal(found.state[name], tensor.half())
    loaded = Motion(map_unet(host.unet))
    loaded.load_state_dict(found.state)
    mine, theirs = predict(host, loaded), predict(host, trained.motion)
    assert (mine - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_the_motion_of_a_run_has_plain_tensors(host: DiffusersHost, trained: Training) -> None:
    file: MotionFile = Outcome(Path("m"), ABOUT).file(trained)
    loaded = Motion(map_unet(host.unet))
    loaded.load_state_dict(file.state)
    torch.testing.assert_close(predict(host, loaded), predict(host, trained.motion))


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "min_snr": 1.0, "reference_width": 16}])
def test_a_run_in_two_halves_equals_one_run_bit_for_bit(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight, half, rest = (fresh(host, clips, steps=4, **settings) for _ in range(3))
    for _ in range(4):
        straight.advance()
    for _ in range(2):
        half.advance()
    write_state(tmp_path / "state", take_state(half, WHO))
    restore(rest, read_state(tmp_path / "state"), WHO)
    for _ in range(2):
        rest.advance()
    assert rest.losses == straight.losses
    for training in (straight, rest):
        training.finish()
    wanted = straight.motion.state_dict()
    for name, tensor in rest.motion.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_a_state_of_another_rank_is_refused_by_name(
    host: DiffusersHost, clips: LatentClips, trained: Training
) -> None:
    state = take_state(trained, WHO)
    with pytest.raises(StateError, match="rank 4.* 2"):
        restore(fresh(host, clips, rank=2), state, WHO)


@pytest.mark.parametrize("rank", [-1, 1025])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(LampError, match=f"rank is {rank}"):
        TrainConfig(rank=rank)


# --- what it weighs --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size() -> Motion:
    """A motion for SD 1.x, in shapes only."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return Motion(map_unet(UNet2DConditionModel(**SD1)), device="meta")


def test_at_the_size_of_sd1_rank_64_takes_a_twentieth(full_size: Motion) -> None:
    whole = {name: tuple(t.shape) for name, t in full_size.state_dict().items()}
    full = sum(2 * int(np.prod(shape)) for shape in whole.values())
    assert full == pytest.approx(508e6, rel=0.01)
    motion = Motion(full_size.sites, device="meta")
    factorise(motion, 64, seed=0)
    parts = factors(motion.state_dict())
    small = sum(
        Encoding((64, 0, 0, 0), whole[name]).bytes if name in parts else 2 * int(np.prod(shape))
        for name, shape in whole.items()
    )
    assert small < full / 20


def test_the_bytes_of_a_form_are_those_that_are_written(trained: Training) -> None:
    data, header = compress_factors(factors(trained.motion.state_dict()))
    forms = forms_of(header)
    found = [Encoding(tuple(ranks), tuple(shape)) for ranks, *shape in forms.values()]
    assert data.dtype == torch.uint8 and len(data) == sum(form.bytes for form in found)
    rows = [RANK * (form.shape[0] + 2 + np.prod(form.shape[1:]) + 2) for form in found]
    assert len(data) == sum(rows)


def test_the_estimate_of_memory_counts_factors(host: DiffusersHost, trained: Training) -> None:
    estimator = Estimator(host.unet, shadow_host)
    size = {"frames": FRAMES, "height": 8, "width": 8, "text_tokens": 5}
    plans = [MemoryPlan(**size, device="cpu", rank=rank) for rank in (0, RANK)]
    whole, small = (estimator(plan) for plan in plans)
    numbers = sum(p.numel() for p in trained.trained)
    assert small.optimizer == 8 * numbers < whole.optimizer / 2
    assert small.motion < whole.motion / 2
    assert f"rank {RANK}" in small.describe() and "rank" not in whole.describe()


@pytest.mark.slow
def test_the_command_line_trains_and_keeps_factors(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    changes = ("recipe.rank=4", "recipe.steps=1")
    assert main(["train", str(config), *(part for c in changes for part in ("--set", c))]) == DONE
    path = tmp_path / "output/right_00001.safetensors"
    with safe_open(path, framework="pt") as file:
        forms = forms_of(file.metadata()[RANK_KEY])
    assert all(form[0] == [4, 0, 0, 0] for form in forms.values())
    found = load_motion_file(path)
    assert path.stat().st_size < sum(t.nbytes for t in found.state.values()) / 5
