"""Optimizers for the motion, gradient clipping, and the moving average of the parameters."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import LampError
from ..method.motion import Motion
from ..settings import find_setting
from .muon import Muon, is_matrix
from .recipe import TrainConfig

logger = logging.getLogger("lamp")


class ProcessGroup(Protocol):
    """Processes that train one motion together, each on its share of the batch."""

    rank: int
    count: int

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        ...


class SingleProcess:
    """One process."""

    rank, count = 0, 1

    def mean_(self, tensors: list[Tensor]) -> None:
        """The mean over one process is the tensor itself."""


# Optimizer -> the packages that have it: name for pip, module, class. The first one found is used;
# bitsandbytes before torchao, which compiles its step and needs a compiler.
_LIBRARIES = {
    "adamw8bit": (
        ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
        ("torchao", "torchao.optim", "AdamW8bit"),
    ),
    "prodigy": (("prodigyopt", "prodigyopt", "Prodigy"),),
    "schedulefree": (("schedulefree", "schedulefree", "AdamWScheduleFree"),),
    "came": (
        ("came-pytorch", "came_pytorch", "CAME"),
        ("pytorch_optimizer", "pytorch_optimizer", "CAME"),
    ),
}
_BUILT_IN: dict[str, Any] = {"adamw": torch.optim.AdamW, "muon": Muon}
_DECAY_WHOLE = ("adamw", "muon", "adamw8bit")  # by 1 - rate * decay, apart from the gradients


def make_optimizer(motion: Motion, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters; everything else in `motion` is frozen.

    Each parameter group has its `factor` of the learning rate.

    Raises:
        LampError: see `check_optimizer`.
    """
    check_optimizer(config)
    motion.requires_grad_(False)
    muon = config.optimizer == "muon"
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in motion.trained_parameters().items():
        parameter.requires_grad_(True)
        if config.optimizer not in _BUILT_IN:
            # bitsandbytes' kernels see memory, not strides: weight, state and saved state need one
            # order.
            parameter.data = parameter.data.contiguous()
        factor = rate_factor(name, parameter, config)
        matrix = muon and _is_stepped_as_matrix(name, parameter)
        groups.setdefault((factor, matrix), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members, "factor": factor, "lr": base_rate(config) * factor}
        | ({"matrices": matrices} if muon else {})
        for (factor, matrices), members in groups.items()
    ]
    settings: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "came":
        settings["betas"] = (*config.betas, 0.9999)  # the third is CAME's own default
    kind: Any = _BUILT_IN.get(config.optimizer) or _library(config.optimizer)
    if config.optimizer == "adamw" and next(motion.parameters()).device.type in ("cpu", "cuda"):
        settings["fused"] = True  # one pass over memory, without intermediate tensors
    with contextlib.redirect_stdout(None):  # Prodigy prints its weight decay
        optimizer: torch.optim.Optimizer = kind(described, lr=base_rate(config), **settings)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def base_rate(config: TrainConfig) -> float:
    """The learning rate that the schedule scales. Prodigy estimates its own; 1 leaves it as is."""
    return 1.0 if config.optimizer == "prodigy" else config.learning_rate


def decays_base(config: TrainConfig) -> bool:
    """Whether the optimizer's weight decay is that of AdamW, which `QueryDecay` completes."""
    return config.optimizer in _DECAY_WHOLE


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step: `rate` times the `factor` of each group."""
    for group in optimizer.param_groups:
        own = rate * group["factor"]
        if isinstance(group["lr"], Tensor):  # read by the compiled step of torchao
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def rate_factor(name: str, parameter: Tensor, config: TrainConfig) -> float:
    """Learning rate factor of a trained tensor, by its canonical name and its width."""
    if ".attn_temp." in name:
        factor = config.attention_rate
    elif _is_query(name):
        factor = config.query_rate
    else:
        factor = config.conv_rate
    by_width = config.optimizer != "muon" or not _is_stepped_as_matrix(name, parameter)
    if config.reference_width and parameter.ndim > 1 and by_width:
        factor *= min(1.0, config.reference_width / parameter.shape[1])
    return factor


def _is_query(name: str) -> bool:
    """Whether it is a change of the image model's queries."""
    return ".to_q." in name and ".attn_temp." not in name


