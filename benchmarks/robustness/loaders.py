"""Everything that reads files of strangers: one line each in `LOADERS`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch

from benchmarks.robustness.mutations import damaged_clip, damaged_tensors, damaged_text
from benchmarks.robustness.pickles import damaged_pickle
from benchmarks.robustness.watch import LONGEST, SPARE, Outcome, watch
from lamp.cli.train_config import read_settings
from lamp.clips.captions import find_caption
from lamp.clips.load import load_clips
from lamp.errors import LampError
from lamp.files.cache import TensorCache, entry_name
from lamp.method.architecture import BlockSite, ConvSite, SiteMap, map_unet
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.convert import canonical_state, convert_official
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion
from lamp.motion_file.merge import merge_motions
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig
from lamp.training.state import read_state, restore, take_state, write_state

_BLOCK = "mid_block.attentions.0.transformer_blocks.0"
_SITES = SiteMap(
    (ConvSite("conv_in", "conv_in", 6),), (BlockSite(_BLOCK, _BLOCK, 8, 2),), (), (), "sd1"
)
_ENTRY = entry_name("prompt", "some text")
_IDENTITY = {"base": "abc", "clips": "def"}
_TOML = """\
[base]
path = "toy"

[data]
folder = "."
prompt = "a horse runs"
frames = 16
width = 512
height = 320
fps = 8.0
fit = "crop"
bucket = false

[recipe]
preset = "paper"
steps = 100
learning_rate = 3e-5
betas = [0.9, 0.999]
precision = "auto"

