"""Short sampling runs in ComfyUI: its stock nodes, its custom sampling, and LAMP's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.samples.tiny_models import text, video_latent
from lamp.method.adain import AdaINSchedule
from lamp.motion_file.file import MotionFile

STEPS = 4
SEED = 7


def moving(patcher: Any, file: MotionFile, **options: Any) -> Any:
    from lamp.hosts.comfy.binding import BoundMotion, bind, load_motion

    return bind(patcher, BoundMotion(load_motion(patcher, file), **options))


def conditioning() -> tuple[Any, Any]:
    return [[text(1), {}]], [[text(2), {}]]


def core(kind: Any, *inputs: Any) -> tuple[Any, ...]:
    """The output of one of ComfyUI's own nodes, in the old or the new form of its class."""
    if hasattr(kind, "execute"):
        return kind.execute(*inputs).result
    return getattr(kind(), kind.FUNCTION)(*inputs)


def ksampler(model: Any, sampler: str = "euler", cfg: float = 5.0, **latent: Any) -> Tensor:
    """The stock KSampler node."""
    import nodes

    positive, negative = conditioning()
    latent.setdefault("samples", video_latent())
    (out,) = nodes.common_ksampler(
        model, SEED, STEPS, cfg, sampler, "normal", positive, negative, latent
    )
    return out["samples"]


def advanced(
    model: Any,
    sampler: Any,
    sigmas: Any,
    noise: Any = None,
    cfg: float = 5.0,
    latent: Tensor | None = None,
    output: int = 0,
    **more: Any,
) -> Tensor:
    """An output of the stock SamplerCustomAdvanced node, with its helpers.

    Args:
        output: 0 is the latent, 1 the last prediction.
        more: further entries of the LATENT, such as a noise_mask.
    """
    from comfy_extras.nodes_custom_sampler import CFGGuider, RandomNoise, SamplerCustomAdvanced

    positive, negative = conditioning()
    guider = core(CFGGuider, model, positive, negative, cfg)[0]
    noise = core(RandomNoise, SEED)[0] if noise is None else noise
    given = {"samples": video_latent() if latent is None else latent, **more}
    return core(SamplerCustomAdvanced, noise, guider, sampler, sigmas, given)[output]["samples"]


def levels(model: Any, scheduler: str = "normal", steps: int = STEPS) -> Tensor:
    """Noise levels of a scheduler by its name, ours or the host's."""
    from lamp.hosts.comfy.sampler import make_sigmas

    return make_sigmas(model, scheduler, steps)


def sampler(name: str = "euler", mode: Any = None) -> Any:
    """The host's SAMPLER, or ours with an AdaIN schedule of the given mode."""
    import comfy.samplers

    from lamp.hosts.comfy.sampler import make_sampler

    stock = comfy.samplers.sampler_object(name)
    return stock if mode is None else make_sampler(name, AdaINSchedule(mode))


def lamp_ksampler(model: Any, latent: Tensor | None = None, **options: Any) -> Tensor:
    from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video

    positive, negative = conditioning()
    settings: dict[str, Any] = {
        "seed": SEED,
        "steps": STEPS,
        "cfg": 5.0,
        "sampler": "ddim",
        "scheduler": OFFICIAL_SCHEDULER,
        "schedule": AdaINSchedule("off"),
    }
    samples = {"samples": video_latent() if latent is None else latent}
    return sample_video(model, positive, negative, samples, **{**settings, **options})["samples"]


def count_hooks(patcher: Any) -> int:
    modules = patcher.model.diffusion_model.modules()
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in modules
    )


def worst(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()
