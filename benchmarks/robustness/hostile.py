"""Well-formed files that are malicious: bombs, contradictions, forged text, programs.

Damage (benchmarks/robustness/mutations.py) tests how readers fail; these test what readers do with
a file that they understand. `hostile_files()` has one entry per kind, each with several names.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lamp.files.cache import entry_name
from lamp.hosts.diffusers.models import load_unet
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import load_motion_file

from .hostile_clips import hostile_clips
from .loaders import LOADERS
from .watch import Hostile, Outcome

Make = Callable[[Path], object]
_MOTION = ("m.safetensors", "a b\u202e.safetensors", "con.SAFETENSORS.safetensors")
_NAMES = {
    **dict.fromkeys(("motion", "inspect", "merge"), _MOTION),
    "base": ("model.safetensors", "v1-5 pruned.safetensors"),
    "state": ("state-step000001.safetensors", "s.safetensors"),
    "cache": (entry_name("prompt", "some text"),),
    "convert": ("unet/diffusion_pytorch_model.safetensors",),
    "pickle": ("unet/diffusion_pytorch_model.bin", "unet/x.bin"),
}
_ESCAPES = "\x1b]52;c;aGk=\x07\x1b[2J\r\u202egnp\ud800\x9b31m\nLicense: MIT"
_SHOWN = _ESCAPES.replace("\ud800", "")
WARMED = ("(base)", "(convert)", "(pickle)")
"""Ends of the kinds whose readers import and cache much on first use."""


def hostile_files() -> list[Hostile]:
    """All kinds, each for everything that reads such a file."""
    readers = {loader.name: loader.load for loader in LOADERS}
    readers |= {"base": load_unet, "inspect": _show}
    found = [
        Hostile(f"{kind} ({name})", _NAMES[name], make, readers[name], kind not in _HARMLESS)
        for kind, made in _KINDS.items()
        for names, make in made.items()
        for name in names.split()
    ]
    return [*found, *hostile_clips()]


class HostileTrial:
    """All kinds under all names, by number; each in its own working directory."""

    room = 0  # no limit of the process beyond that of each kind

    def __init__(self) -> None:
        import diffusers  # noqa: F401

        files = hostile_files()
        self.cases = [(file, name) for file in files for name in file.names]
        for file in files:
            if file.kind.endswith(WARMED) or "million" in file.kind:
                with suppress(Exception):
                    self._run(file, file.names[0])

    def run(self, number: int) -> Outcome:
        return self._run(*self.cases[number])

    def _run(self, file: Hostile, name: str) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            place = Path(folder) / "files"
            place.mkdir()
            try:
                outcome = file.outcome(place, name)
                if left := sorted(set(os.listdir()) - {"files", "outside"}):
                    outcome.problems.append(f"left {left}")
            finally:
                os.chdir("/")
        return outcome


def _show(path: Path) -> None:
    """The description that the command line prints; it must not control the terminal or forge a
    line."""
    text = describe_motion(load_motion_file(path))
    harmful = [letter for letter in text if not (letter.isprintable() or letter in "\n\u3000")]
    forged = sum(line.startswith("License: ") for line in text.split("\n")) != 1
    if harmful or forged or len(text) > 20_000:
        raise AssertionError(f"it prints {len(text)} characters, {harmful[:9]}")


# --- safetensors ------------------------------------------------------------------------------


def write(path: Path, entries: dict[str, Any] | str, body: bytes = b"", **metadata: str) -> None:
    """A safetensors file with any header."""
    header: Any = entries
    if isinstance(entries, dict):
        header = json.dumps({"__metadata__": metadata, **entries} if metadata else entries)
    data = header.encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + body)


def _texts(config: str, state: str = "", **more: str) -> Make:
    """A file of texts alone: a motion, and a training state if one is given."""
    texts = {"lamp.format": "1", "lamp.config": config, **more}
    texts |= {"lamp.state": state} if state else {}
    return lambda path: write(path, {}, **texts)


def _config(**fields: Any) -> str:
    return json.dumps({**asdict(MotionConfig(family="sd1")), **fields})


def _compact(forms: Any, held: int, blanks: int = 0) -> Make:
    """A compact motion with these encodings, after `blanks` spaces, and `held` bytes of zeros."""

    def make(path: Path) -> None:
        raw = " " * blanks + (forms if isinstance(forms, str) else json.dumps(forms))
        rank = base64.b64encode(zlib.compress(raw.encode())).decode()
        entry = {"lamp.compact": {"dtype": "U8", "shape": [held], "data_offsets": [0, held]}}
        write(path, entry, bytes(held),
              **{"lamp.format": "2", "lamp.config": _config(), "lamp.rank": rank})  # fmt: skip

    return make


_NONE = [0, 0, 0, 0]
_PARTS = ("attn_temp.to_q", "attn_temp.to_k", "attn_temp.to_v", "attn_temp.to_out.0", "attn1.to_q")
_VECTORS = ("norm_temp.weight", "norm_temp.bias", "attn_temp.to_out.0.bias")


def _blocks(count: int, width: int, vector: Any = 16) -> dict[str, list[Any]]:
    """Transformer blocks with factors of rank zero."""
    forms: dict[str, list[Any]] = {}
    for n in range(count):
        forms |= {f"a.{n}.{part}.weight": [_NONE, width, width] for part in _PARTS}
        forms |= {f"a.{n}.{part}": [vector, width] for part in _VECTORS}
    return forms


def _sides_of_zero(path: Path) -> None:
    texts = {"lamp.format": "1", "lamp.config": _config(), "lamp.cache": path.name}
    texts["lamp.state"] = json.dumps({"format": 1, "step": 1})
    entry = {"dtype": "F16", "shape": [2**40, 0, 3], "data_offsets": [0, 0]}
    write(path, {"conv_in.conv1d.weight": entry}, **texts)


def _twice_in_header(path: Path) -> None:
    entry = '{"dtype":"F16","shape":[1],"data_offsets":[0,2]}'
    about = json.dumps({"lamp.format": "1", "lamp.config": _config(), "lamp.cache": path.name,
                        "lamp.state": '{"format": 1, "step": 1}'})  # fmt: skip
    write(path, f'{{"__metadata__":{about},"a":{entry},"a":{entry}}}', b"ab")


def _terminal_errors(path: Path) -> None:
    """Terminal escapes in what error messages quote: a group norm, a tensor's name."""
    config = _config(groupnorm=_SHOWN, prompt="\ud800")
    write(path, {_ESCAPES: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, b"ab",
          **{"lamp.format": "1", "lamp.config": config})  # fmt: skip


_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."


def _base_of(names: dict[str, list[int]]) -> Make:
    """A checkpoint of an image model with these tensors, and the least of VAE and text encoder."""
    names = {**names, f"{_VAE}post_quant_conv.weight": [4, 4, 1, 1],
             f"{_TEXT}text_model.embeddings.token_embedding.weight": [4, 4]}  # fmt: skip
    entries, place = {}, 0
    for name, shape in names.items():
        size = 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    return lambda path: write(path, entries, bytes(place))


_ENDLESS = {
    **{f"{_UNET}input_blocks.{number}.0.in_layers.2.weight": [1] for number in (1, 10**9)},
    f"{_VAE}decoder.up.{10**9}.block.0.conv1.weight": [1],
    f"{_TEXT}text_model.encoder.layers.{10**9}.mlp.fc1.weight": [1, 1],
}
# A miniature checkpoint in which one tensor claims a UNet with a width of millions.
_WIDE = {
    **{f"{_UNET}{name}.weight": shape for name, shape in {
        "input_blocks.0.0": [32, 4, 1, 1], "input_blocks.1.0.in_layers.2": [2**22, 1, 1, 1],
        "input_blocks.1.1.norm": [32], "middle_block.0.in_layers.2": [1],
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k": [32, 64],
        "middle_block.1.proj_in": [1, 1, 1, 1], "middle_block.2.in_layers.2": [1],
        "middle_block.1.transformer_blocks.0.norm1": [1],
        "output_blocks.0.0.in_layers.2": [1], "out.2": [4, 1, 1, 1],
    }.items()},
    f"{_VAE}decoder.up.0.block.0.conv1.weight": [32, 1, 1, 1],
    f"{_TEXT}text_model.embeddings.position_embedding.weight": [77, 4],
    f"{_TEXT}text_model.encoder.layers.0.mlp.fc1.weight": [4, 4],
}  # fmt: skip


# --- pickles ----------------------------------------------------------------------------------


class _Call:
    """A call of any function in a pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@dataclass(frozen=True)
class _Storage:
    numbers: tuple[Any, ...]


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.numbers if isinstance(obj, _Storage) else None


def _pickled(function: Any, *arguments: Any) -> Make:
    """An archive of `torch.save` whose only value is the call."""

    def make(path: Path) -> None:
        stream = io.BytesIO()
        state = {"conv_in.conv1d.weight": _Call(function, *arguments)}
        _Pickler(stream, protocol=2).dump(state)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", stream.getvalue())
            archive.writestr("x/byteorder", "little")
            archive.writestr("x/data/0", bytes(64))
            archive.writestr("x/version", "3\n")

    return make


def _storage(count: int) -> _Storage:
    return _Storage(("storage", torch.FloatStorage, "0", "cpu", count))


_NINES = _config(seed=7, steps=7).replace("7", "9" * 4000)
_LARGE = _config(seed=2**64, steps=2**63, frames=10**19, learning_rate=1e308)
_LONG = _config(prompt="p" * 150_000, captions=["c" * 150_000, "d" * 150_000])
_FORGED = _config(prompt=_SHOWN, captions=[_SHOWN] * 9, base_model=_SHOWN)
_FORGED_PARENTS = json.dumps([{"name": _SHOWN, "weight": 1.0}])
_REBUILD, _SQUARE = torch._utils._rebuild_tensor_v2, (2**20, 2**20)
_ALL = "motion inspect merge"
_HARMLESS = ("texts of 500 kB", "texts for a terminal")
# Kind -> readers -> how the file is made.
_KINDS: dict[str, dict[str, Make]] = {
    "ranks of zero": {_ALL: _compact({f"x{n}": [_NONE, 2**12, 2**12] for n in range(120)}, 0)},
    "vectors of zero": {_ALL: _compact(_blocks(1, 2**12, _NONE), 0)},
    "wider than any model": {_ALL: _compact(_blocks(8, 2**12), 8 * 3 * 2 * 2**12)},
    "more sites than any model": {_ALL: _compact(_blocks(2001, 1), 2001 * 6)},
    "a header that swells": {_ALL: _compact("{}", 0, blanks=10**8)},
    "sides of zero": {f"{_ALL} state cache convert base": _sides_of_zero},
    "numbers of 4,000 digits": {
        f"{_ALL} state": _texts(_NINES, '{"format": 1, "step": ' + "9" * 4000 + "}")
    },
    "numbers out of range": {
        f"{_ALL} state": _texts(_LARGE, json.dumps({"format": 1, "step": 10**19}))
    },
    "texts of 500 kB": {
        "inspect": _texts(
            _LONG, **{"modelspec.license": "l" * 100_000, "lamp.source": "s" * 100_000}
        )
    },
    "texts for a terminal": {
        "inspect": _texts(_FORGED, **{"modelspec.license": _SHOWN, "lamp.parents": _FORGED_PARENTS})
    },
    "errors for a terminal": {_ALL: _terminal_errors},
    "keys twice in the header": {f"{_ALL} state cache convert base": _twice_in_header},
    "keys twice in a text": {
        f"{_ALL} state": _texts(
            _config()[:-1] + ', "family": "sdxl"}',
            '{"format": 1, "step": 1, "step": 2, "settings": {}}',
        )
    },
    "keys twice in the ranks": {
        _ALL: _compact('{"a.conv1d.bias": [16, 1], "a.conv1d.bias": [16, 1]}', 2)
    },
    "endless levels": {"base": _base_of(_ENDLESS)},
    "endless depth": {"base": _base_of({f"{_UNET}{'a.' * 5000}weight": [1]})},
    "a base wider than its file": {"base": _base_of(_WIDE)},
    "strides of zero": {"pickle": _pickled(_REBUILD, _storage(16), 0, _SQUARE, (0, 0), False, {})},
    "a storage that is not there": {
        "pickle": _pickled(_REBUILD, _storage(2**38), 0, (2**38,), (1,), False, {})
    },
    "tensors without storage": {
        "pickle": _pickled(
            torch._utils._rebuild_meta_tensor_no_storage, torch.float32, _SQUARE, (2**20, 1), False
        )
    },
    "a program": {"pickle": _pickled(os.system, "touch a_program_was_run")},
}
