"""AdamW over the learned parts, clipping, and the average of the parameters."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import LampError
from ..method.motion import Motion
from .recipe import TrainConfig

logger = logging.getLogger("lamp")


class ProcessGroup(Protocol):
    """The processes that train one motion together, each on its share of the batch."""

    rank: int
    count: int

    def mean_(self, tensors: list[Tensor]) -> None:
        """Put the mean over all processes in the place of each tensor."""
        ...


class SingleProcess:
    """One process."""

    rank, count = 0, 1

    def mean_(self, tensors: list[Tensor]) -> None:
        """The mean over one process is what is there."""


def make_optimizer(motion: Motion, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the learned parts only; everything else in `motion` is frozen.

    Each group has, besides its parameters, its `factor` on the learning rate.

    Raises:
        LampError: the 8-bit optimiser is wanted, but no library has one.
    """
    motion.requires_grad_(False)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in motion.trained_parameters().items():
        parameter.requires_grad_(True)
        groups.setdefault(rate_factor(name, parameter, config), []).append(parameter)
    described = [
        {"params": members, "factor": factor, "lr": config.learning_rate * factor}
        for factor, members in groups.items()
    ]
    settings: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    kind: Any = torch.optim.AdamW
    if config.optimizer != "adamw":
        kind = _eight_bit_adamw()
    elif next(motion.parameters()).device.type == "cpu":
        settings["fused"] = True  # one pass over memory; GPUs take all parameters at once anyway
    optimizer: torch.optim.Optimizer = kind(described, lr=config.learning_rate, **settings)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, which each group takes times its `factor`."""
    for group in optimizer.param_groups:
        own = rate * group["factor"]
        if isinstance(group["lr"], Tensor):  # torchao's compiled step reads it from there
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def rate_factor(name: str, parameter: Tensor, config: TrainConfig) -> float:
    """Factor on the learning rate of one learned tensor, by its canonical name and its width."""
    if ".attn_temp." in name:
        factor = config.attention_rate
    elif ".to_q." in name:
        factor = config.query_rate
    else:
        factor = config.conv_rate
    if config.reference_width and parameter.ndim > 1:
        factor *= min(1.0, config.reference_width / parameter.shape[1])
    return factor


def check_optimizer(config: TrainConfig) -> None:
    """Before anything is loaded: the 8-bit one may be missing, see `make_optimizer`."""
    if config.optimizer != "adamw":
        _eight_bit_adamw()


def _eight_bit_adamw() -> Any:
    # bitsandbytes first: torchao compiles its step, which asks for a compiler on the machine.
    with contextlib.suppress(ImportError):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit
    with contextlib.suppress(ImportError):
        from torchao.optim import AdamW8bit

        return AdamW8bit
    raise LampError(
        "The optimiser adamw8bit needs the package bitsandbytes or torchao, and neither is "
        "installed: install one into the Python that runs this, or choose adamw."
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimiser knows of each parameter, in order: plain tensors and numbers by name.

    The quantised tensors of torchao come apart into `NAME/PART`.
    """
    return [
        dict(part for item in optimizer.state.get(parameter, {}).items() for part in _parts(*item))
        for parameter in _parameters(optimizer)
    ]


def restore_optimizer(optimizer: torch.optim.Optimizer, states: list[dict[str, Any]]) -> None:
    """Put back what `optimizer_state` gave, bit for bit. (`load_state_dict` would turn quantised
    bytes into floats.)"""
    for parameter, state in zip(_parameters(optimizer), states, strict=True):
        whole: dict[str, Any] = {}
        quantised: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                # Copies, because a host may have read them in inference mode, where nothing made
                # can be changed later; laid out as the parameter, which fused optimisers rely on.
                if value.shape == parameter.shape:
                    value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                else:
                    value = value.to("cpu" if name == "step" else parameter.device, copy=True)
            if "/" in name:
                name, part = name.split("/")
                quantised.setdefault(name, {})[part] = value
            else:
                whole[name] = value
        whole |= {name: _together(name, parts) for name, parts in quantised.items()}
        if whole:
            optimizer.state[parameter] = whole


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    if not hasattr(value, "__tensor_flatten__"):
        return [(name, _own(name, value))]
    parts = value.__tensor_flatten__()[0]
    return [(f"{name}/{part}", _own(part, getattr(value, part))) for part in parts]


def _own(name: str, value: Any) -> Any:
    # The quantisation tables are one for all parameters, and files hold no tensor twice.
    return value.clone() if name.startswith("qmap") else value


def _together(name: str, parts: dict[str, Tensor]) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    return OptimState8bit(**parts, signed=name == "exp_avg")


class QueryDecay:
    """Weight decay of the tuned queries as wholes, as the published AdamW does it.

    The published code learns W = base + change and decays W: at rate r and decay d a step takes
    (1 - r d) W. AdamW takes (1 - r d) change here; what lacks is -r d base, whatever else the step
    does, for AdamW's decay is apart from its gradients (Loshchilov and Hutter 2019). That holds of
    the 8-bit ones, too, and of running averages, since the base never changes.

    A query that is learned as factors cannot take up the base, which no such factors hold: there
    the factors alone decay, and it is said.

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
                "%d queries are learned as factors, which cannot hold the decay of the whole query "
                "that query_decay 'whole' asks for: of these only the change decays.",
                factored,
            )

    @torch.no_grad()
    def apply(self) -> None:
        """After each step of the optimiser that was not skipped."""
        for change, base, group in self._queries:
            change.sub_(base.weight.to(change), alpha=float(group["lr"]) * group["weight_decay"])


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    clip_norm: float,
    scaler: torch.amp.GradScaler,
    decay: QueryDecay | None = None,
) -> Tensor:
    """Clip the norm of all gradients together, step; returns the norm before clipping.

    A step whose gradients overflowed is left out as a whole, its `decay` too.
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
    """See `MotionConfig.importance`: AdamW's second moments are running means of what it asks for.

    Of matrices only, which are what a compact file has to choose among. Empty before the first
    step, and where the moments are not at hand because they are kept in 8 bits.
    """
    matrices = {n: p for n, p in motion.trained_parameters().items() if p.ndim > 1}
    moments = {n: optimizer.state.get(p, {}).get("exp_avg_sq") for n, p in matrices.items()}
    if any(type(moment) is not Tensor for moment in moments.values()):
        return {}
    means = {name: moment.mean().item() for name, moment in moments.items()}
    largest = max(means.values(), default=0.0) or 1.0
    # Three digits: more would be read by nobody.
    return {name: float(f"{mean / largest:.3g}") for name, mean in means.items()}


class Average:
    """Exponential moving average of the parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay, self.updates = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        if self.values:
            self.updates += 1
            # The first values weigh less, so that a short run is not drawn to its start.
            decay = min(self._decay, self.updates / (self.updates + 9))
            current = [p.detach() for p in self._parameters]
            torch._foreach_lerp_(self.values, current, 1 - decay)

    @torch.no_grad()
    def store(self) -> None:
        """Put the average in the place of the parameters, for good."""
        for parameter, average in zip(self._parameters, self.values, strict=False):
            parameter.copy_(average)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The average in the place of the parameters while the block lasts."""
        kept = [p.detach().clone() for p in self._parameters] if self.values else []
        self.store()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, kept, strict=False):
                    parameter.copy_(value)
