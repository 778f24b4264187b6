"""The cache between runs: found by content, never wrong, never in the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from lamp.files.cache import TensorCache, digest, entry_name
from tests.helpers.disks import as_nobody, full_disk

NAME = entry_name("posterior", "a clip")


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(3, 4, 5, 6, generator=generator)
    return {"mean": mean, "deviation": torch.rand(3, 4, 5, 6, generator=generator)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def never() -> dict[str, Tensor]:
    raise AssertionError("computed again")


def put(cache: TensorCache, number: int) -> Path:
    name = entry_name("posterior", number)
    assert not cache.get(name, tensors).cached
    return cache._folder / name


# --- names ----------------------------------------------------------------------------------


def test_different_content_has_different_digests() -> None:
    weights = torch.arange(6.0)
    differing: list[tuple[object, ...]] = [
        (weights,),
        (weights.double(),),
        (weights.view(2, 3),),
        (weights.view(torch.int32),),
        (torch.cat([weights[:5], weights[5:].nextafter(torch.tensor([9.0]))]),),
        ({"a": weights},),
        ({"b": weights},),
        ([weights],),
        ("12",),
        (12,),
        (12.0,),
        ("1", "2"),
        ("1", ["2"]),
        (True,),
        (1,),
        (None,),
        ("None",),
        (),
    ]
    assert len({digest(*parts) for parts in differing}) == len(differing)


def test_equal_content_has_equal_digests() -> None:
    weights = torch.arange(6.0).view(2, 3)
    with torch.inference_mode():
        again = torch.arange(6.0).view(3, 2).T.contiguous().T.reshape(3, 2).clone()
    assert digest(weights.T) == digest(weights.T.contiguous())
    assert digest({"a": 1, "b": again}) == digest({"b": again.clone(), "a": 1})
    assert digest(torch.nn.Parameter(weights)) == digest(weights)
    assert len({digest(torch.zeros(())), digest(torch.zeros(0)), digest(torch.zeros(1))}) == 3


def test_other_types_cannot_be_hashed() -> None:
    class Quantised(Tensor):
        pass

    for thing in (lambda: 0, object(), torch.zeros(2).as_subclass(Quantised)):
        with pytest.raises(TypeError, match=type(thing).__name__):
            digest({"patch": [thing]})


# --- files ----------------------------------------------------------------------------------


def test_an_entry_is_computed_once_and_read_back_exactly(tmp_path: Path) -> None:
    odd = {
        "mean": torch.tensor([1e-45, -0.0, 3.4e38, 1 / 3]).view(2, 2).T,
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
    }
    first = TensorCache(tmp_path / "new" / "cache").get(NAME, lambda: odd)
    second = TensorCache(tmp_path / "new" / "cache").get(NAME, never)
    assert (first.cached, second.cached) == (False, True)
    assert same(second.tensors, odd)
    assert torch.signbit(second.tensors["mean"][1, 0]) == torch.signbit(odd["mean"][1, 0])


def test_the_folder_is_tagged_as_a_cache(tmp_path: Path) -> None:
    put(TensorCache(tmp_path), 0)
    signature = "Signature: 8a477f597d28d172789f06886806bc55"
    assert (tmp_path / "CACHEDIR.TAG").read_text().startswith(signature)


def test_tensors_that_share_memory_are_cached(tmp_path: Path) -> None:
    mean = torch.rand(2, 3)
    TensorCache(tmp_path).get(NAME, lambda: {"mean": mean, "deviation": mean})
    assert torch.equal(TensorCache(tmp_path).get(NAME, never).tensors["deviation"], mean)


@pytest.mark.slow
def test_damage_anywhere_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    TensorCache(tmp_path).get(NAME, tensors)
    path, expected = tmp_path / NAME, tensors()
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(60)]
    damaged += [whole + b"\0", b"", b"{}", b"no safetensors", whole[header:]]
    for place in [*range(header), *(chance.randrange(header, len(whole)) for _ in range(60))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        damaged.append(bytes(flipped))
    repaired = 0
    for data in damaged:
        path.write_bytes(data)
        caplog.clear()
        found = TensorCache(tmp_path).get(NAME, tensors)
        assert same(found.tensors, expected)
        if not found.cached:  # a flipped bit in the header's padding may go unnoticed
            repaired += 1
            assert NAME in caplog.text
            assert same(TensorCache(tmp_path).get(NAME, never).tensors, expected)
    assert repaired > len(damaged) - 20


def test_an_entry_renamed_to_another_is_not_used(tmp_path: Path) -> None:
    other = put(TensorCache(tmp_path), 7)
    os.replace(other, tmp_path / NAME)
    assert not TensorCache(tmp_path).get(NAME, tensors).cached


def test_a_foreign_file_with_an_entrys_name_is_replaced(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(1), "deviation": torch.zeros(1)}, tmp_path / NAME)
    assert not TensorCache(tmp_path).get(NAME, tensors).cached
    assert same(TensorCache(tmp_path).get(NAME, never).tensors, tensors())


def test_a_folder_with_an_entrys_name_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME / "inside").mkdir(parents=True)
    assert same(TensorCache(tmp_path).get(NAME, tensors).tensors, tensors())
    assert (tmp_path / NAME / "inside").is_dir()
    assert NAME in caplog.text
    assert not list(tmp_path.glob(".*"))


# --- room -----------------------------------------------------------------------------------


@pytest.fixture
def size(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The size of one entry in bytes."""
    return put(TensorCache(tmp_path_factory.mktemp("size")), 0).stat().st_size


