"""The motion map: recorded activity, the mask from it, its node, and masks in use
inside ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from torch import Tensor, nn

from benchmarks.samples.comfy_runs import (
    SEED,
    STEPS,
    conditioning,
    count_hooks,
    ksampler,
    lamp_ksampler,
    moving,
)
from benchmarks.samples.comfy_runs import worst as difference
from benchmarks.samples.tiny_models import text, tiny_config, tiny_state, video_latent
from lamp.errors import LampError
from lamp.hosts.comfy.windows import with_windows
from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet
from lamp.method.layers import MotionConv
from lamp.method.masks import MotionMask
from lamp.method.motion import Motion
from lamp.method.motion_map import heat_map, mask_from_activity, otsu_threshold, record_activity
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.method.windows import Windows
from lamp.motion_file.file import MotionFile, save_motion
from tests.helpers.small_models import hook_count

pytestmark = pytest.mark.slow  # many of them

SCALE = 0.18215


class OneLayer(Motion):
    """A motion of one layer, whose residual is set by hand: gate 1/2, three taps on the past."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = MotionConv(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.layer.conv1d.weight[0, 0, 2] = 2.0  # the frame itself, times 2 / 2


def test_the_activity_is_the_change_of_the_residual_over_frames() -> None:
    """Here the residual is the input itself: its deviation over frames 3.., against numpy's."""
    motion, frames = OneLayer(), 6
    y = torch.randn(2 * frames, 1, 5, 7, generator=torch.Generator().manual_seed(4))
    with record_activity(motion) as activity, torch.no_grad():
        motion.layer(y, frames)
    video = y.unflatten(0, (2, frames))[:, 2:, 0].numpy()
    expected = np.sqrt(video.var(axis=1).mean(axis=0))
    np.testing.assert_allclose(activity.map(5, 7), expected / expected.mean(), rtol=1e-4)
    assert hook_count(motion) == 0


def test_layers_of_different_scale_weigh_equally() -> None:
    motion, frames = OneLayer(), 6
    y = torch.zeros(frames, 1, 4, 4)
    y[:, :, :2] = torch.randn(frames, 1, 2, 4, generator=torch.Generator().manual_seed(4))
    with record_activity(motion) as small, torch.no_grad():
        motion.layer(y, frames)
        motion.layer(y.flip(2), frames)
    with record_activity(motion) as large, torch.no_grad():
        motion.layer(y, frames)
        motion.layer(y.flip(2) * 1000, frames)
    torch.testing.assert_close(small.map(4, 4), large.map(4, 4))


def test_hooks_are_removed_after_an_error() -> None:
    motion = OneLayer()
    with pytest.raises(KeyboardInterrupt), record_activity(motion):
        assert hook_count(motion) == 1
        raise KeyboardInterrupt
    assert hook_count(motion) == 0


def test_a_motion_without_effect_has_no_map() -> None:
    motion = OneLayer()
    for frames, still in ((6, torch.ones(6, 1, 4, 4)), (3, torch.randn(3, 1, 4, 4))):
        with record_activity(motion) as activity, torch.no_grad():
            motion.layer(still, frames)
        with pytest.raises(LampError, match="4 frames"):
            activity.map(4, 4)


def test_the_threshold_is_that_of_otsu() -> None:
    """As scikit-image finds it, up to a bin of its histogram."""
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(900, generator=generator), torch.randn(100) + 8])
    step = float(values.max() - values.min()) / 4096
    wanted = threshold_otsu(values.numpy(), nbins=4096)
    found = otsu_threshold(values)
    between = values[(values > min(wanted, found)) & (values < max(wanted, found))]
    assert len(between) <= 1 or abs(found - wanted) < 2 * step


