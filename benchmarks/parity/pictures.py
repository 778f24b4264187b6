"""Comparisons that need no model: AdaIN, histogram matching and the first frame."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lamp.clips.images import fit_images
from lamp.method.adain import AdaINSchedule, adain
from lamp.method.histogram import match_histograms

from .fixtures import Fixture, Measure, largest, to_frames, to_video

ADAIN = 1e-5
# The official resize computes in integers; one level of 255 is 1 / 127.5 in -1..1.
ONE_LEVEL = 1 / 127.5
OFFICIAL_STEPS = 50


def adain_cases(fixture: Fixture) -> Iterator[Measure]:
    """AdaIN itself, and its use in the official sampling loop."""
    for case in fixture.cases(".style"):
        given = fixture.prefixed(case)
        ours = adain(given["content"], given["style"])
        yield Measure(case, largest(ours, given["out"]), ADAIN)
    for case in fixture.cases(".in"):
        yield from _loop(case, fixture.prefixed(case))


def _loop(case: str, given: dict[str, Tensor]) -> Iterator[Measure]:
    """`iN` is `in` after step N; `final` is `in` after the loop."""
    videos, _, frames = given["in"].shape[:3]
    x, schedule = to_frames(given.pop("in")), AdaINSchedule("official")
    for key, expected in given.items():
        if key == "final":
            ours = schedule.after_loop(x, frames)
        else:
            ours = schedule.after_step(x, int(key[1:]), OFFICIAL_STEPS, frames)
        yield Measure(f"{case}.{key}", largest(to_video(ours, videos), expected), ADAIN)


def histogram_cases(fixture: Fixture) -> Iterator[Measure]:
    """The number of bytes that differ; it must be zero."""
    for case in fixture.cases(".out_u8"):
        given = fixture.prefixed(case)
        reference, frame = (_picture(given, name) for name in ("src", "dst"))
        ours = (match_histograms(frame[None], reference)[0] * 255).round().to(torch.uint8)
        yield Measure(case, float((ours != given["out_u8"]).sum()), 0.0, "bytes that differ")


def _picture(given: dict[str, Tensor], name: str) -> Tensor:
    return given[name] if name in given else given[f"{name}_u8"].float() / 255


def first_frame_cases(fixture: Fixture) -> Iterator[Measure]:
    """The official preparation of the first picture: stretched, without antialiasing."""
    given = fixture.tensors
    height, width = given["out"].shape[-2:]
    rgb = given["source_bgr_u8"].flip(-1)[None].float()
    fitted = fit_images(rgb, width, height, fit="stretch", antialias=False)
    ours = fitted.movedim(-1, 1) / 127.5 - 1
    yield Measure("stretched", largest(ours, given["out"]), ONE_LEVEL)