def aged(path: Path, days: float) -> Path:
    before = time.time() - days * 24 * 3600
    os.utime(path, (before, before))
    return path


def test_least_recently_used_entries_are_deleted_first(tmp_path: Path, size: int) -> None:
    earlier = TensorCache(tmp_path)
    a, b, c = (aged(put(earlier, number), 9 - number) for number in range(3))
    now = TensorCache(tmp_path, limit=4 * size)
    assert now.get(a.name, never).cached  # the oldest, but used again
    d, e = put(now, 3), put(now, 4)
    assert [path.exists() for path in (a, b, c, d, e)] == [True, False, True, True, True]
    put(now, 5)
    assert not c.exists()


def test_only_entries_are_deleted_and_counted(tmp_path: Path, size: int) -> None:
    entry = aged(put(TensorCache(tmp_path), 0), 1)
    others = [
        "notes.txt",
        "model.safetensors",
        f"copy of {entry.name}",
        f"{entry.name}.bak",
        entry.name.replace("posterior", "motion"),
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"x" * 50 * size)
        aged(tmp_path / name, 400)
    put(TensorCache(tmp_path, limit=size), 1)
    assert not entry.exists()
    assert all((tmp_path / name).exists() for name in others)


def test_a_run_larger_than_the_limit_keeps_what_it_has(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TensorCache(tmp_path, limit=2 * size)
    kept = [put(cache, 0), put(cache, 1)]
    assert not put(cache, 2).exists()
    assert not put(cache, 3).exists()
    assert all(path.exists() for path in kept)
    assert len(caplog.records) == 1


def test_nothing_is_deleted_for_an_entry_that_cannot_fit(tmp_path: Path, size: int) -> None:
    earlier = put(TensorCache(tmp_path), 0)
    TensorCache(tmp_path, limit=2 * size).get(NAME, lambda: {"mean": torch.zeros(size)})
    assert earlier.exists() and not (tmp_path / NAME).exists()


def test_temporary_files_are_deleted_only_after_a_day(tmp_path: Path) -> None:
    dead = tmp_path / f".{NAME}.{'0' * 32}.part"
    alive = tmp_path / f".{NAME}.{'1' * 32}.part"
    for path in (dead, alive):
        path.write_bytes(b"half")
    aged(dead, 2)
    put(TensorCache(tmp_path), 0)
    assert (dead.exists(), alive.exists()) == (False, True)


# --- disks that fail ------------------------------------------------------------------------


def test_a_read_only_folder_is_read_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        kept = put(TensorCache(Path(folder)), 0)
        os.chmod(folder, 0o555)
        cache = TensorCache(Path(folder))
        with as_nobody():
            assert cache.get(kept.name, never).cached
            for number in range(1, 4):
                assert same(cache.get(entry_name("posterior", number), tensors).tensors, tensors())
        assert sorted(os.listdir(folder)) == ["CACHEDIR.TAG", kept.name]
        os.chmod(folder, 0o755)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Permission denied" in caplog.text and folder in caplog.text


def test_a_closed_folder_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with TemporaryDirectory() as folder:
        put(TensorCache(Path(folder)), 0)
        os.chmod(folder, 0)
        cache = TensorCache(Path(folder))
        with as_nobody():
            for number in range(3):
                assert not cache.get(entry_name("posterior", number), tensors).cached
        os.chmod(folder, 0o755)
    assert len(caplog.records) == 1


def test_a_file_instead_of_the_folder_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("mine")
    cache = TensorCache(tmp_path / "cache")
    for number in range(3):
        put(cache, number)
    assert len(caplog.records) == 1
    assert (tmp_path / "cache").read_text() == "mine"


def test_a_full_disk_leaves_no_half_file(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TensorCache(tmp_path)
    kept = put(cache, 0)
    with full_disk(size // 2):
        found = [cache.get(entry_name("posterior", number), tensors) for number in range(1, 4)]
    assert all(same(result.tensors, tensors()) for result in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CACHEDIR.TAG", kept.name]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def write_often(folder: Path) -> None:
    for _ in range(100):
        TensorCache(folder)._write(NAME, {"mean": torch.ones(50_000)})


def test_two_processes_write_one_entry_while_a_third_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forked = multiprocessing.get_context("fork")
    writers = [forked.Process(target=write_often, args=(tmp_path,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        kept = TensorCache(tmp_path)._read(NAME)
        if kept is not None:
            reads += 1
            assert torch.equal(kept["mean"], torch.ones(50_000))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads
    assert not caplog.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CACHEDIR.TAG", NAME]
