"""Cancelling every node at every point: no trace remains, and the next run is the same.

The button is the host's own: it sets a flag, for which the host looks at each move of a progress
bar and at each layer of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    advanced,
    conditioning,
    count_hooks,
    ksampler,
    moving,
)
from benchmarks.samples.official_files import official_state, write_official
from benchmarks.samples.tiny_models import video_latent
from lamp.motion_file.convert import canonical_state
from tests.helpers.small_models import hook_count
from tests.helpers.tiny_clip import comfy_text, comfy_vision, teach_colours, tiny_clip
from tests.helpers.trainer_runs import HIDDEN, TrainerRuns, pictures

pytestmark = [pytest.mark.usefixtures("comfy"), pytest.mark.shallow]
Nodes = dict[str, Any]
# Nothing in these goes on for long: the host cancels before and after them.
AT_ONCE = {
    "LAMP_AdaINSchedule", "LAMP_LoadMotion", "LAMP_LoadToyBase", "LAMP_LoadToyClip",
    "LAMP_MotionInfo", "LAMP_SharedNoise", "LAMP_ToyClips", "LAMP_ToyObject", "LAMP_ToyScore",
    "LAMP_TrainingPreset", "LAMP_TrainingRecipe",
}  # fmt: skip


class Button:
    """The host's cancel, pressed when it looks for it for the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import comfy.model_management as management
        import comfy.utils

        self.looks, self._press_at = 0, 0
        self._steps: list[int] = []
        look = management.throw_exception_if_processing_interrupted

        def watched() -> None:
            self.looks += 1
            if self.looks == self._press_at:
                management.interrupt_current_processing(True)
            look()

        def progress(*_: Any, **__: Any) -> None:  # as main.py of the host has it
            self._steps.append(self.looks + 1)
            management.throw_exception_if_processing_interrupted()

        monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", watched)
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", progress)
        # Newer hosts leave out moves of the bar that follow fast on one another.
        monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)

    def run(self, work: Callable[[], Any], between: int = 4) -> tuple[Any, list[int]]:
        """What `work` gives, and when to cancel it: at each step, and some times between."""
        self.looks, self._press_at, self._steps = 0, 0, []
        with torch.inference_mode():  # as the host's executor
            result = work()
        others = Random(0).sample(range(1, self.looks + 1), min(between, self.looks))
        return result, sorted({*self._steps, *others})

    def cancel(self, work: Callable[[], Any], moment: int) -> None:
        """Cancel `work` at that moment; it has to end by the host's own exception."""
        import comfy.model_management as management

        self.looks, self._press_at = 0, moment
        with torch.inference_mode(), pytest.raises(management.InterruptProcessingException):
            work()
        assert self.looks == moment and not management.processing_interrupted()


@pytest.fixture
def button(monkeypatch: pytest.MonkeyPatch) -> Button:
    return Button(monkeypatch)


@pytest.fixture(scope="module")
def clip_parts(comfy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer")
    whole = teach_colours(tiny_clip(), tokenizer)
    return comfy_vision(whole, tmp_path_factory.mktemp("clip")), comfy_text(whole)


def whole_clip(frames: int = 4) -> Tensor:
    return 4 * torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(5))


# --- one for each node that takes a while ---------------------------------------------------------

Work = Callable[[Nodes, Any, Any], Any]


def sample(nodes: Nodes, model: Any, _: Any) -> Any:
    latent = {"samples": video_latent(3)}
    return nodes["LAMP_KSampler"].execute(
        model, *conditioning(), latent, SEED, steps=3, cfg=5.0
    ).result  # fmt: skip


def extend(nodes: Nodes, model: Any, _: Any) -> Any:
    latent = {"samples": whole_clip()}
    return nodes["LAMP_ExtendVideo"].execute(
        model, *conditioning(), latent, frames=3, times=2, hold_colors=1.0, seed=SEED, steps=2
    ).result  # fmt: skip


def invert(nodes: Nodes, model: Any, _: Any) -> Any:
    latent = {"samples": whole_clip()}
    return nodes["LAMP_DDIMInversion"].execute(model, conditioning()[1], latent, steps=3).result[:3]


def show_map(nodes: Nodes, model: Any, _: Any) -> Any:
    latent = {"samples": video_latent(4)}
    return nodes["LAMP_MotionMap"].execute(model, *conditioning(), latent, SEED, steps=3).result


def custom(nodes: Nodes, model: Any, _: Any) -> Any:
    sampler = nodes["LAMP_Sampler"].execute("euler")[0]
    return advanced(model, sampler, nodes["LAMP_Scheduler"].execute(model, 3)[0])


def windowed(nodes: Nodes, model: Any, _: Any) -> Any:
    model = nodes["LAMP_AnchoredWindows"].execute(model, 4, 1)[0]
    return ksampler(model, samples=video_latent(6))


def condition(nodes: Nodes, _: Any, toy: Any) -> Any:
    node = nodes["LAMP_FirstFrameCondition"]
    return node.execute(toy[2], pictures(1, 64), width=64, height=64, frames=3).result


def match(nodes: Nodes, _: Any, __: Any) -> Any:
    return nodes["LAMP_HistogramMatch"].execute(pictures(40, 8)).result


