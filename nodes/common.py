"""Shared by all nodes: socket types, error handling, schema helpers, file names, the graph."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import folder_paths
from comfy_api.latest import io, ui

from ..lamp.errors import LampError
from ..lamp.files.names import is_plain_name, number_of
from ..lamp.hosts.comfy.folders import shown
from ..lamp.plain import plain, plain_error, plain_lines
from .model_paths import motion_root
from .progress import NodeProgress

_P = ParamSpec("_P")
_R = TypeVar("_R")

LampMotion = io.Custom("LAMP_MOTION")
LampAdaIN = io.Custom("LAMP_ADAIN")

_LONGEST_TEXT = 100_000  # characters; text encoders read a few hundred
_MAX_SEED = 0xFFFFFFFFFFFFFFFF
# The inputs in which the loaders of checkpoints and diffusion models name their file.
_FILE_INPUTS = ("ckpt_name", "unet_name", "model_path")


# --- errors ---------------------------------------------------------------------------------


def named_errors(
    display_name: str, looks_up: tuple[str, ...] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a node's `execute`, below `@classmethod`: check its inputs and name its errors.

    The message of a `LampError` begins with the node's name. Texts that the node shows, and errors
    with their causes, are reduced to plain characters: the host logs and sends them unchanged, and
    a lone surrogate from a prompt would end the thread that runs all prompts.

    Args:
        looks_up: menus whose value the node looks up on the disk and reports itself if missing.
    """

    def decorate(execute: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(execute)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                _check_given(kwargs)
                _check_choices(args[0], kwargs, looks_up)
                return _plainly_shown(execute(*args, **kwargs))
            except LampError as error:
                failed: BaseException = type(error)(f"{display_name}: {error}")
                failed.__cause__ = plain_error(error)
            except Exception as error:
                failed = plain_error(error)
            # Raise outside the handler, so that the original error is not attached as context.
            try:
                raise failed
            finally:
                del failed  # it refers to this frame, and so to all tensors in the frames below

        return run

    return decorate


def plain_errors(check: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same for `validate_inputs` and `fingerprint_inputs`, without the node's name."""

    @functools.wraps(check)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return check(*args, **kwargs)
        except Exception as error:
            failed = plain_error(error)
        try:
            raise failed
        finally:
            del failed

    # The host reads the input names from the signature and does not follow `__wrapped__`.
    run.__signature__ = inspect.signature(check)  # type: ignore[attr-defined]
    return run


def _check_given(inputs: Mapping[str, Any]) -> None:
    """Refuse values that no widget produces but the host accepts: NaN passes its range check, and
    texts may have any length."""
    for name, value in inputs.items():
        for each in value if type(value) is list else (value,):
            if isinstance(each, float) and not math.isfinite(each):
                raise LampError(f"{name} is {each}: enter a finite number.")
            if isinstance(each, str) and len(each) > _LONGEST_TEXT:
                raise LampError(
                    f"{name} has {len(each):,} characters; the limit is {_LONGEST_TEXT:,}. "
                    "Shorten it."
                )


def _check_choices(node: Any, inputs: Mapping[str, Any], looks_up: tuple[str, ...]) -> None:
    """Check menu values: some versions of the host do not check those sent over its API."""
    for each in node.define_schema().inputs or ():
        if not isinstance(each, io.Combo.Input) or each.id in looks_up or each.id not in inputs:
            continue
        value = inputs[each.id]
        for chosen in value if type(value) is list else (value,):
            if isinstance(chosen, str) and each.options and chosen not in each.options:
                known = ", ".join(map(str, each.options))
                raise LampError(f"{each.id} is '{plain(chosen, 100)}': choose one of {known}.")


def _plainly_shown(output: _R) -> _R:
    shown = getattr(output, "ui", None)
    if isinstance(shown, ui.PreviewText):
        shown.value = plain_lines(shown.value)
    elif isinstance(shown, dict) and "text" in shown:
        shown["text"] = tuple(plain_lines(text) for text in shown["text"])
    return output


# --- schemas --------------------------------------------------------------------------------


def aliases(*phrases: str) -> dict[str, Any]:
    """Search terms for a node; older hosts have no field for them."""
    return _supported(io.Schema, search_aliases=list(phrases))


def out_of_search() -> dict[str, Any]:
    """Keep a node out of search and the node library, where the host supports it.

    The host's developer mode shows it. Workflows that contain it open and run as usual.
    """
    return _supported(io.Schema, is_dev_only=True)


def advanced(factory: Callable[..., Any]) -> dict[str, Any]:
    """Mark an input as advanced, where the host supports it."""
    return _supported(factory, advanced=True)


def _supported(factory: Callable[..., Any], **options: Any) -> dict[str, Any]:
    known = inspect.signature(factory).parameters
    return {name: value for name, value in options.items() if name in known}


def fraction_input(id: str, default: float, tooltip: str, step: float = 0.05, **more: Any) -> Any:
    """A number from 0 to 1."""
    return io.Float.Input(id, default=default, min=0.0, max=1.0, step=step, tooltip=tooltip, **more)


def steps_input(default: int = 50, most: int = 1000, tooltip: str = "") -> Any:
    """A number of sampling steps."""
    text = tooltip or "Number of denoising steps. The paper uses 50."
    return io.Int.Input("steps", default=default, min=1, max=most, tooltip=text)


def model_input() -> Any:
    """A MODEL to which a motion has been applied."""
    text = "MODEL with a motion, from Load LAMP Motion or LAMP Trainer."
    return io.Model.Input("model", tooltip=text)


def prompt_inputs() -> list[Any]:
    """The prompt and the negative prompt of a sampler."""
    return [
        io.Conditioning.Input(
            "positive",
            tooltip="Prompt: describe the first frame and include the words of the motion.",
        ),
        io.Conditioning.Input("negative", tooltip="What to avoid. The paper leaves it empty."),
    ]


def seed_input(tooltip: str, most: int = _MAX_SEED, *, changes: bool = True) -> Any:
    """A seed up to `most`.

    Args:
        changes: show the host's control after generate, which picks a new seed for the next run.
            The host adds it to every input named seed that does not decline it.
    """
    return io.Int.Input(
        "seed", default=0, min=0, max=most, control_after_generate=changes, tooltip=tooltip
    )


# --- motion files ---------------------------------------------------------------------------


def motion_folder(name: str) -> Path:
    """A new numbered path in the motion folder, without extension: `NAME_00001`.

    Raises:
        LampError: the name points outside the folder, or the folder is not writable.
    """
    name = name.strip().replace("\\", "/").removesuffix(".safetensors")
    root = motion_root()
    if not is_plain_name(name):
        raise LampError(
            f"'{name[:100]}' is not a valid file name in {shown(root)}. Use a name such as "
            "LAMP/motion, without '..', a leading '/', characters such as ':' or '?', or a "
            "trailing dot."
        )
    try:
        folder, stem, *_ = folder_paths.get_save_image_path(name, str(root))
        taken = [number_of(file, stem) for file in os.listdir(folder)]
    except Exception as error:
        raise LampError(
            f"Cannot create '{name[:100]}' in {shown(root)} ({error}). Choose another name, or "
            "check that the folder is writable."
        ) from error
    return Path(folder, f"{stem}_{max(taken, default=0) + 1:05}")


# --- running ---------------------------------------------------------------------------------


def progress_of(node: Any) -> NodeProgress:
    """The progress bar of a node that runs, which has its id as a hidden input."""
    return NodeProgress(getattr(node.hidden, "unique_id", None))


# --- the graph ------------------------------------------------------------------------------


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The graph that writes a file, unless ComfyUI runs with --disable-metadata."""
    from comfy.cli_args import args

    if hidden is None or args.disable_metadata:
        return {}
    parts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {
        name: json.dumps(part)
        for name, part in parts.items()
        # The graph never sets the file's own entries.
        if part is not None and not name.startswith(("lamp.", "modelspec."))
    }


def upstream_name(prompt: Any, node_id: Any, input_name: str) -> str:
    """The file that an input of a node comes from, or the type of the node at its source."""
    name, seen = "", set()
    node = (prompt or {}).get(str(node_id))
    while node is not None:
        inputs = node.get("inputs", {})
        for key in _FILE_INPUTS:
            if isinstance(inputs.get(key), str):
                return inputs[key]
        link = inputs.get(input_name)
        if not isinstance(link, list) or not link or str(link[0]) in seen:
            break
        seen.add(str(link[0]))
        node = prompt.get(str(link[0]))
        name = "" if node is None else str(node.get("class_type", ""))
    return name
