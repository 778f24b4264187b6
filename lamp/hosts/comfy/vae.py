"""Encode the first frame with ComfyUI's VAE, and recognise the family of a VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...clips.images import one_colour, opaque
from ...errors import IncompatibleModelError, LampError
from ...method.architecture import describe_family
from .toy import toy_side

_STRIDE = 8
# The colour map of a family must explain the picture well, and far better than the other map. Both
# margins are wide, so that an unusual picture or a fine-tuned VAE is never refused.
_MIN_EXPLAINED = 0.5
_MIN_LEAD = 0.4
# Std of the colours (channels in -1..1 without brightness) below which a picture is too grey.
_MIN_COLOUR = 0.04
_PATCHES = 8  # along the shorter side


def name_family(family: str) -> str:
    """The display name of a family; small models have the latents of SD 1.x."""
    return describe_family(family if family in ("sd2", "sdxl") else "sd1")


def check_image_vae(vae: Any, family: str = "sd1") -> None:
    """Check that a VAE has 4 latent channels and one latent per image, as those of SD 1.x, 2.x and
    SD-XL.

    Args:
        family: of the MODEL.

    Raises:
        IncompatibleModelError: it does not, such as a Flux, SD 3 or video VAE.
    """
    name = name_family(family)
    if vae is None:
        known = " (SD 1.x: vae-ft-mse-840000)" if name == "SD 1.x" else f" (of {name})"
        raise IncompatibleModelError(f"The checkpoint has no VAE: load one with Load VAE{known}.")
    channels = getattr(vae, "latent_channels", 4)
    if channels != 4 or vae.latent_dim != 2:
        kind = "video VAE" if vae.latent_dim == 3 else "VAE"
        raise IncompatibleModelError(
            f"The connected {kind} has {channels} latent channels; {name} has 4. Connect the VAE "
            f"of the {name} checkpoint, not that of the model which generated the first frame."
        )


def first_picture(images: Tensor, say: Callable[[str], None]) -> Tensor:
    """The first image of an IMAGE batch, prepared as training clips are: transparent parts become
    black, values are in 0..1.

    Args:
        images: `n h w c` with any values; c is 1, 3 or 4.
        say: called with a warning if the picture is probably wrong.

    Returns:
        `1 h w 3` in 0..1.

    Raises:
        LampError: it has NaN or infinite values, or another shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise LampError(
            f"The first frame's image must have the shape n h w c with 1, 3 or 4 channels, not "
            f"{tuple(images.shape)}."
        )
    if not torch.isfinite(images[:1]).all():
        raise LampError(
            "The first frame's image contains NaN or infinite values: check the node that made it "
            "(an SD-XL VAE in fp16 can do this; start ComfyUI with --fp32-vae)."
        )
    picture = opaque(images[:1])
    if colour := one_colour(picture[0]):
        say(
            f"The first frame's image is entirely {colour}. Some loaders return this for 16-bit "
            "pictures, and transparent pictures become black. If this is wrong, save the picture "
            "with 8 bits and without transparency."
        )
    return picture


def encode_first_frame(vae: Any, picture: Tensor, family: str = "sd1") -> Tensor:
    """Encode one picture.

    Args:
        vae: a VAE of the host.
        picture: `1 h w 3` in 0..1, see `first_picture`.
        family: of the motion.

    Returns:
        `1 4 h/8 w/8`, unscaled latents as ComfyUI's.

    Raises:
        IncompatibleModelError: the VAE belongs to another family.
        LampError: the latent has NaN values.
    """
    check_image_vae(vae, family)
    latent = vae.encode(picture)
    check_stride(vae, latent, picture, family)
    if not torch.isfinite(latent).all():
        raise LampError(
            f"The VAE returned NaN for the first frame: {name_family(family)} VAEs can overflow in "
            "fp16. Start ComfyUI with --fp32-vae, or use another VAE."
        )
    check_latent_family(latent, picture, family)
    return latent


