"""The motion file: only what was learned, as safetensors with a header that says what it is.

Header keys: `lamp.format` (version), `lamp.config` (JSON of `MotionConfig`), `lamp.rank` in a
compact file, the fields of modelspec 1.0.0, and whatever the writer adds (ComfyUI's `prompt` and
`workflow`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleModelError, LampError, MotionFileError, is_out_of_memory
from ..files.atomic import write_advice, write_file
from ..files.header import MAX_HEADER, check_file
from ..files.strict_json import read_json
from ..method.architecture import SiteMap, describe_family
from ..method.motion import GROUPNORM_MODES
from ..plain import log
from .compress import (
    BYTES_KEY,
    RANK_KEY,
    Factors,
    Form,
    check_size,
    compress,
    compress_factors,
    expand,
    read_forms,
)
from .shapes import Shapes, misfit, no_motion, shapes_for, shapes_of

FORMAT = 2
"""The newest that is read: 1 holds every tensor as it is, 2 some of them in the compact form."""
RUN_KEY = "lamp.run"
"""Header entry of a motion that a run has written: its mark, see `training.session.mark_of`."""
_MODELSPEC_ARCHITECTURE = {
    "sd1": "stable-diffusion-v1/lamp-motion",
    "sd2": "stable-diffusion-v2-768-v/lamp-motion",
    "sdxl": "stable-diffusion-xl-v1-base/lamp-motion",
}
# A motion for SD-XL in fp32 takes 2.5 GB; nothing honest is larger than this.
_MAX_BYTES = 8 * 2**30
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_CONFIG = 2**19  # characters; as JSON of empty lists it takes twenty times as many bytes
_MEASURED = ("frames", "width", "height", "fps")
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_MEASURED[:-1], (0, 10**6)),
    "fps": (0, 1e6),
    "steps": (0, 10**9),
    "seed": (-(2**63), 2**64),
    "learning_rate": (-1e6, 1e6),
}
_MAX_EXTRA = MAX_HEADER // 2


@dataclass(frozen=True)
class MotionConfig:
    """How a motion was made and has to be run.

    ``frames``, ``width``, ``height``, ``fps``: of the windows that it was learned from; 0, and left
    out of the file, where that is not known or not one for all clips.
    ``importance``: by tensor, how much the prediction depends on a number of it: the mean square of
    its gradient in training (the diagonal of the Fisher information), the largest one 1. Empty
    where it is not known. A compact file, which is made by it, does without.
    """

    family: str
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    groupnorm: str = "pooled"
    prompt: str = ""
    captions: list[str] = field(default_factory=list)
    steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    base_model: str = ""
    base_hash: str = ""
    importance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.groupnorm not in GROUPNORM_MODES:
            raise MotionFileError(
                f"groupnorm is '{self.groupnorm}' in the motion's header; known are "
                f"{', '.join(GROUPNORM_MODES)}: get a newer version of LAMP Motion."
            )


@dataclass(frozen=True)
class MotionFile:
    """A motion read from disk or just trained: tensors by canonical name, and how to run them."""

    state: dict[str, Tensor]
    config: MotionConfig
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = "the motion"

    def check_against(self, sites: SiteMap) -> None:
        """See that the motion fits a UNet.

        Raises:
            IncompatibleModelError: it was trained for another family of models.
            MotionFileError: tensors are missing, unknown or of a wrong shape.
        """
        _check_fit(self.name, self.config, shapes_of(self.state), sites)


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
    """Write a motion beside `path` and rename it, so that no half-written file is ever there.

    Args:
        dtype: fp16 keeps a SD 1.x motion at 508 MB. A tensor that overflows it stays in fp32.
        size: below 1, the share of their fp16 bytes that the compact form takes, see `compress`.
        factors: of tensors that were learned as such; they are stored in their place.
        thumbnail: a `data:image/jpeg;base64,...` picture that model browsers show.
        extra: further header entries.
        progress: of the compact form, which takes minutes: see `compress`.
        new: never over another file: one that is there by now gets a `NAME-2` beside it.

    Returns:
        Where it is.

    Raises:
        MotionFileError: a tensor holds NaN or infinite values, or the disk refuses the file.
        LampError: the size is out of range, or too small for this motion.
    """
    from safetensors.torch import save_file

    check_size(size)
    compact = size < 1.0 or bool(factors)
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    metadata = {
        "lamp.format": "1",
        "lamp.config": _config_text(replace(config, importance={}) if compact else config),
        **_modelspec(config, title or path.stem, license_name, thumbnail),
        **_fitting(extra or {}),
    }
    if compact:
        if factors:
            data, forms = compress_factors(factors)
        else:
            data, forms = compress(tensors, size, config.importance, progress)
        rest = tensors.keys() - (factors or tensors).keys()
        tensors = {BYTES_KEY: data, **{name: tensors[name] for name in rest}}
        metadata |= {"lamp.format": "2", RANK_KEY: forms}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata=_encodable(metadata))
        temporary.chmod(0o644)  # safetensors writes 0600, which other users' servers cannot read

    try:
        return write_file(path, write, replace=not new)
    except Exception as error:
        raise MotionFileError(
            f"The motion could not be written to {path.name}: {error}. "
            f"{write_advice(error, path.parent)} or choose another name."
        ) from error


def run_of(path: Path) -> str:
    """The mark of the training run that wrote a motion file; empty if it has none, or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(RUN_KEY, ""))
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return ""


