"""Fixtures of the tests of clips."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without OpenCV: what is not about movement need not measure it."""
    monkeypatch.setattr("lamp.clips.movement.flow_engine", lambda: None)
