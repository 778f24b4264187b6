"""The motion file: the trained parameters only, as safetensors with a descriptive header.

Header keys: `lamp.format` (version), `lamp.config` (JSON of `MotionConfig`), `lamp.rank` in a
compact file, the fields of modelspec 1.0.0, and what the writer adds (ComfyUI's `prompt` and
`workflow`). docs/motion_file.md is the specification.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from ..errors import IncompatibleModelError, LampError, MotionFileError, is_out_of_memory
from ..files.atomic import write_advice, write_file
from ..files.header import MAX_HEADER, check_file
from ..method.architecture import SiteMap, describe_family
from ..plain import log
from .compress import Factors, check_size, compress, compress_factors
from .config import MotionConfig, config_text, read_config
from .encoding import BYTES_KEY, RANK_KEY, Encoding, decode, read_encodings
from .shapes import Shapes, implausible, misfit, shapes_for, shapes_of

RUN_KEY = "lamp.run"
"""Header entry of a trained motion: the mark of its run, see `training.session.mark_of`."""
_MODELSPEC_ARCHITECTURE = {
    "sd1": "stable-diffusion-v1/lamp-motion",
    "sd2": "stable-diffusion-v2-768-v/lamp-motion",
    "sdxl": "stable-diffusion-xl-v1-base/lamp-motion",
}
# A motion for SD-XL in fp32 takes 2.5 GB; no honest file is larger than this.
_MAX_BYTES = 8 * 2**30
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_EXTRA = MAX_HEADER // 2


@dataclass(frozen=True)
class MotionFile:
    """A motion from disk or from training: tensors by canonical name, and how to run them."""

    state: dict[str, Tensor]
    config: MotionConfig
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = "the motion"

    def check_against(self, sites: SiteMap) -> None:
        """Check that the motion fits a UNet.

        Raises:
            IncompatibleModelError: it was trained for another model family.
            MotionFileError: tensors are missing, unknown or of a wrong shape.
        """
        _check_fit(self.name, self.config, shapes_of(self.state), sites)


# --- writing --------------------------------------------------------------------------------------


def save_motion(
    path: Path,
    state: Mapping[str, Tensor],
    config: MotionConfig,
    *,
    dtype: torch.dtype = torch.float16,
    size: float = 1.0,
    factors: Mapping[str, Factors] | None = None,
    title: str = "",
    license_name: str = "",
    thumbnail: str = "",
    extra: Mapping[str, str] | None = None,
    new: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write a motion file atomically.

    Args:
        dtype: fp16 keeps a SD 1.x motion at 508 MB. A tensor that overflows it stays in fp32.
        size: below 1, the share of the fp16 bytes that a compact file takes, see `compress`.
        factors: of tensors that were trained as low-rank factors, stored in their place.
        thumbnail: a `data:image/jpeg;base64,...` picture for model browsers.
        extra: further header entries.
        new: never overwrite; an existing file leads to `NAME-2`.
        progress: of the compression, which takes minutes, see `compress`.

    Returns:
        Where the file is.

    Raises:
        MotionFileError: a tensor holds NaN or infinite values, or the disk refuses the file.
        LampError: the size is out of range, or too small for this motion.
    """
    check_size(size)
    compact = size < 1.0 or bool(factors)
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    metadata = {
        "lamp.format": "1",
        "lamp.config": config_text(replace(config, importance={}) if compact else config),
        **_modelspec(config, title or path.stem, license_name, thumbnail),
        **_fitting(extra or {}),
    }
    if compact:
        if factors:
            data, encodings = compress_factors(factors)
        else:
            data, encodings = compress(tensors, size, config.importance, progress)
        rest = tensors.keys() - (factors or tensors).keys()
        tensors = {BYTES_KEY: data, **{name: tensors[name] for name in rest}}
        metadata |= {"lamp.format": "2", RANK_KEY: encodings}
    return _write(path, tensors, metadata, new)


def copy_motion(
    source: Path, target: Path, metadata: Mapping[str, str], extra: Mapping[str, str]
) -> Path:
    """Write a new file with the tensors of a motion file as they are stored.

    Args:
        metadata: its header, perhaps changed; only the entries about the motion are kept.
        extra: further header entries.

    Raises:
        MotionFileError: the disk refuses the file.
    """
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    own = {
        name: text
        for name, text in metadata.items()
        if name.startswith(("lamp.", "modelspec.")) and name != RUN_KEY
    }
    return _write(target, tensors, {**own, **_fitting(extra)}, True)


def _write(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], new: bool) -> Path:
    from safetensors.torch import save_file

    # File names can hold bytes that are not text: each becomes a `?`, as in captions.
    metadata = {_text(name): _text(text) for name, text in metadata.items()}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=metadata)
        # safetensors writes 0600, which other users' servers cannot read. Shares may refuse it.
        with contextlib.suppress(OSError):
            temporary.chmod(0o644)

    try:
        return write_file(path, write, replace=not new)
    except Exception as error:
        raise MotionFileError(
            f"The motion could not be written to {path.name}: {error}. "
            f"{write_advice(error, path.parent)} or choose another name."
        ) from error


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    if not torch.isfinite(tensor).all():
        raise MotionFileError(
            f"Nothing was written: '{name}' holds NaN or infinite values. Train again with a lower "
            "learning rate."
        )
    narrowed = tensor.to(dtype).contiguous()
    return narrowed if torch.isfinite(narrowed).all() else tensor.float().contiguous()


