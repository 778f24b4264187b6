"""Files and folders that hold another kind of model, or a part of one: refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from lamp.errors import IncompatibleModelError, LampError
from lamp.hosts.diffusers import single_file
from lamp.hosts.diffusers.models import load_image_model
from tests.helpers.sd1_files import UNET, Source, ldm_state, linked, predicting

pytestmark = pytest.mark.slow  # many of them


Change = Callable[[dict[str, torch.Tensor]], Any]


def renamed(prefix: str, new: str) -> Change:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            state[new + name.removeprefix(prefix)] = state.pop(name)

    return change


UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renamed(TEXT_PREFIX, "conditioner.embedders.0."), "SD-XL"),
        (renamed(TEXT_PREFIX, "cond_stage_model.model."), "SD 2.x"),
        (renamed(UNET_PREFIX, f"{UNET_PREFIX}double_blocks."), "Flux"),
        (renamed(UNET_PREFIX, f"{UNET_PREFIX}joint_blocks."), "SD 3"),
        (renamed(VAE_PREFIX, "vae."), VAE_PREFIX),
        (renamed(UNET_PREFIX, "unet."), UNET_PREFIX),
        (renamed(TEXT_PREFIX, "text."), TEXT_PREFIX),
        (lambda state: state.pop(f"{UNET_PREFIX}out.2.weight"), "conv_out.weight"),
        (lambda state: state.pop(f"{VAE_PREFIX}encoder.conv_in.bias"), "encoder.conv_in.bias"),
        (
            lambda state: state.pop(f"{TEXT_PREFIX}text_model.final_layer_norm.bias"),
            "final_layer_norm.bias",
        ),
        (
            lambda state: state.update(
                {f"{UNET_PREFIX}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}
            ),
            "(32, 9, 3, 3)",
        ),
        (
            lambda state: state.update({f"{UNET_PREFIX}label_emb.0.0.weight": torch.zeros(4, 4)}),
            "unet",
        ),
        (lambda state: state.update({f"{VAE_PREFIX}loss.logvar": torch.zeros(1)}), "vae"),
        (lambda state: state.update({f"{TEXT_PREFIX}more": torch.zeros(1)}), "text_encoder"),
    ],
)
def test_another_kind_of_file_is_refused_before_its_weights_are_read(
    comfy: ModuleType,
    source: Source,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    named: str,
) -> None:
    state = ldm_state(source)
    change(state)
    save_file(state, tmp_path / "odd.safetensors")
    monkeypatch.setattr(single_file, "_load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(LampError) as caught:
        load_image_model(tmp_path / "odd.safetensors", tokenizer)
    assert "odd.safetensors" in str(caught.value) and named in str(caught.value)


def test_a_damaged_file_and_a_pickle_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LampError, match=r"broken\.safetensors"):
        load_image_model(tmp_path / "broken.safetensors", tokenizer)
    (tmp_path / "old.ckpt").write_bytes(b"")
    with pytest.raises(LampError, match=r"old\.ckpt"):
        load_image_model(tmp_path / "old.ckpt", tokenizer)


def test_a_folder_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LampError, match=r"unet.*\.safetensors"):
        load_image_model(tmp_path)


def test_a_folder_that_predicts_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelError, match="'sample'"):
        load_image_model(predicting(tmp_path, "sample"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("rescale_betas_zero_snr", True), ("beta_schedule", "linear"), ("beta_end", 0.02)],
)
def test_a_folder_with_other_noise_levels_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """The levels of SD 2.x as diffusers writes them, except for one value."""
    from diffusers import DDIMScheduler

    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    usual |= {"prediction_type": "v_prediction"}
    DDIMScheduler(**usual).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(LampError, match="unet"):  # past the scheduler
        load_image_model(tmp_path)
    DDIMScheduler(**{**usual, name: value}).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(IncompatibleModelError, match=name):
        load_image_model(tmp_path)


def test_sd_2_without_a_scheduler_is_refused(folder: Path, tmp_path: Path) -> None:
    """The first SD 2.0 and 2.1 predict v, the base ones the noise."""
    linked(folder, tmp_path, "vae", "text_encoder", "tokenizer")
    UNet2DConditionModel(**{**UNET, "cross_attention_dim": 1024}).save_pretrained(tmp_path / "unet")
    with pytest.raises(LampError, match="scheduler_config.json"):
        load_image_model(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_weights_are_refused_by_name(
    source: Source, folder: Path, tmp_path: Path, part: str
) -> None:
    """The libraries would draw them at random."""
    from safetensors.torch import save_file

    others = {"unet", "vae", "text_encoder", "tokenizer"} - {part}
    linked(folder, tmp_path, *others)
    getattr(source, part).save_pretrained(tmp_path / part)
    (file,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith("bias"))
    save_file({n: w for n, w in weights.items() if n != lost}, file, {"format": "pt"})
    with pytest.raises(LampError, match=f"{part}.*{re.escape(lost)}"):
        load_image_model(tmp_path)


def test_sd_xl_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / name).symlink_to(folder / name)
    UNet2DConditionModel(**{**UNET, "cross_attention_dim": 2048}).save_pretrained(tmp_path / "unet")
    with pytest.raises(IncompatibleModelError, match="SD-XL"):
        load_image_model(tmp_path)
