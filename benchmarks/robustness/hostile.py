"""Files that are whole and mean harm: bombs, forged lines, lists of other files, programs.

Damage (benchmarks/robustness/mutations.py) finds what a reader trips over; these find what it does
when it reads well. One entry of `hostile_files()` a kind, each under several names.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.robustness.loaders import LOADERS
from benchmarks.robustness.watch import LONGEST, SPARE, Outcome, watch
from lamp.errors import LampError
from lamp.files.cache import entry_name
from lamp.hosts.diffusers.models import load_unet
from lamp.motion_file.config import MotionConfig

Make = Callable[[Path], object]
_READERS = {loader.name: loader for loader in LOADERS}
_MOTION = ("m.safetensors", "a b\u202e.safetensors", "con.SAFETENSORS.safetensors")
_BASE = ("model.safetensors", "v1-5 pruned.safetensors")
_STATE = ("state-step000001.safetensors", "s.safetensors")
_ENTRY = (entry_name("prompt", "some text"),)
_OFFICIAL = ("unet/diffusion_pytorch_model.safetensors",)
_PICKLE = ("unet/diffusion_pytorch_model.bin", "unet/x.bin")
_ESCAPES = "\x1b]52;c;aGk=\x07\x1b[2J\r\u202egnp\ud800\x9b31m\nLicense: MIT"


@dataclass(frozen=True)
class Hostile:
    """A kind of file: its names, how it is made, what reads it; `refused` if it may not load."""

    kind: str
    names: Sequence[str]
    make: Make
    read: Callable[[Path], object]
    refused: bool = True
    seconds: float = LONGEST
    room: int = SPARE

    def outcome(self, folder: Path, name: str) -> Outcome:
        """What becomes of it under a name, in an empty folder."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.make(path)
        outcome = watch(path, self.read, self.seconds, self.room)
        if self.refused and outcome.loaded:
            outcome.problems.append("it was loaded")
        return outcome


def hostile_files() -> list[Hostile]:
    """All kinds, each for everything that reads such a file."""
    from benchmarks.robustness.hostile_clips import hostile_clips

    found = []
    for kind, names, make, readers, refused in _TENSOR_KINDS:
        found += [Hostile(f"{kind} ({reader})", names, make, _reader(reader), refused)
                  for reader in readers]  # fmt: skip
    return [*found, *hostile_clips()]


def warm_up() -> None:
    """What is imported and kept on first use is no file's doing."""
    import diffusers  # noqa: F401

    for file in hostile_files():
        if file.kind.endswith(("(base)", "(convert)", "(pickle)")) or "67 million" in file.kind:
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
                (Path(folder) / "files").mkdir()
                file.outcome(Path(folder) / "files", file.names[0])


def _reader(name: str) -> Callable[[Path], object]:
    if name == "base":
        return load_unet
    return _told if name == "inspect" else _READERS[name].load


def _told(path: Path) -> None:
    """What the command line prints of a motion; a LampError is as good."""
    from lamp.motion_file.describe import describe_motion
    from lamp.motion_file.file import load_motion_file

    text = describe_motion(load_motion_file(path))
    harmful = [letter for letter in text if not (letter.isprintable() or letter in "\n\u3000")]
    forged = sum(line.startswith("License: ") for line in text.split("\n")) != 1
    if harmful or forged or len(text) > 20_000:
        raise AssertionError(f"it prints {len(text)} characters, {harmful[:9]}")


# --- safetensors --------------------------------------------------------------------------------


def write(path: Path, entries: dict[str, Any] | str, body: bytes = b"", **metadata: str) -> None:
    """A safetensors file with any header."""
    header: Any = entries
    if isinstance(entries, dict):
        header = json.dumps({"__metadata__": metadata, **entries} if metadata else entries)
    data = header.encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + body)


def _config(**fields: Any) -> str:
    return json.dumps({**asdict(MotionConfig(family="sd1")), **fields})


