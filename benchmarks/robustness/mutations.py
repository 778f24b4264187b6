"""Damage to files: a valid file goes in, a broken one comes out, a function of the random numbers.

Each `damaged_*` returns the bytes and the name of the damage.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

MARK = "a_pickle_was_executed"
"""The file that pickles among the bad files create when they are unpickled."""

_DEEP = "[" * 100_000
NAMES = (
    "", ".", "..", "../../../etc/passwd", "/etc/passwd", "C:\\Windows\\win.ini", "\\\\host\\share",
    "con", "nul.txt", "a\0b", "a\nb", "%s%s%n", "__metadata__", "__class__", "__proto__",
    "$(touch x)", "'; DROP TABLE motions; --", "\U0001f40e" * 50, "跑" * 2000, "\ud800",
    "x" * 70000, "\u202egnp.exe", "conv_in.conv1d.weight.", ".conv_in", "conv_in..conv1d",
    "{0.__class__}", "lora_up.weight", "motion.", "optimizer.0", "average.999", "random", "losses",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64,
    10**30, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
_DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 1,
    "F6_E2M3": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U16": 2, "U8": 1, "BOOL": 1,
    "C64": 8,
}  # fmt: skip
_OTHERS: tuple[Any, ...] = (None, True, [], {}, [None], {"a": 1}, [[[[]]]], ["x"] * 1000,
                            [1] * 1000, "f32", "float32", "É", "16")  # fmt: skip
_TEXTS = (_DEEP, '{"a":' * 50_000, "{}", "null", "NaN", "[]", "1e999", "٣", "1" * 5000)

Damage = Callable[[Random, bytes], bytes]


class Executed:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (MARK, "w")


def _damaged(random: Random, valid: bytes, kinds: Sequence[Damage]) -> tuple[bytes, str]:
    damage = random.choice(kinds)
    return damage(random, valid), damage.__name__.strip("_")


# --- any bytes --------------------------------------------------------------------------------


def _flip(random: Random, data: bytes) -> bytes:
    """Change some bytes, half of the times near the beginning, where headers are."""
    changed = bytearray(data or b" ")
    end = random.choice((64, 512, 2048, len(changed), len(changed), len(changed)))
    for _ in range(random.choice((1, 1, 4, 64))):
        changed[random.randrange(min(end, len(changed)))] = random.randrange(256)
    return bytes(changed)


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.choice((0, 1, 7, 8, 9, random.randrange(len(data) + 1), len(data) - 1))]


def _lengthen(random: Random, data: bytes) -> bytes:
    return data + random.randbytes(random.choice((1, 8, 4096)))


def _another_kind(random: Random, data: bytes) -> bytes:
    """A file of another kind."""
    pickled = pickle.dumps({"state": Executed()}, protocol=random.choice((0, 2, 4)))
    return random.choice(
        (
            pickled, b"PK\3\4" + pickled, b"\x1f\x8b" + random.randbytes(99), b"", b"\0" * 4096,
            b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n\x1a\n" + random.randbytes(200),
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", b"{}", b"null",
            random.randbytes(random.randrange(1, 4096)), struct.pack("<Q", 2) + b"{}",
        )
    )  # fmt: skip


_ANY = (_flip, _cut, _lengthen, _another_kind)


def damaged_clip(random: Random, valid: bytes) -> tuple[bytes, str]:
    """A video or animated picture."""
    return _damaged(random, valid, (_flip, _flip, _flip, *_ANY))


# --- safetensors ------------------------------------------------------------------------------


def pack(header: bytes, body: bytes) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(header)) + header + body


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a valid safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def same_each_time(valid: bytes) -> bytes:
    """The file without what differs from write to write: the order of texts, and the date."""
    header, body = unpack(valid)
    texts = header.get("__metadata__", {})
    if "modelspec.date" in texts:
        texts["modelspec.date"] = "2024-06-17T00:00:00Z"
    header["__metadata__"] = dict(sorted(texts.items()))
    return pack(json.dumps(header).encode(), body)


def damaged_tensors(random: Random, valid: bytes) -> tuple[bytes, str]:
    """A safetensors file: its bytes, its header as a whole, or one to three values in it."""
    valid = same_each_time(valid)
    if random.random() < 0.3:
        return _damaged(random, valid, (*_ANY, _wrong_length, _strange_header, _other_form))
    header, body = unpack(valid)
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        damage = random.choice((_value, _value, _text, _text, _lie, _alien, _not_finite))
        body = damage(random, header, body)
        done.append(damage.__name__.strip("_"))
    text = json.dumps(header, ensure_ascii=random.random() < 0.5)
    return pack(text.encode("utf-8", "surrogatepass"), body), " ".join(done)


def _wrong_length(random: Random, data: bytes) -> bytes:
    true = int.from_bytes(data[:8], "little")
    wrong = random.choice(
        (0, 1, true - 1, true + 1, len(data), 10**8, 10**8 + 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
    )
    return struct.pack("<Q", wrong) + data[8:]


def _other_form(random: Random, data: bytes) -> bytes:
    """The same header in another form, or with one more text."""
    header, body = unpack(data)
    if random.random() < 0.5:
        header["__metadata__"]["unknown"] = random.choice(("", "..", "\u202e", "\u8dd1" * 2000))
    return pack(json.dumps(header, indent=random.choice((None, 1))).encode() + b" " * 5000, body)


def _strange_header(random: Random, data: bytes) -> bytes:
    """Invalid JSON, JSON that is no header, or far too much of it."""
    header, body = unpack(data)
    text, many = json.dumps(header), random.choice((100, 30_000))
    one = {"dtype": "F32", "data_offsets": [0, 0]}
    wrong: str | bytes = random.choice(
        (
            "", "null", "[]", "7", _DEEP, '{"a":' * 50_000, "{" + _DEEP, text[:-1], text + "}",
            text.encode()[::-1], b"\xff\xfe" + text.encode("utf-16-le"),
            b"\xef\xbb\xbf" + text.encode(), random.randbytes(500),
            text.encode().replace(b'"F', b'"\xff\xfeF'), " " * 5000 + text,
            text[:-1] + "," + text[1:],  # every key twice
            json.dumps({**header, "__metadata__": {str(n): "" for n in range(many)}}),
            json.dumps({str(n): {**one, "shape": [0]} for n in range(many)}),
            json.dumps({"a": {**one, "shape": [1] * many, "data_offsets": [0, 4]}}),
            json.dumps({"a": {**one, "shape": [0] * many}}), text.replace('"shape"', '"\\u0000"'),
            text.replace("{", "[").replace("}", "]"), text.replace(":", "\0:"),
        )
    )  # fmt: skip
    return pack(wrong.encode() if isinstance(wrong, str) else wrong, body)


def _value(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """A tensor, or one of its keys or numbers: removed, renamed or replaced."""
    if header and random.random() < 0.3:
        _damage_tree(random, header, depth=0)
    else:
        name = random.choice(list(header) or ["new"])
        holder = [header.pop(name, {})]
        _damage_tree(random, holder, depth=4)
        header |= dict(zip([name], holder, strict=False))
    return body


def _text(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """A text of the header: removed, replaced, or damaged within if it is JSON."""
    texts = header.get("__metadata__")
    if not isinstance(texts, dict) or not texts or random.random() < 0.2:
        header["__metadata__"] = random.choice((None, [], 7, {}, {"lamp.format": 1}, {"a": None}))
        return body
    key = random.choice(list(texts))
    if random.random() < 0.3:
        texts[key] = random.choice((*NAMES, *_TEXTS))
    elif random.random() < 0.2:
        del texts[key]
    else:
        try:
            holder = [json.loads(texts[key])]
            _damage_tree(random, holder, depth=6)
            texts[key] = json.dumps(holder[0] if holder else None)
        except (TypeError, ValueError, RecursionError):
            texts[key] = random.choice(NAMES)
        if random.random() < 0.2:
            texts[key] = damaged_text(random, texts[key].encode())[0].decode("latin-1")
    return body


def _damage_tree(random: Random, node: Any, depth: int) -> None:
    """Change one value of JSON lists and objects, at most `depth` levels down."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = random.choice(keys)
    if depth and isinstance(node[key], (dict, list)) and node[key] and random.random() < 0.9:
        return _damage_tree(random, node[key], depth - 1)
    kind = random.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[random.choice((*NAMES, key.upper(), key + " ", key[:-1]))] = node.pop(key)
    elif kind == 2 and isinstance(node[key], list):
        old = node[key]
        node[key] = random.choice((old[::-1], old + [1] * 70, [old], old * 2))
    else:
        pool = random.choice((_NUMBERS, NAMES, _OTHERS, tuple(_DTYPES)))
        node[key] = copy.deepcopy(random.choice(pool))


