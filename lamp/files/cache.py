"""Tensors cached on disk between runs, addressed by the content that they were computed from.

One safetensors file per entry, named by a hash of its source. Its header holds a hash of its
tensors: safetensors has no checksum, and a flipped bit in a latent would silently train a wrong
motion. Nothing in here ends a run: if the disk fails, everything is computed as without a cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..plain import log
from .atomic import write_file
from .header import check_header

FORMAT = 2
"""Part of every name: raise it when the computation changes, so that older entries are not read."""
LIMIT = 20 * 2**30
"""Default limit for all entries of a folder together, in bytes."""

_ENTRY = re.compile(r"(posterior|prompt)-[0-9a-f]{64}\.safetensors")
_TEMPORARY = re.compile(rf"\.{_ENTRY.pattern}\.[0-9a-f]{{32}}\.part")
_ABANDONED_AFTER = 24 * 3600  # seconds; no write takes a day
_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# Encoded training clips and prompts of LAMP Motion, kept so that the next training starts at once.
# This folder may be deleted at any time. Backup programs skip it (bford.info/cachedir).
"""


def digest(*parts: object) -> str:
    """Hex sha256 of strings, numbers, None, tensors, and lists and dicts of them.

    Tensors count by dtype, shape and every byte, because weights may differ in a single place.
    Hashing an SD 1.x VAE or text encoder takes about a second, much less than encoding one clip.

    Raises:
        TypeError: a part is something else, whose content is unknown.
    """
    hasher = hashlib.sha256()
    _feed(hasher.update, list(parts))
    return hasher.hexdigest()


def _feed(update: Callable[..., None], part: object) -> None:
    # Each part starts with its type and length, so that different lists never feed the same bytes.
    if part is None or isinstance(part, (bool, int, float)):
        update(f"{type(part).__name__} {part!r};".encode())
    elif isinstance(part, str):
        text = part.encode("utf-8", "surrogatepass")
        update(f"str {len(text)};".encode() + text)
    elif isinstance(part, Tensor) and type(part) in (Tensor, nn.Parameter):
        # Subclasses, such as quantized weights, may hold more than their bytes.
        update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
        update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(part, Mapping):
        update(f"dict {len(part)};".encode())
        for name in sorted(part):
            _feed(update, name)
            _feed(update, part[name])
    elif isinstance(part, (list, tuple)):
        update(f"list {len(part)};".encode())
        for item in part:
            _feed(update, item)
    else:
        raise TypeError(f"cannot hash a {type(part).__name__}")


def entry_name(kind: Literal["posterior", "prompt"], *source: object) -> str:
    """The name of an entry that is computed from `source`, of types that `digest` takes."""
    return f"{kind}-{digest(FORMAT, kind, *source)}.safetensors"


class Found(NamedTuple):
    """Tensors by name, and whether they came from disk."""

    tensors: dict[str, Tensor]
    cached: bool


class _File(NamedTuple):
    used_at: int
    size: int
    path: Path


class TensorCache:
    """A folder of entries with a total of at most `limit` bytes.

    The least recently used entries are deleted to make room, but none that this object wrote or
    read, and no other files. Several processes may share the folder.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder, self._limit = folder, limit
        self._in_use: set[str] = set()
        self._writing = True

    def get(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> Found:
        """The tensors of an entry: read from disk, or else computed and stored."""
        kept = self._read(name)
        if kept is not None:
            return Found(kept, True)
        tensors = compute()
        self._write(name, tensors)
        return Found(tensors, False)

    def _read(self, name: str) -> dict[str, Tensor] | None:
        path = self._folder / name
        try:
            # Not memory-mapped: another process could change it, and on Windows not replace it.
            data = path.read_bytes() if path.stat().st_size <= self._limit else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._stop_writing(error)
            return None
        except MemoryError:  # no entry is that large
            data = b""
        tensors = _decode(name, data)
        if tensors is None:
            log.warning("the cache file %s is damaged: computing it again", name)
            return None
        self._in_use.add(name)
        with suppress(OSError):
            os.utime(path)  # many disks do not record access times
        return tensors

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        if not self._writing:
            return
        data = _encode(name, tensors)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(name, len(data)):
                raise OSError(f"this run alone exceeds the limit of {self._limit / 2**30:.3g} GB")
            self._mark_folder()
            write_file(self._folder / name, lambda path: path.write_bytes(data), rename=False)
            self._in_use.add(name)
        except OSError as error:
            self._stop_writing(error)

    def _stop_writing(self, error: OSError) -> None:
        if self._writing:
            log.warning(
                "Encoded clips and prompts are no longer cached in %s (%s). Training continues.",
                self._folder, error
            )  # fmt: skip
        self._writing = False

    def _mark_folder(self) -> None:
        tag = self._folder / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(_TAG, encoding="utf-8")

    def _make_room(self, name: str, size: int) -> bool:
        """Delete the least recently used entries until `size` bytes fit; none if they cannot."""
        files = sorted(file for file in self._files() if file.path.name != name)
        spare = [file for file in files if file.path.name not in self._in_use]
        over = sum(file.size for file in files) + size - self._limit
        if over > sum(file.size for file in spare):
            return False
        for file in spare:
            if over <= 0:
                break
            with suppress(OSError):
                file.path.unlink(missing_ok=True)
                over -= file.size
        return over <= 0

    def _files(self) -> list[_File]:
        """All entries. Deletes temporary files of dead processes on the way."""
        found = []
        with os.scandir(self._folder) as items:
            for item in items:
                with suppress(OSError):
                    about = item.stat(follow_symlinks=False)
                    if _ENTRY.fullmatch(item.name):
                        found.append(_File(about.st_mtime_ns, about.st_size, Path(item.path)))
                    elif _TEMPORARY.fullmatch(item.name):
                        if time.time() - about.st_mtime > _ABANDONED_AFTER:
                            os.unlink(item.path)
        return found


def _encode(name: str, tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    # Clones, because safetensors refuses tensors that share memory.
    whole = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    return save(whole, {"lamp.cache": name, "sha256": digest(whole)})


def _decode(name: str, data: bytes) -> dict[str, Tensor] | None:
    """The tensors in a file's bytes, or None unless they are exactly what was stored as `name`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        header = check_header(data[8 : 8 + length], length, len(data) - 8 - length)
        tensors = load(data)
        about = header["__metadata__"]
        sound = about["lamp.cache"] == name and about["sha256"] == digest(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, MemoryError):
        return None
    return tensors if sound else None