def _rank(forms: Any) -> str:
    raw = forms if isinstance(forms, str) else json.dumps(forms)
    return base64.b64encode(zlib.compress(raw.encode())).decode()


def _compact(path: Path, forms: Any, held: int, family: str = "sd1") -> None:
    entry = {"lamp.compact": {"dtype": "U8", "shape": [held], "data_offsets": [0, held]}}
    metadata = {
        "lamp.format": "2",
        "lamp.config": _config(family=family),
        "lamp.rank": _rank(forms),
    }
    write(path, entry, bytes(held), **metadata)


_BLOCK = ("attn_temp.to_q", "attn_temp.to_k", "attn_temp.to_v", "attn_temp.to_out.0", "attn1.to_q")


def _zero_block(site: str, width: int) -> dict[str, list[Any]]:
    """All of a block by ranks of zero, but for the vectors."""
    vectors = ("norm_temp.weight", "norm_temp.bias", "attn_temp.to_out.0.bias")
    return {
        **{f"{site}.{part}.weight": [[0, 0, 0, 0], width, width] for part in _BLOCK},
        **{f"{site}.{part}": [16, width] for part in vectors},
    }


def _ranks_of_zero(path: Path) -> None:
    _compact(path, {f"x{n}": [[0, 0, 0, 0], 2**12, 2**12] for n in range(120)}, 0)


def _vectors_of_zero(path: Path) -> None:
    forms = _zero_block("a.b", 2**12)
    _compact(path, {name: [[0] * 4, *form[1:]] for name, form in forms.items()}, 0)


def _too_wide(path: Path) -> None:
    """With its vectors, of a width that no model has."""
    width = 2**12
    forms = {k: v for n in range(8) for k, v in _zero_block(f"a.{n}", width).items()}
    _compact(path, forms, 8 * 3 * 2 * width)


def _too_many(path: Path) -> None:
    forms = {k: v for n in range(2001) for k, v in _zero_block(f"{n}", 1).items()}
    _compact(path, forms, 2001 * 6)


def _swelling(path: Path) -> None:
    _compact(path, " " * 10**8 + "{}", 0)


def _one_tensor(path: Path, shape: list[int], held: int = 0, **metadata: str) -> None:
    entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, held]}
    write(path, {"conv_in.conv1d.weight": entry}, bytes(held), **metadata)


def _sides_of_zero(path: Path) -> None:
    state = json.dumps({"format": 1, "step": 1})
    metadata = {
        "lamp.format": "1",
        "lamp.config": _config(),
        "lamp.state": state,
        "lamp.cache": path.name,
    }
    _one_tensor(path, [2**40, 0, 3], **metadata)


def _long_numbers(path: Path) -> None:
    config = _config(seed=7, steps=7).replace("7", "9" * 4000)
    state = '{"format": 1, "step": ' + "9" * 4000 + "}"
    write(path, {}, **{"lamp.format": "1", "lamp.config": config, "lamp.state": state})


def _large_numbers(path: Path) -> None:
    config = _config(seed=2**64, steps=2**63, frames=10**19, learning_rate=1e308)
    state = json.dumps({"format": 1, "step": 10**19})
    write(path, {}, **{"lamp.format": "1", "lamp.config": config, "lamp.state": state})


def _long_texts(path: Path) -> None:
    config = _config(prompt="p" * 150_000, captions=["c" * 150_000, "d" * 150_000])
    extra = {"modelspec.license": "l" * 100_000, "lamp.source": "s" * 100_000}
    write(path, {}, **{"lamp.format": "1", "lamp.config": config}, **extra)


def _terminal(path: Path) -> None:
    told = _ESCAPES.replace("\ud800", "")
    config = _config(prompt=told, captions=[told] * 9, base_model=told)
    parents = json.dumps([{"name": told, "weight": 1.0}])
    extra = {"modelspec.license": told, "lamp.parents": parents}
    write(path, {}, **{"lamp.format": "1", "lamp.config": config}, **extra)


