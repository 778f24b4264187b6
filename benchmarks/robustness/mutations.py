"""Damage: a sound file goes in, a bad one comes out, the same for the same random numbers.

`damaged_tensors` takes safetensors files apart into header and body, `damaged_text` texts such as
captions and TOML, `damaged_clip` changes bytes of clips; for the archives of `torch.save` see
benchmarks/robustness/pickles.py. All return the bytes and the name of what was done to them.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from random import Random
from typing import Any

Header = dict[str, Any]
MARK = "a_pickle_was_executed"
"""The file that the pickles among the bad files make, if anybody unpickles them."""

_DTYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I64", "I32",
    "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64", "f32", "", "float32", "É", None, 7, [],
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64,
    10**30, 10**400, 0.5, -0.0, 1e300, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
NAMES = (
    "", ".", "..", "../../../etc/passwd", "/etc/passwd", "C:\\Windows\\win.ini", "\\\\host\\share",
    "con", "nul.txt", "a\0b", "a\nb", "%s%s%n", "__metadata__", "__class__", "__proto__",
    "$(touch x)", "'; DROP TABLE motions; --", "\U0001f40e" * 50, "跑" * 2000, "\ud800",
    "x" * 70000, "\u202egnp.exe", "conv_in.conv1d.weight.", ".conv_in", "conv_in..conv1d",
    "{0.__class__}",
)  # fmt: skip
_DEEP = "[" * 100_000
_WORDS = ("true", "null", "nan", "-inf", '"', "'''", "]]", "[[a]]", "=", "{", "}", "#", "\\u0000")


class Executed:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (MARK, "w")


# --- safetensors ------------------------------------------------------------------------------


def pack(header: bytes, body: bytes) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(header)) + header + body


def unpack(data: bytes) -> tuple[Header, bytes]:
    """Header and body of a sound safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def same_each_time(sound: bytes) -> bytes:
    """The safetensors file without what differs whenever it is written: the order of the texts in
    its header, and its date."""
    header, body = unpack(sound)
    texts = header.get("__metadata__", {})
    if "modelspec.date" in texts:
        texts["modelspec.date"] = "2024-06-17T00:00:00Z"
    header["__metadata__"] = dict(sorted(texts.items()))
    return pack(json.dumps(header).encode(), body)


def damaged_tensors(random: Random, sound: bytes) -> tuple[bytes, str]:
    """A safetensors file with something wrong, in most cases in one place."""
    sound = same_each_time(sound)
    if random.random() < 0.3:
        damage = random.choice((flip, cut, lengthen, replace_file, _wrong_length, _no_json))
        return damage(random, sound), damage.__name__.strip("_")
    header, body = unpack(sound)
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        damage_header = random.choice(_HEADER_DAMAGE)
        body = damage_header(random, header, body)
        done.append(damage_header.__name__.strip("_"))
    return pack(json.dumps(header, ensure_ascii=random.random() < 0.5).encode(
        "utf-8", "surrogatepass"), body), " ".join(done)  # fmt: skip


def flip(random: Random, data: bytes) -> bytes:
    """Some bytes changed."""
    changed = bytearray(data)
    # Half of the flips go to the header, which is the smaller part.
    end = 8 + int.from_bytes(data[:8], "little") if random.random() < 0.5 else len(data)
    for _ in range(random.choice((1, 1, 4, 64))):
        changed[random.randrange(min(end, len(data)))] = random.randrange(256)
    return bytes(changed)


def cut(random: Random, data: bytes) -> bytes:
    """The beginning alone."""
    return data[: random.choice((0, 1, 7, 8, 9, random.randrange(len(data)), len(data) - 1))]


def lengthen(random: Random, data: bytes) -> bytes:
    """More at the end."""
    return data + random.randbytes(random.choice((1, 8, 4096)))


def replace_file(random: Random, data: bytes) -> bytes:
    """Files of other kinds under the name."""
    pickled = pickle.dumps({"state": Executed()}, protocol=random.choice((0, 2, 4)))
    return random.choice(
        (
            pickled, b"PK\3\4" + pickled, b"\x1f\x8b" + random.randbytes(99), b"", b"\0" * 4096,
            b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n\x1a\n" + random.randbytes(200),
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", b"{}", b"null",
            random.randbytes(random.randrange(1, 4096)), struct.pack("<Q", 2) + b"{}",
        )
    )  # fmt: skip


