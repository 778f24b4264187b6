"""Fitting images to a size that the latent grid can hold."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from ..errors import LampError

Fit = Literal["crop", "pad", "stretch"]

_LEVEL = 0.5 / 255
_HARDLY_ANYTHING_ELSE = 0.99  # of the pixels
LATENT_STRIDE = 8
"""Pixels per latent, in both directions, in the VAE of Stable Diffusion 1.x."""


def check_size(width: int, height: int) -> None:
    """Raise LampError unless both are positive multiples of 8."""
    for name, size in (("width", width), ("height", height)):
        if size < LATENT_STRIDE or size % LATENT_STRIDE:
            nearest = max(round(size / LATENT_STRIDE), 1) * LATENT_STRIDE
            raise LampError(
                f"The {name} must be a positive multiple of {LATENT_STRIDE}, not {size}. "
                f"Use {nearest}, for instance."
            )


def fit_images(
    images: Tensor, width: int, height: int, fit: Fit = "crop", antialias: bool = True
) -> Tensor:
    """Resize ``n h w c`` to ``n height width c`` (bilinear), in the input's own type.

    ``crop`` covers the target and cuts what stands over, ``pad`` fits inside it and fills up with
    black, both centred and with the aspect ratio kept; ``stretch`` keeps everything and gives up
    the ratio. ``antialias`` averages all pixels when shrinking; without it and with ``stretch``
    this is the official preparation of the first frame (to 0.75 levels of 255: that one
    calculates in whole numbers). Raises LampError for a size that is not a positive multiple of
    8, images that are not ``n h w c`` or empty, or an unknown fit.
    """
    check_size(width, height)
    if images.ndim != 4 or 0 in images.shape:
        raise LampError(f"Images must have the shape n h w c, not {tuple(images.shape)}.")
    if fit not in get_args(Fit):
        raise LampError(f"Unknown fit '{fit}'. Choose one of: {', '.join(get_args(Fit))}.")
    return _fit(images, width, height, fit, antialias)


def fit_small(images: Tensor, width: int, height: int, fit: Fit) -> Tensor:
    """As `fit_images`, to look at only: any size, and of a much larger image only some pixels."""
    finer = min(images.shape[2] // (2 * width), images.shape[1] // (2 * height))
    step = max(finer, 1)
    return _fit(images[:, ::step, ::step], width, height, fit, True)


def _fit(images: Tensor, width: int, height: int, fit: Fit, antialias: bool) -> Tensor:
    if images.shape[1:3] == (height, width):
        return images
    resize = {"crop": _cover, "pad": _inside, "stretch": _resize}[fit]
    fitted = resize(images.movedim(-1, 1).float(), width, height, antialias).movedim(1, -1)
    return (fitted if images.is_floating_point() else fitted.round()).to(images.dtype)


def _resize(x: Tensor, width: int, height: int, antialias: bool) -> Tensor:
    return F.interpolate(x, (height, width), mode="bilinear", antialias=antialias)


def _cover(x: Tensor, width: int, height: int, antialias: bool) -> Tensor:
    """Scale so that both sides reach the target, then cut the middle out."""
    scale = max(width / x.shape[3], height / x.shape[2])
    # Cut first to whole pixels that still hold the target, so that a very long image does not
    # grow huge in between; the second cut is at the target's finer pixels.
    x = _middle(x, _ceil(width / scale), _ceil(height / scale))
    covering = max(round(x.shape[3] * scale), width), max(round(x.shape[2] * scale), height)
    return _middle(_resize(x, *covering, antialias), width, height)


def _inside(x: Tensor, width: int, height: int, antialias: bool) -> Tensor:
    """Scale so that the longer side reaches the target, then add black bars."""
    scale = min(width / x.shape[3], height / x.shape[2])
    inner = max(round(x.shape[3] * scale), 1), max(round(x.shape[2] * scale), 1)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    bars = (left, width - inner[0] - left, top, height - inner[1] - top)
    return F.pad(_resize(x, *inner, antialias), bars)


def _middle(x: Tensor, width: int, height: int) -> Tensor:
    width, height = min(width, x.shape[3]), min(height, x.shape[2])
    left, top = (x.shape[3] - width) // 2, (x.shape[2] - height) // 2
    return x[:, :, top : top + height, left : left + width]


def _ceil(value: float) -> int:
    """Round up, but not for the last digits of a division that comes out even."""
    return -int(-(value - 1e-6) // 1)


def opaque(images: Tensor) -> Tensor:
    """``... h w c`` (c is 1, 3 or 4), of any values -> ``... h w 3`` in 0..1 on black."""
    images = images.float().clamp(0.0, 1.0)
    colour = images[..., :3] * images[..., 3:] if images.shape[-1] == 4 else images
    return colour.expand(*colour.shape[:-1], 3)


def one_colour(image: Tensor) -> str:
    """`white` or `black` if hardly anything else is in a picture ``h w 3`` in 0..1; else empty."""
    for name, there in (("white", image > 1 - _LEVEL), ("black", image < _LEVEL)):
        if there.all(-1).float().mean() > _HARDLY_ANYTHING_ELSE:
            return name
    return ""


def thumbnail_uri(images: Tensor, side: int = 256) -> str:
    """The first of `n h w c` images in 0..1, at most `side` large, as a `data:` JPEG."""
    import base64
    import io

    from PIL import Image

    levels = images[0, ..., :3].float().nan_to_num(0.0).clamp(0.0, 1.0).mul(255).byte().cpu()
    picture = Image.fromarray(levels.expand(*levels.shape[:2], 3).contiguous().numpy())
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
