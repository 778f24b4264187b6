"""ComfyUI's CLIP and CLIP_VISION as the encoders of one CLIP model, for `lamp.metrics`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import IncompatibleModelError
from ...metrics import ImageEncoder, TextEncoder
from .folders import shown_folders

_COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.6, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
_LEAST_NAMED = 5  # of six: one is right by chance, five in less than one of 1000 cases


def image_encoder(clip_vision: Any) -> ImageEncoder:
    """CLIP's image embeddings, projected into the space that they share with text embeddings.

    Images are resized by their short side and cropped to the middle, as CLIP expects.

    Raises:
        IncompatibleModelError: clip_vision is not a CLIP model.
    """
    from comfy.clip_model import CLIPVisionModelProjection

    model = clip_vision.model
    # Encoders without a projection have an identity function there.
    projected = isinstance(model, CLIPVisionModelProjection)
    if not projected or not hasattr(model.visual_projection, "weight"):
        raise IncompatibleModelError(
            "clip_vision is not a CLIP model (SigLIP and DINOv2 are not either), but the metrics "
            "need CLIP. Load CLIP-ViT-L-14 or CLIP-ViT-H-14 with Load CLIP Vision."
        )

    def encode_image(frames: Tensor) -> Tensor:
        return clip_vision.encode_image(frames, crop=True)["image_embeds"].float()

    return encode_image


def text_encoder(clip: Any, clip_vision: Any) -> TextEncoder:
    """CLIP's text embeddings in the space of `clip_vision`'s image embeddings.

    The host's text encoders project their pooled output, but the files of Stable Diffusion lack the
    projection. It is then uninitialised memory, and the CLIP does not show that. So both halves are
    tested first: they must match six plain colours with their names.

    Raises:
        IncompatibleModelError: the halves do not match, or there is no text projection.
    """
    encode_image = image_encoder(clip_vision)
    width = clip_vision.model.visual_projection.weight.shape[0]
    widths = {name: _text_width(part) for name, part in _text_encoders(clip).items()}
    fitting = [name for name, own in widths.items() if own == width]
    if not fitting:
        found = ", ".join(f"{own} ({name})" for name, own in widths.items()) or "none"
        raise IncompatibleModelError(
            f"clip and clip_vision are not halves of one CLIP model: the embeddings of clip_vision "
            f"have {width} dimensions, those of clip {found}. {_advice()}"
        )

    def encode_text(prompt: str) -> Tensor:
        return _projected(clip, fitting[0], prompt)

    named = _colours_named(encode_image, encode_text, clip_vision.image_size)
    if named < _LEAST_NAMED:
        raise IncompatibleModelError(
            f"clip and clip_vision do not match: they name {named} of {len(_COLOURS)} plain "
            "colours correctly. The CLIP of a Stable Diffusion checkpoint, and its clip_l and "
            "clip_g files, may lack the text projection, and the score would be meaningless. "
            f"{_advice()}"
        )
    return encode_text


def _advice() -> str:
    return (
        "Put model.safetensors of openai/clip-vit-large-patch14 into "
        f"{shown_folders('text_encoders')} (for Load CLIP, type stable_diffusion) and into "
        f"{shown_folders('clip_vision')} (for Load CLIP Vision), or disconnect clip."
    )


def _text_encoders(clip: Any) -> dict[str, Any]:
    """The CLIP text encoders of a CLIP, which may have two, and others such as T5 besides."""
    from comfy.clip_model import CLIPTextModel
    from comfy.sd1_clip import SDClipModel

    return {
        name: part
        for name, part in clip.cond_stage_model.named_children()
        if isinstance(part, SDClipModel) and isinstance(part.transformer, CLIPTextModel)
    }


def _text_width(part: Any) -> int:
    return part.transformer.text_projection.weight.shape[0]


def _projected(clip: Any, name: str, prompt: str) -> Tensor:
    part = _text_encoders(clip)[name]
    tokens = clip.tokenize(prompt)[name.removeprefix("clip_")]
    clip.load_model()
    part.set_clip_options({"projected_pooled": True})
    try:
        # A long prompt has several chunks: take the first one.
        return part.encode_token_weights(tokens)[1][0].float()
    finally:
        part.reset_clip_options()


def _colours_named(encode_image: ImageEncoder, encode_text: TextEncoder, size: int) -> int:
    """The number of colours whose image matches its own name best.

    The mean scores of each image and of each name are subtracted first, because CLIP prefers some
    words for any image.
    """
    pictures = torch.tensor(list(_COLOURS.values()))[:, None, None].expand(-1, size, size, -1)
    names = torch.stack([encode_text(f"a plain {name} picture") for name in _COLOURS]).cpu()
    scores = _unit(encode_image(pictures).cpu()) @ _unit(names).T
    scores = scores - scores.mean(0) - scores.mean(1, keepdim=True)
    return int((scores.argmax(1) == torch.arange(len(scores))).sum())


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=-1)
