"""Sizes of clips: one for all, or buckets by shape."""

from __future__ import annotations

import pytest
import torch

from benchmarks.samples.clip_files import write_numbered
from lamp.clips.load import clips_from_images, load_clips
from lamp.clips.report import describe_clips
from lamp.clips.settings import ClipSettings, buckets, share_kept

SIZES = [(512, 320), (320, 512), (512, 512), (768, 448), (520, 328), (32, 32), (64, 48)]


@pytest.mark.parametrize("size", SIZES)
def test_buckets_have_at_most_the_chosen_area(size):
    step, area = (64 if min(size) >= 256 else 8), size[0] * size[1]
    found = buckets(*size)
    assert found[0] == size
    for width, height in found[1:]:
        assert width % step == height % step == 0
        assert width * height <= area
        # It cannot grow in both directions.
        assert max(width * (height + step), (width + step) * height) > area
    assert {(height, width) for width, height in found[1:]} <= {*found, size[::-1]}


@pytest.mark.parametrize(
    ("clip", "size"),
    [
        ((1920, 1200), (512, 320)),
        ((1920, 1080), (512, 320)),
        ((1080, 1920), (320, 512)),
        ((640, 480), (448, 320)),
        ((480, 640), (320, 448)),
        ((720, 720), (384, 384)),
        ((2560, 1080), (576, 256)),
        ((4000, 500), (640, 256)),
    ],
)
def test_each_clip_gets_the_bucket_of_its_shape(clip, size):
    assert ClipSettings(bucket=True).size_for(*clip) == size
    assert ClipSettings().size_for(*clip) == (512, 320)


def test_no_other_bucket_would_keep_more_of_a_clip():
    for width in range(100, 2000, 190):
        chosen = ClipSettings(bucket=True).size_for(width, 700)
        best = max(share_kept((width, 700), size) for size in buckets(512, 320))
        assert share_kept((width, 700), chosen) == pytest.approx(best, abs=1e-6)


def test_clips_of_all_shapes_are_cropped_to_their_buckets(tmp_path):
    """A circle stays a circle."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(160.0), indexing="ij")
    disc = ((x - 79.5) ** 2 + (y - 44.5) ** 2 < 30**2).float()
    wide = disc[None, ..., None].expand(4, 90, 160, 3)
    clips = clips_from_images([wide, wide.transpose(1, 2)], "x", 4, 32, 32, bucket=True)
    assert [clips.size(0), clips.size(1)] == [(40, 24), (24, 40)]
    for number in range(2):
        (chunk,) = clips.chunks(number)
        assert chunk.shape[1:3] == clips.size(number)[::-1]
        seen = chunk[0, ..., 0] > 127
        rows, columns = seen.any(1).sum().item(), seen.any(0).sum().item()
        assert abs(rows - columns) <= 1 and rows > 12
    assert clips_from_images([wide], "x", 4, 32, 32).size(0) == (32, 32)
    head = describe_clips(clips).splitlines()[0]
    assert "24 x 40 and" in head or "and 24 x 40" in head


def test_a_clip_that_loses_much_by_cropping_is_named(tmp_path):
    write_numbered(tmp_path / "a.mp4", 4, 96, 48)
    write_numbered(tmp_path / "b.mp4", 4, 48, 96)
    square = load_clips(tmp_path, "", 4, 96, 48)
    (warning,) = square.warnings
    assert all(part in warning for part in ("'b.mp4'", "48 x 96", "96 x 48", "25%", "bucket"))
    for settings in ({"bucket": True}, {"fit": "pad"}, {"fit": "stretch"}):
        assert not load_clips(tmp_path, "", 4, 96, 48, **settings).warnings
