"""Table 1's baselines against written-out formulas, its CLIP, and a whole small run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.table1 import __main__ as table1
from benchmarks.table1 import animate_diff, clip_training, methods, report, text2video_zero
from benchmarks.table1.animate_diff import AnimateDiff, MotionModule
from benchmarks.table1.methods import METHODS, Job
from benchmarks.table1.tune_a_video import TuneAVideo, sparse_causal
from benchmarks.table1.worlds import WORLDS, Sprites
from benchmarks.toy.ablations import FreeTraining
from benchmarks.toy.runs import RECIPES
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.clip import load_toy_clip

pytestmark = pytest.mark.slow  # many of them

WORLD = WORLDS["sprites"]


@pytest.fixture(scope="module")
def toy() -> ToyBase:
    return load_toy_base()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def softmax_rows(scores: Tensor) -> Tensor:
    powers = scores.exp()
    return powers / powers.sum(-1, keepdim=True)


def attention_of(attn1: Any, x: Tensor, sources: Callable[[int], list[int]]) -> Tensor:
    """Attention over `f n c` tokens by a loop over frames and heads; frame i attends to the
    frames `sources(i)`."""
    width = x.shape[-1] // attn1.heads
    frames = []
    for i in range(len(x)):
        q, seen = attn1.to_q(x[i]), torch.cat([x[j] for j in sources(i)])
        k, v, heads = attn1.to_k(seen), attn1.to_v(seen), []
        for head in range(attn1.heads):
            own = slice(head * width, (head + 1) * width)
            heads.append(softmax_rows(q[:, own] @ k[:, own].T / math.sqrt(width)) @ v[:, own])
        frames.append(attn1.to_out[0](torch.cat(heads, dim=1)))
    return torch.stack(frames)


def first_attention(toy: ToyBase) -> Any:
    return toy.unet.get_submodule(map_unet(toy.unet).blocks[0].module).attn1


# --- Tune-A-Video ----------------------------------------------------------------------------


@torch.no_grad()
def test_sparse_causal_attention_sees_frame_one_and_the_one_before(toy: ToyBase) -> None:
    attn1, x = first_attention(toy), seeded(2, 4, 9, 64)
    with ExitStack() as stack:
        sparse_causal(attn1, FrameLayout(4, 2), stack)
        found = attn1(x.flatten(0, 1)).unflatten(0, (2, 4))
    for video, result in zip(x, found, strict=True):
        wanted = attention_of(attn1, video, lambda i: [0, max(i - 1, 0)])
        assert torch.allclose(result, wanted, atol=1e-5)
    assert torch.allclose(attn1(x[0]), attention_of(attn1, x[0], lambda i: [i]), atol=1e-5)


def test_a_fresh_tune_a_video_changes_only_the_attention_between_frames(toy: ToyBase) -> None:
    host, text = DiffusersHost(toy.unet), toy.encode_text(["a red disc"])
    same, t = seeded(1, 4, 16, 16).expand(3, -1, -1, -1), torch.tensor([400])
    fresh = TuneAVideo(map_unet(toy.unet)).initialise()
    with torch.no_grad():
        alone = host.predict(same[:1], t, text)
        with fresh.attached(toy.unet, FrameLayout(3), groupnorm="pooled"):
            found = host.predict(same, t, text)
    # Equal frames see themselves twice: the same as the image model.
    assert torch.allclose(found, alone.expand_as(found), atol=1e-4)


def trains(toy: ToyBase, motion: Motion) -> set[str]:
    """The names of the trained tensors that a few steps change, and every gradient's check."""
    recipe = RECIPES["moves_right"]
    job = Job(WORLD, toy, "moves_right", 0, replace(recipe, steps=3), 1.0)
    before = {name: value.clone() for name, value in motion.state_dict().items()}
    base = toy.unet.conv_in.weight.clone()
    job.tuned(motion, FreeTraining, job.source)
    assert torch.equal(base, toy.unet.conv_in.weight)
    return {n for n, value in motion.state_dict().items() if not torch.equal(value, before[n])}


def test_tune_a_video_tunes_queries_and_temporal_attention_alone(toy: ToyBase) -> None:
    motion = TuneAVideo(map_unet(toy.unet)).initialise()
    changed = trains(toy, motion)
    kinds = {name.split("transformer_blocks.0.")[-1] for name in changed}
    assert kinds == {
        "attn1.to_q.weight",
        "attn2.to_q.weight",
        *(f"attn_temp.to_{part}.weight" for part in "qkv"),
        "attn_temp.to_out.0.weight",
        "attn_temp.to_out.0.bias",
    }