def check_stride(vae: Any, latent: Tensor, picture: Tensor, family: str = "sd1") -> None:
    """Check that a VAE makes one latent of 8 x 8 pixels, as those of SD 1.x, 2.x and SD-XL.

    Args:
        latent, picture: `n 4 h w` and `n H W c`, before and after it.

    Raises:
        IncompatibleModelError: it does not, such as Stable Cascade's stage A.
    """
    if latent.shape[-2] != picture.shape[1] // _STRIDE and toy_side(vae) is None:
        stride = round(picture.shape[1] / latent.shape[-2])
        name = name_family(family)
        raise IncompatibleModelError(
            f"The connected VAE makes one latent of {stride} x {stride} pixels; that of {name} "
            f"makes one of {_STRIDE} x {_STRIDE}. Connect the VAE of the {name} checkpoint, not "
            "that of the model which generated the first frame."
        )


def check_latent_family(latent: Tensor, picture: Tensor, family: str) -> None:
    """Check that a latent `1 4 h w` of a picture `1 H W c` was made by a VAE of this family.

    Raises:
        IncompatibleModelError: it was made by a VAE of another one.
    """
    if is_sdxl_latent(latent, picture) and family != "sdxl":
        name = name_family(family)
        raise IncompatibleModelError(
            "The connected VAE is an SD-XL VAE, whose latents encode colours differently from "
            f"{name}: connect the VAE of the {name} checkpoint, and use the SD-XL VAE only to "
            "decode the first frame. If the motion was trained for SD-XL, connect it to the input "
            "motion of LAMP First-Frame Condition."
        )
    if is_sd1_latent(latent, picture) and family == "sdxl":
        raise IncompatibleModelError(
            "The connected VAE is an SD 1.x or 2.x VAE, whose latents encode colours differently "
            "from SD-XL: connect the VAE of the SD-XL checkpoint."
        )


def is_sdxl_latent(latent: Tensor, picture: Tensor) -> bool:
    """Whether a latent `1 4 h w` of a picture `1 H W c` was made by the VAE of SD-XL.

    VAEs of both families have the same shape, but encode colours differently: ComfyUI's preview
    maps from latent channels to colours distinguish them.
    """
    return _explains_better(latent, picture, "SDXL", "SD15")


def is_sd1_latent(latent: Tensor, picture: Tensor) -> bool:
    """The same for the VAE of SD 1.x and 2.x."""
    return _explains_better(latent, picture, "SD15", "SDXL")


def _explains_better(latent: Tensor, picture: Tensor, family: str, other: str) -> bool:
    import comfy.latent_formats

    if [size * _STRIDE for size in latent.shape[2:]] != list(picture.shape[1:3]):
        return False
    # Coarse patches average out fine texture, which is not colour.
    patch = max(min(latent.shape[2:]) // _PATCHES, 1)
    latent = F.avg_pool2d(latent.float().cpu(), patch)
    colours = _rgb(picture).movedim(-1, 1).float().cpu() * 2 - 1
    colours = _chroma(F.avg_pool2d(colours, patch * _STRIDE))
    if colours.std() < _MIN_COLOUR:
        return False
    told, others = (
        _explained(latent, getattr(comfy.latent_formats, name)(), colours)
        for name in (family, other)
    )
    return told > _MIN_EXPLAINED and told > others + _MIN_LEAD


def _rgb(images: Tensor) -> Tensor:
    return images[..., :3].expand(*images.shape[:-1], 3)


def _chroma(rgb: Tensor) -> Tensor:
    """`1 3 h w`, centred, without brightness, in which the two families hardly differ."""
    chroma = rgb - rgb.mean(1, keepdim=True)
    return chroma - chroma.mean((2, 3), keepdim=True)


def _explained(latent: Tensor, latent_format: Any, colours: Tensor) -> float:
    """Share of the variance of the colours that the family's map from latents explains."""
    factors = torch.tensor(latent_format.latent_rgb_factors)
    scaled = latent_format.process_in(latent)
    mapped = _chroma(torch.einsum("bkhw,kc->bchw", scaled, factors))
    error: Tensor = (mapped - colours).square().sum() / colours.square().sum()
    return 1.0 - error.item()
