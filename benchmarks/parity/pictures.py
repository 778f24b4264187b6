"""The cases about latents and pictures: AdaIN, histogram matching, the first frame, clips.

They do not depend on the host.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lamp.clips.images import fit_images
from lamp.method.adain import AdaINSchedule, adain
from lamp.method.histogram import match_histograms

from .fixtures import Fixture, Measure, largest, to_frames, to_video

ADAIN = 1e-5
# The official resize calculates in whole numbers; one level of 255 is 1 / 127.5 in -1..1.
ONE_LEVEL = 1 / 127.5
OFFICIAL_STEPS = 50


def adain_cases(fixture: Fixture) -> Iterator[Measure]:
    """AdaIN itself, and what the official sampling loop does with it."""
    for case in sorted(k.removesuffix(".style") for k in fixture.keys if k.endswith(".style")):
        given = fixture.prefixed(case)
        error = largest(adain(given["content"], given["style"]), given["out"])
        yield Measure(case, error, ADAIN)
    for case in sorted(k.removesuffix(".in") for k in fixture.keys if k.endswith(".in")):
        yield from _loop(case, fixture.prefixed(case))


def _loop(case: str, given: dict[str, Tensor]) -> Iterator[Measure]:
    """`iN` is what step N makes of `in`, `final` what follows the loop."""
    videos, _, frames = given["in"].shape[:3]
    x, schedule = to_frames(given["in"]), AdaINSchedule("official")
    for key, expected in given.items():
        if key == "in":
            continue
        if key == "final":
            ours = schedule.after_loop(x, frames)
        else:
            ours = schedule.after_step(x, int(key[1:]), OFFICIAL_STEPS, frames)
        yield Measure(f"{case}.{key}", largest(to_video(ours, videos), expected), ADAIN)


def histogram_cases(fixture: Fixture) -> Iterator[Measure]:
    """Bytes that differ: there may be none."""
    for case in sorted(k.removesuffix(".out_u8") for k in fixture.keys if k.endswith(".out_u8")):
        given = fixture.prefixed(case)
        reference, frame = (_picture(given, name) for name in ("src", "dst"))
        ours = (match_histograms(frame[None], reference)[0] * 255).round().to(torch.uint8)
        yield Measure(case, float((ours != given["out_u8"]).sum()), 0.0, "bytes that differ")


def _picture(given: dict[str, Tensor], name: str) -> Tensor:
    return given[name] if name in given else given[f"{name}_u8"].float() / 255


def first_frame_cases(fixture: Fixture) -> Iterator[Measure]:
    """The official preparation of the first picture: squeezed, without antialiasing."""
    given = fixture.tensors
    height, width = given["out"].shape[-2:]
    rgb = given["source_bgr_u8"].flip(-1)[None].float()
    fitted = fit_images(rgb, width, height, fit="stretch", antialias=False)
    ours = fitted.movedim(-1, 1) / 127.5 - 1
    yield Measure("stretched", largest(ours, given["out"]), ONE_LEVEL)
