"""A random model in miniature in place of SD 1.x, as a file and as a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lamp.hosts.diffusers import single_file
from tests.helpers.sd1_files import CONFIGS, Source, random_source, write_file, write_folder


@pytest.fixture(scope="module", autouse=True)
def small_configs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single_file, "CONFIGS", CONFIGS)
        yield


@pytest.fixture(scope="module")
def source() -> Source:
    return random_source()


@pytest.fixture(scope="module")
def tokenizer(comfy: ModuleType) -> Path:
    return Path(comfy.__path__[0]) / "sd1_tokenizer"


@pytest.fixture(scope="module")
def file(source: Source, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(source, tmp_path_factory.mktemp("file") / "small.safetensors")


@pytest.fixture(scope="module")
def folder(source: Source, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(source, tmp_path_factory.mktemp("folder") / "small", tokenizer)
