"""A motion together with other patches of a MODEL, in the real server."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.samples.ecosystem import WINDOWS
from scripts.server.server import ComfyServer, RunResult
from scripts.workflows.convert import default_of, input_specs, is_widget
from tests.host.generate_graphs import Graph, base, ksampler, looking, node, stock

FREE_U = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
TILES = {"tile_size": 32, "swap_size": 1, "max_depth": 1, "scale_depth": False}
PATCHES: dict[str, dict[str, Any]] = {
    "FreeU": FREE_U,
    "FreeU_V2": FREE_U,
    "SelfAttentionGuidance": {"scale": 0.8, "blur_sigma": 2.0},
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "HyperTile": TILES,
    "TomePatchModel": {"ratio": 0.5},
    "RescaleCFG": {"multiplier": 0.7},
    "ImageTokens": {"seed": 5},
}


def digest(result: RunResult) -> str:
    """Digest of the latent of a run, after checks that hold for any video."""
    found = result.check().outputs["look"]
    assert found["finite"] == [True] and found["first_equal"] == [True]
    assert found["rest_moved"] == [True] and result.outputs["hooks"]["hooks"] == [0]
    return found["digest"][0]


def in_a_row(motion: str, *kinds: str, **sampler: Any) -> Graph:
    """The tiny MODEL through the nodes `kinds`, where `load` is Load LAMP Motion."""
    graph, model = base(motion), ["model", 0]
    for kind in kinds:
        if kind == "load":
            graph["load"]["inputs"]["model"] = model
        else:
            graph[kind] = node(kind, model=model, **PATCHES.get(kind, {}))
        model = [kind, 0]
    if "load" not in kinds:
        del graph["load"]
    return graph | {"sample": stock(model=model, **sampler)} | looking()


@pytest.fixture(scope="module")
def alone(server: ComfyServer, motion: str) -> str:
    return digest(server.queue(in_a_row(motion, "load")))


@pytest.mark.parametrize("kind", PATCHES)
def test_a_patch_before_and_after_the_motion(
    server: ComfyServer, motion: str, alone: str, kind: str
) -> None:
    behind, before = (
        digest(server.queue(in_a_row(motion, *kinds))) for kinds in (("load", kind), (kind, "load"))
    )
    assert behind == before != alone
    # without the motion the patch gives another result, and the motion alone still works
    without = server.queue(in_a_row(motion, kind)).check()
    assert without.outputs["look"]["digest"][0] not in (behind, alone)
    assert digest(server.queue(in_a_row(motion, "load"))) == alone


@pytest.fixture(scope="module")
def fast(server: ComfyServer) -> dict[str, Any]:
    """Inputs of the loader of a few-step LoRA."""
    model = node("TinyModel", text_width=32, seed=0)
    lora = node("TinyLora", model=["model", 0], name="fast.safetensors")
    server.queue({"model": model, "lora": lora}).check()
    return {"lora_name": "fast.safetensors", "strength_model": 0.7}


def test_lcm_in_four_steps(
    server: ComfyServer, motion: str, alone: str, fast: dict[str, Any]
) -> None:
    quick = {"steps": 4, "cfg": 1.5, "sampler_name": "lcm", "scheduler": "sgm_uniform"}
    inputs = {"LoraLoaderModelOnly": fast, "ModelSamplingDiscrete": {"sampling": "lcm"}}
    inputs["ModelSamplingDiscrete"]["zsnr"] = False
    digests = {}
    for names in (
        ("load", "LoraLoaderModelOnly", "ModelSamplingDiscrete"),
        ("LoraLoaderModelOnly", "ModelSamplingDiscrete", "load"),
        ("load", "ModelSamplingDiscrete"),
    ):
        graph = in_a_row(motion, *names, **quick)
        for name in names:
            graph[name]["inputs"] |= inputs.get(name, {})
        digests[names] = digest(server.queue(graph))
        # LAMP KSampler, with AdaIN
        graph["sample"] = ksampler(model=[names[-1], 0], **quick)
        assert digest(server.queue(graph)) != digests[names]
        graph["sample"] = ksampler(
            model=[names[-1], 0], **{**quick, "scheduler": "ddim (official)"}
        )
        error = server.queue(graph).error
        assert error is not None and "sgm_uniform" in error.message
    behind, before, without = digests.values()
    assert behind == before != without


def test_one_controlnet_hint_per_frame(server: ComfyServer, motion: str, alone: str) -> None:
    def graph(*colours: int) -> Graph:
        """Six images of these colours, for six frames."""
        graph = in_a_row(motion, "load")
        graph["control"] = node("TinyControl", model=["model", 0])
        batch = None
        for number, colour in enumerate(colours):
            name = f"hint{number}"
            graph[name] = node("EmptyImage", width=64, height=64, batch_size=1, color=colour)
            if batch is not None:
                graph[f"batch{number}"] = node("ImageBatch", image1=batch, image2=[name, 0])
                name = f"batch{number}"
            batch = [name, 0]
        graph["hinted"] = node(
            "ControlNetApplyAdvanced",
            positive=["model", 1],
            negative=["model", 1],
            control_net=["control", 0],
            image=batch,
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        graph["sample"]["inputs"]["positive"] = ["hinted", 0]
        return graph

    colours = [0xFF0000, 0x00FF00, 0x0000FF, 0xFFFF00, 0x00FFFF, 0xFF00FF]
    usual = digest(server.queue(graph(*colours)))
    last = digest(server.queue(graph(*colours[:-1], 0x000000)))
    assert len({alone, usual, last}) == 3
    assert digest(server.queue(graph(*colours))) == usual


def test_context_windows_are_refused(server: ComfyServer, motion: str, alone: str) -> None:
    kind = "ContextWindowsManual"
    specs = input_specs(server.object_info(kind)[kind])
    defaults = {name: default_of(spec) for name, spec in specs.items() if is_widget(spec)}
    for kinds in (("load", kind), (kind, "load")):
        graph = in_a_row(motion, *kinds)
        graph[kind]["inputs"] |= defaults | WINDOWS
        error = server.queue(graph).error
        assert error is not None and "LAMP Anchored Windows" in error.message
    assert digest(server.queue(in_a_row(motion, "load"))) == alone