def _wrong_length(random: Random, data: bytes) -> bytes:
    true = int.from_bytes(data[:8], "little")
    wrong = random.choice(
        (0, 1, true - 1, true + 1, len(data), 10**8, 10**8 + 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
    )
    return struct.pack("<Q", wrong) + data[8:]


def _no_json(random: Random, data: bytes) -> bytes:
    """A header that is no JSON, or JSON that is no header, or too much of it."""
    header, body = unpack(data)
    text = json.dumps(header)
    many = random.choice((100, 30_000))
    kind = random.randrange(12)
    wrong: str | bytes = (
        "", "null", "[]", "7", _DEEP, '{"a":' * 50_000, text[:-1], text + "}", text.encode()[::-1],
        b"\xff\xfe" + text.encode("utf-16-le"), b"\xef\xbb\xbf" + text.encode(),
        random.randbytes(500),
    )[kind] if random.random() < 0.6 else (
        text.encode().replace(b'"F', b'"\xff\xfeF'),
        " " * 5000 + text,
        text + " " * 5000,
        text[:-1] + "," + text[1:],  # every key twice
        json.dumps({**header, "__metadata__": {str(n): "" for n in range(many)}}),
        json.dumps({str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for n in range(many)}),
        json.dumps({"a": {"dtype": "F32", "shape": [1] * many, "data_offsets": [0, 4]}}),
        json.dumps({"a": {"dtype": "F32", "shape": [0] * many, "data_offsets": [0, 0]}}),
        text.replace('"shape"', '"\\u0000"'),
        text.replace("{", "[").replace("}", "]"),
        text.replace(":", "\0:"),
        "{" + _DEEP,
    )[kind]  # fmt: skip
    return pack(wrong.encode() if isinstance(wrong, str) else wrong, body)


def _pick(random: Random, header: Header) -> tuple[str, Header]:
    """A tensor's name and entry."""
    name = random.choice([name for name, about in header.items() if _is_tensor(about)] or ["new"])
    return name, header.setdefault(name, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})


def _is_tensor(about: Any) -> bool:
    return isinstance(about, dict) and isinstance(about.get("shape"), list)


def _dtype(random: Random, header: Header, body: bytes) -> bytes:
    _pick(random, header)[1]["dtype"] = random.choice(_DTYPES)
    return body


