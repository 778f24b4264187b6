"""From an official LAMP checkpoint to a motion file.

The official training (github.com/RQ-Wu/LAMP) saves a whole diffusers folder. Its UNet holds the
image model beside what was learned, the convolutions as `NAME.conv2d`, and the tuned queries in
place of the image model's. Here the learned parts are taken out, the queries as the change that
they are to the base checkpoint's.
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
from .file import MotionFile
from .provenance import LICENSE_KEY, SOURCE_KEY

LICENSE = "CC BY-NC 4.0"
"""Of the authors' code and weights (their repository), so of what is converted from them."""

_QUERY = ".attn1.to_q.weight"
# In units of the base's norm: rounding to bf16 gives 0.001.
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
        folder: what the official training wrote, with `unet/` in it, or that folder itself.
        unet: the image model that it was trained on, a host's own UNet.
        weights: the UNet's own, by its names, where patches may stand in it now.
        base_model, base_hash: how the motion's file names it.
        prompt: the words of the motion; the folder does not tell them.
        progress: is told how many tensors are looked through, and of how many; what it raises ends
            the work.

    Raises:
        MotionFileError: the folder holds no such UNet, or a damaged one.
        IncompatibleModelError: it was trained on another image model.
    """
    sites = map_unet(unet)
    place = find_weights(folder)
    official = _read(place)
    where = f"{folder.name}/{place.name}"
    base = canonical_state(unet, weights)
    learned = Motion(sites, device="meta").state_dict()
    convs = {site.name for site in sites.convs}
    inflated = {name: _official_name(name, convs) for name in base}
    _check_names(where, official, {*inflated.values(), *learned})
    done, total = itertools.count(1), 2 * (len(learned) + len(base))

    def tell() -> None:
        progress(next(done), total)

    for name, tensor in (*learned.items(), *((inflated[n], t) for n, t in base.items())):
        _check_tensor(where, name, official[name], tensor)
        tell()
    _check_base(where, official, base, inflated, tell)
    state = {}
    for name in learned:
        state[name] = official[name].to(torch.float32, copy=True)
        if name.endswith(_QUERY):
            state[name] -= base[name].float().cpu()
        tell()
    config = MotionConfig(
        family=sites.family, prompt=prompt, base_model=base_model, base_hash=base_hash
    )
    metadata = {
        LICENSE_KEY: LICENSE,
        SOURCE_KEY: f"the official LAMP checkpoint '{folder.name}' ({LICENSE})",
    }
    return MotionFile(state, config, metadata, folder.name)


def find_weights(folder: Path) -> Path:
    """The file of the UNet's weights in an official folder.

    Raises:
        MotionFileError: there is none, or more than one.
    """
    for place in (folder / "unet", folder):
        for ending in ("safetensors", "bin"):
            files = sorted(file for file in place.glob(f"*.{ending}") if file.is_file())
            if len(files) > 1:
                names = ", ".join(file.name for file in files[:4])
                raise MotionFileError(
                    f"{folder.name} holds several files of weights ({names}): leave the one that "
                    "the official training wrote."
                )
            if files:
                return files[0]
    raise MotionFileError(
        f"There is no unet/diffusion_pytorch_model.bin (or .safetensors) in {folder}: give the "
        "folder that the official LAMP training wrote."
    )


def canonical_state(
    unet: nn.Module, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A host's UNet by canonical names; `weights` as in `convert_official`."""
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
        raise MotionFileError(f"{path.name} is larger than any such checkpoint can be (16 GiB).")
    try:
        if path.suffix == ".safetensors":
            check_file(path)
            return load_file(path)
        if tarfile.is_tarfile(path):  # PyTorch makes a folder before it refuses the oldest form
            raise ValueError("it is a tar archive")
        zipped = zipfile.is_zipfile(path)
        if zipped and _compressed(path):  # a small file that would take any amount of memory
            raise ValueError("its archive is compressed, which torch.save never does")
        # weights_only: tensors and plain containers; whatever else a pickle asks for is refused.
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # an unpickler meets bytes of strangers: anything may come up
        first = str(error).strip().split("\n")[0][:200]
        raise MotionFileError(
            f"{path.name} cannot be read as weights ({type(error).__name__}: {first}). Nothing in "
            "it was run; get the file again from where it comes from."
        ) from error
    if not isinstance(state, dict) or any(
        type(name) is not str or not isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise MotionFileError(f"{path.name} holds something else than the tensors of a UNet.")
    return state


def _compressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _check_names(where: str, official: Mapping[str, Tensor], expected: set[str]) -> None:
    if not any(".conv1d." in name for name in official):
        raise MotionFileError(
            f"{where} holds no motion (no tensor '….conv1d.weight'): it is an image model's UNet, "
            "or that of another method. Give the folder that the official LAMP training wrote."
        )
    for name in sorted(expected):
        if name not in official:
            raise MotionFileError(
                f"{where} lacks the tensor '{name}': it is damaged, or was trained on an image "
                "model of another shape than the base given."
            )
    for name in official:
        if name not in expected:
            raise MotionFileError(
                f"{where} holds the tensor '{name[:100]}', which has no place in a LAMP model of "
                "the base given: it is of another method, or for an image model of another shape."
            )


def _check_tensor(where: str, name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise MotionFileError(
            f"{where}: tensor '{name}' has shape {tuple(tensor.shape)[:8]}, with the base given it "
            f"would have {tuple(expected.shape)}. Give the checkpoint that it was trained on."
        )
    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or not tensor.is_floating_point()
    ):
        raise MotionFileError(f"{where}: tensor '{name}' holds {tensor.dtype}, not plain floats.")
    if not all(math.isfinite(end) for end in torch.aminmax(tensor)):
        raise MotionFileError(
            f"{where}: tensor '{name}' holds NaN or infinite values: that training diverged."
        )


def _check_base(
    where: str,
    official: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    inflated: Mapping[str, str],
    tell: Callable[[], None],
) -> None:
    """What the official training froze must be the base's own: else the change of the queries
    would hold the difference between two checkpoints. `tell` is called after each tensor."""
    difference, size = 0.0, 0.0
    for name, tensor in base.items():
        if not name.endswith(_QUERY):
            own = tensor.detach().cpu().float()
            difference += (official[inflated[name]].float() - own).square().sum().item()
            size += own.square().sum().item()
        tell()
    if not math.sqrt(difference) <= _SAME_BASE * math.sqrt(size):
        raise IncompatibleModelError(
            f"{where} was trained on another base checkpoint: the parts that its training left "
            f"alone differ by {math.sqrt(difference / max(size, 1e-30)):.1%} from the one given. "
            "Give the one that it names (the authors' motions: Stable Diffusion 1.4), without "
            "LoRAs."
        )
