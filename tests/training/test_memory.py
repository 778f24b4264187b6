"""The memory estimate against PyTorch's own allocator, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.speed.measure import measured_peak
from benchmarks.speed.models import SD15_CONFIG
from benchmarks.speed.train_memory import TOLERANCE, Case, Estimates, measure
from lamp.errors import LampError
from lamp.hosts.diffusers.unet import shadow_host
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.memory.estimate import (
    GB,
    Estimator,
    MemoryEstimate,
    MemoryPlan,
    gigabytes,
    meta_copy,
)
from lamp.training.memory.plan import (
    OutOfMemoryPlanError,
    check_fit,
    needs_checkpointing,
    process_memory,
    suggest,
)
from tests.helpers.small_models import build, hook_count, random_state

pytestmark = pytest.mark.slow  # many of them


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    """A small UNet with random weights on diffusers."""
    return build("diffusers", random_state()).unet


@pytest.fixture(scope="module")
def estimator(unet: nn.Module) -> Estimator:
    return Estimator(unet, shadow_host)


@pytest.fixture
def plan() -> MemoryPlan:
    return MemoryPlan(frames=8, height=16, width=16)


# --- what is measured -----------------------------------------------------------------------------


def test_the_measure_itself() -> None:
    def run() -> None:
        first = torch.empty(1_000_000)
        second = torch.empty(2_000_000)
        del first
        third = torch.empty(500_000)
        del second, third

    assert measured_peak(run) == 12_000_000


CASES = [
    Case("toy", 8, 8, 8),
    Case("toy", 4, 16, 16, {"gradient_checkpointing": True, "ema": 0.9}),
    Case("toy", 4, 8, 8, {"precision": "bf16", "batch": 2}),
]


@pytest.fixture(scope="module")
def estimates() -> Iterator[Estimates]:
    yield Estimates()


@pytest.mark.parametrize("case", CASES, ids=Case.describe)
def test_estimate_is_what_the_allocator_says(case: Case, estimates: Estimates) -> None:
    measured = measure(case, "cpu")
    assert estimates(case, "cpu").total == pytest.approx(measured, rel=TOLERANCE)


def test_estimate_for_comfy_is_what_the_allocator_says(
    comfy: ModuleType, estimates: Estimates
) -> None:
    case = Case("toy-comfy", 4, 16, 16)
    measured = measure(case, "cpu")
    assert estimates(case, "cpu").total == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_estimate_is_what_the_gpu_says(
    precision: str, gradient_checkpointing: bool, estimates: Estimates
) -> None:
    case = Case(
        "toy",
        16,
        32,
        32,
        {"precision": precision, "gradient_checkpointing": gradient_checkpointing},
    )
    measured = measure(case, "cuda")
    assert estimates(case, "cuda").total == pytest.approx(measured, rel=TOLERANCE)


# --- the parts of an estimate ---------------------------------------------------------------------


def test_parts_that_follow_from_the_number_of_parameters(
    estimator: Estimator, unet: nn.Module, plan: MemoryPlan
) -> None:
    motion = Motion(map_unet(unet))
    trained = sum(p.numel() for p in motion.trained_parameters().values())
    frozen = sum(p.numel() for p in unet.parameters())

    full = estimator(plan)
    lean = estimator(replace(plan, precision="bf16", optimizer="adamw8bit"))

    assert full.model == 4 * frozen and lean.model == 2 * frozen
    assert full.motion == lean.motion == 4 * sum(p.numel() for p in motion.parameters())
    assert full.optimizer == 8 * trained
    assert 2 * trained < lean.optimizer < 2.1 * trained
    averaged = estimator(replace(plan, ema=0.9))
    assert averaged.average == 4 * trained
    assert averaged.allocated - full.allocated == 4 * trained
    assert full.allocated == full.model + full.motion + full.optimizer + full.activations


def test_kept_gradients_stay_for_the_whole_forward_pass(
    estimator: Estimator, plan: MemoryPlan
) -> None:
    single, several = estimator(plan), estimator(replace(plan, accumulate=4))
    trained = single.optimizer // 2
    assert 0 < several.allocated - single.allocated <= 1.1 * trained


def test_on_a_gpu_the_total_is_what_the_allocator_reserves(
    estimator: Estimator, plan: MemoryPlan
) -> None:
    gpu, cpu = estimator(plan), estimator(replace(plan, device="cpu"))
    assert gpu.total >= gpu.allocated and gpu.total % (2 * 2**20) == 0  # whole segments
    assert cpu.total == cpu.allocated


def test_estimate_grows_with_frames_batch_and_size(estimator: Estimator, plan: MemoryPlan) -> None:
    plan = replace(plan, frames=4, height=8, width=8, device="cpu")
    smallest = estimator(plan)
    for more in ({"frames": 8}, {"batch": 2}, {"height": 16}, {"width": 16}):
        larger = estimator(replace(plan, **more))
        assert 1.5 * smallest.activations < larger.activations < 2.2 * smallest.activations
        assert larger.total > smallest.total


def test_checkpointing_and_half_precision_lower_it(estimator: Estimator, plan: MemoryPlan) -> None:
    plan = replace(plan, device="cpu")  # without a GPU's workspace, which is large beside the toy
    plain = estimator(plan).activations
    assert estimator(replace(plan, gradient_checkpointing=True)).activations < 0.7 * plain
    assert estimator(replace(plan, precision="bf16")).activations < 0.8 * plain


def test_planning_leaves_the_model_as_it_is(unet: nn.Module, plan: MemoryPlan) -> None:
    before = {name: (id(p), p.clone()) for name, p in unet.named_parameters()}
    handle = unet.register_forward_hook(lambda *_: pytest.fail("the real model ran"))
    try:
        Estimator(unet, shadow_host)(replace(plan, gradient_checkpointing=True))
        assert hook_count(unet) == 1
    finally:
        handle.remove()
    for name, parameter in unet.named_parameters():
        assert id(parameter) == before[name][0] and torch.equal(parameter, before[name][1])
        assert parameter.device.type == "cpu"
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_meta_copy_keeps_what_is_shared() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer, nn.BatchNorm1d(3))
    twin = meta_copy(model)

    assert twin[0].weight is twin[1].weight
    assert twin[2].num_batches_tracked.dtype == torch.int64
    assert {tensor.device.type for tensor in twin.state_dict().values()} == {"meta"}
    assert twin(torch.empty(5, 3, device="meta")).shape == (5, 3)


def test_sentence_names_the_values(estimator: Estimator, plan: MemoryPlan) -> None:
    estimate = estimator(replace(plan, ema=0.9))
    sizes = (estimate.total, estimate.model, estimate.average, estimate.activations)
    parts = ["8 frames", "128 x 128", "batch 1", "fp32", *map(gigabytes, sizes)]
    sentence = estimate.describe()
    assert [part for part in parts if part not in sentence] == []
    assert gigabytes(estimate.average) not in estimator(plan).describe().split("motion")[0]


def test_bad_plans_are_refused(plan: MemoryPlan) -> None:
    with pytest.raises(LampError, match="frames.*0"):
        replace(plan, frames=0)
    with pytest.raises(LampError, match="optimizer.*sgd.*adamw8bit"):
        replace(plan, optimizer="sgd")


# --- what to change -------------------------------------------------------------------------------


def formula(plan: MemoryPlan) -> MemoryEstimate:
    """An estimate of the right kind, by a formula: about that of SD 1.x on a GPU."""
    size = 4 if plan.precision == "fp32" else 2
    learned = 256 * 2**20 // (20 if plan.rank else 1)
    positions = plan.batch * plan.frames * plan.height * plan.width
    each = (
        400_000
        * (0.3 if plan.gradient_checkpointing else 1)
        * (1 if plan.precision == "fp32" else 0.6)
    )
    return MemoryEstimate(
        plan,
        model=size * 860 * 2**20,
        motion=4 * learned,
        optimizer=0
        if plan.update == "offload"
        else {"adamw": 8, "adamw8bit": 2}[plan.optimizer] * learned,
        average=4 * learned if plan.ema else 0,
        activations=int(positions * each) + (4 * learned if plan.accumulate > 1 else 0) + 2**27,
    )


LARGE = MemoryPlan(frames=16, height=40, width=64, batch=2, ema=0.99)


def test_three_real_suggestions_fit(estimator: Estimator, plan: MemoryPlan) -> None:
    available = int(estimator(plan).total * 0.8)
    found = suggest(estimator, plan, available)
    assert len(found) == 3
    for suggestion in found:
        again = estimator(replace(plan, **suggestion.changes))
        assert again.total == suggestion.estimate.total <= available


@pytest.mark.parametrize("available", [38 * GB, 16 * GB, 8 * GB, 5 * GB])
def test_no_suggestion_changes_more_than_it_must(available: int) -> None:
    assert formula(LARGE).total > available
    found = suggest(formula, LARGE, available)

    assert len(found) == len({suggestion.describe() for suggestion in found}) == 3
    for suggestion in found:
        assert suggestion.estimate.total <= available
        for left_out in _groups(suggestion.changes):
            fewer = {k: v for k, v in suggestion.changes.items() if k not in left_out}
            assert formula(replace(LARGE, **fewer)).total > available


def _groups(changes: dict[str, object]) -> list[tuple[str, ...]]:
    together = [("height", "width"), ("batch", "accumulate")]
    alone = ["precision", "gradient_checkpointing", "optimizer", "update", "ema", "rank", "frames"]
    return [group for group in [*together, *((name,) for name in alone)] if group[0] in changes]


def test_least_harmful_changes_come_first() -> None:
    needed = formula(replace(LARGE, gradient_checkpointing=True)).total
    found = suggest(formula, LARGE, needed)
    assert found[0].changes == {"gradient_checkpointing": True}
    assert gigabytes(needed) in found[0].describe()
    # A smaller or a shorter video is the last resort.
    shrunk = [bool({"height", "frames"} & set(s.changes)) for s in suggest(formula, LARGE, 8 * GB)]
    assert shrunk == sorted(shrunk) and not shrunk[0]


def test_a_low_rank_is_offered_where_what_is_learned_is_too_much() -> None:
    plan = replace(LARGE, batch=1, ema=0.0, gradient_checkpointing=True, device="cpu")
    needed = formula(plan).total
    found = suggest(formula, plan, needed - 11 * 256 * 2**20)
    assert "rank 64" in [s.describe().split(" (")[0] for s in found]
    again = suggest(formula, replace(plan, rank=64), formula(replace(plan, rank=64)).total - 2**20)
    assert again and not any("rank" in s.changes for s in again)


def test_same_clips_a_step_after_a_smaller_batch() -> None:
    plan = replace(LARGE, batch=3, accumulate=2)
    first = next(s.changes for s in suggest(formula, plan, 16 * GB) if "batch" in s.changes)
    assert (first["batch"], first["accumulate"]) == (1, 6)


def test_refusal_names_needs_and_three_settings() -> None:
    available = 10 * GB
    with pytest.raises(OutOfMemoryPlanError) as caught:
        check_fit(formula, LARGE, available)
    sentence = str(caught.value)
    assert "16 frames" in sentence and "512 x 320" in sentence and "batch 2" in sentence
    assert gigabytes(formula(LARGE).total) in sentence and "10.0 GB" in sentence
    for suggestion in suggest(formula, LARGE, available):
        assert suggestion.describe() in sentence


def test_what_fits_is_not_refused() -> None:
    check_fit(formula, LARGE, formula(LARGE).total)


def test_refusal_when_nothing_fits() -> None:
    assert suggest(formula, LARGE, GB) == []
    with pytest.raises(OutOfMemoryPlanError, match=r"1\.9 GB"):
        check_fit(formula, LARGE, GB)


def test_on_the_cpu_no_precision_or_8_bit_optimiser_is_suggested() -> None:
    for suggestion in suggest(formula, replace(LARGE, device="cpu"), 16 * GB):
        assert not {"precision", "optimizer"} & set(suggestion.changes)


@pytest.mark.parametrize("height, width", [(40, 64), (64, 40), (32, 32), (44, 60)])
def test_smaller_sizes_keep_the_aspect_in_steps_of_64_pixels(height: int, width: int) -> None:
    plan = replace(LARGE, height=height, width=width, gradient_checkpointing=True, batch=1)
    found = suggest(formula, plan, 5 * GB, most=30)
    sizes = [s.changes for s in found if "height" in s.changes]
    assert sizes
    for size in sizes:
        assert size["height"] % 8 == size["width"] % 8 == 0
        aspect = (size["width"] / size["height"]) / (width / height)
        assert 2 / 3 <= aspect <= 3 / 2


def test_auto_checkpointing_leaves_room() -> None:
    needed = formula(LARGE).total
    for asked in (LARGE, replace(LARGE, gradient_checkpointing=True)):
        assert not needs_checkpointing(formula, asked, int(needed / 0.84))
        assert needs_checkpointing(formula, asked, int(needed / 0.86))


# --- Stable Diffusion 1.x -------------------------------------------------------------------------


def test_goal_for_stable_diffusion() -> None:
    """16 x 320 x 512 in 8 GB or less, told in one pass without any of its memory."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_CONFIG)
    plan = MemoryPlan(
        frames=16,
        height=40,
        width=64,
        precision="bf16",
        gradient_checkpointing=True,
        optimizer="adamw8bit",
    )
    estimate = Estimator(unet, shadow_host)(plan)
    assert estimate.model == 2 * 859_520_964
    assert estimate.total <= 8 * GB


@pytest.mark.parametrize(
    ("size", "words"),
    [(3 * 2**29, "1.5 GB"), (2**30, "1.0 GB"), (7 * 2**20, "7 MB"), (2**19, "512 kB"), (1, "1 kB")],
)
def test_what_is_there_is_never_told_as_nothing(size: int, words: str) -> None:
    assert gigabytes(size) == words


def test_on_a_cpu_what_the_process_holds_besides_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """7.1 GB by the estimate were 8.9 of the process, since it counts the training alone."""
    import psutil

    unet = torch.nn.Linear(256, 256, bias=False)  # 256 kB
    held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=2 * 2**30 + unet.weight.nbytes))
    monkeypatch.setattr(psutil, "Process", lambda: held)
    assert "2.0 GB" in process_memory(unet, torch.device("cpu"))
    assert process_memory(unet, torch.device("cuda")) == ""