[output]
name = "horses/run"
folder = "output"
save_every = 10
resume = "none"
"""


@dataclass(frozen=True)
class Loader:
    """How a kind of file is made, damaged and read.

    `share` of the files goes to it; `sound` makes a good file under the name `file`. Reading one
    takes at most so many `seconds` and `room` in bytes, besides three times its size.
    """

    name: str
    file: str
    share: float
    sound: Callable[[Path], object]
    damage: Callable[[Random, bytes], tuple[bytes, str]]
    load: Callable[[Path], object]
    seconds: float = LONGEST
    room: int = SPARE


class _NotKept(LampError):
    """The cache would compute the entry anew."""


def _write_motion(path: Path, size: float = 1.0) -> None:
    config = MotionConfig(family="sd1", prompt="a horse runs", captions=["one", "two"], steps=7)
    state = Motion(_SITES).initialise(0).state_dict()
    extra = {"prompt": json.dumps({"1": asdict(config)})}
    save_motion(path, state, config, size=size, extra=extra)


def _load_motion(path: Path) -> None:
    """Read it, and put it into a model as the nodes do."""
    file = load_motion_file(path)
    file.check_against(_SITES)
    Motion(_SITES).load_state_dict(file.state)


def _inspect_motion(path: Path) -> None:
    """Describe it in words that can be shown and sent."""
    file = load_motion_file(path)
    json.dumps([describe_motion(file), asdict(file.config), file.metadata]).encode()
    describe_motion(file).encode()


@functools.cache
def _sound_motion() -> MotionFile:
    state = Motion(_SITES).initialise(1).state_dict()
    moved = {name: torch.full_like(tensor, 0.1) for name, tensor in state.items()}
    return MotionFile(moved, MotionConfig(family="sd1"), name="sound.safetensors")


def _merge(path: Path) -> None:
    """Merge it with a sound one, on either side."""
    file = load_motion_file(path)
    for pair in ((file, _sound_motion()), (_sound_motion(), file)):
        merged = merge_motions(*pair, (0.5, 1.5))
        if not all(tensor.isfinite().all() for tensor in merged.state.values()):
            raise AssertionError("the merged motion is not finite")


@functools.cache
def _base() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
    ).requires_grad_(False)  # fmt: skip


def _write_official(path: Path) -> None:
    from safetensors.torch import save_file

    base, sites = canonical_state(_base()), map_unet(_base())
    learned = Motion(sites).initialise(0).state_dict()
    convs = {site.name for site in sites.convs}
    state = {_inflated(name, convs): tensor.contiguous() for name, tensor in base.items()}
    # the tuned query stands in place of the base's own, to which a fresh motion is no change
    state |= {name: tensor.contiguous() for name, tensor in learned.items() if name not in base}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def _inflated(name: str, convs: set[str]) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{module}.conv2d.{parameter}" if module in convs else name


def _convert(path: Path) -> None:
    file = convert_official(path.parent, _base())
    file.check_against(map_unet(_base()))


@functools.cache
def _small_run() -> Training:
    from benchmarks.samples.small_training import (  # imports diffusers
        FRAMES,
        small_clips,
        small_host,
    )

    host = small_host()
    settings = TrainConfig(steps=3, frames=FRAMES, ema=0.9)
    return Training(host, Motion(map_unet(host.unet)).initialise(0), small_clips(), settings)


def _write_state(path: Path) -> None:
    training = _small_run()
    if not training.step:
        training.advance()
    write_state(path, take_state(training, _IDENTITY))


def _resume(path: Path) -> None:
    restore(_small_run(), read_state(path), _IDENTITY)


def _refuse() -> dict[str, torch.Tensor]:
    raise _NotKept("It is computed anew.")


def _write_entry(path: Path) -> None:
    TensorCache(path.parent).get(path.name, lambda: {"mean": torch.ones(4, 8)})


def _read_entry(path: Path) -> None:
    TensorCache(path.parent).get(path.name, _refuse)


def _read_caption(path: Path) -> None:
    find_caption(path.with_suffix(".mp4")).text.encode()


def _read_toml(path: Path) -> None:
    settings = read_settings(path, [])
    if not (settings.folder / settings.name).resolve().is_relative_to(settings.folder.resolve()):
        raise AssertionError(f"the name {settings.name} leads out of the folder")


def _write_clip(path: Path, **how: str) -> None:
    from benchmarks.samples.clip_files import write_video

    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    write_video(path, frames, fflags="+bitexact", **how)  # without numbers drawn at random


def _read_clip(path: Path) -> None:
    """As training clips are read: looked through, then frame by frame."""
    clips = load_clips([path], "", 2, short="loop", width=64, height=48)
    for chunk in clips.chunks(0):
        if chunk.shape[1:] != (48, 64, 3):
            raise AssertionError(f"frames of shape {tuple(chunk.shape)}")


# A few bytes may say that they are a picture of 8K, which takes its time and its memory.
_PICTURES = {"seconds": 60.0, "room": 2**30}
# On top of the others: a clip is no motion file.
_CLIPS = tuple(
    Loader(f"clip {file[5:]}", file, 0.025, functools.partial(_write_clip, **how), damaged_clip,
           _read_clip, **_PICTURES)
    for file, how in {
        "clip.mp4": {}, "clip.gif": {"codec": "gif", "pixels": "rgb8"},
        "clip.webm": {"codec": "libvpx-vp9"},
        "clip.mkv": {"codec": "libx265", "pixels": "yuv420p10le"},
    }.items()
)  # fmt: skip

LOADERS = (
    Loader("motion", "m.safetensors", 0.25, _write_motion, damaged_tensors, _load_motion),
    Loader("compact", "m.safetensors", 0.1, functools.partial(_write_motion, size=0.3),
           damaged_tensors, _load_motion),
    Loader("inspect", "m.safetensors", 0.1, _write_motion, damaged_tensors, _inspect_motion),
    Loader("state", "s.safetensors", 0.03, _write_state, damaged_tensors, read_state),
    Loader("resume", "s.safetensors", 0.02, _write_state, damaged_tensors, _resume),
    Loader("cache", _ENTRY, 0.1, _write_entry, damaged_tensors, _read_entry),
    Loader("merge", "m.safetensors", 0.15, _write_motion, damaged_tensors, _merge),
    Loader("convert", "unet/diffusion_pytorch_model.safetensors", 0.08, _write_official,
           damaged_tensors, _convert),
    Loader("pickle", "unet/diffusion_pytorch_model.bin", 0.07, _write_official, damaged_pickle,
           _convert),
    Loader("caption", "clip.txt", 0.05, lambda path: path.write_text("a horse, {motion}\n"),
           damaged_text, _read_caption),
    Loader("toml", "run.toml", 0.05, lambda path: path.write_text(_TOML), damaged_text, _read_toml),
    *_CLIPS,
)  # fmt: skip


class Trial:
    """Bad files for one loader, in a folder of its own.

    File number n is the same whatever was tried before it, in this process or in another one.
    """

    def __init__(self, loader: Loader, folder: Path, seed: int) -> None:
        self._loader, self._seed, self.room = loader, seed, loader.room
        self._file = folder / loader.file
        loader.sound(self._file)
        self._sound = self._file.read_bytes()
        for _ in range(2):  # the first time, modules are imported
            loader.load(self._file)

    def run(self, number: int) -> tuple[Outcome, str]:
        """Try one bad file; what became of it, and what was wrong with it."""
        random = Random(f"{self._seed} {self._loader.name} {number}")
        data, damage = self._loader.damage(random, self._sound)
        self._file.write_bytes(data)
        loader = self._loader
        return watch(self._file, loader.load, loader.seconds, loader.room), damage