def read_clips(nodes: Nodes, _: Any, __: Any) -> Any:
    node = nodes["LAMP_TrainingClips"]
    settings = {
        "frames": 3, "width": 32, "height": 32, "fps": 0.0, "stride": 1, "fit": "crop",
        "short_clips": "error", "flip": False,
    }  # fmt: skip
    given = {name: [value] for name, value in settings.items()}
    images = [pictures(4), pictures(5), pictures(6)]
    clips, report, _ = node.execute(["(from images)"], ["x"], images, **given).result
    return [report, *(torch.cat(list(clips.chunks(number))) for number in range(3))]


WORKS: dict[str, tuple[Work, tuple[str, ...]]] = {
    "KSampler": (sample, ("LAMP_KSampler",)),
    "extend": (extend, ("LAMP_ExtendVideo",)),
    "invert": (invert, ("LAMP_DDIMInversion",)),
    "map": (show_map, ("LAMP_MotionMap",)),
    "custom": (custom, ("LAMP_Sampler", "LAMP_Scheduler")),
    "windows": (windowed, ("LAMP_AnchoredWindows",)),
    "first frame": (condition, ("LAMP_FirstFrameCondition",)),
    "histogram": (match, ("LAMP_HistogramMatch",)),
    "clips": (read_clips, ("LAMP_TrainingClips",)),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_every_node_is_cancelled_here(node_classes: Nodes) -> None:
    here = {node for _, nodes in WORKS.values() for node in nodes}
    below = {
        "LAMP_Trainer", "LAMP_VideoMetrics", "LAMP_SaveMotion", "LAMP_MergeMotions",
        "LAMP_ConvertOfficial",
    }  # fmt: skip
    assert here | below | AT_ONCE == set(node_classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_cancel_leaves_no_trace_and_the_next_run_is_the_same(
    node_classes: Nodes,
    plain: Any,
    file: Any,
    toy: Any,
    button: Button,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    from benchmarks.robustness.host import belongings

    for node in node_classes.values():
        monkeypatch.setattr(node, "hidden", HIDDEN, raising=False)
    model, (work, _) = moving(plain, file), WORKS[name]
    motion = model.get_attachment("lamp_motion").motion

    def run() -> Any:
        return work(node_classes, model, toy)

    first, moments = button.run(run)
    before = belongings(plain)
    if name != "first frame":  # one picture, in which not every host looks for a cancel
        assert len(moments) >= 3
    for moment in moments:
        button.cancel(run, moment)
        assert count_hooks(plain) == 0 == hook_count(motion)
        assert belongings(plain) == before
    assert same(button.run(run)[0], first)


@pytest.mark.slow
def test_cancelled_measures_leave_clip_as_it_was(
    node_classes: Nodes, button: Button, clip_parts: tuple[Any, Any]
) -> None:
    vision, text = clip_parts

    def measure() -> Any:
        node = node_classes["LAMP_VideoMetrics"]
        parts = {"clip_vision": [vision], "clip": [text]}
        return node.execute([pictures(3), pictures(4)], ["a horse"], [0], **parts).result

    first, moments = button.run(measure)
    said = text.encode_from_tokens(text.tokenize("a horse"), return_pooled=True)
    for moment in moments:
        button.cancel(measure, moment)
        again = text.encode_from_tokens(text.tokenize("a horse"), return_pooled=True)
        assert same(again, said)
    assert same(button.run(measure)[0], first)


@pytest.mark.slow
def test_a_cancelled_save_writes_nothing(node_classes: Nodes, file: Any, button: Button) -> None:
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("lamp_motion")[0])
    before = set(folder.rglob("*"))

    def save() -> Any:
        return node_classes["LAMP_SaveMotion"].execute(file, "cancelled", compact="on")

    for moment in (1, 2, len(file.state), 2 * len(file.state)):
        button.cancel(save, moment)
        assert set(folder.rglob("*")) == before


def test_merging_is_cancelled_between_tensors(
    node_classes: Nodes, file: Any, button: Button
) -> None:
    motion = replace(file, config=replace(file.config, family="sd1"))
    other = replace(motion, state={name: 2 * tensor for name, tensor in motion.state.items()})

    def merge() -> Any:
        return node_classes["LAMP_MergeMotions"].execute(motion, other, 0.5, 0.3)[0].state

    check_between_tensors(button, merge, len(motion.state))


def test_converting_is_cancelled_between_tensors(
    node_classes: Nodes, plain: Any, file: Any, button: Button, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import folder_paths

    unet = plain.model.diffusion_model
    official = official_state(canonical_state(unet), file.state, unet)
    write_official(tmp_path / "horse", official)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], set()))

    def convert() -> Any:
        return node_classes["LAMP_ConvertOfficial"].execute(plain, "horse")[0].state

    check_between_tensors(button, convert, len(official))


def check_between_tensors(button: Button, work: Callable[[], Any], tensors: int) -> None:
    first, moments = button.run(work)
    assert button.looks >= tensors  # newer hosts leave out moves of the bar, but not the look
    for moment in (moments[0], moments[len(moments) // 2], moments[-1]):
        button.cancel(work, moment)
    assert same(button.run(work)[0], first)


# --- the trainer ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cancelled_training_resumes_as_if_it_had_never_stopped(
    node_classes: Nodes,
    toy: Any,
    button: Button,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    runs.train("first")  # what it encodes is kept, and the next runs look less often
    straight, moments = button.run(runs.starting("straight"), between=2)
    assert len(moments) >= 5
    for moment in moments:
        button.cancel(runs.starting(f"at{moment}"), moment)
        assert count_hooks(runs.model) == 0
        runs.check_whole()
        resumed, _ = button.run(runs.starting(f"at{moment}", "latest"))
        assert same(resumed, straight), moment
