"""ComfyUI's TorchCompileModel on a MODEL with a motion."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import count_hooks, ksampler, lamp_ksampler, moving, worst
from benchmarks.samples.ecosystem import PATCHES, host_node
from benchmarks.samples.tiny_models import (
    random_motion,
    shallow_config,
    tiny_state,
    video_latent,
)
from lamp.errors import LampError
from lamp.hosts.comfy.models import build_patcher
from lamp.hosts.comfy.motion_map import motion_activity
from lamp.hosts.comfy.windows import with_windows
from lamp.method.masks import MotionMask
from lamp.method.windows import Windows
from lamp.motion_file.file import MotionFile

pytestmark = pytest.mark.usefixtures("comfy")
Graphs = list[torch.fx.GraphModule]


@pytest.fixture(autouse=True)
def in_inference_mode() -> Any:
    """As the host's executor runs nodes."""
    with torch.inference_mode():
        yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def small(comfy: Any) -> Any:
    """A UNet of one level with a single transformer block, because compiling is slow."""
    plain = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    config = shallow_config() | plain
    return build_patcher(config, tiny_state(config))


@pytest.fixture(scope="module")
def motion(small: Any) -> MotionFile:
    return random_motion(small)


@pytest.fixture
def graphs() -> Graphs:
    return []


@pytest.fixture
def compiling(graphs: Graphs) -> Callable[[Any], Any]:
    """TorchCompileModel, with a backend that runs each graph as it is and counts them."""

    def backend(graph: torch.fx.GraphModule, _: Any, **__: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return lambda model: host_node(
        "torch_compile", "TorchCompileModel", model=model, backend=backend
    )


@pytest.mark.slow
def test_one_graph_serves_all_steps_and_runs(
    small: Any, motion: MotionFile, graphs: Graphs, compiling: Any
) -> None:
    """And none serves a run that it was not made for."""
    model = moving(small, motion)
    fast = compiling(model)
    for patched, frames, number in (
        (lambda model: model, 4, 1),
        (lambda model: model, 4, 1),
        (PATCHES["UNetSelfAttentionMultiply"], 4, 2),
        (lambda model: model, 5, 3),
        (lambda model: model, 4, 3),
    ):
        given = {"latent": video_latent(frames)}
        expected = lamp_ksampler(patched(model), **given)
        assert worst(lamp_ksampler(patched(fast), **given), expected) < 1e-4
        assert len(graphs) == number
        assert count_hooks(small) == 0


@pytest.mark.slow
def test_the_graph_of_the_image_model_is_not_used_with_a_motion(
    small: Any, motion: MotionFile, graphs: Graphs, compiling: Any
) -> None:
    """PyTorch does not check whether the layers of a graph have got hooks, or lost them."""
    image, model = ksampler(small), moving(small, motion)
    assert worst(ksampler(compiling(small)), image) < 1e-4
    before = len(graphs)
    assert worst(ksampler(moving(compiling(small), motion)), ksampler(model)) < 1e-4 and before
    assert len(graphs) == before + 1
    assert worst(ksampler(compiling(small)), image) < 1e-4
    assert len(graphs) == before + 1


def masked_pair(model: Any, file: MotionFile) -> Any:
    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1
    options = {"motion_guidance": 2.0, "end_percent": 0.8}
    first = moving(model, file, motion_mask=MotionMask(mask, strengths=(1.0, 0.2)), **options)
    return moving(first, random_motion(model, 5), strength=0.4, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "number"),
    [
        (masked_pair, 3),
        (lambda m, file: with_windows(moving(m, file), Windows(4, 1)), 1),
    ],
    ids=["guided pair until 80 %, one masked", "windows"],
)
def test_settings_of_a_motion(
    small: Any, motion: MotionFile, graphs: Graphs, compiling: Any, change: Any, number: int
) -> None:
    expected = lamp_ksampler(change(small, motion))
    assert worst(lamp_ksampler(change(compiling(small), motion)), expected) < 1e-4
    assert len(graphs) == number


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="needs a C++ compiler"
)
def test_the_nodes_own_backend(small: Any, motion: MotionFile) -> None:
    model = moving(small, motion)
    fast = host_node("torch_compile", "TorchCompileModel", model=model, backend="inductor")
    assert worst(lamp_ksampler(fast), lamp_ksampler(model)) < 1e-4


@pytest.mark.slow
def test_a_map_of_the_motion_is_made_without_compiling(
    small: Any, motion: MotionFile, graphs: Graphs, compiling: Any
) -> None:
    def activity(model: Any) -> Tensor:
        from benchmarks.samples.comfy_runs import conditioning

        return motion_activity(model, *conditioning(), {"samples": video_latent()}, seed=1)

    model = moving(small, motion)
    assert torch.equal(activity(compiling(model)), activity(model))
    assert not graphs


@pytest.mark.slow
def test_what_cannot_be_compiled_is_said(small: Any, motion: MotionFile) -> None:
    def backend(*_: Any, **__: Any) -> Any:
        raise ValueError("no such chip")

    model = moving(small, motion)
    expected = lamp_ksampler(model)
    broken = host_node("torch_compile", "TorchCompileModel", model=model, backend=backend)
    with pytest.raises(LampError, match="no such chip"):
        lamp_ksampler(broken)
    assert count_hooks(small) == 0
    assert torch.equal(lamp_ksampler(model), expected)


@pytest.mark.slow
def test_ways_to_compile_that_are_refused(
    small: Any, motion: MotionFile, compiling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moving(small, motion)
    replaced = model.clone()
    replaced.add_object_patch("diffusion_model", torch.compile(small.model.diffusion_model))
    with pytest.raises(LampError, match="TorchCompileModel"):
        lamp_ksampler(replaced)
    streamed = compiling(model)
    (weights,) = streamed.get_additional_models_with_key("lamp_motion")
    monkeypatch.setattr(weights, "is_dynamic", lambda: True, raising=False)
    with pytest.raises(LampError, match="before Load LAMP Motion"):
        lamp_ksampler(streamed)