def load_motion_file(path: Path, sites: SiteMap | None = None) -> MotionFile:
    """Read and check a motion file. Its tensors take at most three times what an honest file of its
    family does, whatever it says.

    Args:
        sites: of the UNet that it is for: nothing is read unless it fits.

    Raises:
        MotionFileError: it is missing, damaged, no motion file, of a newer format, does not fit
            `sites`, or the memory does not suffice.
        IncompatibleModelError: it was trained for another family of models.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MotionFileError(f"There is no motion file {path.name}: refresh the list of files.")
    if path.stat().st_size > _MAX_BYTES:
        raise MotionFileError(f"{path.name} is larger than any motion can be (8 GiB).")
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            config = _read_config(path.name, metadata)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            forms = _read_forms(path.name, config, metadata, shapes)
            if sites is not None:
                _check_fit(path.name, config, shapes, sites)
            # Copies: what is mapped can be neither replaced nor deleted on Windows.
            names = list(file.keys())
            state = {name: file.get_tensor(name).clone() for name in names}
            state = expand(path.name, state, forms) if RANK_KEY in metadata else state
    except LampError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise MotionFileError(
            f"{path.name} is no readable .safetensors file ({str(error)[:200]}): download it again."
            if not is_out_of_memory(error)
            else f"There is not enough memory to read {path.name}: close other programs, or other "
            "models in this one."
        ) from error
    for name, tensor in state.items():
        _check_tensor(path.name, name, tensor)
    return MotionFile(state, config, metadata, path.name)


def _read_forms(
    file: str, config: MotionConfig, metadata: Mapping[str, str], shapes: Shapes
) -> dict[str, Form]:
    """The forms of a compact file, if they unfold to a motion; `shapes` is then of that motion."""
    if RANK_KEY not in metadata:
        return {}
    forms = read_forms(file, metadata[RANK_KEY])
    shapes.pop(BYTES_KEY, None)
    shapes |= {name: form.shape for name, form in forms.items()}
    problem = no_motion(config.family, shapes)
    if problem is not None:
        raise MotionFileError(
            f"The compact file {file} is damaged ('{RANK_KEY}' in its header: {problem}): download "
            "it again."
        )
    return forms


def _check_fit(file: str, config: MotionConfig, shapes: Shapes, sites: SiteMap) -> None:
    if config.family != sites.family:
        raise _family_error(file, config.family, sites.family)
    problem = misfit(shapes, shapes_for(sites))
    if problem is not None:
        raise MotionFileError(
            f"{file} does not fit the connected MODEL: {problem}. The file is damaged or "
            "was trained on a model of another shape; use the base model it names "
            f"('{config.base_model or 'unknown'}') or download it again."
        )


def _encodable(metadata: Mapping[str, str]) -> dict[str, str]:
    """Names on a disk may hold bytes that are no text: a `?` stands for each, as in captions."""
    return {_text(name): _text(text) for name, text in metadata.items()}


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


def _config_text(config: MotionConfig) -> str:
    known = asdict(config)
    known = {name: value for name, value in known.items() if value or name not in _MEASURED}
    text = json.dumps(known, ensure_ascii=False)
    if len(text) <= _MAX_CONFIG:
        return text
    log.warning("The captions are too long to be kept in the motion file: they are left out.")
    return json.dumps({**known, "captions": []}, ensure_ascii=False)


def _fitting(extra: Mapping[str, str]) -> dict[str, str]:
    """Further entries while there is room: a motion is worth more than the graph that made it."""
    kept, size = {}, 0
    for name, text in sorted(extra.items(), key=lambda item: len(item[1])):
        size += len(json.dumps(text))
        if size > _MAX_EXTRA:
            log.warning("'%s' is too long for the motion file: it is left out.", name)
        else:
            kept[name] = text
    return kept


def _read_config(file: str, metadata: Mapping[str, str]) -> MotionConfig:
    if "lamp.format" not in metadata:
        raise MotionFileError(
            f"{file} is no LAMP motion (its header has no 'lamp.format'): LoRAs, checkpoints and "
            "motion modules of other tools go to their own loaders."
        )
    version = metadata["lamp.format"]
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > FORMAT:
        raise MotionFileError(
            f"{file} has motion format '{version[:20]}', this version reads up to {FORMAT}: "
            "update LAMP Motion."
        )
    try:
        text = metadata["lamp.config"]
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"it has {len(text):,} characters")
        raw = read_json(text)
        known = {f.name: raw[f.name] for f in fields(MotionConfig) if f.name in raw}
        return MotionConfig(**_typed(known))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MotionFileError(
            f"The header of {file} is damaged ('lamp.config': {str(error)[:100]}): download it "
            "again."
        ) from error


def _typed(raw: dict[str, Any]) -> dict[str, Any]:
    """Check each field's type: a header comes from strangers."""
    defaults = MotionConfig(family="")
    for name, value in raw.items():
        wanted = type(getattr(defaults, name))
        if wanted is float and type(value) is int:
            raw[name] = float(value)
        elif type(value) is not wanted:
            raise TypeError(f"{name} is no {wanted.__name__}")
        if wanted is str:
            value.encode()  # half a character, which JSON can hold, could never be shown
    for name, (low, high) in _RANGES.items():
        if name in raw and not low <= raw[name] <= high:
            raise ValueError(f"{name} is out of range")
    if any(type(caption) is not str for caption in raw.get("captions", [])):
        raise TypeError("captions holds something else than text")
    "".join(raw.get("captions", [])).encode()
    for name, value in raw.get("importance", {}).items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"importance of {name[:100]} is out of range")
    return raw


