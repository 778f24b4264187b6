"""A CLIP model from a folder of transformers or open_clip, without ComfyUI.

Never from the network or a pickle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import IncompatibleModelError, LampError
from ...files.strict_json import read_json
from ...metrics import ImageEncoder, TextEncoder

_OPEN_CLIP = "open_clip_config.json"
# The files that open_clip prefers to all others.
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


class ClipModel(NamedTuple):
    """Both encoders of a CLIP model, for `lamp.metrics.measure`."""

    encode_image: ImageEncoder
    encode_text: TextEncoder


def load_clip(folder: Path) -> ClipModel:
    """Load CLIP from a folder with transformers' `config.json` or, if that is missing, open_clip's
    `open_clip_config.json`; on the GPU if there is one.

    The library prepares pictures with the settings of the folder. Long prompts are truncated.

    Raises:
        LampError: a file is missing or cannot be read.
        IncompatibleModelError: it is not a CLIP model.
    """
    if (folder / "config.json").is_file():
        return _of_transformers(folder)
    if (folder / _OPEN_CLIP).is_file():
        return _of_open_clip(folder)
    raise LampError(
        f"{folder} has no CLIP model: give a folder with config.json and model.safetensors, such "
        f"as a download of openai/clip-vit-large-patch14, or with {_OPEN_CLIP} for open_clip."
    )


def _of_transformers(folder: Path) -> ClipModel:
    import transformers.utils.logging as notes
    from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

    notes.set_verbosity_error()
    notes.disable_progress_bar()
    kind = _json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise IncompatibleModelError(
            f"{folder.name} is a model of type '{kind}', but the metrics need a whole CLIP model "
            "(type 'clip'), such as openai/clip-vit-large-patch14."
        )
    local: dict[str, Any] = {"local_files_only": True}
    with _loading(folder):
        model, loaded = CLIPModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **local
        )
        processor = AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
    if lost := sorted(loaded["missing_keys"]):
        raise _damaged(folder, f"{lost[0]} is missing")
    device = _device()
    model.float().eval().requires_grad_(False).to(device)
    room = model.config.text_config.max_position_embeddings

    def encode_image(frames: Tensor) -> Tensor:
        pictures = processor(list(_bytes(frames).movedim(-1, 1)), return_tensors="pt")
        pooled = model.vision_model(pictures["pixel_values"].to(device)).pooler_output
        return model.visual_projection(pooled).cpu()

    def encode_text(prompt: str) -> Tensor:
        fill = {"padding": "max_length", "max_length": room, "truncation": True}
        tokens = tokenizer([prompt], return_tensors="pt", **fill).to(device)
        pooled = model.text_model(**tokens).pooler_output
        return model.text_projection(pooled)[0].cpu()

    return ClipModel(torch.no_grad()(encode_image), torch.no_grad()(encode_text))


def _of_open_clip(folder: Path) -> ClipModel:
    try:
        import open_clip
    except ImportError as error:
        raise LampError(
            f"{folder.name} is an open_clip model, and open_clip is not installed: pip install "
            "open_clip_torch, or give a folder of transformers."
        ) from error
    if not any((folder / name).is_file() for name in _OPEN_CLIP_WEIGHTS):
        raise LampError(
            f"{folder.name} has no {_OPEN_CLIP_WEIGHTS[0]}: download it too. Other formats are "
            "never opened, because they can run code."
        )
    text = _json(folder / _OPEN_CLIP).get("model_cfg", {}).get("text_cfg", {})
    if "hf_model_name" in text:
        raise IncompatibleModelError(
            f"{folder.name} uses the text encoder {text['hf_model_name']}, which would have to be "
            "downloaded: give a CLIP model that includes its text encoder."
        )
    name = f"local-dir:{folder.resolve()}"
    with _loading(folder):
        model, prepare = open_clip.create_model_from_pretrained(name)
        tokenizer = open_clip.get_tokenizer(name)
    device = _device()
    model.float().eval().requires_grad_(False).to(device)

    def encode_image(frames: Tensor) -> Tensor:
        from PIL import Image

        pictures = [prepare(Image.fromarray(frame.numpy())) for frame in _bytes(frames)]
        return model.encode_image(torch.stack(pictures).to(device)).cpu()

    def encode_text(prompt: str) -> Tensor:
        return model.encode_text(tokenizer([prompt]).to(device))[0].cpu()

    return ClipModel(torch.no_grad()(encode_image), torch.no_grad()(encode_text))


def _bytes(frames: Tensor) -> Tensor:
    return (frames * 255).round().byte()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file.parent, error) from error
    if not isinstance(content, dict):
        raise _damaged(file.parent, f"{file.name} is not a JSON object")
    return content


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn the libraries' errors for damaged folders into a LampError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _damaged(folder: Path, error: Exception | str) -> LampError:
    return LampError(
        f"{folder.name} cannot be loaded as a CLIP model ({str(error)[:300].strip()}): download it "
        "again, with its tokenizer and preprocessor_config.json."
    )
