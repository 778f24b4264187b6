"""The first frame through ComfyUI's VAE, and the VAEs of the families told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...clips.images import one_colour, opaque
from ...errors import IncompatibleModelError, LampError
from ...method.architecture import describe_family

_STRIDE = 8
# A family's colours must be explained well, and far better than by the other's map. Both margins
# are wide: an unusual picture or a fine-tuned VAE must never be taken for one of the other family.
_MIN_EXPLAINED = 0.5
_MIN_LEAD = 0.4
# Standard deviation of the colour (channels in -1..1, brightness taken out) below which a picture
# is too grey to tell.
_MIN_COLOUR = 0.04
_PATCHES = 8  # along the shorter side


def name_family(family: str) -> str:
    """The family's name in a sentence; small models have the latents of SD 1.x."""
    return describe_family(family if family in ("sd2", "sdxl") else "sd1")


def check_image_vae(vae: Any, family: str = "sd1") -> None:
    """See that a VAE has 4 latent channels, and one latent image for each image, as the VAEs of
    SD 1.x, 2.x and SD-XL have.

    Args:
        family: of the MODEL that the latents are for.

    Raises:
        IncompatibleModelError: it has not; the commonest is a Flux, SD 3 or video VAE.
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
            f"of the {name} checkpoint, not that of the model which drew the first frame."
        )


def first_picture(images: Tensor, say: Callable[[str], None]) -> Tensor:
    """The first of an IMAGE batch, as training clips are read: transparent parts are black, values
    lie in 0..1.

    Args:
        images: `n h w c`, of any values; c is 1, 3 or 4.
        say: called with a sentence where the picture is probably not what it was meant to be.

    Returns:
        `1 h w 3` in 0..1.

    Raises:
        LampError: it holds NaN or infinite values, or has another shape.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise LampError(
            f"The first frame's image must have the shape n h w c with 1, 3 or 4 channels, not "
            f"{tuple(images.shape)}."
        )
    if not torch.isfinite(images[:1]).all():
        raise LampError(
            "The first frame's image contains NaN or infinite values: look at the node that made "
            "it (an SD-XL VAE in fp16 does that; start ComfyUI with --fp32-vae)."
        )
    picture = opaque(images[:1])
    if colour := one_colour(picture[0]):
        say(
            f"The first frame's image is all {colour}: a picture of 16 bits comes out so from some "
            "loaders, and a transparent one is black. If that is not meant, save it with 8 bits "
            "and without transparency."
        )
    return picture


def encode_first_frame(vae: Any, picture: Tensor, family: str = "sd1") -> Tensor:
    """Encode one picture.

    Args:
        vae: a VAE of the host.
        picture: `1 h w 3` in 0..1, see `first_picture`.
        family: of the motion that will move the picture.

    Returns:
        `1 4 h/8 w/8`, in the host's unscaled latents.

    Raises:
        IncompatibleModelError: the VAE is that of another family.
        LampError: the latent holds NaN.
    """
    check_image_vae(vae, family)
    latent = vae.encode(picture)
    if not torch.isfinite(latent).all():
        raise LampError(
            f"The VAE returned NaN for the first frame: {name_family(family)} VAEs can overflow in "
            "fp16; start ComfyUI with --fp32-vae, or use another VAE."
        )
    check_latent_family(latent, picture, family)
    return latent


def check_latent_family(latent: Tensor, picture: Tensor, family: str) -> None:
    """See that a latent `1 4 h w` of a picture `1 H W c` is what the UNets of a family work on.

    Raises:
        IncompatibleModelError: it was made by the VAE of another one.
    """
    if is_sdxl_latent(latent, picture) and family != "sdxl":
        name = name_family(family)
        raise IncompatibleModelError(
            "The connected VAE encodes for SD-XL, whose latents mean other colours than those of "
            f"{name}: connect the VAE of the {name} checkpoint, and use SD-XL's only to decode the "
            "first frame. If the motion itself was trained for SD-XL, connect it to the input "
            "motion of LAMP First-Frame Condition."
        )
    if is_sd1_latent(latent, picture) and family == "sdxl":
        raise IncompatibleModelError(
            "The connected VAE encodes for SD 1.x and 2.x, whose latents mean other colours than "
            "those of SD-XL: connect the VAE of the SD-XL checkpoint."
        )


def is_sdxl_latent(latent: Tensor, picture: Tensor) -> bool:
    """Whether a latent `1 4 h w` of a picture `1 H W c` was made by the VAE of SD-XL.

    Both families' VAEs have the same shape, so they are told by what they do: the host knows, for
    its previews, the colour that each latent channel stands for.
    """
    return _explains_better(latent, picture, "SDXL", "SD15")


def is_sd1_latent(latent: Tensor, picture: Tensor) -> bool:
    """The same for the VAE of SD 1.x, which SD 2.x has, too."""
    return _explains_better(latent, picture, "SD15", "SDXL")


def _explains_better(latent: Tensor, picture: Tensor, family: str, other: str) -> bool:
    import comfy.latent_formats

    if [size * _STRIDE for size in latent.shape[2:]] != list(picture.shape[1:3]):
        return False
    # Coarse patches: what latents say of fine texture is no colour, and averages out.
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
    """`1 3 h w` without its brightness, on which the two families nearly agree, and centred."""
    chroma = rgb - rgb.mean(1, keepdim=True)
    return chroma - chroma.mean((2, 3), keepdim=True)


def _explained(latent: Tensor, latent_format: Any, colours: Tensor) -> float:
    """Share of the colours' variance that the family's map from latents explains, at most 1."""
    factors = torch.tensor(latent_format.latent_rgb_factors)
    scaled = latent_format.process_in(latent)
    mapped = _chroma(torch.einsum("bkhw,kc->bchw", scaled, factors))
    error: Tensor = (mapped - colours).square().sum() / colours.square().sum()
    return 1.0 - error.item()
