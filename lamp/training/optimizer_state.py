"""What an optimizer remembers, as plain tensors and numbers that a training state can hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OWN_SETTINGS = ("lr", "factor", "matrices")  # set by the training


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The state of each parameter, in order: plain tensors and numbers by name.

    Quantized tensors of torchao are split into `NAME/PART`.
    """
    return [
        dict(part for item in optimizer.state.get(parameter, {}).items() for part in _parts(*item))
        for parameter in _parameters(optimizer)
    ]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, states: list[dict[str, Any]], device: torch.device
) -> None:
    """Restore the result of `optimizer_state` exactly. (`load_state_dict` would convert quantized
    bytes to floats.)

    Args:
        device: of tensors as large as their parameter.
    """
    for parameter, state in zip(_parameters(optimizer), states, strict=True):
        whole: dict[str, Any] = {}
        quantised: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                # Copies, as tensors read in inference mode cannot be changed later, with the
                # strides of the parameter, which fused optimizers rely on.
                if value.shape == parameter.shape:
                    value = torch.empty_like(parameter, dtype=value.dtype, device=device).copy_(
                        value
                    )
                else:
                    # Only fused optimizers count their steps on the device.
                    on_cpu = name == "step" and not optimizer.defaults.get("fused")
                    value = value.to("cpu" if on_cpu else parameter.device, copy=True)
            if "/" in name:
                name, part = name.split("/")
                quantised.setdefault(name, {})[part] = value
            else:
                whole[name] = value
        whole |= {name: _together(name, parts) for name, parts in quantised.items()}
        if whole:
            optimizer.state[parameter] = whole


def optimizer_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """The numbers that an optimizer keeps in each parameter group, such as Prodigy's estimate of
    the learning rate. AdamW keeps none."""
    return [
        {
            name: float(value) if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name not in _OWN_SETTINGS
            and isinstance(value, bool | int | float | Tensor)
            and value != optimizer.defaults.get(name)
        }
        for group in optimizer.param_groups
    ]


def restore_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, float]]) -> None:
    """Restore the result of `optimizer_groups`."""
    for group, numbers in zip(optimizer.param_groups, groups, strict=True):
        group.update(numbers)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    if not hasattr(value, "__tensor_flatten__"):
        return [(name, _own(name, value))]
    parts = value.__tensor_flatten__()[0]
    return [(f"{name}/{part}", _own(part, getattr(value, part))) for part in parts]


def _own(name: str, value: Any) -> Any:
    # All parameters share their quantization tables, but safetensors stores no tensor twice.
    return value.clone() if name.startswith("qmap") else value


def _together(name: str, parts: dict[str, Tensor]) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    return OptimState8bit(**parts, signed=name == "exp_avg")