def test_the_source_is_one_of_the_clips(toy: ToyBase) -> None:
    chosen = set()
    for seed in range(6):
        job = Job(WORLD, toy, "grow", seed, RECIPES["grow"], 1.0)
        assert len(job.source.frames) == len(job.source.captions) == 1
        same = [np.array_equal(clip, job.source.frames[0]) for clip in job.clips.frames]
        assert sum(same) == 1
        assert job.clips.captions[same.index(True)] == job.source.captions[0]
        chosen.add(same.index(True))
    assert len(chosen) > 2


# --- Text2Video-Zero -------------------------------------------------------------------------


@torch.no_grad()
def test_cross_frame_attention_sees_frame_one(toy: ToyBase) -> None:
    attn1, x = first_attention(toy), seeded(3, 9, 64)
    with text2video_zero.cross_frame_attention(toy.unet, FrameLayout(3)):
        found = attn1(x)
    assert torch.allclose(found, attention_of(attn1, x, lambda i: [0]), atol=1e-5)
    assert not torch.allclose(found, attn1(x), atol=1e-3)


def test_a_moved_latent_by_hand() -> None:
    x = torch.arange(12.0).reshape(1, 3, 4)
    right = [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
    assert text2video_zero.moved(x, 1.2, 0.3)[0].tolist() == right
    down = [[4, 5, 6, 7], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert text2video_zero.moved(x, 0.0, 2.0)[0].tolist() == down
    both = [[0, 0, 1, 2], [0, 0, 1, 2], [4, 4, 5, 6]]
    assert text2video_zero.moved(x, 1.0, 1.0)[0].tolist() == both


def test_the_moved_latent_is_grid_sample_with_reflection() -> None:
    x, by = seeded(1, 2, 6, 8), (3, 2)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([(columns - by[0] + 0.5) / 4 - 1, (rows - by[1] + 0.5) / 3 - 1], dim=-1)
    wanted = nn.functional.grid_sample(
        x, grid[None], mode="nearest", padding_mode="reflection", align_corners=False
    )
    assert torch.equal(text2video_zero.moved(x, *map(float, by)), wanted)


def test_motion_dynamics_adds_the_noise_from_881_to_941() -> None:
    host: Any = type("Host", (), {"alphas_cumprod": torch.linspace(0.99, 0.01, 1000)})
    states = {881: torch.full((1, 1, 64, 64), 2.0), 941: torch.full((1, 1, 64, 64), 5.0)}
    video = text2video_zero.motion_dynamics(host, states, 3, torch.Generator().manual_seed(1))
    assert video[0].eq(5.0).all()
    share = float(host.alphas_cumprod[941] / host.alphas_cumprod[881])
    for frame in video[1:]:
        assert frame.mean().item() == pytest.approx(2.0 * math.sqrt(share), abs=0.05)
        assert frame.std().item() == pytest.approx(math.sqrt(1 - share), abs=0.03)


def test_the_given_first_frame_stays_and_the_others_do_not(toy: ToyBase) -> None:
    first = toy.encode(WORLD.cases(0, "grow", 1)[0].frames[:1])
    seen: list[Tensor] = []
    hook = toy.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = text2video_zero.videos_from(toy, first, ["a red disc"], 2, seed=0, guidance=1.0)
    hook.remove()
    assert torch.equal(found[0], first[0]) and not torch.allclose(found[1], first[0], atol=0.1)
    # 48 timesteps, 941 to 1, of one picture and then of two frames. Frame 1 goes the same way back.
    assert [len(x) for x in seen] == [1] * 48 + [2] * 48
    assert torch.equal(seen[47][0], seen[49][0])


# --- AnimateDiff -----------------------------------------------------------------------------


def test_positions_are_sines_and_cosines() -> None:
    found = animate_diff.positions(3, 6)
    for frame in range(3):
        for pair in range(3):
            angle = frame / 10_000 ** (2 * pair / 6)
            got = found[frame, 2 * pair : 2 * pair + 2].tolist()
            assert got == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-5)


@torch.no_grad()
def test_the_motion_module_is_its_formula() -> None:
    module, frames = randomised(MotionModule(32)), 4
    x = seeded(2 * frames, 32, 2, 3)
    found, z_all = module(x, frames), module.norm(x)
    p, width = animate_diff.positions(frames, 32), 16
    for video in range(2):
        for row, column in ((0, 0), (1, 2)):
            own = range(video * frames, (video + 1) * frames)
            z = module.proj_in(torch.stack([z_all[i, :, row, column] for i in own]))
            for norm, attention in zip(module.norms, module.attentions, strict=False):
                q, k, v = attention.to_qkv(norm(z) + p).split(32, dim=-1)
                heads = [
                    softmax_rows(q[:, s] @ k[:, s].T / math.sqrt(width)) @ v[:, s]
                    for s in (slice(0, width), slice(width, 32))
                ]
                z = z + attention.to_out(torch.cat(heads, dim=1))
            z = module.proj_out(z + module.feed_forward(module.norms[2](z)))
            for number, i in enumerate(own):
                wanted = x[i, :, row, column] + z[number]
                assert torch.allclose(found[i, :, row, column], wanted, atol=1e-4)


@torch.no_grad()
def test_fresh_motion_modules_change_nothing_and_trained_ones_every_level(toy: ToyBase) -> None:
    host, text, t = DiffusersHost(toy.unet), toy.encode_text(["a red disc"]), torch.tensor([400])
    motion, x = AnimateDiff(map_unet(toy.unet), toy.unet).initialise(), seeded(3, 4, 16, 16)
    alone = torch.cat([host.predict(frame[None], t, text) for frame in x])
    with motion.attached(toy.unet, FrameLayout(3)):
        assert torch.allclose(host.predict(x, t, text), alone, atol=1e-5)
        randomised(motion)
        changed = host.predict(x, t, text)
        turned = host.predict(x.flip(0), t, text).flip(0)
    assert not torch.allclose(changed, alone, atol=1e-2)
    assert not torch.allclose(changed, turned, atol=1e-3)  # the frames' numbers count
    levels = {name.rsplit("_", 1)[0] for name in motion.motion_modules}
    assert levels == {"down_0", "down_1", "down_2", "mid", "up_0", "up_1", "up_2"}


def test_every_part_of_the_motion_modules_learns(toy: ToyBase) -> None:
    motion = AnimateDiff(map_unet(toy.unet), toy.unet).initialise()
    assert trains(toy, motion) == set(motion.state_dict())


# --- CLIP ------------------------------------------------------------------------------------


def test_the_contrastive_loss_is_its_formula() -> None:
    images, texts, scale = seeded(3, 5), seeded(3, 5, seed=1), torch.tensor(4.0)
    found = clip_training.contrastive_loss(images, texts, scale, ["a", "b", "a"]).item()
    i, t = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (images, texts))
    powers = np.exp(4.0 * i @ t.T)
    powers[0, 2] = powers[2, 0] = 0.0  # pictures 0 and 2 share a caption
    rows = -np.log(np.diag(powers) / powers.sum(1)).mean()
    columns = -np.log(np.diag(powers) / powers.sum(0)).mean()
    assert found == pytest.approx((rows + columns) / 2, rel=1e-5)


