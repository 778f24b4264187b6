"""Anchored windows in ComfyUI: the UNet processes a long video in windows, with any sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid5

from torch import Tensor

from ...errors import LampError
from ...method.windows import Windows, predict_in_windows, returns
from .binding import WINDOW, bound_motion
from .run import AD_PARAMS, PIECE, run_of

_KEY = "lamp_windows"


def with_windows(patcher: Any, windows: Windows) -> Any:
    """Clone a MODEL with a motion to process videos in `windows`, which replace earlier ones.

    ComfyUI's context windows leave out frame 1 and split prompts and hints themselves. Here
    everything is split after ComfyUI has expanded it to frames, including prompts and ControlNets.

    Raises:
        LampError: the MODEL has no motion.
    """
    from comfy.patcher_extension import WrappersMP

    bound_motion(patcher)
    model = patcher.clone()
    for kind, wrapper in (
        (WrappersMP.PREPARE_SAMPLING, _prepare_sampling(windows)),
        (WrappersMP.APPLY_MODEL, _apply_model(windows)),
    ):
        model.remove_wrappers_with_key(kind, _KEY)
        model.add_wrapper_with_key(kind, _KEY, wrapper)
    return model


def _prepare_sampling(windows: Windows) -> Callable[..., Any]:
    def prepare_sampling(
        executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Reserve memory for one window only."""
        frames, *rest = noise_shape
        if windows.split(frames):
            _check_memories(model.model_options)
        if windows.loop and PIECE in model.model_options.get("transformer_options", {}):
            raise LampError(
                "LAMP Anchored Windows has loop on, but LAMP Extend Video continues a video, which "
                "then does not return to frame 1: switch loop off."
            )
        return executor(model, [min(frames, windows.length), *rest], *args, **kwargs)

    return prepare_sampling


def _check_memories(options: dict[str, Any]) -> None:
    """Refuse a patch that stores data in a call of the UNet and reads it after the prediction, as
    self-attention guidance does: it would find the data of the last window only.

    Such functions share a closure variable that is empty or holds a tensor.

    Raises:
        LampError: there is one.
    """
    replaced = options.get("transformer_options", {}).get("patches_replace", {}).get("attn1", {})
    written = {id(cell) for patch in replaced.values() for cell in _variables(patch)}
    for reader in options.get("sampler_post_cfg_function", []):
        if any(id(cell) in written for cell in _variables(reader)):
            raise LampError(
                f"LAMP Anchored Windows does not work with {reader.__qualname__.split('.')[0]} on "
                "this MODEL, which reads the attention of a whole prediction and would find that "
                "of the last window only. Remove that node, or sample without windows."
            )


def _variables(function: Any) -> list[Any]:
    """The closure cells of a function that are empty or hold a tensor."""
    cells = getattr(function, "__closure__", None) or ()
    return [cell for cell in cells if _is_memory(cell)]


def _is_memory(cell: Any) -> bool:
    try:
        return cell.cell_contents is None or isinstance(cell.cell_contents, Tensor)
    except ValueError:  # not assigned yet
        return True


def _apply_model(windows: Windows) -> Callable[..., Tensor]:
    def apply_model(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        run = run_of(options)
        if run is None or not windows.split(run.frames):
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if windows.loop:
            run.check_whole_picture(x, "LAMP Anchored Windows with loop on", "switch loop off")
        frames = run.frames
        videos = run.videos_in(len(x), frames)
        given = (t, c_concat, c_crossattn, control)

        def predict(rows: Tensor, shown: Tensor) -> Tensor:
            cut = [_rows_of(value, rows, len(x)) for value in given]
            more = {name: _rows_of(value, rows, len(x)) for name, value in kwargs.items()}
            window = rows[: len(rows) // videos].tolist()
            told = {
                **options,
                WINDOW: window,
                # Other nodes cache data of a prompt under its number.
                "uuids": [uuid5(number, str(window)) for number in options.get("uuids", [])],
                AD_PARAMS: run.whole.part(window).published(),
                "patches": _whole_middle(options.get("patches", {}), rows, len(x), window),
            }
            return executor(shown, *cut, told, **more)

        return predict_in_windows(predict, x, windows, frames, run.noisy_first)

    return apply_model


def _whole_middle(
    patches: dict[str, Any], rows: Tensor, batch: int, window: list[int]
) -> dict[str, Any]:
    """Middle patches (GLIGEN's boxes) were made for a whole batch, one set per image. Give them a
    whole batch and use the rows of the window.

    Raises:
        LampError: the window has frame 1 twice.
    """

    def whole(patch: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def middle_patch(x: Tensor, extra_options: dict[str, Any]) -> Tensor:
            everything = x.new_zeros(batch, *x.shape[1:])
            everything[rows] = x
            return patch(everything, extra_options)[rows]

        return middle_patch

    middle = patches.get("middle_patch", [])
    if middle and returns(window):
        raise LampError(
            "LAMP Anchored Windows has loop on, which does not work with GLIGEN: it makes its "
            "boxes once for each frame, and a loop shows frame 1 twice. Switch loop off or remove "
            "GLIGEN."
        )
    return {**patches, "middle_patch": [whole(patch) for patch in middle]} if middle else patches


def _rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The rows of everything with one entry per frame, in any nesting."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {name: _rows_of(part, rows, batch) for name, part in value.items()}
    if isinstance(value, list):
        return [_rows_of(part, rows, batch) for part in value]
    return value
