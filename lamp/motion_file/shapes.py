"""The tensor shapes of a motion, known without creating the tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from torch import Tensor

from ..method.architecture import BlockSite, ConvSite, SiteMap
from ..method.motion import Motion

Shapes = dict[str, tuple[int, ...]]
"""By canonical tensor name."""

# Parameters: those of a motion for the family's own UNet, and a little more.
_MAX_PARAMETERS = {"sd1": 2**28, "sd2": 2**28, "sdxl": 5 * 2**28}
_MAX_OTHERS = 2**28
_MAX_SITES = 2000  # SD-XL has 139
_VECTORS = {"conv": ".conv1d.bias", "block": ".norm_temp.bias"}


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def shapes_for(sites: SiteMap) -> Shapes:
    """The shapes of a motion for a UNet."""
    return shapes_of(Motion(sites, device="meta").state_dict())


def misfit(shapes: Shapes, expected: Shapes) -> str | None:
    """The first difference between two sets of shapes, or None."""
    for name, wanted in expected.items():
        if name not in shapes:
            return f"tensor '{name[:100]}' is missing"
        if shapes[name] != wanted:
            return f"tensor '{name[:100]}' has shape {shapes[name][:8]}, not {wanted}"
    unknown = next((name for name in shapes if name not in expected), None)
    return None if unknown is None else f"tensor '{unknown[:100]}' is unknown"


def implausible(family: str, shapes: Shapes) -> str | None:
    """Why no motion of this family can have these shapes; None if one can.

    The sites and their widths follow from one vector of each. A small file can claim matrices of
    any size at rank zero, but vectors have to be in it.
    """
    expected: Shapes = {}
    sites = 0
    for kind, vector in _VECTORS.items():
        for name, shape in shapes.items():
            if name.endswith(vector) and len(shape) == 1:
                sites += 1
                if sites > _MAX_SITES:
                    return f"it has more than {_MAX_SITES:,} sites"
                site = name.removesuffix(vector)
                parts = _parts(kind, shape[0]).items()
                expected |= {f"{site}{part}": wanted for part, wanted in parts}
    problem = misfit(shapes, expected)
    if problem is not None:
        return problem
    count = sum(math.prod(shape) for shape in shapes.values())
    if count > _MAX_PARAMETERS.get(family, _MAX_OTHERS):
        return f"it would have {count:,} parameters, more than any motion of its family"
    return None


@functools.lru_cache(64)
def _parts(kind: str, width: int) -> Shapes:
    """The shapes of one site's tensors, named relative to the site."""
    convs = (ConvSite("site", "site", width),) if kind == "conv" else ()
    blocks = (BlockSite("site", "site", width, 1),) if kind == "block" else ()
    found = shapes_for(SiteMap(convs, blocks, (), (), ""))
    return {name.removeprefix("site"): shape for name, shape in found.items()}