@pytest.fixture
def small_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP that learned for two steps."""
    monkeypatch.setattr(clip_training, "BATCH", 20)
    monkeypatch.setattr(clip_training, "retrieval", lambda *_: {})
    path = tmp_path / "small.clip.safetensors"
    clip_training.make_clip(WORLD, 2, path)
    monkeypatch.setattr(Sprites, "clip_path", path)
    return path


def test_a_saved_clip_embeds_as_the_trained_one(
    tmp_path: Path, toy: ToyBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = clip_training.Words(toy.config["words"])
    torch.manual_seed(0)
    monkeypatch.setattr(clip_training, "BATCH", 20)
    model = clip_training.train_clip(WORLD, words, 1)
    clip_training.save_clip(tmp_path / "clip.safetensors", model, WORLD, words, {})
    clip = load_toy_clip(tmp_path / "clip.safetensors")
    images, captions = WORLD.pictures(np.random.default_rng(0), 40)
    with torch.no_grad():
        pixels = clip_training.normalise(torch.from_numpy(images) / 255.0)
        seen = clip_training.embed_images(model, pixels)
        read = clip_training.embed_texts(model, *words.rows(captions))
    assert torch.allclose(clip.encode_image(torch.from_numpy(images) / 255.0), seen, atol=2e-2)
    assert torch.allclose(clip.encode_text(captions[3]), read[3], atol=2e-2)
    with pytest.raises(ValueError, match="helicopter"):
        clip.encode_text("a helicopter")


# --- worlds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_knows_its_truth_and_its_words(name: str) -> None:
    world = WORLDS[name]
    kind = next(iter(world.recipes))
    cases = world.cases(0, kind, 2)
    truth = world.truth(np.stack([case.frames for case in cases]), cases)
    assert list(truth) == list(world.measures) and truth["followed"] == 1.0
    still = world.truth(np.stack([case.frames[:1].repeat(8, axis=0) for case in cases]), cases)
    assert still["followed"] == 0.0
    images, captions = world.pictures(np.random.default_rng(0), 20)
    assert images.shape == (20, world.size, world.size, 3) and len(captions) == 20
    prompts = [f"{caption} {phrase}" for caption in captions for phrase in world.phrases]
    clip_training.Words(world.words).rows([*prompts, *(case.prompt for case in cases)])
    assert cases[0].frames.shape[1:3] == images.shape[1:3]


# --- the table -------------------------------------------------------------------------------


def results_of(**rows: tuple[float, float]) -> dict[str, dict[int, Any]]:
    """Alignment by method on two seeds."""
    names = dict(zip(("tav", "zero", "diff", "lamp"), report.PAPER, strict=True))
    return {
        names[name]: {
            seed: {report.MEAN: dict.fromkeys(report.MEASURES, 1.0) | {"alignment": value}}
            for seed, value in enumerate(values)
        }
        for name, values in rows.items()
    }


def test_the_papers_order_is_recognised() -> None:
    found = report.orders(results_of(lamp=(9, 9), diff=(8, 8), tav=(7, 7), zero=(6, 6)))
    assert found[0]["paper"] == ["LAMP", "AnimateDiff*", "Tune-A-Video", "T2V-Zero"]
    assert found[0]["here"] == found[0]["paper"] and not found[0]["reversed"]


def test_a_reversed_pair_is_named_with_its_seeds() -> None:
    found = report.orders(results_of(lamp=(9, 9), diff=(8, 5), tav=(7, 9), zero=(6, 4)))[0]
    (pair,) = found["reversed"]
    assert (pair["better_here"], pair["better_in_paper"]) == ("Tune-A-Video", "AnimateDiff*")
    assert (pair["seeds_better"], pair["seeds"]) == (1, 2)
    assert "1 of 2" in found["says"]


def test_diversity_is_better_when_lower() -> None:
    rows = results_of(lamp=(1, 1), diff=(1, 1))
    for name, value in (("LAMP", 50.0), ("AnimateDiff*", 70.0)):
        for seed in (0, 1):
            rows[name][seed][report.MEAN]["diversity"] = value
    assert report.orders(rows)[2]["here"] == ["LAMP", "AnimateDiff*"]


def test_means_are_over_motions_then_seeds() -> None:
    found = {"LAMP": {0: {"a": {"iou": 0.2}, "b": {"iou": 0.4}}, 1: {"a": {"iou": 0.5}}}}
    means = table1.with_means(found)["LAMP"]
    assert means[0][report.MEAN]["iou"] == pytest.approx(0.3)
    assert means[1][report.MEAN]["iou"] == pytest.approx(0.5)


def test_a_small_run_makes_the_whole_table_and_resumes(
    small_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(methods, "STEPS", 2)
    monkeypatch.setattr(text2video_zero, "STARTED", 61)
    monkeypatch.setattr(text2video_zero, "WARPED", 41)
    quick = replace(RECIPES["moves_right"], sample_steps=2)
    monkeypatch.setattr(Sprites, "recipes", {"moves_right": quick})
    kept, plot = tmp_path / "kept", tmp_path / "plot.svg"
    given = ["--motions", "moves_right", "--steps", "1", "--cases", "2", "--keep", str(kept)]
    assert table1.main([*given, "--save-plot", str(plot)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {name: row["0"]["moves_right"] for name, row in told["results"].items()}
    assert list(rows) == list(METHODS)
    assert rows["true videos"]["iou"] == rows["true videos"]["followed"] == 1.0
    assert rows["still first frame"]["consistency"] == pytest.approx(100.0, abs=1e-3)
    assert rows["still first frame"]["followed"] == 0.0
    assert all(value is not None for row in rows.values() for value in row.values())
    assert plot.read_text().count("<circle") == len(METHODS) * (3 + len(WORLD.measures)) + 1

    def refuse(*_: Any) -> Any:
        raise AssertionError("it ran again")

    monkeypatch.setattr(table1, "one_run", refuse)
    assert table1.main(given) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == told["results"]