def test_the_mask_is_the_activity_and_a_margin() -> None:
    activity = torch.full((20, 40), 0.5)
    activity[8:12, 10:20] = 2.0
    mask = mask_from_activity(activity, margin=0.1)  # 2 of 20
    wanted = torch.zeros(20, 40)
    wanted[6:14, 8:22] = 1.0
    assert torch.equal(mask, wanted)
    activity[2, 35] = 0.9  # between the two groups
    assert mask_from_activity(activity, margin=0.0)[2, 35] == 0.0
    assert mask_from_activity(activity, sensitivity=1.4, margin=0.0)[2, 35] > 0.0
    activity[0, 0] = 100.0  # a corner, where layers see their padding
    assert torch.equal(mask_from_activity(activity)[6:14, 8:22], torch.ones(8, 14))


def test_the_heat_map_goes_from_dark_to_bright() -> None:
    picture = heat_map(torch.linspace(3.0, 5.0, 50)[None])
    assert picture.shape == (1, 50, 3) and picture.min() >= 0.0 and picture.max() <= 1.0
    light = picture[0] @ torch.tensor([0.299, 0.587, 0.114])
    assert (light[:48].diff() > 0).all() and light[0] < 0.02 and light[-1] > 0.9
    assert heat_map(torch.ones(2, 2)).isfinite().all()


# --- inside ComfyUI -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_hook_is_left(request: pytest.FixtureRequest) -> Any:
    yield
    if "plain" in request.fixturenames:
        assert count_hooks(request.getfixturevalue("plain")) == 0


