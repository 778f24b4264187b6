"""The first frame through ComfyUI's VAE, and the VAE told apart from that of SD-XL."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import IncompatibleModelError, LampError

_SDXL_STRIDE = 8
# SD-XL's colours must be explained well, and far better than SD 1.x's. Both margins are wide: an
# unusual picture or a fine-tuned SD 1.x VAE must never be taken for one of SD-XL.
_MIN_EXPLAINED = 0.5
_MIN_LEAD = 0.4
# Standard deviation of the colour (channels in -1..1, brightness taken out) below which a picture
# is too grey to tell.
_MIN_COLOUR = 0.04
_PATCHES = 8  # along the shorter side


def check_image_vae(vae: Any) -> None:
    """See that a VAE has the latents of SD 1.x: 4 channels, one latent image for each image.

    Raises:
        IncompatibleModelError: it has not; the commonest is a Flux, SD 3 or video VAE.
    """
    if vae is None:
        raise IncompatibleModelError(
            "The checkpoint has no VAE: load one with Load VAE (SD 1.x: vae-ft-mse-840000)."
        )
    channels = getattr(vae, "latent_channels", 4)
    if channels != 4 or vae.latent_dim != 2:
        kind = "video VAE" if vae.latent_dim == 3 else "VAE"
        raise IncompatibleModelError(
            f"The connected {kind} has {channels} latent channels; SD 1.x has 4. Connect the VAE "
            "of the SD 1.x checkpoint, not that of the model which drew the first frame."
        )


def encode_first_frame(vae: Any, picture: Tensor) -> Tensor:
    """Encode one picture.

    Args:
        vae: a VAE of the host, for SD 1.x.
        picture: `1 h w c` in 0..1.

    Returns:
        `1 4 h/8 w/8`, in the host's unscaled latents.

    Raises:
        IncompatibleModelError: the VAE is not that of SD 1.x.
        LampError: the picture or its latent holds NaN.
    """
    check_image_vae(vae)
    if not torch.isfinite(picture).all():
        raise LampError(
            "The first frame's image contains NaN or infinite values: look at the node that made "
            "it (an SD-XL VAE in fp16 does that; start ComfyUI with --fp32-vae)."
        )
    latent = vae.encode(_rgb(picture))
    if not torch.isfinite(latent).all():
        raise LampError(
            "The VAE returned NaN for the first frame: SD 1.x VAEs can overflow in fp16; start "
            "ComfyUI with --fp32-vae, or use another VAE."
        )
    if is_sdxl_latent(latent, picture):
        raise IncompatibleModelError(
            "The connected VAE encodes for SD-XL, whose latents mean other colours than those of "
            "SD 1.x: connect the VAE of the SD 1.x checkpoint, and use SD-XL's only to decode the "
            "first frame."
        )
    return latent


def is_sdxl_latent(latent: Tensor, picture: Tensor) -> bool:
    """Whether a latent `1 4 h w` of a picture `1 H W c` was made by the VAE of SD-XL.

    Both families' VAEs have the same shape, so they are told by what they do: the host knows, for
    its previews, the colour that each latent channel stands for.
    """
    import comfy.latent_formats

    if [size * _SDXL_STRIDE for size in latent.shape[2:]] != list(picture.shape[1:3]):
        return False
    # Coarse patches: what latents say of fine texture is no colour, and averages out.
    patch = max(min(latent.shape[2:]) // _PATCHES, 1)
    latent = F.avg_pool2d(latent.float().cpu(), patch)
    colours = _rgb(picture).movedim(-1, 1).float().cpu() * 2 - 1
    colours = _chroma(F.avg_pool2d(colours, patch * _SDXL_STRIDE))
    if colours.std() < _MIN_COLOUR:
        return False
    sd1 = _explained(latent, comfy.latent_formats.SD15(), colours)
    sdxl = _explained(latent, comfy.latent_formats.SDXL(), colours)
    return sdxl > _MIN_EXPLAINED and sdxl > sd1 + _MIN_LEAD


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