def _terminal_errors(path: Path) -> None:
    """The same in what an error tells of: a group norm, a version, a tensor's name."""
    config = _config(groupnorm=_ESCAPES.replace("\ud800", ""), prompt="\ud800")
    write(path, {_ESCAPES: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, b"ab",
          **{"lamp.format": "1", "lamp.config": config})  # fmt: skip


def _twice_in_header(path: Path) -> None:
    entry = '{"dtype":"F16","shape":[1],"data_offsets":[0,2]}'
    about = json.dumps({"lamp.format": "1", "lamp.config": _config(), "lamp.cache": path.name,
                        "lamp.state": '{"format": 1, "step": 1}'})  # fmt: skip
    write(path, f'{{"__metadata__":{about},"a":{entry},"a":{entry}}}', b"ab")


def _twice_in_config(path: Path) -> None:
    config = _config()[:-1] + ', "family": "sdxl"}'
    state = '{"format": 1, "step": 1, "step": 2, "settings": {}}'
    write(path, {}, **{"lamp.format": "1", "lamp.config": config, "lamp.state": state})


def _twice_in_ranks(path: Path) -> None:
    _compact(path, '{"a.conv1d.bias": [16, 1], "a.conv1d.bias": [16, 1]}', 2)


def _base_of(path: Path, names: dict[str, list[int]]) -> None:
    entries, place = {}, 0
    for name, shape in names.items():
        size = 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    write(path, entries, bytes(place))


_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_OTHERS = {f"{_VAE}post_quant_conv.weight": [4, 4, 1, 1],
           f"{_TEXT}text_model.embeddings.token_embedding.weight": [4, 4]}  # fmt: skip


def _endless_levels(path: Path) -> None:
    """A number in a name for which as many modules would be made."""
    names = {f"{_UNET}input_blocks.{number}.0.in_layers.2.weight": [1] for number in (1, 10**9)}
    names |= {f"{_VAE}decoder.up.{10**9}.block.0.conv1.weight": [1],
              f"{_TEXT}text_model.encoder.layers.{10**9}.mlp.fc1.weight": [1, 1]}  # fmt: skip
    _base_of(path, {**names, **_OTHERS})


def _endless_depth(path: Path) -> None:
    _base_of(path, {f"{_UNET}{'a.' * 5000}weight": [1], **_OTHERS})


def _wide_base(path: Path) -> None:
    """A checkpoint in miniature,
    of which one tensor tells that the UNet has a width of millions."""
    blocks = {
        "input_blocks.0.0.weight": [32, 4, 1, 1], "input_blocks.1.0.in_layers.2.weight": [2**22, 1,
        1, 1],
        "input_blocks.1.1.norm.weight": [32], "middle_block.0.in_layers.2.weight": [1],
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [32, 64],
        "middle_block.1.proj_in.weight": [1, 1, 1, 1], "middle_block.2.in_layers.2.weight": [1],
        "middle_block.1.transformer_blocks.0.norm1.weight": [1],
        "output_blocks.0.0.in_layers.2.weight": [1], "out.2.weight": [4, 1, 1, 1],
    }  # fmt: skip
    text = f"{_TEXT}text_model."
    others = {f"{_VAE}decoder.up.0.block.0.conv1.weight": [32, 1, 1, 1],
              f"{text}embeddings.position_embedding.weight": [77, 4],
              f"{text}encoder.layers.0.mlp.fc1.weight": [4, 4]}  # fmt: skip
    _base_of(
        path, {**{f"{_UNET}{name}": shape for name, shape in blocks.items()}, **_OTHERS, **others}
    )


# --- pickles ------------------------------------------------------------------------------------


class _Raw:
    """Stands for a call of any function in a pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.numbers if isinstance(obj, _Storage) else None


@dataclass(frozen=True)
class _Storage:
    numbers: tuple[Any, ...]


def _archive(path: Path, state: Any) -> None:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(state)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", stream.getvalue())
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", bytes(64))
        archive.writestr("x/version", "3\n")


def _storage(count: int) -> _Storage:
    return _Storage(("storage", torch.FloatStorage, "0", "cpu", count))


def _strides_of_zero(path: Path) -> None:
    rebuild = torch._utils._rebuild_tensor_v2
    tensor = _Raw(rebuild, _storage(16), 0, (2**20, 2**20), (0, 0), False, {})
    _archive(path, {"conv_in.conv1d.weight": tensor})


def _claimed_storage(path: Path) -> None:
    rebuild = torch._utils._rebuild_tensor_v2
    tensor = _Raw(rebuild, _storage(2**38), 0, (2**38,), (1,), False, {})
    _archive(path, {"conv_in.conv1d.weight": tensor})


def _without_storage(path: Path) -> None:
    rebuild = torch._utils._rebuild_meta_tensor_no_storage
    tensor = _Raw(rebuild, torch.float32, (2**20, 2**20), (2**20, 1), False)
    _archive(path, {"conv_in.conv1d.weight": tensor})


def _program(path: Path) -> None:
    import os

    _archive(path, {"conv_in.conv1d.weight": _Raw(os.system, "touch a_program_was_run")})


_ALL = ("motion", "inspect", "merge")
_TENSOR_KINDS: tuple[tuple[str, Sequence[str], Make, Sequence[str], bool], ...] = (
    ("ranks of zero", _MOTION, _ranks_of_zero, _ALL, True),
    ("vectors of zero", _MOTION, _vectors_of_zero, _ALL, True),
    ("wider than any model", _MOTION, _too_wide, _ALL, True),
    ("more sites than any model", _MOTION, _too_many, _ALL, True),
    ("a header that swells", _MOTION, _swelling, _ALL, True),
    ("sides of zero", _MOTION, _sides_of_zero, _ALL, True),
    ("sides of zero", _STATE, _sides_of_zero, ("state",), True),
    ("sides of zero", _ENTRY, _sides_of_zero, ("cache",), True),
    ("sides of zero", _OFFICIAL, _sides_of_zero, ("convert",), True),
    ("sides of zero", _BASE, _sides_of_zero, ("base",), True),
    ("numbers of 4,000 digits", _MOTION, _long_numbers, _ALL, True),
    ("numbers of 4,000 digits", _STATE, _long_numbers, ("state",), True),
    ("numbers out of range", _MOTION, _large_numbers, _ALL, True),
    ("numbers out of range", _STATE, _large_numbers, ("state",), True),
    ("texts of 500 kB", _MOTION, _long_texts, ("inspect",), False),
    ("texts for a terminal", _MOTION, _terminal, ("inspect",), False),
    ("errors for a terminal", _MOTION, _terminal_errors, _ALL, True),
    ("keys twice in the header", _MOTION, _twice_in_header, _ALL, True),
    ("keys twice in the header", _STATE, _twice_in_header, ("state",), True),
    ("keys twice in the header", _ENTRY, _twice_in_header, ("cache",), True),
    ("keys twice in the header", _OFFICIAL, _twice_in_header, ("convert",), True),
    ("keys twice in the header", _BASE, _twice_in_header, ("base",), True),
    ("keys twice in a text", _MOTION, _twice_in_config, _ALL, True),
    ("keys twice in a text", _STATE, _twice_in_config, ("state",), True),
    ("keys twice in the ranks", _MOTION, _twice_in_ranks, _ALL, True),
    ("endless levels", _BASE, _endless_levels, ("base",), True),
    ("endless depth", _BASE, _endless_depth, ("base",), True),
    ("a base wider than its file", _BASE, _wide_base, ("base",), True),
    ("strides of zero", _PICKLE, _strides_of_zero, ("pickle",), True),
    ("a storage that is not there", _PICKLE, _claimed_storage, ("pickle",), True),
    ("tensors without storage", _PICKLE, _without_storage, ("pickle",), True),
    ("a program", _PICKLE, _program, ("pickle",), True),
)  # fmt: skip

__all__ = ["Hostile", "LampError", "hostile_files", "write"]
