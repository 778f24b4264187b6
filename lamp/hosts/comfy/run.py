"""The state of one sampling run, and checks that the motion acts in every call of the UNet.

Other nodes may split or reorder a batch, or compute the UNet's layers themselves. The video would
then be wrong without an error, so the run knows its number of frames and checks every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LampError
from ...method.layout import FrameLayout
from ...method.motion import ActiveMotion, attached
from ...method.overrides import Hooks
from ...method.windows import returns
from .canvas import warn_below_running_node
from .deferred import DeferredChecks

KEY = "lamp_motion"
# Key in the options of a MODEL that samples a piece of a longer video, see `Piece`.
PIECE = "lamp_piece"
# The key under which packs for AnimateDiff publish the frames of a call for other packs.
AD_PARAMS = "ad_params"
_MOST_TIMES = 2  # as many frames as a motion was trained on, without a warning


@dataclass(frozen=True)
class Piece:
    """The frames of a longer video in a batch.

    `frame_indices` count from 0; `total` is the number of frames of the whole video.
    """

    frame_indices: tuple[int, ...]
    total: int

    def part(self, rows: list[int]) -> Piece:
        """The piece with the given rows of this one."""
        return Piece(tuple(self.frame_indices[row] for row in rows), self.total)

    def published(self) -> dict[str, Any]:
        """The entry that AnimateDiff-Evolved publishes for a window, with its keys."""
        indices = list(self.frame_indices)
        return {"full_length": self.total, "context_length": len(indices), "sub_idxs": indices}


@dataclass(repr=False)
class Run:
    """A run of a sampler on one video.

    `given` is starting noise that must not be mixed, `latent` the host's latent image (`f c h w`,
    model scale), `first` its clean frame 1 (`1 c h w`; None shows the frames as they are),
    `first_noise` the noise of frame 1, `guider` and `sampling` the host's own. During a prediction,
    `noisy_first` (`1 c h w`) is frame 1 at the noise level of the others, and `shown` (`f+1 c h w`)
    the UNet's input for all frames and, last, for `noisy_first`. `denoised` is the last prediction.
    `compile` are arguments of `torch.compile`, or None. `checks` are those of the UNet's calls.

    The hooks of the motions stay on the UNet from the first call to `release`, and act only in the
    calls of this run.
    """

    frames: int
    piece: Piece | None = None
    given: Tensor | None = None
    latent: Tensor | None = None
    first: Tensor | None = None
    first_noise: Tensor | None = None
    guider: Any = None
    sampling: Any = None
    shown: Tensor | None = None
    noisy_first: Tensor | None = None
    denoised: Tensor | None = None
    acting: bool = False
    acted: int = 0
    bypassed: int = 0
    layers_seen: int = 0
    plain_guidance: bool = False
    compile: dict[str, Any] | None = None
    checks: DeferredChecks = field(default_factory=DeferredChecks)
    _hooks: ExitStack = field(default_factory=ExitStack)
    _attached: Hooks = field(default_factory=Hooks)
    _left: list[Callable[[], object]] = field(default_factory=list)
    _watchers: ExitStack = field(default_factory=ExitStack)
    _watched: set[int] = field(default_factory=set)
    _ends: tuple[str, ...] = ()
    _hooked: tuple[Any, ...] = ()
    _layout: FrameLayout | None = None
    _length_noted: bool = False

    @property
    def whole(self) -> Piece:
        """The frames of the run, which may be a piece of a longer video."""
        return self.piece or Piece(tuple(range(self.frames)), self.frames)

    def layout(self, x: Tensor, options: dict[str, Any], window: list[int] | None) -> FrameLayout:
        """The layout of frames in the batch `x`, `(b f) c h w`, of a UNet call.

        Args:
            options: the call's transformer options.
            window: the rows of the run in this call; None for all.

        Raises:
            LampError: the batch does not contain these frames in order.
        """
        rows = list(range(self.frames)) if window is None else window
        videos = self.videos_in(len(x), len(rows))
        self._check_order(x, rows, options)
        piece = self.whole.part(rows)
        if window is None and self.piece is None:
            return FrameLayout(self.frames, videos)
        return FrameLayout(len(rows), videos, piece.frame_indices, piece.total)

    def note_length(self, frames: int, trained: Sequence[int]) -> None:
        """Warn once in a run of calls with many more frames than a motion was `trained` on (0: not
        known)."""
        fewest = min(filter(None, trained), default=frames)
        if frames > _MOST_TIMES * fewest and not self._length_noted:
            self._length_noted = True
            warn_below_running_node(
                f"The video has {frames} frames at once, but the motion was trained on {fewest}, "
                "so it may move poorly. For long videos use LAMP Anchored Windows or LAMP Extend "
                "Video."
            )

    def videos_in(self, rows: int, frames: int) -> int:
        """The number of videos of `frames` frames in a batch of `rows` images."""
        if rows % frames:
            raise LampError(
                f"A call of the model has {rows} images, which are not whole videos of {frames} "
                "frames: another node on this MODEL splits the video or changes the batch (context "
                "windows, batch splitting, reference images). Remove it; for long videos use "
                "LAMP Anchored Windows."
            )
        return rows // frames

    def check_size(self, x: Tensor) -> None:
        """Raises LampError if the sampler changed the number of frames or their size."""
        if len(x) != self.frames or (
            self.first is not None and x.shape[1:] != self.first.shape[1:]
        ):
            raise LampError(
                f"The sampler changed the latent to {tuple(x.shape)}; the run has {self.frames} "
                f"frames of {tuple(x.shape if self.first is None else self.first.shape)[1:]}: a "
                "motion needs the same frames and size in every step. Choose another sampler than "
                "SamplerLCMUpscale and its like, and upscale the finished video."
            )

    def acts(self, start_percent: float, end_percent: float, options: dict[str, Any]) -> bool:
        """Whether the noise level of a call lies between two shares of the sampling; True if there
        is none."""
        if start_percent <= 0.0 and end_percent >= 1.0:
            return True  # without reading the level, for which the CPU would wait
        sigmas = options.get("sigmas")
        if self.sampling is None or sigmas is None:
            return True
        start, end = (self.sampling.percent_to_sigma(p) for p in (start_percent, end_percent))
        return bool(start >= sigmas[0].item() > end)

    def check_whole_picture(self, x: Tensor, what: str, cure: str) -> None:
        """Raises LampError if a call has a part of the picture, which `what` cannot work with."""
        if self.shown is not None and x.shape[-2:] != self.shown.shape[-2:]:
            raise LampError(
                f"{what} needs the whole picture in every call, but a prompt for an area or a "
                "tiling node gives the model only a part: use Conditioning (Set Mask) instead of "
                f"Conditioning (Set Area), remove the tiling, or {cure}."
            )

    def _check_order(self, x: Tensor, rows: list[int], options: dict[str, Any]) -> None:
        """Check that each row of each video in the batch is the expected frame of the run.

        A batch of the usual size may contain altered frames (self-attention guidance blurs them),
        but not other frames. A batch of another size, such as tiles, must contain the run's own.
        """
        if self.shown is None:
            return
        usual = len(x) == len(rows) * len(options.get("cond_or_uncond", [0]))
        back = returns(rows)
        frames = self.shown[[-1 if place in back else row for place, row in enumerate(rows)]]
        expected = _shows(x, frames)

        def explain() -> LampError | None:
            for number in (~expected).nonzero().flatten().tolist():
                if usual and not _shows(x[number].expand(len(rows), -1, -1, -1), frames).any():
                    continue
                return LampError(
                    f"Image {number + 1} of {len(x)} in a call of the model is not the expected "
                    "frame of the video: another node on this MODEL reorders or replaces frames. "
                    "Remove it."
                )
            return None

        self.checks.add(expected.all(), explain)

    @contextmanager
    def attending(
        self, unet: nn.Module, motions: Sequence[ActiveMotion], layout: FrameLayout, **how: Any
    ) -> Iterator[FrameLayout]:
        """Let motions act in one call of the UNet.

        Args:
            how: see `lamp.method.motion.attached`.

        Yields:
            the layout that the hooks read, with the values of the given one.
        """
        hooked = (unet, motions, how)
        self._watch(unet)
        # The host replaces functions of layers when it switches between patches of prompts.
        if self._layout is None or self._hooked != hooked or not self._attached.intact:
            self._detach()
            own = replace(layout)  # the caller may use its layout for another call
            self._attached = self._hooks.enter_context(attached(unet, motions, own, **how))
            self._hooked, self._layout = hooked, own
        vars(self._layout).update(vars(layout))
        self.acting = True
        self.acted += 1
        try:
            yield self._layout
        finally:
            self.acting = self._layout.active = False

    def _watch(self, unet: nn.Module) -> None:
        """Count the layers that run in a UNet, which may be a second one (Dual Model CFG)."""

        def count(_: nn.Module, args: Any) -> None:
            if torch.compiler.is_compiling():
                return  # `CompiledCalls` counts
            self.bypassed += not self.acting
            self.layers_seen += self.acting

        if not self._ends or id(unet) in self._watched:
            return
        self._watched.add(id(unet))
        for end in self._ends:
            hook = unet.get_submodule(end).register_forward_pre_hook(count)
            self._watchers.callback(hook.remove)

    def _detach(self) -> None:
        self._hooks.close()
        self._left += self._attached.left
        self._hooked, self._layout, self._attached = (), None, Hooks()

    def release(self) -> None:
        """Remove all hooks, last of all those that other code had hidden."""
        self._detach()
        while self._left:
            self._left.pop()()

    @contextmanager
    def watched(self, unet: nn.Module, ends: tuple[str, str], wrapper: Any) -> Iterator[None]:
        """Check that the motion acts whenever the UNet's layers run in one prediction.

        Args:
            ends: names of the UNet's first and last convolution.
            wrapper: a function of another node that wraps calls of the UNet, if any.

        Raises:
            LampError: layers ran without the motion, or the UNet was never called.
        """

        self._ends = ends
        self._watch(unet)
        try:
            yield
        finally:
            self._watchers.close()
            self._watched, self._ends = set(), ()
        # A cache may skip later calls, but never the first one.
        if self.bypassed or not self.acted:
            culprit = "" if wrapper is None else f" ({_origin(wrapper)})"
            raise LampError(
                f"Another node on this MODEL{culprit} computes the UNet itself, so the motion does "
                "not act: remove that node. DeepCache and compiled engines such as TensorRT do "
                "this."
            )


def run_of(options: dict[str, Any]) -> Run | None:
    """The current run, from its transformer options; None outside of a run."""
    return options.get(KEY)


def _origin(function: Any) -> str:
    """The module and name of another node's function, for messages."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}".rsplit("custom_nodes.", 1)[-1]


_PROBES = ((0.5, 0.5), (0.2, 0.3), (0.7, 0.1), (0.4, 0.8))  # positions in a picture, as shares


def _shows(x: Tensor, frames: Tensor) -> Tensor:
    """Whether each image of `x` is the expected frame, judged by four pixels.

    Args:
        x: `(b f) c+ h w`; channels beyond those of the frames are conditions. Images of another
            size are parts of the frames from any position.
        frames: `f c H W`.
    """
    count, channels = frames.shape[:2]
    height, width = x.shape[-2:]
    whole = x.shape[-2:] == frames.shape[-2:]
    frames = frames.to(x.device, torch.float32)
    bound = 4 * torch.finfo(x.dtype).eps * frames.abs().max() + 1e-4
    same = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for down, right in _PROBES:
        row, column = int(down * height), int(right * width)
        pixels = x[:, :channels, row, column].float().unflatten(0, (-1, count)).transpose(0, 1)
        found = frames[..., row, column, None] if whole else frames.flatten(2)
        distances = torch.cdist(pixels, found.transpose(1, 2), p=torch.inf)  # f b 1 or f b (H W)
        same &= (distances.amin(2) <= bound).t().flatten()
    return same
