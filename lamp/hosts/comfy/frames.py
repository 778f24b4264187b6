"""Cut conditioning with one entry per frame to a piece of a longer video."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .run import PIECE, Piece


def model_for_piece(model: Any, piece: Piece) -> Any:
    """Clone a MODEL to sample a piece of a longer video."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[PIECE] = piece
    return model


def conditioning_for_piece(conditioning: Any, piece: Piece, made: dict[int, Any]) -> Any:
    """The CONDITIONING of a piece: prompts, masks and ControlNet hints of its frames.

    If there are fewer entries than frames they repeat, as everywhere in ComfyUI.

    Args:
        made: ControlNets copied so far, by the id of the original, so that prompts that share one
            still share it.
    """
    return [
        [_rows(text, piece), {key: _part(key, value, piece, made) for key, value in more.items()}]
        for text, more in conditioning
    ]


def cut_hints(guider: Any, frames: int) -> None:
    """Drop the ControlNet hints of a run beyond its frames. ComfyUI does so only where their number
    differs from that of all prompts' frames together: twice as many would be shared out among the
    prompts."""
    piece, made = Piece(tuple(range(frames)), frames), dict[int, Any]()
    for name, prompts in guider.conds.items():
        guider.conds[name] = [
            {**prompt, "control": _control(prompt["control"], piece, made)}
            if _has_more(prompt.get("control"), frames)
            else prompt
            for prompt in prompts
        ]


def _has_more(control: Any, frames: int) -> bool:
    """Whether a ControlNet, or one before it, has more hints than a run has frames."""
    while control is not None:
        hints = getattr(control, "cond_hint_original", None)
        if isinstance(hints, Tensor) and len(hints) > frames and not hasattr(control, "sub_idxs"):
            return True
        control = getattr(control, "previous_controlnet", None)
    return False


def _part(key: str, value: Any, piece: Piece, made: dict[int, Any]) -> Any:
    if key == "control" and value is not None:
        return _control(value, piece, made)
    if isinstance(value, Tensor) and (value.ndim > 2 or key == "pooled_output"):
        return _rows(value, piece)
    return value


def _rows(value: Tensor, piece: Piece) -> Tensor:
    if len(value) < 2:
        return value
    return value[[index % len(value) for index in piece.frame_indices]]


def _control(control: Any, piece: Piece, made: dict[int, Any]) -> Any:
    if id(control) in made:
        return made[id(control)]
    part = control.copy()
    if hasattr(control, "sub_idxs"):  # Advanced-ControlNet selects the frames itself
        for name, value in zip(
            ("full_latent_length", "context_length", "sub_idxs"),
            piece.published().values(),
            strict=True,
        ):
            setattr(part, name, value)
    elif control.cond_hint_original is not None:
        part.cond_hint_original = _rows(control.cond_hint_original, piece)
        part.extra_concat_orig = [_rows(extra, piece) for extra in control.extra_concat_orig]
    if control.previous_controlnet is not None:
        part.set_previous_controlnet(_control(control.previous_controlnet, piece, made))
    made[id(control)] = part
    return part
