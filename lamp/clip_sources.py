"""Where the frames of training clips come from: a file, a folder of images, an IMAGE batch."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .decoding import SourceFrame, image_files, reading, source_frames
from .errors import ClipError
from .video import ClipInfo, probe


class ClipSource(Protocol):
    """A clip as it was found, before any choice of size, rate or length."""

    @property
    def name(self) -> str:
        """For messages: the file's or folder's name, or `clip 1`."""
        ...

    def info(self) -> ClipInfo:
        """Size, rate and number of frames; the caption is left empty."""
        ...

    def frames(self) -> Generator[SourceFrame, None, None]:
        """All frames in order, each decoded when its turn comes; close it when done."""
        ...

    @property
    def digest(self) -> str:
        """Hex sha256 of the content."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A video file, an animated picture or a folder of images.

    Remembers what lay there when it was made: reading raises ClipError once that has changed.
    """

    path: Path
    _found: dict[str, tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", _stamps(self.path))

    @property
    def name(self) -> str:
        return self.path.name

    def info(self) -> ClipInfo:
        return probe(self.path)

    def frames(self) -> Generator[SourceFrame, None, None]:
        self._check_unchanged()
        return source_frames(self.path)

    @cached_property
    def digest(self) -> str:
        self._check_unchanged()
        total = hashlib.sha256()
        for file in image_files(self.path) if self.path.is_dir() else [self.path]:
            with reading(self.path), file.open("rb") as stream:
                each = hashlib.sha256()
                while block := stream.read(1 << 20):
                    each.update(block)
            total.update(each.digest())
        return total.hexdigest()

    def _check_unchanged(self) -> None:
        now = _stamps(self.path)
        if now == self._found:
            return
        lost = [name for name in self._found if name not in now]
        what = f"'{lost[0]}' is gone from the clip" if lost else "The clip has changed:"
        raise ClipError(
            f"{what} '{self.name}' since it was read. Put it back, or read the clips again."
        )


def _stamps(path: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file of a clip, by name; those that are gone are left out."""
    found = {}
    with reading(path):
        for file in image_files(path) if path.is_dir() else [path]:
            with contextlib.suppress(FileNotFoundError):
                seen = file.stat()
                found[file.name] = (seen.st_size, seen.st_mtime_ns)
    return found


@dataclass(frozen=True)
class BatchSource:
    """An IMAGE batch ``f h w c`` in 0..1 (c is 1, 3 or 4) of another node.

    ``rate`` is in frames per second, None where unknown. Raises ClipError for a batch of another
    shape or with NaN.
    """

    name: str
    images: Tensor
    rate: float | None = None

    def __post_init__(self) -> None:
        images = self.images
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
            raise ClipError(
                f"Images of {self.name} must have the shape f h w c with 1, 3 or 4 channels, not "
                f"{tuple(images.shape)}."
            )
        # One by one: a mask of a whole film would be large.
        if not all(image.isfinite().all() for image in images):
            raise ClipError(
                f"The images of {self.name} contain NaN or infinite values. Check the node that "
                "made them."
            )

    def info(self) -> ClipInfo:
        count, height, width, _ = self.images.shape
        return ClipInfo(self.name, None, count, self.rate, width, height)

    def frames(self) -> Generator[SourceFrame, None, None]:
        for number, image in enumerate(self.images):
            time = number / self.rate if self.rate else None
            yield SourceFrame(time, partial(_to_bytes, image))

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256(f"{tuple(self.images.shape)} {self.images.dtype}".encode())
        for image in self.images:
            # As bytes: numpy has no bfloat16.
            total.update(image.detach().cpu().contiguous().view(torch.uint8).numpy())
        return total.hexdigest()


def _to_bytes(image: Tensor) -> Tensor:
    """``h w c`` in 0..1 -> ``h w 3`` uint8, transparent parts becoming black."""
    image = image.float().cpu().clamp(0.0, 1.0)
    colour = image[..., :3] * image[..., 3:] if image.shape[-1] == 4 else image
    return (colour * 255).round().byte().expand(*image.shape[:2], 3)
