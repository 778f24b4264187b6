"""Both hosts, with the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
from torch import Tensor

from lamp.method.host import Host
from tests.helpers.small_models import build, random_state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def hosts(state: dict[str, Tensor]) -> Callable[[str], Host]:
    return cache(partial(build, state=state))


@pytest.fixture(params=["diffusers", "comfy"])
def host(request: pytest.FixtureRequest, hosts: Callable[[str], Host]) -> Host:
    if request.param == "comfy":
        request.getfixturevalue("comfy")
    return hosts(request.param)
