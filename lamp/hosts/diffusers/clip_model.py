"""A whole CLIP from a folder, without ComfyUI: of transformers or of open_clip.

Never from the network, and never from a pickle.
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
# Those that open_clip takes before any other.
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


class ClipModel(NamedTuple):
    """Both halves of a CLIP model, for `lamp.metrics.measure`."""

    encode_image: ImageEncoder
    encode_text: TextEncoder


def load_clip(folder: Path) -> ClipModel:
    """The CLIP of a folder with transformers' `config.json`, or open_clip's `open_clip_config.json`
    where that is missing; on the GPU if there is one.

    Pictures are prepared by the library and the folder's own settings. Of a long prompt the
    beginning counts.

    Raises:
        LampError: something is missing or cannot be read.
        IncompatibleModelError: it is no CLIP model.
    """
    if (folder / "config.json").is_file():
        return _of_transformers(folder)
    if (folder / _OPEN_CLIP).is_file():
        return _of_open_clip(folder)
    raise LampError(
        f"{folder} holds no CLIP model: give a folder with config.json and model.safetensors, such "
        f"as a download of openai/clip-vit-large-patch14, or with {_OPEN_CLIP} for open_clip."
    )


def _of_transformers(folder: Path) -> ClipModel:
    import transformers.utils.logging as notes
    from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

    notes.set_verbosity_error()  # what matters is said here, in one sentence
    notes.disable_progress_bar()
    kind = _json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise IncompatibleModelError(
            f"{folder.name} is a model of type '{kind}', and the measures need a whole CLIP model "
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
        raise _not_whole(folder, f"it has no {lost[0]}")
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
            f"{folder.name} is a model of open_clip, which is not installed: pip install "
            "open_clip_torch, or give a folder of transformers."
        ) from error
    if not any((folder / name).is_file() for name in _OPEN_CLIP_WEIGHTS):
        raise LampError(
            f"{folder.name} holds no {_OPEN_CLIP_WEIGHTS[0]}: download it, too (files of other "
            "formats are not opened, they can run code)."
        )
    text = _json(folder / _OPEN_CLIP).get("model_cfg", {}).get("text_cfg", {})
    if "hf_model_name" in text:
        raise IncompatibleModelError(
            f"{folder.name} takes its text encoder from {text['hf_model_name']}, which would have "
            "to be downloaded: give a CLIP model that is whole."
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
        raise _not_whole(file.parent, error) from error
    if not isinstance(content, dict):
        raise _not_whole(file.parent, f"{file.name} holds no settings")
    return content


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn what the libraries throw at a damaged folder into a sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        raise _not_whole(folder, error) from error


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _not_whole(folder: Path, error: Exception | str) -> LampError:
    return LampError(
        f"{folder.name} cannot be loaded as a CLIP model ({str(error)[:300].strip()}): download it "
        "again, with its tokenizer and preprocessor_config.json."
    )
