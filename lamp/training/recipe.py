"""The settings of a training run: the published recipe, a faster one, and any other.

See `lamp.settings` for what each field carries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LampError
from ..method.motion import GROUPNORM_MODES
from ..settings import check_settings, setting

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CARDS = ("auto", "6 GB", "8 GB", "12 GB", "16 GB", "24 GB")
MOST_STEPS = 10**7
PRESETS = ("paper", "fast")


@dataclass(frozen=True)
class TrainConfig:
    """How a motion is learned; the defaults are the published recipe (paper sec. 4.1).

    `reference_width` follows the rule for Adam of Yang et al. 2021, `min_snr` Hang et al. 2023;
    for `rank` see `lamp.training.low_rank`.

    Raises LampError for a value outside its range.
    """

    steps: int = setting(
        30_000,
        "Optimizer steps. The official configs use 30,000, or 500 to edit a single clip. 2,000 "
        "give a first impression.",
        1,
        MOST_STEPS,
    )
    minutes: float = setting(
        0.0,
        "Time budget of the training in minutes, in place of steps. After three steps, the trainer "
        "fixes the number of steps that fits, and the learning rate schedule with it. Encoding the "
        "clips does not count. 0 uses steps.",
        0.0,
        100_000.0,
        step=1.0,
    )
    frames: int = setting(16, "Frames per training window.", 2, 1024)
    batch: int = setting(
        1, "Clips per forward pass, on each GPU. 1 needs the least memory.", 1, 1024
    )
    accumulate: int = setting(
        1,
        "Batches per optimizer step. As good as a larger batch, without its memory use.",
        1,
        1024,
    )
    learning_rate: float = setting(
        3e-5, "Learning rate of AdamW. The paper uses 0.00003.", 1e-12, 1.0, step=1e-8
    )
    conv_rate: float = setting(
        1.0,
        "Learning rate factor of the motion convolutions and their gates.",
        0.0,
        1000.0,
        step=0.01,
    )
    attention_rate: float = setting(
        1.0, "Learning rate factor of temporal attention.", 0.0, 1000.0, step=0.01
    )
    query_rate: float = setting(
        1.0,
        "Learning rate factor of the tuned self-attention queries. 0 freezes them.",
        0.0,
        1000.0,
        step=0.01,
    )
    reference_width: int = setting(
        0,
        "Number of channels the learning rate is meant for. Wider layers learn more slowly, as "
        "1/width. 0 uses one rate for all layers (paper).",
        0,
        10**7,
    )
    weight_decay: float = setting(
        1e-2, "Weight decay of AdamW. The official configs use 0.01.", 0.0, 1.0, step=0.001
    )
    query_decay: str = setting(
        "whole",
        "What weight decay shrinks in the tuned queries. whole: base weight plus change, as in the "
        "official code. change: only the learned change, so that the motion transfers to other "
        "checkpoints unchanged. With a rank, prodigy, schedulefree or came it is always change.",
        choices=("whole", "change"),
    )
    betas: tuple[float, float] = setting((0.9, 0.999), "Betas of AdamW.")
    clip_norm: float = setting(1.0, "Maximum norm of the gradient.", 1e-6, 1e6)
    warmup: int = setting(0, "Steps over which the learning rate rises.", 0, 10**7)
    rate_schedule: str = setting(
        "constant",
        "Learning rate after the warmup: constant (paper), or cosine, which falls to zero.",
        choices=("constant", "cosine"),
    )
    ema: float = setting(
        0.0,
        "Decay of the moving average of the weights. 0.99 averages about the last 100 steps, 0 "
        "turns it off (paper).",
        0.0,
        0.99999,
        step=0.0001,
    )
    min_snr: float = setting(
        0.0,
        "Maximum signal-to-noise ratio in the loss weight (Min-SNR), which lowers the weight of "
        "nearly clean timesteps. 5 is common, 0 turns it off (paper).",
        0.0,
        1e6,
        step=0.1,
    )
    difference_loss: float = setting(
        0.0,
        "Weight of a second loss, on the change from each frame to the next. It teaches the "
        "movement rather than the look: 0.5 is a good start. 0 turns it off (paper).",
        0.0,
        100.0,
        step=0.1,
    )
    timestep_shift: float = setting(
        1.0,
        "Trains more on noisy timesteps, where the places in the video are decided: with a shift "
        "of 3, half of the steps train on the noisiest quarter. 3 helps motions of several bodies "
        "or to and fro. 1 trains on all equally (paper).",
        0.01,
        100.0,
        step=0.1,
        advanced=True,
    )
    optimizer: str = setting(
        "adamw",
        "adamw: as in the paper. muon: changes a matrix equally in all directions; with recipe "
        "fast, most motions of single objects of the toy model need 0.5 to 0.7 of the steps. With "
        "SD 1.x it saves 0.9 GB, and a step has a quarter more operations. adamw8bit: moments in 8 "
        "bits, saves 1.5 GB; needs the package bitsandbytes or torchao. prodigy (package "
        "prodigyopt): finds the learning rate itself. schedulefree (package schedulefree): needs "
        "no rate schedule. came (package came-pytorch): needs less memory than adamw. Only "
        "installed ones are listed.",
        choices=("adamw", "muon", "adamw8bit", "prodigy", "schedulefree", "came"),
    )
    update: str = setting(
        "step",
        "When the weights are updated. step (paper): after the backward pass, with the norm of all "
        "gradients clipped. backward: each weight as soon as its gradient is there, which saves "
        "0.6 GB with SD 1.x; clips by the norm of the gradients so far. offload: also keeps "
        "the state of adamw or muon in main memory, which saves 1.9 or 1 GB more and is slower. "
        "Not with accumulate, fp16 or several GPUs.",
        choices=("step", "backward", "offload"),
        advanced=True,
    )
    rank: int = setting(
        0,
        "Learns each matrix as two factors of this rank. With SD 1.x, 64 gives a file of 24 MB "
        "instead of 508 MB, states of 0.3 GB instead of 3 GB, and saves 2.7 GB of memory, but the "
        "motion learns less in the same steps. 0 learns full matrices (paper).",
        0,
        1024,
        advanced=True,
    )
    hold_out: int = setting(
        0,
        "Clips kept out of training to measure the loss on. If it rises while the training loss "
        "falls, the motion overfits. 1 or 2 of 12 clips is a good choice.",
        0,
        1024,
    )
    patience: int = setting(
        0,
        "Stops when the motion is learned: after this many measurements in which neither the loss "
        "on held-out clips nor the samples' motion and likeness to frame 1 improve. A falling "
        "learning rate must also be down to a quarter. The best motion is saved as NAME-best. "
        "Needs hold_out. 3 is a good start with 20 samples per run, 0 trains all steps.",
        0,
        1000,
    )
    start_from: str = setting(
        "",
        "Motion file whose weights the training starts from, of the same model family. The steps "
        "count from 0; clips, settings and checkpoint may differ. Use it to continue a motion with "
        "more clips. To continue an interrupted run exactly, use resume instead.",
    )
    seed: int = setting(
        0,
        "The same seed and settings give the same motion. A resumed run needs its own seed.",
        0,
        2**64 - 1,
    )
    groupnorm: str = setting(
        "pooled",
        "GroupNorm statistics over all frames of a video (pooled, as in the official code) or of "
        "each frame. The motion file stores this choice.",
        choices=GROUPNORM_MODES,
    )
    precision: str = setting("fp32", choices=tuple(PRECISIONS))
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.warmup > self.steps:
            raise LampError(f"warmup is {self.warmup}: choose at most steps, {self.steps}.")
        if self.patience and not self.hold_out:
            raise LampError(
                f"patience is {self.patience}, but hold_out is 0: hold out 1 or 2 clips to measure "
                "on, or set patience to 0."
            )
        if self.difference_loss and self.frames < 3:
            raise LampError(
                f"difference_loss is {self.difference_loss} with {self.frames} frames: it compares "
                "frame 2 with frame 3, so choose 3 frames or more, or 0."
            )
        optimizers = ["adamw", "muon", *(["adamw8bit"] if self.update == "backward" else [])]
        alone = self.accumulate == 1 and self.precision != "fp16" and self.optimizer in optimizers
        if self.update != "step" and not alone:
            raise LampError(
                f"update is {self.update}: it needs accumulate 1 (here {self.accumulate}), "
                f"precision bf16 or fp32 (here {self.precision}) and optimizer "
                f"{' or '.join(optimizers)} (here {self.optimizer}). Or choose update step."
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise LampError(f"betas are {self.betas}: choose two values from 0 to below 1.")


@dataclass(frozen=True)
class RunChoices:
    """Choices that become settings of `TrainConfig` once steps, device and free memory are known.

    Raises LampError for an unknown choice.
    """

    preset: str = setting(
        "paper",
        "paper: as published, a constant learning rate for 30,000 steps. fast: higher rates that "
        "depend on layer width and fall to zero, for a fifth of the steps or fewer. fast was tuned "
        "on the toy model.",
        choices=PRESETS,
    )
    precision: str = setting(
        "auto",
        "Precision of the forward pass. Learned weights always stay in fp32. auto chooses by "
        "device.",
        choices=("auto", *PRECISIONS),
    )
    checkpointing: str = setting(
        "auto",
        "Gradient checkpointing: recomputes activations to save memory, about a third slower. "
        "auto: only if the run would not fit otherwise.",
        choices=("auto", "on", "off"),
    )
    card: str = setting(
        "none",
        "Chooses size, frames, batch, optimizer, update, rank and checkpointing for the memory of "
        "a card, by the memory estimate. auto uses the free memory. Settings that are given "
        "explicitly stay. none: nothing is chosen.",
        choices=("none", *CARDS),
    )
    device: str = setting(
        "auto",
        "Device to train on. auto prefers CUDA, then MPS, then the CPU.",
        choices=("auto", "cuda", "mps", "cpu"),
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class SaveConfig:
    """What a run writes while it lasts.

    Raises LampError for a value outside its range.
    """

    save_every: int = setting(
        500,
        "Steps between saved training states, to resume from. Cancelling saves one too. About 3 GB "
        "each with SD 1.x. 0: only on cancel.",
        0,
        10**7,
        advanced=True,
    )
    keep: int = setting(2, "How many of the newest states to keep.", 1, 1000, advanced=True)
    sample_every: int = setting(
        250,
        "Steps between sample videos of the motion so far, and between measurements on held-out "
        "clips. 0: neither.",
        0,
        10**7,
    )
    sample_guidance: float = setting(
        7.5, "CFG scale of the samples.", 0.0, 1000.0, step=0.5, advanced=True
    )
    keep_motions: int = setting(
        0,
        "How many motions to save during the training, at evenly spaced samples, to choose one by "
        "eye. 508 MB each with SD 1.x. 0: only the finished one.",
        0,
        100,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.keep_motions and not self.sample_every:
            raise LampError(
                f"keep_motions is {self.keep_motions}, but sample_every is 0: the motions are "
                "kept with their samples. Set sample_every, or keep_motions to 0."
            )

    def keeps_motion(self, step: int, steps: int) -> bool:
        """Whether the motion after `step` of `steps` is kept. The last one always has a file."""
        if not self.keep_motions or not 0 < step < steps or step % self.sample_every:
            return False
        samples, sample = (steps - 1) // self.sample_every, step // self.sample_every
        kept = min(self.keep_motions, samples)
        return sample * kept // samples > (sample - 1) * kept // samples


def preset(name: str, steps: int) -> dict[str, Any]:
    """The settings that a named recipe fixes, for a run of `steps` steps.

    `paper`: the published one. `fast`: higher rates that depend on the width of each layer, a short
    warmup, a cosine to zero, and less weight on nearly clean timesteps, which teach little about
    where things are. On the toy base it learns in a fifth of the steps or fewer
    (`python -m benchmarks.recipe`). Decay of whole queries at these rates would shrink the image
    model's queries by up to a hundredth, also on other checkpoints, so only the change decays.

    Raises:
        LampError: no recipe has that name.
    """
    if name == "paper":
        return {}
    if name == "fast":
        return {
            "learning_rate": 2e-3,
            "reference_width": 64,
            "warmup": min(100, steps // 15),
            "rate_schedule": "cosine",
            "min_snr": 1.0,
            "query_decay": "change",
        }
    raise LampError(f"There is no recipe '{name}': choose {' or '.join(PRESETS)}.")


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate in step number `step` (from 0)."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.rate_schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def choose_precision(wanted: str, computes: torch.dtype | None, has_bf16: bool) -> str:
    """The precision to train in: `wanted`, or for `auto` the one that suits the host.

    `auto` is fp32 where the UNet computes in fp32, whatever its weights are stored in; otherwise
    bf16 if the UNet or the device has it, and fp16 if not.

    Args:
        computes: the only dtype in which the UNet computes; None if any will do.
        has_bf16: whether the device is fast in bf16.

    Raises:
        LampError: fp32 is wanted, but the UNet computes in half precision.
    """
    if wanted == "auto":
        if computes == torch.float32:
            return "fp32"
        return "bf16" if has_bf16 or computes == torch.bfloat16 else "fp16"
    if wanted == "fp32" and computes not in (None, torch.float32):
        raise LampError(
            f"precision is fp32, but the MODEL computes in {computes}: choose auto, bf16 or "
            "fp16, or start ComfyUI with --force-fp32."
        )
    return wanted
