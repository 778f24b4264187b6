"""Muon against a singular value decomposition, PyTorch's Muon and PyTorch's AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.samples.small_training import small_training
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.training.latents import LatentClips
from lamp.training.muon import MATRIX_RATE, Muon, is_matrix, orthogonalise
from lamp.training.optimizers import apply_gradients
from lamp.training.recipe import preset

RATE = 1e-2


def muon(parameter: Tensor, **settings: Any) -> Muon:
    groups = [{"params": [parameter], "matrices": is_matrix(parameter)}]
    return Muon(groups, lr=RATE, weight_decay=0.1, **settings)


def stepped(optimizer: torch.optim.Optimizer, parameter: Tensor, steps: int = 4) -> Tensor:
    """The parameter after steps with the same random gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(64, 64), (16, 48), (48, 16), (320, 960)])
def test_the_singular_values_become_one_and_the_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.t() @ orthogonalise(matrix) @ v.t()
    values = rotated.diagonal()
    # The smallest singular values of a square random matrix are near zero: few of them stay below.
    assert values.max() < 1.3 and values.quantile(0.1) > 0.6
    torch.testing.assert_close(rotated, values.diag(), rtol=0, atol=1e-6)


def test_matrices_step_as_in_pytorch() -> None:
    published = getattr(torch.optim, "Muon", None)
    if published is None:
        pytest.skip("this PyTorch has no Muon")
    ours, theirs = (nn.Parameter(torch.full((32, 32), 0.1)) for _ in range(2))
    # Its decay is relative to the rate without our factor.
    rate, decay = RATE * MATRIX_RATE, 0.1 / MATRIX_RATE
    expected = stepped(published([theirs], lr=rate, weight_decay=decay), theirs)
    found = stepped(muon(ours), ours)
    change = expected - 0.1
    assert (found - expected).norm() < 0.02 * change.norm()  # it computes in bf16


@pytest.mark.parametrize("shape", [(7,), (1, 5, 3, 3)])
def test_biases_norms_and_gates_step_as_in_adamw(shape: tuple[int, ...]) -> None:
    ours, theirs = (nn.Parameter(torch.full(shape, 0.1)) for _ in range(2))
    expected = stepped(torch.optim.AdamW([theirs], lr=RATE, weight_decay=0.1), theirs)
    assert torch.equal(stepped(muon(ours), ours), expected)


@pytest.mark.parametrize("shape", [(8, 8), (128, 128), (64, 64, 3), (4, 64)])
def test_a_step_has_the_same_size_at_every_width(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    change = stepped(muon(parameter), parameter, 1).flatten(1)
    assert 0.9 < torch.linalg.matrix_norm(change, 2) / (RATE * MATRIX_RATE) < 1.3


def test_a_step_that_overflows_in_fp16_changes_nothing() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(1))
    parameter.grad = torch.full((4, 4), float("inf"))
    optimizer = muon(parameter)
    apply_gradients(optimizer, [parameter], 1.0, scaler)
    assert torch.equal(parameter, torch.ones(4, 4)) and not optimizer.state


def test_a_run_keeps_one_state_tensor_per_matrix(host: DiffusersHost, clips: LatentClips) -> None:
    settings = preset("fast", 30) | {"optimizer": "muon"}
    training = small_training(host, clips, steps=30, **settings)
    before = [p.detach().clone() for p in training.trained]
    training.advance()
    named = training.motion.trained_parameters()
    query = {name for name in named if ".to_q." in name and ".attn_temp." not in name}
    matrices = [p for name, p in named.items() if is_matrix(p) and name not in query]
    vectors = [p for name, p in named.items() if not is_matrix(p) or name in query]
    assert query and matrices and vectors
    assert {tuple(training.optimizer.state[p]) for p in matrices} == {("momentum",)}
    assert all("exp_avg_sq" in training.optimizer.state[p] for p in vectors)
    changed = [p for p, b in zip(training.trained, before, strict=True) if (p != b).any()]
    assert len(changed) > len(matrices)
