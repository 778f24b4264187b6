"""What shapes the tensors of a motion have, known before any of them is made."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from torch import Tensor

from ..method.architecture import BlockSite, ConvSite, SiteMap
from ..method.motion import Motion

Shapes = dict[str, tuple[int, ...]]
"""By the tensors' canonical names."""

# In numbers: what a motion for the family's own UNet has, and a little more.
_MOST = {"sd1": 2**28, "sd2": 2**28, "sdxl": 5 * 2**28}
_MOST_OF_OTHERS = 2**28
_MOST_SITES = 2000  # SD-XL has 139
_SIGNS = {"conv": ".conv1d.bias", "block": ".norm_temp.bias"}


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def shapes_for(sites: SiteMap) -> Shapes:
    """The shapes of a motion for a UNet."""
    return shapes_of(Motion(sites, device="meta").state_dict())


def misfit(shapes: Shapes, expected: Shapes) -> str | None:
    """The first thing in which they differ, or None."""
    for name, wanted in expected.items():
        if name not in shapes:
            return f"tensor '{name[:100]}' is missing"
        if shapes[name] != wanted:
            return f"tensor '{name[:100]}' has shape {shapes[name][:8]}, needed is {wanted}"
    unknown = next((name for name in shapes if name not in expected), None)
    return None if unknown is None else f"tensor '{unknown[:100]}' has no place in it"


def no_motion(family: str, shapes: Shapes) -> str | None:
    """Why a motion for a UNet of this family cannot have these shapes; None if it can.

    Where its sites are, and how wide, is read off the names and off one vector of each: a small
    file can tell of any matrices, if these are of rank zero, but it has to hold the vectors.
    """
    expected: Shapes = {}
    sites = 0
    for kind, sign in _SIGNS.items():
        for name, shape in shapes.items():
            if name.endswith(sign) and len(shape) == 1:
                sites += 1
                if sites > _MOST_SITES:
                    return f"it has more than {_MOST_SITES:,} sites"
                site = name.removesuffix(sign)
                parts = _parts(kind, shape[0]).items()
                expected |= {f"{site}{part}": wanted for part, wanted in parts}
    problem = misfit(shapes, expected)
    if problem is not None:
        return problem
    numbers = sum(math.prod(shape) for shape in shapes.values())
    if numbers > _MOST.get(family, _MOST_OF_OTHERS):
        return f"it would have {numbers:,} numbers, more than any motion of its family"
    return None


@functools.lru_cache(64)
def _parts(kind: str, width: int) -> Shapes:
    """The tensors of a site, named as behind its name."""
    convs = (ConvSite("site", "site", width),) if kind == "conv" else ()
    blocks = (BlockSite("site", "site", width, 1),) if kind == "block" else ()
    found = shapes_for(SiteMap(convs, blocks, (), (), ""))
    return {name.removeprefix("site"): shape for name, shape in found.items()}
