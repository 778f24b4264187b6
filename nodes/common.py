"""What all nodes share: the pack's own types, plain errors, the motion folder, schema helpers."""

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
from ..lamp.plain import plain, plain_error, plain_lines
from .model_paths import motion_root, shown

_P = ParamSpec("_P")
_R = TypeVar("_R")

LampMotion = io.Custom("LAMP_MOTION")
LampAdaIN = io.Custom("LAMP_ADAIN")

_LONGEST_TEXT = 100_000  # characters; text encoders read a few hundred
_MAX_SEED = 0xFFFFFFFFFFFFFFFF
# The inputs by which the loaders of checkpoints and diffusion models name their file.
_FILE_INPUTS = ("ckpt_name", "unet_name", "model_path")


# --- errors ---------------------------------------------------------------------------------


def named_errors(
    display_name: str, looks_up: tuple[str, ...] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """What leaves a node's `execute`; goes below `@classmethod`.

    The sentence of a `LampError` begins with the node's name. Whatever the node shows, and any
    error with those behind it, is plain: the host logs and sends it as it is, and half a character
    from a prompt would end the thread that runs all prompts.

    Args:
        looks_up: menus whose choice the node finds on the disk itself, and tells of if it is gone.
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
            # Out here, where no error is being handled that would stand behind this one as it is.
            try:
                raise failed
            finally:
                del failed  # it holds this frame, and all tensors in the frames below

        return run

    return decorate


def plain_errors(check: Callable[_P, _R]) -> Callable[_P, _R]:
    """As `named_errors`, of what the host asks a node before it runs (`validate_inputs` and
    `fingerprint_inputs`)."""

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

    # The host reads the names of the inputs off it, without looking behind a wrapper.
    run.__signature__ = inspect.signature(check)  # type: ignore[attr-defined]
    return run


def _check_given(inputs: Mapping[str, Any]) -> None:
    """What no widget gives and the host lets through: to its range check NaN is in every range,
    and a text may have any length."""
    for name, value in inputs.items():
        for each in value if type(value) is list else (value,):
            if isinstance(each, float) and not math.isfinite(each):
                raise LampError(f"{name} is {each}, which is no number to work with: set another.")
            if isinstance(each, str) and len(each) > _LONGEST_TEXT:
                raise LampError(
                    f"{name} has {len(each):,} characters, more than {_LONGEST_TEXT:,}: shorten it."
                )


def _check_choices(node: Any, inputs: Mapping[str, Any], looks_up: tuple[str, ...]) -> None:
    """Not every version of the host looks whether a menu has what comes over its API."""
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
    """What people may type to find a node, where the host can use it."""
    return _supported(io.Schema, search_aliases=list(phrases))


def advanced(factory: Callable[..., Any]) -> dict[str, Any]:
    """Put an input under "advanced", where the host can."""
    return _supported(factory, advanced=True)


def _supported(factory: Callable[..., Any], **options: Any) -> dict[str, Any]:
    known = inspect.signature(factory).parameters
    return {name: value for name, value in options.items() if name in known}


def seed_input(tooltip: str, most: int = _MAX_SEED, *, changes: bool = True) -> Any:
    """A seed up to `most`; `changes`: with the host's control after generate, which draws another
    one for the next run. The host puts that on every input named seed that does not decline it."""
    return io.Int.Input(
        "seed", default=0, min=0, max=most, control_after_generate=changes, tooltip=tooltip
    )


# --- motion files ---------------------------------------------------------------------------


def motion_folder(name: str) -> Path:
    """A new place below the motion folder, numbered and without extension: `NAME_00001`.

    Raises:
        LampError: the name leads elsewhere, or nothing can be written there.
    """
    name = name.strip().replace("\\", "/").removesuffix(".safetensors")
    root = motion_root()
    if not is_plain_name(name):
        raise LampError(
            f"'{name[:100]}' names no file below {shown(root)}: use a name such as "
            "LAMP/motion, without '..', a leading '/', a mark such as ':' or '?', or a dot at the "
            "end."
        )
    try:
        folder, stem, *_ = folder_paths.get_save_image_path(name, str(root))
        taken = [number_of(file, stem) for file in os.listdir(folder)]
    except Exception as error:
        raise LampError(
            f"No file '{name[:100]}' can be made in {shown(root)} ({error}): choose "
            "another name, or see that the folder can be written to."
        ) from error
    return Path(folder, f"{stem}_{max(taken, default=0) + 1:05}")


# --- the graph ------------------------------------------------------------------------------


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The graph that makes a file, unless the user starts ComfyUI with --disable-metadata."""
    from comfy.cli_args import args

    if hidden is None or args.disable_metadata:
        return {}
    parts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {
        name: json.dumps(part)
        for name, part in parts.items()
        # The file's own entries are never the graph's.
        if part is not None and not name.startswith(("lamp.", "modelspec."))
    }


def upstream_name(prompt: Any, node_id: Any, input_name: str) -> str:
    """The file from which an input of a node comes, or the type of the node at its source."""
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