def _modelspec(
    config: MotionConfig, title: str, license_name: str, thumbnail: str
) -> dict[str, str]:
    """modelspec 1.0.0, which model browsers read."""
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": _MODELSPEC_ARCHITECTURE.get(config.family, f"{config.family}/lamp-motion"),
        "implementation": "LAMP",
        "title": title,
        "description": f"LAMP motion '{config.prompt}'"
        + (f", {config.frames} frames" if config.frames else ""),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resolution": f"{config.width}x{config.height}" if config.width and config.height else "",
        "trigger_phrase": config.prompt,
        "usage_hint": "Load LAMP Motion, with the first frame from any image model",
        "license": license_name,
        "thumbnail": thumbnail,
    }
    return {f"modelspec.{key}": value for key, value in spec.items() if value}


def _fitting(extra: Mapping[str, str]) -> dict[str, str]:
    """The further entries, shortest first, that fit into the header."""
    kept, size = {}, 0
    for name, text in sorted(extra.items(), key=lambda item: len(item[1])):
        size += len(json.dumps(text))
        if size > _MAX_EXTRA:
            log.warning("'%s' is too long for the motion file and is not saved in it.", name)
        else:
            kept[name] = text
    return kept


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


# --- reading --------------------------------------------------------------------------------------


def run_of(path: Path) -> str:
    """The mark of the training run that wrote a motion file, empty if there is none."""
    return read_header(path).get(RUN_KEY, "")


def read_header(path: Path) -> dict[str, str]:
    """The header's entries, unchecked; none if the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return {}


def load_motion_file(path: Path, sites: SiteMap | None = None) -> MotionFile:
    """Read and check a motion file. Whatever the file claims, its tensors take at most three times
    the memory of an honest motion of its family.

    Args:
        sites: of the UNet that it is for. If given, tensors are only read if they fit.

    Raises:
        MotionFileError: the file is missing, damaged, not a motion, of a newer format, does not fit
            `sites`, or there is too little memory.
        IncompatibleModelError: it was trained for another model family.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MotionFileError(f"There is no motion file {path.name}. Refresh the list of files.")
    if path.stat().st_size > _MAX_BYTES:
        raise MotionFileError(f"{path.name} is larger than any motion (8 GiB).")
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            config = read_config(path.name, metadata)
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            encodings = _read_encodings(path.name, config, metadata, shapes)
            if sites is not None:
                _check_fit(path.name, config, shapes, sites)
            # Clones: on Windows a memory-mapped file can be neither replaced nor deleted.
            state = {name: file.get_tensor(name).clone() for name in names}
            state = decode(path.name, state, encodings) if RANK_KEY in metadata else state
    except LampError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise MotionFileError(
            f"There is not enough memory to read {path.name}. Unload other models or close other "
            "programs."
            if is_out_of_memory(error)
            else f"{path.name} cannot be read as .safetensors ({str(error)[:200]}). Download it "
            "again."
        ) from error
    for name, tensor in state.items():
        check_tensor(path.name, name, tensor)
    return MotionFile(state, config, metadata, path.name)


def _read_encodings(
    file: str, config: MotionConfig, metadata: Mapping[str, str], shapes: Shapes
) -> dict[str, Encoding]:
    """The encodings of a compact file, none for others. `shapes` becomes that of the decoded
    motion, and is checked before anything is decoded."""
    if RANK_KEY not in metadata:
        return {}
    encodings = read_encodings(file, metadata[RANK_KEY])
    shapes.pop(BYTES_KEY, None)
    shapes |= {name: encoding.shape for name, encoding in encodings.items()}
    problem = implausible(config.family, shapes)
    if problem is not None:
        raise MotionFileError(
            f"The compact file {file} is damaged ('{RANK_KEY}' in its header: {problem}). Download "
            "it again."
        )
    return encodings


def check_tensor(file: str, name: str, tensor: Tensor) -> None:
    """Check a tensor from an untrusted file.

    Raises:
        MotionFileError: it does not hold plain floats, or NaN or infinite values.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if tensor.dtype not in _DTYPES or not plain:
        raise MotionFileError(
            f"{file}: tensor '{name[:100]}' holds {tensor.dtype}, not plain floats of 16 bits or "
            "more. Download it again."
        )
    # Not isfinite, which takes twice a tensor's own memory.
    if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
        raise MotionFileError(
            f"{file}: tensor '{name[:100]}' holds NaN or infinite values: the training diverged. "
            "Use an earlier file, or train again with a lower learning rate."
        )


def _check_fit(file: str, config: MotionConfig, shapes: Shapes, sites: SiteMap) -> None:
    if config.family != sites.family:
        raise _family_error(file, config.family, sites.family)
    problem = misfit(shapes, shapes_for(sites))
    if problem is not None:
        raise MotionFileError(
            f"{file} does not fit the connected MODEL: {problem}. The file is damaged, or the "
            "motion was trained on a differently shaped model. Use its base model "
            f"('{config.base_model or 'unknown'}') or download it again."
        )


def _family_error(name: str, trained: str, connected: str) -> IncompatibleModelError:
    """The most frequent mistake: SD-XL, which makes frame 1, connected to a SD 1.x motion."""
    if connected == "sdxl":
        advice = (
            "Use SD-XL only for the first frame, with its own KSampler, and connect a "
            f"{describe_family(trained)} checkpoint to Load LAMP Motion"
        )
    else:
        advice = f"Connect a {describe_family(trained)} checkpoint, with its own CLIP and VAE"
    return IncompatibleModelError(
        f"{name} was trained for {describe_family(trained)}; the connected MODEL is "
        f"{describe_family(connected)}. {advice}."
    )
