"""Convert an official LAMP checkpoint to a motion file.

The official training (github.com/RQ-Wu/LAMP) saves a complete diffusers folder. Its UNet holds the
image model with the convolutions renamed to `NAME.conv2d`, the added layers, and tuned queries in
place of the originals. The motion file takes the added layers, and the difference of the queries to
the base checkpoint.
"""

from __future__ import annotations

import itertools
import math
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IncompatibleModelError, MotionFileError
from ..files.header import check_file
from ..method.architecture import canonical_names, map_unet
from ..method.motion import Motion
from .config import MotionConfig
from .file import MotionFile, check_tensor
from .provenance import LICENSE_KEY, SOURCE_KEY
from .shapes import Shapes, misfit, shapes_of

LICENSE = "CC BY-NC 4.0"
"""License of the authors' code and weights (their repository), and so of converted files."""

_QUERY = ".attn1.to_q.weight"
# Relative to the base's norm; rounding to bf16 alone gives 0.001.
_SAME_BASE = 3e-3
_MAX_BYTES = 16 * 2**30


def convert_official(
    folder: Path,
    unet: nn.Module,
    *,
    weights: Mapping[str, Tensor] | None = None,
    base_model: str = "",
    base_hash: str = "",
    prompt: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MotionFile:
    """The motion inside an official checkpoint, in fp32.

    Args:
        folder: the output of the official training, with `unet/` in it, or that sub-folder.
        unet: the UNet of the base checkpoint, as the host loads it.
        weights: the unpatched weights of `unet`, by its names, where it may be patched.
        base_model, base_hash: the base checkpoint's name and hash, for the motion file.
        prompt: the motion prompt, which the folder does not record.
        progress: called with (done, total) tensors; an exception from it cancels.

    Raises:
        MotionFileError: the folder holds no official UNet, or a damaged one.
        IncompatibleModelError: it was trained on another base checkpoint.
    """
    sites = map_unet(unet)
    place = find_weights(folder)
    official = _read(place)
    where = f"{folder.name}/{place.name}"
    base = canonical_state(unet, weights)
    learned = Motion(sites, device="meta").state_dict()
    convs = {site.name for site in sites.convs}
    inflated = {name: _official_name(name, convs) for name in base}
    expected = {inflated[name]: tuple(tensor.shape) for name, tensor in base.items()}
    _check_shapes(where, official, shapes_of(learned) | expected)
    done, total = itertools.count(1), 2 * (len(learned) + len(base))

    def advance() -> None:
        progress(next(done), total)

    for name, tensor in official.items():
        check_tensor(where, name, tensor)
        advance()
    _check_base(where, official, base, inflated, advance)
    state = {}
    for name in learned:
        state[name] = official[name].to(torch.float32, copy=True)
        if name.endswith(_QUERY):
            state[name] -= base[name].float().cpu()
        advance()
    config = MotionConfig(
        family=sites.family, prompt=prompt, base_model=base_model, base_hash=base_hash
    )
    metadata = {
        LICENSE_KEY: LICENSE,
        SOURCE_KEY: f"the official LAMP checkpoint '{folder.name}' ({LICENSE})",
    }
    return MotionFile(state, config, metadata, folder.name)


def find_weights(folder: Path) -> Path:
    """The UNet's weights file in an official folder.

    Raises:
        MotionFileError: there is none, or more than one.
    """
    for place in (folder / "unet", folder):
        for ending in ("safetensors", "bin"):
            files = sorted(file for file in place.glob(f"*.{ending}") if file.is_file())
            if len(files) > 1:
                names = ", ".join(file.name for file in files[:4])
                raise MotionFileError(
                    f"{folder.name} holds several weights files ({names}). Keep only the one from "
                    "the official training."
                )
            if files:
                return files[0]
    raise MotionFileError(
        f"There is no unet/diffusion_pytorch_model.bin (or .safetensors) in {folder}. Choose a "
        "folder from the official LAMP training."
    )


def canonical_state(
    unet: nn.Module, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A UNet's weights by canonical name; `weights` as in `convert_official`."""
    names = canonical_names(unet)
    state = {}
    for key, tensor in (unet.state_dict() if weights is None else weights).items():
        module, _, parameter = key.rpartition(".")
        state[f"{names[module]}.{parameter}"] = tensor
    return state


def _official_name(name: str, convs: set[str]) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{module}.conv2d.{parameter}" if module in convs else name


def _read(path: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    if path.stat().st_size > _MAX_BYTES:
        raise MotionFileError(f"{path.name} is larger than any official checkpoint (16 GiB).")
    try:
        if path.suffix == ".safetensors":
            check_file(path)
            return load_file(path)
        if tarfile.is_tarfile(path):  # PyTorch creates a folder before it refuses this old format
            raise ValueError("it is a tar archive")
        zipped = zipfile.is_zipfile(path)
        if zipped and _compressed(path):  # a small file could expand to any size
            raise ValueError("its archive is compressed, which torch.save never does")
        # weights_only allows tensors and plain containers, and refuses anything else in a pickle.
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # unpickling bytes from strangers can raise anything
        first = str(error).strip().split("\n")[0][:200]
        raise MotionFileError(
            f"{path.name} cannot be read as weights ({type(error).__name__}: {first}). No code in "
            "it was run. Download the file again."
        ) from error
    if not isinstance(state, dict) or any(
        type(name) is not str or not isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise MotionFileError(f"{path.name} holds something other than the tensors of a UNet.")
    return state


def _compressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _check_shapes(where: str, official: Mapping[str, Tensor], expected: Shapes) -> None:
    if not any(".conv1d." in name for name in official):
        raise MotionFileError(
            f"{where} holds no motion (no tensor '….conv1d.weight'). It is the UNet of an image "
            "model or of another method. Choose a folder from the official LAMP training."
        )
    problem = misfit(shapes_of(official), expected)
    if problem is not None:
        raise MotionFileError(
            f"{where} does not fit the given base checkpoint: {problem}. It is damaged, or it was "
            "trained on a differently shaped model."
        )


def _check_base(
    where: str,
    official: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    inflated: Mapping[str, str],
    advance: Callable[[], None],
) -> None:
    """Check that the frozen weights are those of the base. Otherwise the difference of the queries
    would be that between two checkpoints. `advance` is called after each tensor."""
    difference, size = 0.0, 0.0
    for name, tensor in base.items():
        if not name.endswith(_QUERY):
            own = tensor.detach().cpu().float()
            difference += (official[inflated[name]].float() - own).square().sum().item()
            size += own.square().sum().item()
        advance()
    if not math.sqrt(difference) <= _SAME_BASE * math.sqrt(size):
        raise IncompatibleModelError(
            f"{where} was trained on another base checkpoint: its frozen weights differ by "
            f"{math.sqrt(difference / max(size, 1e-30)):.1%} from the given one. Choose its "
            "base checkpoint without LoRAs (for the authors' motions, Stable Diffusion 1.4)."
        )
