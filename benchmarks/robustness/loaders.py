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

from benchmarks.samples.clip_files import write_video
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

from .mutations import damaged_clip, damaged_pickle, damaged_tensors, damaged_text
from .watch import LONGEST, SPARE, Outcome, watch

_BLOCK = "mid_block.attentions.0.transformer_blocks.0"
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


def small_sites(width: int, block: int) -> SiteMap:
    """One convolution and one transformer block, of so many channels."""
    conv = ConvSite("conv_in", "conv_in", width)
    return SiteMap((conv,), (BlockSite(_BLOCK, _BLOCK, block, 2),), (), (), "sd1")


_SITES = small_sites(6, 8)


@dataclass(frozen=True)
class Loader:
    """How a kind of file is made, damaged and read.

    - share: of all files;
    - valid: writes a valid file, named `file`;
    - seconds, room: the limits of `watch`.
    """

    name: str
    file: str
    share: float
    valid: Callable[[Path], object]
    damage: Callable[[Random, bytes], tuple[bytes, str]]
    load: Callable[[Path], object]
    seconds: float = LONGEST
    room: int = SPARE


# --- motions ----------------------------------------------------------------------------------


def _write_motion(path: Path, size: float = 1.0) -> None:
    config = MotionConfig(family="sd1", prompt="a horse runs", captions=["one", "two"], steps=7)
    state = Motion(_SITES).initialise(0).state_dict()
    extra = {"prompt": json.dumps({"1": asdict(config)})}
    save_motion(path, state, config, size=size, extra=extra)


def _load_motion(path: Path) -> None:
    """Load it into a model as the nodes do."""
    file = load_motion_file(path)
    file.check_against(_SITES)
    Motion(_SITES).load_state_dict(file.state)


def _inspect_motion(path: Path) -> None:
    """Describe it in text that can be encoded."""
    file = load_motion_file(path)
    json.dumps([describe_motion(file), asdict(file.config), file.metadata]).encode()
    describe_motion(file).encode()


@functools.cache
def _valid_motion() -> MotionFile:
    state = Motion(_SITES).initialise(1).state_dict()
    moved = {name: torch.full_like(tensor, 0.1) for name, tensor in state.items()}
    return MotionFile(moved, MotionConfig(family="sd1"), name="valid.safetensors")


def _merge(path: Path) -> None:
    """Merge it with a valid one, in either order."""
    file = load_motion_file(path)
    for pair in ((file, _valid_motion()), (_valid_motion(), file)):
        merged = merge_motions(*pair, (0.5, 1.5))
        if not all(tensor.isfinite().all() for tensor in merged.state.values()):
            raise AssertionError("the merged motion is not finite")


# --- official checkpoints ---------------------------------------------------------------------


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
    from benchmarks.samples.official_files import official_state, write_official

    learned = Motion(map_unet(_base())).initialise(0).state_dict()
    state = official_state(canonical_state(_base()), learned, _base())
    write_official(path.parents[1], state, path.name)


def _convert(path: Path) -> None:
    file = convert_official(path.parent, _base())
    file.check_against(map_unet(_base()))


# --- training states, cache entries, texts, clips ---------------------------------------------


@functools.cache
def _small_run() -> Training:
    from benchmarks.samples.small_training import FRAMES, small_clips, small_host

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
    raise LampError("The entry is computed again.")


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
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    write_video(path, frames, fflags="+bitexact", **how)


def _read_clip(path: Path) -> None:
    """Read as training clips are: inspected, then frame by frame."""
    clips = load_clips([path], "", 2, short="loop", width=64, height=48)
    for chunk in clips.chunks(0):
        if chunk.shape[1:] != (48, 64, 3):
            raise AssertionError(f"frames of shape {tuple(chunk.shape)}")


_TENSORS = (
    ("motion", "m.safetensors", 0.25, _write_motion, _load_motion),
    ("compact", "m.safetensors", 0.1, functools.partial(_write_motion, size=0.3), _load_motion),
    ("inspect", "m.safetensors", 0.1, _write_motion, _inspect_motion),
    ("state", "s.safetensors", 0.03, _write_state, read_state),
    ("resume", "s.safetensors", 0.02, _write_state, _resume),
    ("cache", entry_name("prompt", "some text"), 0.1, _write_entry, _read_entry),
    ("merge", "m.safetensors", 0.15, _write_motion, _merge),
    ("convert", "unet/diffusion_pytorch_model.safetensors", 0.08, _write_official, _convert),
)
_CLIPS = {
    "clip.mp4": {},
    "clip.gif": {"codec": "gif", "pixels": "rgb8"},
    "clip.webm": {"codec": "libvpx-vp9"},
    "clip.mkv": {"codec": "libx265", "pixels": "yuv420p10le"},
}
LOADERS = (
    *(Loader(*made, damaged_tensors, load) for *made, load in _TENSORS),
    Loader("pickle", "unet/diffusion_pytorch_model.bin", 0.07, _write_official, damaged_pickle,
           _convert),
    Loader("caption", "clip.txt", 0.05, lambda path: path.write_text("a horse, {motion}\n"),
           damaged_text, _read_caption),
    Loader("toml", "run.toml", 0.05, lambda path: path.write_text(_TOML), damaged_text, _read_toml),
    # A few bytes may claim to be an 8K picture, which takes time and memory.
    *(Loader(f"clip {file[5:]}", file, 0.025, functools.partial(_write_clip, **how), damaged_clip,
             _read_clip, seconds=60.0, room=2**30) for file, how in _CLIPS.items()),
)  # fmt: skip


class Trial:
    """Bad files for one loader, in its own folder. File number n depends on n and the seed only."""

    def __init__(self, loader: Loader, folder: Path, seed: int) -> None:
        self._loader, self._seed, self.room = loader, seed, loader.room
        self._file = folder / loader.file
        loader.valid(self._file)
        self._valid = self._file.read_bytes()
        for _ in range(2):  # the first time imports modules
            loader.load(self._file)

    def run(self, number: int) -> Outcome:
        """Try one bad file."""
        loader = self._loader
        random = Random(f"{self._seed} {loader.name} {number}")
        data, damage = loader.damage(random, self._valid)
        self._file.write_bytes(data)
        outcome = watch(self._file, loader.load, loader.seconds, loader.room)
        outcome.label = f"file {number} ({damage})"
        return outcome
