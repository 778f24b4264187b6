"""ComfyUI's CLIP and CLIP_VISION as the two halves of one CLIP model, for `lamp.metrics`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import IncompatibleModelError
from ...metrics import ImageEncoder, TextEncoder

_COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.6, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
_LEAST_NAMED = 5  # of the six; by chance one is right, and five hardly once in a thousand times
_CURE = (
    "Put model.safetensors of openai/clip-vit-large-patch14 both into models/text_encoders, for "
    "Load CLIP (type stable_diffusion), and into models/clip_vision, for Load CLIP Vision; or "
    "disconnect clip."
)


def image_encoder(clip_vision: Any) -> ImageEncoder:
    """CLIP's image embeddings, projected into the space that it shares with texts.

    The pictures are made as CLIP wants them: short side to its size, the middle cut out.

    Raises:
        IncompatibleModelError: it is another kind of image encoder.
    """
    from comfy.clip_model import CLIPVisionModelProjection

    model = clip_vision.model
    # Encoders without a projection have something there that passes on what it gets.
    projected = isinstance(model, CLIPVisionModelProjection)
    if not projected or not hasattr(model.visual_projection, "weight"):
        raise IncompatibleModelError(
            "clip_vision is no CLIP model (SigLIP and DINOv2 are not) but the measures are made "
            "with CLIP: load CLIP-ViT-L-14 or CLIP-ViT-H-14 with Load CLIP Vision."
        )

    def encode_image(frames: Tensor) -> Tensor:
        return clip_vision.encode_image(frames, crop=True)["image_embeds"].float()

    return encode_image


def text_encoder(clip: Any, clip_vision: Any) -> TextEncoder:
    """CLIP's text embeddings in the space of `clip_vision`'s image embeddings.

    The host's text encoders project their pooled output, but the files of Stable Diffusion leave
    the projection out, and then it is uninitialised memory, which nothing on the CLIP tells. So
    both halves are asked to name six plain colours before they are believed.

    Raises:
        IncompatibleModelError: they do not belong together, or there is no text projection.
    """
    encode_image = image_encoder(clip_vision)
    width = clip_vision.model.visual_projection.weight.shape[0]
    widths = {name: _text_width(part) for name, part in _text_encoders(clip).items()}
    fitting = [name for name, own in widths.items() if own == width]
    if not fitting:
        found = ", ".join(f"{own} ({name})" for name, own in widths.items()) or "none of CLIP's"
        raise IncompatibleModelError(
            f"clip and clip_vision are not of one CLIP model: clip_vision's embeddings have "
            f"{width} numbers, clip's {found}. {_CURE}"
        )

    def encode_text(prompt: str) -> Tensor:
        return _projected(clip, fitting[0], prompt)

    named = _colours_named(encode_image, encode_text, clip_vision.image_size)
    if named < _LEAST_NAMED:
        raise IncompatibleModelError(
            f"clip and clip_vision do not understand each other: of {len(_COLOURS)} plain colours "
            f"they name {named} right. The CLIP of a Stable Diffusion checkpoint, and its clip_l "
            "and clip_g files, may lack the text projection, without which a score would mean "
            f"nothing. {_CURE}"
        )
    return encode_text


def _text_encoders(clip: Any) -> dict[str, Any]:
    """The CLIP text encoders of a CLIP, which may have two, beside others such as T5."""
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
        # Of a prompt in several chunks, the first one's.
        return part.encode_token_weights(tokens)[1][0].float()
    finally:
        part.reset_clip_options()


def _colours_named(encode_image: ImageEncoder, encode_text: TextEncoder, size: int) -> int:
    """Of how many of the colours picture and name fit best.

    What a picture or a name has in common with all others is taken off first: CLIP likes some
    words in any picture.
    """
    pictures = torch.tensor(list(_COLOURS.values()))[:, None, None].expand(-1, size, size, -1)
    names = torch.stack([encode_text(f"a plain {name} picture") for name in _COLOURS]).cpu()
    scores = _unit(encode_image(pictures).cpu()) @ _unit(names).T
    scores = scores - scores.mean(0) - scores.mean(1, keepdim=True)
    return int((scores.argmax(1) == torch.arange(len(scores))).sum())


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=-1)