def _is_stepped_as_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon steps it as a matrix. The queries were trained by AdamW, which their change
    goes on with: Muon changes them in all directions, which harms them (docs/toy_results.md)."""
    return is_matrix(parameter) and not _is_query(name)


def check_optimizer(config: TrainConfig) -> None:
    """Check the optimizer before anything is loaded.

    Raises:
        LampError: its package is not installed, or other settings do not go with it.
    """
    check_package(config.optimizer)
    rates = {config.conv_rate, config.attention_rate, config.query_rate}
    if config.optimizer == "prodigy" and (config.reference_width or not rates <= {0.0, 1.0}):
        raise LampError(
            "The optimizer prodigy finds one learning rate for all layers: choose recipe paper, or "
            "a custom recipe with reference_width 0, and conv_rate, attention_rate and query_rate "
            "1 or 0."
        )
    if config.optimizer == "schedulefree" and (config.rate_schedule != "constant" or config.ema):
        raise LampError(
            "The optimizer schedulefree replaces the rate schedule and the average: choose recipe "
            f"paper, or a custom recipe with rate_schedule constant (it is {config.rate_schedule}) "
            f"and ema 0 (it is {config.ema:g})."
        )


def check_package(optimizer: str) -> None:
    """Check that the package of an optimizer is installed.

    Raises:
        LampError: it is not, or there is no such optimizer.
    """
    if optimizer in _LIBRARIES:
        _library(optimizer)
    elif optimizer not in _BUILT_IN:
        known = ", ".join([*_BUILT_IN, *_LIBRARIES])
        raise LampError(f"optimizer is '{optimizer[:100]}': choose one of {known}.")


def installed_optimizers() -> list[str]:
    """The optimizers that can be chosen: our own, and those whose package is installed."""
    return [
        name
        for name in find_setting(TrainConfig, "optimizer").metadata["choices"]
        if name in _BUILT_IN
        or any(
            importlib.util.find_spec(module.partition(".")[0]) for _, module, _ in _LIBRARIES[name]
        )
    ]


def _library(optimizer: str) -> Any:
    """The class of an optimizer from the package that has it."""
    for _, module, name in _LIBRARIES[optimizer]:
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(module), name)
    packages = " or ".join(package for package, *_ in _LIBRARIES[optimizer])
    raise LampError(
        f"The optimizer {optimizer} needs the package {packages}, which is not installed: run pip "
        f"install {_LIBRARIES[optimizer][0][0]} in this Python, or choose adamw."
    )


class QueryDecay:
    """Weight decay of the tuned queries including their base weight, as in the official code.

    The official code trains W = base + change, and a step with rate r and decay d multiplies W by
    (1 - r d). Here AdamW multiplies the change by (1 - r d), so that -r d base is missing. As
    AdamW decouples its decay from the gradients (Loshchilov and Hutter 2019), it can simply be
    added. This also holds for 8-bit AdamW and for moving averages, as the base never changes.

    Low-rank factors cannot represent the base: there only the factors decay, with a warning.

    Args:
        unet: the host's, with the sites of `motion`.
        optimizer: of `make_optimizer`.
    """

    def __init__(self, unet: nn.Module, motion: Motion, optimizer: torch.optim.Optimizer) -> None:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        learned = motion.trained_parameters()
        self._queries = []
        for block in motion.sites.blocks:
            change = learned.get(f"{block.name}.attn1.to_q.weight")
            if change is not None:
                base = unet.get_submodule(f"{block.module}.attn1.to_q")
                self._queries.append((change, base, groups[id(change)]))
        factored = len(motion.sites.blocks) - len(self._queries)
        if factored and any(group["weight_decay"] for group in optimizer.param_groups):
            logger.warning(
                "%d queries are trained as low-rank factors, for which query_decay 'whole' is not "
                "possible: only their change decays.",
                factored,
            )

    @torch.no_grad()
    def apply(self) -> None:
        """Apply it after an optimizer step that was not skipped."""
        for change, base, group in self._queries:
            change.sub_(base.weight.to(change), alpha=float(group["lr"]) * group["weight_decay"])


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    clip_norm: float,
    scaler: torch.amp.GradScaler,
    decay: QueryDecay | None = None,
) -> Tensor:
    """Clip the norm of all gradients together and take a step; returns the norm before clipping.

    A step whose gradients overflow is skipped, including its `decay`.
    """
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    scaler.step(optimizer)
    scale = scaler.get_scale()
    scaler.update()
    if decay is not None and scaler.get_scale() >= scale:
        decay.apply()
    optimizer.zero_grad(set_to_none=True)
    return norm


def importance(motion: Motion, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`MotionConfig.importance` of the matrices, from AdamW's second moments: running means of the
    squared gradients.

    Empty before the first step, with 8-bit moments and with Muon, which has none of matrices.
    """
    matrices = {n: p for n, p in motion.trained_parameters().items() if p.ndim > 1}
    moments = {n: optimizer.state.get(p, {}).get("exp_avg_sq") for n, p in matrices.items()}
    if any(type(moment) is not Tensor for moment in moments.values()):
        return {}
    means = {name: moment.mean().item() for name, moment in moments.items()}
    largest = max(means.values(), default=0.0) or 1.0
    # Three digits are enough.
    return {name: float(f"{mean / largest:.3g}") for name, mean in means.items()}


class Average:
    """The parameters to use: their exponential moving average, the average of a schedule-free
    optimizer, or themselves.

    Args:
        decay: of the moving average, 0 for none.
    """

    def __init__(
        self, parameters: list[nn.Parameter], decay: float, optimizer: torch.optim.Optimizer
    ) -> None:
        self._parameters, self._decay, self.updates = parameters, decay, 0
        self._schedule_free: Any = optimizer if hasattr(optimizer, "eval") else None
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        if self.values:
            self.updates += 1
            # A smaller decay at first, so that the start does not dominate short runs.
            decay = min(self._decay, self.updates / (self.updates + 9))
            current = [p.detach() for p in self._parameters]
            torch._foreach_lerp_(self.values, current, 1 - decay)

    @torch.no_grad()
    def store(self) -> None:
        """Replace the parameters by their average."""
        for parameter, average in zip(self._parameters, self.values, strict=False):
            parameter.copy_(average)
        if self._schedule_free is not None:
            self._schedule_free.eval()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Replace the parameters by their average inside the `with` block."""
        averages = self.values or self._schedule_free is not None
        kept = [p.detach().clone() for p in self._parameters] if averages else []
        self.store()
        try:
            yield
        finally:
            if self._schedule_free is not None:
                self._schedule_free.train()
            with torch.no_grad():
                for parameter, value in zip(self._parameters, kept, strict=False):
                    parameter.copy_(value)
