"""Sources of training clips: a file, a folder of images, an IMAGE batch."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ClipError
from .decoding.choose import count_frames, image_files, source_frames
from .decoding.reader import ClipFacts, Readable, SourceFrame, nothing, open_clip, reading
from .images import opaque


@dataclass(frozen=True, eq=False)
class FileSource:
    """A video file, an animated picture, a folder of images, or a video file in memory.

    Only the frames of a video from `start` to `end` (exclusive), in seconds, belong to the clip.
    Reading raises ClipError if the files have changed since the object was created.
    """

    clip: Readable
    start: float = 0.0
    end: float | None = None
    _found: dict[str, tuple[int, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_found", _stamps(self.clip))

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def path(self) -> Path | None:
        """The file or folder, if there is one."""
        return self.clip if isinstance(self.clip, Path) else None

    def count(self, pulse: Callable[[], None] = nothing) -> int:
        """The approximate number of frames, without decoding."""
        return count_frames(self.clip, pulse)

    def frames(self, pulse: Callable[[], None] = nothing) -> Generator[SourceFrame, None, None]:
        """All frames in order, decoded on demand. Close the generator when done. ``pulse`` is
        called regularly and may raise."""
        self._check_unchanged()
        return source_frames(self.clip, self.start, self.end, pulse)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the content."""
        self._check_unchanged()
        total = hashlib.sha256(f"{self.start} {self.end}".encode())
        for file in _files(self.clip):
            with reading(self.clip), open_clip(file) as stream:
                each = hashlib.sha256()
                while block := stream.read(1 << 20):
                    each.update(block)
            total.update(each.digest())
        return total.hexdigest()

    def _check_unchanged(self) -> None:
        now = _stamps(self.clip)
        if now == self._found:
            return
        lost = [name for name in self._found if name not in now]
        if not lost:
            what = f"The clip '{self.name}' has changed"
        elif lost == [self.name]:
            what = f"The clip '{self.name}' is gone"
        else:
            what = f"'{lost[0]}' is gone from the clip '{self.name}'"
        raise ClipError(f"{what} since it was read. Restore it, or read the clips again.")


def _files(clip: Readable) -> Sequence[Readable]:
    return image_files(clip) if isinstance(clip, Path) and clip.is_dir() else [clip]


def _stamps(clip: Readable) -> dict[str, tuple[int, int]]:
    """Size and modification time of each existing file of a clip, by name."""
    found = {}
    with reading(clip):
        for file in _files(clip):
            with contextlib.suppress(FileNotFoundError):
                if isinstance(file, Path):
                    seen = file.stat()
                    found[file.name] = (seen.st_size, seen.st_mtime_ns)
    return found


@dataclass(frozen=True, eq=False)
class BatchSource:
    """An IMAGE batch ``f h w c`` in 0..1 (c is 1, 3 or 4), or several batches that form one clip.

    ``rate`` is in frames per second, None where unknown. Raises ClipError for a batch of another
    shape or with NaN.
    """

    name: str
    images: Sequence[Tensor]
    rate: float | None = None

    @property
    def path(self) -> None:
        """None: there is no file."""

    def __post_init__(self) -> None:
        for batch in self.images:
            if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or 0 in batch.shape:
                raise ClipError(
                    f"Images of {self.name} must have the shape f h w c with 1, 3 or 4 channels, "
                    f"not {tuple(batch.shape)}."
                )
        # One by one, because a mask of a whole film would be large.
        if not all(image.isfinite().all() for image in self._each()):
            raise ClipError(
                f"The images of {self.name} contain NaN or infinite values. Check the node that "
                "produced them."
            )

    def count(self, pulse: Callable[[], None] = nothing) -> int:
        return sum(map(len, self.images))

    def frames(self, pulse: Callable[[], None] = nothing) -> Generator[SourceFrame, None, None]:
        facts = ClipFacts(self.rate)
        for number, image in enumerate(self._each()):
            time = number / self.rate if self.rate else None
            yield SourceFrame(time, partial(_to_bytes, image), facts=facts)

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256(f"{self.rate or ''}".encode())
        for image in self._each():
            total.update(f"{tuple(image.shape)} {image.dtype}".encode())
            # As bytes, because numpy has no bfloat16.
            total.update(image.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def _each(self) -> Iterator[Tensor]:
        return (image for batch in self.images for image in batch)


ClipSource = FileSource | BatchSource
"""A clip before any choice of size, rate or length."""


def _to_bytes(image: Tensor) -> Tensor:
    """``h w c`` in 0..1 -> ``h w 3`` uint8, transparent parts over black."""
    return (opaque(image.cpu()) * 255).round().byte()
