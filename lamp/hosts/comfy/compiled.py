"""TorchCompileModel with a motion: compile the UNet with the motion's hooks attached.

ComfyUI compiles the UNet's `forward` with all wrappers. Ours attaches the hooks, so PyTorch would
compile that too, again in every run. A run therefore drops the node's wrapper from its own options
and compiles only what is inside all wrappers.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from ...method.attention import torch_attention
from ...method.layout import FrameLayout
from ...method.motion import ActiveMotion
from .run import KEY, Run

# ComfyUI's names of the wrapper and, in the options of a MODEL, of its settings.
_WRAPPER, _SETTINGS = "torch.compile", "torch_compile_kwargs"


def is_compiled(patcher: Any) -> bool:
    """Whether a MODEL comes from TorchCompileModel."""
    from comfy.patcher_extension import WrappersMP

    return bool(patcher.get_wrappers(WrappersMP.APPLY_MODEL, _WRAPPER))


def uncompiled(patcher: Any) -> Any:
    """A MODEL without TorchCompileModel, for runs that add hooks or use a motion once."""
    from comfy.patcher_extension import WrappersMP

    model = patcher.clone()
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, _WRAPPER)
    return model


def take_over(guider: Any) -> dict[str, Any] | None:
    """Drop TorchCompileModel's wrapper from the options of a run, which end with the run.

    Returns:
        arguments of `torch.compile`; None without the node.

    Raises:
        LampError: the UNet is compiled in another way, or ComfyUI streams the motion's weights.
    """
    from comfy.patcher_extension import WrappersMP

    patcher = guider.model_patcher
    if hasattr(patcher.get_model_object("diffusion_model"), "_orig_mod"):
        raise LampError(
            "A node of another pack replaced the UNet of this MODEL by a compiled one, in which a "
            "LAMP motion cannot act: use ComfyUI's TorchCompileModel instead."
        )
    wrappers = guider.model_options["transformer_options"].get("wrappers", {})
    if not wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(_WRAPPER, None):
        return None
    weights = patcher.get_additional_models_with_key(KEY)
    if any(getattr(each, "is_dynamic", bool)() for each in weights):
        raise LampError(
            "ComfyUI streams the weights of this motion (dynamic VRAM), and torch.compile needs "
            "them in place: put TorchCompileModel before Load LAMP Motion, not after it."
        )
    settings: dict[str, Any] = guider.model_options[_SETTINGS]
    options = {**(settings["options"] or {})}
    # Newer versions ignore changes of the transformer options, such as a patch added later.
    options.pop("guard_filter_fn", None)
    # PyTorch does not check that a layer without hooks still has none. In one graph per state of
    # the motion that cannot matter; parts of it could be reused by runs with other hooks.
    return {**settings, "options": options or None, "fullgraph": True}


class CompiledCalls:
    """The compiled UNet of a MODEL with motions: a function for each state that the hooks read.

    The functions last as long as the MODEL, so that later runs use them again.

    Args:
        with_masks: whether a motion has a mask or strengths per frame, which depend on the frames.
    """

    def __init__(self, with_masks: bool) -> None:
        self._with_masks = with_masks
        self._calls: dict[Hashable, Callable[..., Tensor]] = {}

    def inside(
        self, executor: Any, run: Run, motions: Sequence[ActiveMotion], layout: FrameLayout
    ) -> Any:
        """The host's `executor`, in a run with TorchCompileModel around the compiled UNet.

        Args:
            motions: as they act in this call.
            layout: what the hooks read; it may change between two calls of the executor.

        Raises:
            LampError: PyTorch cannot compile the UNet with the motion.
        """
        from comfy.patcher_extension import WrapperExecutor

        if run.compile is None:
            return executor
        settings = run.compile

        def forward(
            x: Tensor,
            timesteps: Tensor | None = None,
            context: Tensor | None = None,
            y: Tensor | None = None,
            control: Any = None,
            transformer_options: dict[str, Any] | None = None,
            **kwargs: Any,
        ) -> Tensor:
            options = {} if transformer_options is None else transformer_options
            # ComfyUI's other kinds of attention cannot be part of a graph.
            options.setdefault("optimized_attention_override", torch_attention)
            state = (
                str(settings), tuple(each.strength for each in motions),
                layout.frames, layout.videos, layout.motion_scales,
                self._with_masks and (layout.frame_indices, layout.total),
            )  # fmt: skip
            if state not in self._calls:
                self._calls[state] = torch.compile(_function(len(self._calls)), **settings)
            try:
                given = (x, timesteps, context, y, control, options)
                out = self._calls[state](executor.original, *given, **kwargs)
            except Exception as error:
                if not type(error).__module__.startswith("torch._"):
                    raise  # not of the compiler
                del self._calls[state]
                raise LampError(_reason(error)) from error
            run.layers_seen += 2  # hooks do not count inside a graph
            return out.clone()  # a CUDA graph writes its next result into the same memory

        return WrapperExecutor.new_class_executor(
            forward, executor.class_obj, executor.wrappers, executor.idx
        )


def _function(number: int) -> Callable[..., Tensor]:
    """A function whose code object is its own, because PyTorch stores graphs by code object."""
    code = _call.__code__.replace(co_name=f"lamp_unet_{number}")
    return FunctionType(code, {"__builtins__": builtins})


def _call(unet: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return unet(*args, **kwargs)


def _reason(error: Exception) -> str:
    words = " ".join(" ".join(str(error).split("\n")[:3]).split())
    return (
        f"torch.compile cannot compile this MODEL with its motion: {words[:300]}. Remove "
        "TorchCompileModel, or the node or patch that this message names."
    )