def random_masks(frames: int) -> Tensor:
    return torch.rand(frames, 24, 24, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("windows", [None, Windows(4, 1)])
def test_both_hosts_sample_alike_under_masks(
    plain: Any, file: MotionFile, windows: Windows | None
) -> None:
    from lamp.hosts.diffusers.unet import build_host

    motion_mask = MotionMask(random_masks(6), feather=0.1, hold=0.8, strengths=[1.5, 0.5, 1.0])
    noise = share_noise(draw_noise(6, 4, 8, 8, SEED), 0.2)
    config = tiny_config()
    host = build_host(config, tiny_state(config))
    motion = Motion(map_unet(host.unet)).requires_grad_(False)
    motion.load_state_dict(file.state)
    schedule = AdaINSchedule("paper")
    expected = sample(
        host,
        motion,
        video_latent()[:1] * SCALE,
        noise,
        text(1),
        text(2),
        steps=STEPS,
        guidance=5.0,
        schedule=schedule,
        windows=windows,
        motion_mask=motion_mask,
    )
    model = moving(plain, file, motion_mask=motion_mask)
    with torch.inference_mode():
        model = model if windows is None else with_windows(model, windows)
        ours = lamp_ksampler(model, noise=noise, schedule=schedule) * SCALE
        without = lamp_ksampler(moving(plain, file), noise=noise, schedule=schedule) * SCALE
    assert difference(ours, expected) < 1e-4
    assert difference(without, expected) > 1e-2


def test_the_stock_sampler_holds_the_picture_outside_of_the_mask(
    plain: Any, file: MotionFile
) -> None:
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1.0
    with torch.inference_mode():
        out = ksampler(moving(plain, file, motion_mask=MotionMask(mask)))
    first = video_latent()[:1]
    assert difference(out[..., :4], first[..., :4].expand(6, -1, -1, -1)) < 1e-5
    assert difference(out[1:, ..., 4:], first[..., 4:].expand(5, -1, -1, -1)) > 0.1


def test_masks_that_do_not_fit_the_video_are_refused(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file, motion_mask=MotionMask(random_masks(5)))
    with torch.inference_mode(), pytest.raises(LampError, match="5 masks.*6 frames"):
        ksampler(model)


def test_a_prompt_for_an_area_is_refused_under_a_mask(plain: Any, file: MotionFile) -> None:
    import nodes

    positive, negative = conditioning()
    positive = [[positive[0][0], {"area": (8, 4, 0, 0)}]]
    latent = {"samples": video_latent()}
    arguments = (SEED, 2, 5.0, "euler", "normal", positive, negative, latent)
    with torch.inference_mode():
        nodes.common_ksampler(
            moving(plain, file, motion_mask=MotionMask(strengths=[0.5])), *arguments
        )
        with pytest.raises(LampError, match="Set Mask"):
            nodes.common_ksampler(
                moving(plain, file, motion_mask=MotionMask(random_masks(1))), *arguments
            )


# --- the nodes ------------------------------------------------------------------------------------


@pytest.fixture
def loaded(node_classes: Any, plain: Any, file: MotionFile, tmp_path: Path) -> Any:
    """`loaded(**options)`: a MODEL from Load LAMP Motion."""
    import folder_paths

    save_motion(tmp_path / "m.safetensors", file.state, file.config)
    paths = folder_paths.folder_names_and_paths["lamp_motion"][0]
    before = list(paths)
    paths[:] = [str(tmp_path)]
    node = node_classes["LAMP_LoadMotion"]
    yield lambda **options: node.execute(plain, "m.safetensors", **options)[0]
    paths[:] = before


def test_load_takes_masks_and_strengths(loaded: Any) -> None:
    assert loaded().get_attachment("lamp_motion").motion_mask is None
    ones = loaded(mask=torch.ones(1, 64, 64), frame_strengths=" 1, 1 ")
    assert ones.get_attachment("lamp_motion").motion_mask is None
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1.0
    model = loaded(mask=mask, feather=0.0, hold_still=0.25, frame_strengths="1, 0.5")
    motion_mask = model.get_attachment("lamp_motion").motion_mask
    assert motion_mask.hold == 0.25 and motion_mask.strengths.tolist() == [1.0, 0.5]
    assert torch.equal(motion_mask.mask[:, 0], mask)
    soft = loaded(mask=mask, feather=0.25).get_attachment("lamp_motion").motion_mask
    assert 0.0 < soft.mask[0, 0, 0, 3] < 0.5
    with torch.inference_mode():
        assert difference(ksampler(model), ksampler(loaded())) > 1e-3


def test_a_black_mask_is_refused_unless_it_is_comfyuis_placeholder(loaded: Any) -> None:
    assert loaded(mask=torch.zeros(1, 64, 64)).get_attachment("lamp_motion").motion_mask is None
    first_only = torch.zeros(4, 8, 8)
    first_only[0] = 1.0
    for black in (torch.zeros(1, 8, 8), torch.zeros(32, 64), torch.zeros(4, 8, 8), first_only):
        with pytest.raises(LampError, match="black"):
            loaded(mask=black)
    later = first_only.flip(0)
    assert loaded(mask=later).get_attachment("lamp_motion").motion_mask is not None


def test_invalid_inputs_of_the_loader_are_refused(loaded: Any) -> None:
    with pytest.raises(LampError, match="^Load LAMP Motion: 'slow'"):
        loaded(frame_strengths="slow")
    with pytest.raises(LampError, match="^Load LAMP Motion: .*mask"):
        loaded(mask=torch.full((1, 4, 4), float("nan")))


def test_the_map_makes_a_picture_and_a_mask_for_the_loader(
    node_classes: Any, loaded: Any, plain: Any
) -> None:
    positive, negative = conditioning()
    latent = {"samples": video_latent(6, 8, 12)}
    model = loaded()
    node = node_classes["LAMP_MotionMap"]
    with torch.inference_mode():
        mask, picture = node.execute(model, positive, negative, latent, SEED, steps=2).result
    assert mask.shape == (1, 64, 96) and picture.shape == (1, 64, 96, 3)
    assert mask.min() >= 0.0 and mask.max() == 1.0 and picture.std() > 0.05
    assert hook_count(model.get_attachment("lamp_motion").motion) == 0
    with torch.inference_mode():
        ksampler(loaded(mask=mask), samples=latent["samples"])
        with pytest.raises(LampError, match="^LAMP Motion Map: .*strength"):
            node.execute(loaded(strength=0.0), positive, negative, latent, SEED, steps=1)
        with pytest.raises(LampError, match="^LAMP Motion Map: .*LAMP motion"):
            node.execute(plain, positive, negative, latent, SEED)