def _check_tensor(file: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise MotionFileError(
            f"{file}: tensor '{name[:100]}' holds {tensor.dtype}, not floats of 16 bits or more: "
            "download it again."
        )
    # Not isfinite, which takes twice a tensor's own memory.
    if tensor.numel() and not all(math.isfinite(end) for end in torch.aminmax(tensor)):
        raise MotionFileError(
            f"{file}: tensor '{name[:100]}' holds NaN or infinite values: the training diverged; "
            "use an earlier file or train again with a lower learning rate."
        )


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    if not torch.isfinite(tensor).all():
        raise MotionFileError(
            f"Nothing was written: '{name}' holds NaN or infinite values. Train again with a lower "
            "learning rate."
        )
    narrowed = tensor.to(dtype).contiguous()
    return narrowed if torch.isfinite(narrowed).all() else tensor.float().contiguous()


def _family_error(name: str, trained: str, connected: str) -> IncompatibleModelError:
    """The commonest mistake: SD-XL, which draws frame 1, wired to a SD 1.x motion."""
    if connected == "sdxl":
        cure = (
            "Use SD-XL only for the first frame, with its own KSampler, and connect a "
            f"{describe_family(trained)} checkpoint to Load LAMP Motion"
        )
    else:
        cure = f"Connect a {describe_family(trained)} checkpoint, with its own CLIP and VAE"
    return IncompatibleModelError(
        f"{name} was trained for {describe_family(trained)}; the connected MODEL is "
        f"{describe_family(connected)}. {cure}."
    )


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