def _all_dtypes(random: Random, header: Header, body: bytes) -> bytes:
    """The same bytes as numbers of another kind: the last size changes with the width."""
    dtype, size = random.choice((("F64", 8), ("F16", 2), ("BF16", 2), ("F8_E4M3", 1), ("BOOL", 1),
                                 ("I64", 8), ("F8_E5M2", 1), ("C64", 8), ("U16", 2)))  # fmt: skip
    for about in header.values():
        if _is_tensor(about) and isinstance(about.get("data_offsets"), list):
            start, end = (about["data_offsets"] + [0, 0])[:2]
            if isinstance(start, int) and isinstance(end, int):
                about["dtype"], about["shape"] = dtype, [(end - start) // size]
    return body


def _shape(random: Random, header: Header, body: bytes) -> bytes:
    about = _pick(random, header)[1]
    shape = list(about["shape"])
    kind = random.randrange(6)
    if kind == 0:
        shape = shape[::-1]
    elif kind == 1 and shape:
        shape[random.randrange(len(shape))] = random.choice(_NUMBERS)
    elif kind == 2:
        shape = [random.choice(_NUMBERS) for _ in range(random.choice((0, 1, 2, 8)))]
    elif kind == 3:
        shape += [1] * random.choice((1, 5, 70, 1000))
    elif kind == 4:
        shape = [0, random.choice((2**31, 2**40, 2**62, 2**63 - 1))]
        about["data_offsets"] = [0, 0]
    about["shape"] = random.choice((shape, shape, shape, "16", None, {}, [shape]))
    return body


def _offsets(random: Random, header: Header, body: bytes) -> bytes:
    about = _pick(random, header)[1]
    other = _pick(random, header)[1]
    old = about.get("data_offsets")
    about["data_offsets"] = random.choice(
        (
            other.get("data_offsets"), old[::-1] if isinstance(old, list) else None,
            [0, len(body) + 1], [len(body), len(body)], [0, 0], [0], [], "0", [1, 2, 3],
            [random.choice(_NUMBERS), random.choice(_NUMBERS)],
        )
    )  # fmt: skip
    return body


def _huge(random: Random, header: Header, body: bytes) -> bytes:
    """Sizes far beyond the file, all of them in agreement."""
    about = _pick(random, header)[1]
    size = random.choice((2**30, 2**36, 2**45))
    about["dtype"], about["shape"], about["data_offsets"] = "F32", [size], [0, 4 * size]
    return body


def _not_finite(random: Random, header: Header, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(random.choice((1, 9))):
        wrong = random.choice((b"\0\x7c", b"\0\xfc", b"\xff\x7f", b"\0\0\x80\x7f", b"\0\0\xc0\xff"))
        place = random.randrange(max(len(body) - 4, 1)) & ~3
        changed[place : place + len(wrong)] = wrong
    return bytes(changed)


def _missing(random: Random, header: Header, body: bytes) -> bytes:
    """A tensor less, its bytes too where it was the last."""
    name, about = _pick(random, header)
    del header[name]
    offsets = about.get("data_offsets")
    if isinstance(offsets, list) and offsets[1:] == [len(body)]:
        return body[: offsets[0]]
    return body


def _alien(random: Random, header: Header, body: bytes) -> bytes:
    """A tensor more, under any name."""
    data = random.randbytes(4 * random.choice((0, 1, 16)))
    entry = {"dtype": "F32", "shape": [len(data) // 4],
             "data_offsets": [len(body), len(body) + len(data)]}  # fmt: skip
    header[random.choice((*NAMES, "lora_up.weight", "motion.", "optimizer.0", "average.999",
                          "random", "losses"))] = entry  # fmt: skip
    return body + data


def _rename(random: Random, header: Header, body: bytes) -> bytes:
    name, about = _pick(random, header)
    del header[name]
    header[random.choice((*NAMES, name.upper(), name + " ", name[:-1]))] = about
    return body


def _metadata(random: Random, header: Header, body: bytes) -> bytes:
    """The texts in the header: gone, of another type, or damaged within."""
    texts = header.get("__metadata__")
    kind = random.randrange(4)
    if kind == 0 or not isinstance(texts, dict) or not texts:
        header["__metadata__"] = random.choice((None, [], 7, {}, {"lamp.format": 1}, {"a": None}))
        return body
    key = random.choice(list(texts))
    if kind == 1:
        del texts[key]
    elif kind == 2:
        texts[key] = random.choice((*NAMES, _DEEP, '{"a":' * 50_000, "{}", "null", "NaN", "[]",
                                    "1", "2", "-1", "1e999", "٣", "1" * 5000))  # fmt: skip
    else:
        texts[key] = _damaged_json(random, texts[key])
    return body


def _damaged_json(random: Random, text: Any) -> str:
    """JSON with one value, deep or not, turned into something else."""
    try:
        tree = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return random.choice(NAMES)
    holder = [tree, 0]
    _damage_tree(random, holder)
    out = json.dumps(holder[0])
    return out if random.random() < 0.8 else damaged_text(random, out.encode())[0].decode("latin-1")


def _damage_tree(random: Random, node: Any) -> None:
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = random.choice(keys)
    if isinstance(node[key], (dict, list)) and node[key] and random.random() < 0.9:
        _damage_tree(random, node[key])
        return
    kind = random.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[random.choice(NAMES)] = node.pop(key)
    else:
        node[key] = random.choice(
            (*_NUMBERS, *NAMES, None, True, [], {}, [None], {"a": 1}, [[[[]]]], ["x"] * 1000)
        )


_HEADER_DAMAGE = (
    _dtype, _all_dtypes, _shape, _offsets, _huge, _not_finite, _missing, _alien, _rename, _metadata,
    _metadata, _metadata,
)  # fmt: skip


# --- texts ------------------------------------------------------------------------------------


def damaged_text(random: Random, sound: bytes) -> tuple[bytes, str]:
    """A text with something wrong in it."""
    damage = random.choice((_bytes, cut, _alter, _swap_values, _strange_text))
    return damage(random, sound or b" "), damage.__name__.strip("_")


def damaged_clip(random: Random, sound: bytes) -> tuple[bytes, str]:
    """A video or animated picture with something wrong in it, mostly in its headers."""
    damage = random.choice((_head, _head, _head, _bytes, cut, lengthen, replace_file))
    return damage(random, sound), damage.__name__.strip("_")


def _head(random: Random, data: bytes) -> bytes:
    end = random.choice((64, 512, 2048))
    return _bytes(random, data[:end]) + data[end:]


def _bytes(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 9))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _alter(random: Random, data: bytes) -> bytes:
    """Lines twice, gone or in another order; words put in."""
    lines = data.splitlines(keepends=True)
    place = random.randrange(len(lines))
    kind = random.randrange(4)
    if kind == 0:
        lines.insert(random.randrange(len(lines)), lines[place])
    elif kind == 1:
        del lines[place]
    elif kind == 2:
        random.shuffle(lines)
    else:
        lines.insert(place, f"{random.choice(_WORDS)}\n".encode())
    return b"".join(lines)


def _swap_values(random: Random, data: bytes) -> bytes:
    """Another value behind one of the equals signs."""
    lines = data.split(b"\n")
    settings = [number for number, line in enumerate(lines) if b"=" in line] or [0]
    place = random.choice(settings)
    value = random.choice((*_NUMBERS, *NAMES, [], {}, [[]], True))
    # JSON's numbers, texts and lists are TOML's, but for some names.
    text = json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    lines[place] = lines[place].split(b"=")[0] + b"= " + text.encode()
    return b"\n".join(lines)


def _strange_text(random: Random, data: bytes) -> bytes:
    return random.choice(
        (
            b"", b" \r\n", b"\0" * 100, data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data,
            b"\xff" + data, data * 500, b"a = " + _DEEP.encode(), b"a = " + b"{a=" * 20_000,
            b"[" + b"a." * 20_000 + b"a]\n", b"a." * 20_000 + b"a = 1", b"a " * 100_000,
            b"a = " + b"1" * 10_000, b"a = 0x" + b"f" * 10_000, b"#" * 200_000, b"[a]\n" * 1000,
            b"a = 9999-99-99", b"a = 1e99999", b'a = "\\ud800"', random.randbytes(300),
            random.choice(NAMES).encode("utf-8", "surrogatepass"), b"{motion}" * 9999, b"\r" * 999,
        )
    )  # fmt: skip
