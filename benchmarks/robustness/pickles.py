"""Damage to what `torch.save` wrote, as in benchmarks/robustness/mutations.py."""

from __future__ import annotations

import io
import pickle
import zipfile
from random import Random

from benchmarks.robustness.mutations import NAMES, Executed, cut, flip, lengthen, replace_file


def damaged_pickle(random: Random, sound: bytes) -> tuple[bytes, str]:
    """What `torch.save` wrote, with something wrong in it."""
    damage = random.choice(
        (flip, cut, lengthen, replace_file, _another_pickle, _another_pickle, _flip_entry,
         _squeeze, _rename_entry)
    )  # fmt: skip
    return damage(random, sound), damage.__name__.strip("_")


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _another_pickle(random: Random, data: bytes) -> bytes:
    """Archives whose pickle does something, or makes something else than a state dict."""
    entries = _entries(data)
    name = next(name for name in entries if name.endswith("data.pkl"))
    own = entries[name]
    deep = b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b"."
    wanted = (
        (b"torch._utils", b"posix"), (b"_rebuild_tensor_v2", b"system"),
        (b"collections", b"builtins"), (b"OrderedDict", b"eval"), (b"FloatStorage", b"IntStorage"),
        (b"FloatStorage", b"Module"),
    )  # fmt: skip
    entries[name] = random.choice(
        (
            pickle.dumps({"state": Executed()}, protocol=2), pickle.dumps(Executed(), protocol=2),
            pickle.dumps({"state": [1, "two", None]}, protocol=2), pickle.dumps([], protocol=2),
            deep, own[:-1], own + own, b"", own.replace(*random.choice(wanted)),
            own.replace(*random.choice(wanted)),
        )
    )  # fmt: skip
    return _archive(entries)


def _flip_entry(random: Random, data: bytes) -> bytes:
    """Bytes changed where the archive's own sums do not tell it."""
    entries = _entries(data)
    name = random.choice(sorted(name for name, content in entries.items() if content))
    changed = bytearray(entries[name])
    for _ in range(random.choice((1, 1, 4, 64))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return _archive({**entries, name: bytes(changed)})


def _squeeze(random: Random, data: bytes) -> bytes:
    """Entries that are far larger than the file."""
    entries = _entries(data)
    name = random.choice(sorted(entries))
    large = bytes(random.choice((1, 2**26)))
    return _archive({**entries, name: entries[name] + large}, zipfile.ZIP_DEFLATED)


def _rename_entry(random: Random, data: bytes) -> bytes:
    entries = _entries(data)
    name = random.choice(sorted(entries))
    content = entries.pop(name)
    # what an archive takes for a name
    names = [each for each in NAMES if each.isprintable() and 0 < len(each) < 999]
    return _archive({**entries, random.choice(names): content})
