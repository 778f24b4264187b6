"""Fit images to sizes that the latent grid allows."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from ..errors import LampError

Fit = Literal["crop", "pad", "stretch"]

_LEVEL = 0.5 / 255
_NEARLY_ALL = 0.99  # of the pixels
LATENT_STRIDE = 8
"""Pixels per latent in each direction, in the VAE of Stable Diffusion 1.x."""


def check_size(width: int, height: int) -> None:
    """Raise LampError unless both are positive multiples of 8."""
    for name, size in (("width", width), ("height", height)):
        if size < LATENT_STRIDE or size % LATENT_STRIDE:
            nearest = max(round(size / LATENT_STRIDE), 1) * LATENT_STRIDE
            raise LampError(
                f"The {name} must be a positive multiple of {LATENT_STRIDE}, not {size}. Use "
                f"{nearest}, for example."
            )


def fit_images(
    images: Tensor, width: int, height: int, fit: Fit = "crop", antialias: bool = True
) -> Tensor:
    """Resize ``n h w c`` to ``n height width c`` (bilinear), keeping the dtype.

    ``crop`` covers the target and cuts off the rest, ``pad`` fits inside it and adds black bars,
    both centred and at the original aspect ratio; ``stretch`` changes the ratio. ``antialias``
    averages all pixels when shrinking. Without it, ``stretch`` matches the official preparation of
    the first frame (within 0.75 of 255 levels, as that one uses integers). Raises LampError for a
    size that is not a positive multiple of 8, images that are not ``n h w c`` or empty, or an
    unknown fit.
    """
    check_size(width, height)
    if images.ndim != 4 or 0 in images.shape:
        raise LampError(f"Images must have the shape n h w c, not {tuple(images.shape)}.")
    if fit not in get_args(Fit):
        raise LampError(f"Unknown fit '{fit}'. Choose one of: {', '.join(get_args(Fit))}.")
    return _fit(images, width, height, fit, antialias)


def fit_small(images: Tensor, width: int, height: int, fit: Fit) -> Tensor:
    """As `fit_images`, for analysis only: to any size, subsampling much larger images."""
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
    """Scale so that both sides reach the target, then crop the centre."""
    scale = max(width / x.shape[3], height / x.shape[2])
    # Crop to whole source pixels first, so that a very long image does not become huge in between,
    # then to target pixels.
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
    """Round up, tolerating rounding errors of an exact division."""
    return -int(-(value - 1e-6) // 1)


def opaque(images: Tensor) -> Tensor:
    """``... h w c`` (c is 1, 3 or 4) with any values -> ``... h w 3`` in 0..1, over black."""
    images = images.float().clamp(0.0, 1.0)
    colour = images[..., :3] * images[..., 3:] if images.shape[-1] == 4 else images
    return colour.expand(*colour.shape[:-1], 3)


def one_colour(image: Tensor) -> str:
    """`white` or `black` if nearly all of a picture ``h w 3`` in 0..1 is; else empty."""
    for name, there in (("white", image > 1 - _LEVEL), ("black", image < _LEVEL)):
        if there.all(-1).float().mean() > _NEARLY_ALL:
            return name
    return ""


def thumbnail_uri(images: Tensor, side: int = 256) -> str:
    """The first of `n h w c` images in 0..1, scaled to at most `side`, as a `data:` JPEG."""
    import base64
    import io

    from PIL import Image

    levels = images[0, ..., :3].float().nan_to_num(0.0).clamp(0.0, 1.0).mul(255).byte().cpu()
    picture = Image.fromarray(levels.expand(*levels.shape[:2], 3).contiguous().numpy())
    picture.thumbnail((side, side))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