def _lie(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """Entries that agree with themselves: other types for the same bytes, sizes beyond the file,
    huge shapes with a side of zero."""
    entries = [entry for entry in header.values() if _is_tensor(entry)]
    kind = random.randrange(3)
    if kind == 0:
        dtype = random.choice(list(_DTYPES))
        for entry in entries:
            start, end = entry["data_offsets"]
            entry |= {"dtype": dtype, "shape": [(end - start) // _DTYPES[dtype]]}
    elif entries:
        entry, size = random.choice(entries), random.choice((2**30, 2**36, 2**45, 2**63 - 1))
        shape, end = ([size], 4 * size) if kind == 1 else ([0, size], 0)
        entry |= {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    return body


def _is_tensor(entry: Any) -> bool:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    whole = isinstance(offsets, list) and all(type(n) is int for n in offsets)
    return whole and len(offsets) == 2


def _alien(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    """One more tensor under any name, or the last one missing with its bytes."""
    if random.random() < 0.5:
        data = random.randbytes(4 * random.choice((0, 1, 16)))
        places = [len(body), len(body) + len(data)]
        entry = {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": places}
        header[random.choice(NAMES)] = entry
        return body + data
    for name, entry in list(header.items()):
        if _is_tensor(entry) and entry["data_offsets"][1] == len(body):
            del header[name]
            return body[: entry["data_offsets"][0]]
    return body


def _not_finite(random: Random, header: dict[str, Any], body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(random.choice((1, 9))):
        wrong = random.choice((b"\0\x7c", b"\0\xfc", b"\xff\x7f", b"\0\0\x80\x7f", b"\0\0\xc0\xff"))
        place = random.randrange(max(len(body) - 4, 1)) & ~3
        changed[place : place + len(wrong)] = wrong
    return bytes(changed)


# --- texts ------------------------------------------------------------------------------------


def damaged_text(random: Random, valid: bytes) -> tuple[bytes, str]:
    """A caption or TOML."""
    return _damaged(random, valid or b" ", (_flip, _cut, _lines, _setting, _strange_text))


def _lines(random: Random, data: bytes) -> bytes:
    """Lines duplicated, removed, shuffled or added."""
    lines = data.splitlines(keepends=True) or [b" "]
    place, kind = random.randrange(len(lines)), random.randrange(4)
    words = ("true", "nan", '"', "'''", "]]", "[[a]]", "=", "{", "}", "#", "\\u0000")
    if kind == 0:
        lines.insert(random.randrange(len(lines)), lines[place])
    elif kind == 1:
        del lines[place]
    elif kind == 2:
        random.shuffle(lines)
    else:
        lines.insert(place, f"{random.choice(words)}\n".encode())
    return b"".join(lines)


def _setting(random: Random, data: bytes) -> bytes:
    """Another value after one of the equals signs."""
    lines = data.split(b"\n")
    place = random.choice([n for n, line in enumerate(lines) if b"=" in line] or [0])
    value = random.choice((*_NUMBERS, *NAMES, [], {}, [[]], True))
    # JSON's numbers, strings and lists are TOML's, with two exceptions.
    text = json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    lines[place] = lines[place].split(b"=")[0] + b"= " + text.encode()
    return b"\n".join(lines)


def _strange_text(random: Random, data: bytes) -> bytes:
    return random.choice(
        (
            b"", b" \r\n", b"\0" * 100, data.decode("latin-1").encode("utf-16"),
            b"\xef\xbb\xbf" + data, b"\xff" + data, data * 500, b"a = " + _DEEP.encode(),
            b"a = " + b"{a=" * 20_000, b"[" + b"a." * 20_000 + b"a]\n", b"a." * 20_000 + b"a = 1",
            b"a " * 100_000, b"a = " + b"1" * 10_000, b"a = 0x" + b"f" * 10_000, b"#" * 200_000,
            b"[a]\n" * 1000, b"a = 9999-99-99", b"a = 1e99999", b'a = "\\ud800"',
            random.randbytes(300), random.choice(NAMES).encode("utf-8", "surrogatepass"),
            b"{motion}" * 9999, b"\r" * 999,
        )
    )  # fmt: skip


# --- archives of `torch.save` -----------------------------------------------------------------


def damaged_pickle(random: Random, valid: bytes) -> tuple[bytes, str]:
    """A file of `torch.save`: its bytes, its pickle, or the zip archive around it."""
    return _damaged(random, valid, (*_ANY, _another_pickle, _another_pickle, _entry, _entry))


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _another_pickle(random: Random, data: bytes) -> bytes:
    """A pickle that runs something, or makes something other than a state dict."""
    entries = _entries(data)
    name = next(name for name in entries if name.endswith("data.pkl"))
    own = entries[name]
    others = [
        own.replace(*pair)
        for pair in (
            (b"torch._utils", b"posix"), (b"_rebuild_tensor_v2", b"system"),
            (b"collections", b"builtins"), (b"OrderedDict", b"eval"),
            (b"FloatStorage", b"IntStorage"), (b"FloatStorage", b"Module"),
        )
    ]  # fmt: skip
    objects = ({"state": Executed()}, Executed(), {"state": [1, "two", None]}, [])
    others += [pickle.dumps(each, protocol=2) for each in objects]
    others += [b"\x80\x02" + b"(" * 50_000 + b"l" * 50_000 + b".", own[:-1], own + own, b""]
    return _archive({**entries, name: random.choice(others)})


def _entry(random: Random, data: bytes) -> bytes:
    """An entry of the archive changed with a correct checksum, far larger than the file, or
    renamed."""
    entries = _entries(data)
    name, kind = random.choice(sorted(entries)), random.randrange(3)
    if kind == 0:
        return _archive({**entries, name: _flip(random, entries[name])})
    if kind == 1:
        large = bytes(random.choice((1, 2**26)))
        return _archive({**entries, name: entries[name] + large}, zipfile.ZIP_DEFLATED)
    content = entries.pop(name)
    names = [each for each in NAMES if each.isprintable() and 0 < len(each) < 999]
    return _archive({**entries, random.choice(names): content})
