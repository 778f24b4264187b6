"""ComfyUI's own UNet as host: a motion bound to a MODEL by wrappers and scoped hooks.

Only public means of the host are used: a `ModelPatcher` clone, wrappers, and an additional model
under its memory manager. The forward hooks live for one UNet call each, so nothing is left behind
after a success, an error or a cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..architecture import map_unet
from ..checkpoint import MotionFile
from ..errors import LampError, MotionFileError
from ..finite import overflow_seen
from ..layout import FrameLayout
from ..masks import Extent, extents_of, held
from ..motion import Acting, Motion, attached
from ..noise import share_noise

KEY = "lamp_motion"
# Set on a noise tensor that has been mixed already (paper eq. 6), so that it is never mixed twice.
SHARED_NOISE = "lamp_shared_noise"
# In the options of a call that shows a window only: where its frames stand, of how many.
WINDOW = "lamp_window"
# In the options of a run: its model sampling, which a node behind ours may have set.
SAMPLING = "lamp_sampling"


@dataclass(frozen=True)
class BoundMotion:
    """A motion and how it acts, as `bind` attaches it to a MODEL.

    Of several on one MODEL, `others` are the earlier ones; `alpha` is that of the last.
    """

    motion: Motion
    groupnorm: str = "pooled"
    first_frame: bool = True
    strength: float = 1.0
    alpha: float = 0.2
    start_percent: float = 0.0
    end_percent: float = 1.0
    extent: Extent | None = None
    others: tuple[BoundMotion, ...] = ()

    @property
    def all(self) -> tuple[BoundMotion, ...]:
        """Every motion on the MODEL, in the order of their nodes."""
        return *self.others, self

    @property
    def extents(self) -> list[Extent | None]:
        """Those of the motions on the MODEL."""
        return extents_of(self.all)


def unet_of(patcher: Any) -> torch.nn.Module:
    """The UNet inside a MODEL.

    Raises:
        IncompatibleModelError: the MODEL is no Stable Diffusion UNet.
    """
    unet = patcher.model.diffusion_model
    map_unet(unet)
    return unet


def own_weights(patcher: Any, part: str = "") -> dict[str, Tensor]:
    """The weights of a model by name, or of a `part` of it, without patches: also while those of a
    clone, such as a LoRA of another run, stand in them."""
    prefix = part and f"{part}."
    return {
        name.removeprefix(prefix): patcher.backup[name].weight if name in patcher.backup else weight
        for name, weight in patcher.model.state_dict().items()
        if name.startswith(prefix)
    }


def load_motion(patcher: Any, file: MotionFile) -> Motion:
    """Build the motion of `file` from the host's own layer classes, which cast and stream weights.

    Raises:
        IncompatibleModelError: the motion was trained for another family of models.
        MotionFileError: a value is too large for the precision in which the MODEL computes.
    """
    import comfy.ops

    sites = map_unet(unet_of(patcher))
    file.check_against(sites)
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    motion = Motion(sites, comfy.ops.manual_cast, dtype=dtype, device="cpu")
    motion.load_state_dict(file.state)
    for name, tensor in motion.state_dict().items():
        if tensor.dtype != file.state[name].dtype and not tensor.isfinite().all():
            raise MotionFileError(
                f"{file.name}: '{name}' holds values too large for {tensor.dtype}, in which the "
                "MODEL computes: start ComfyUI with --force-fp32."
            )
    return motion.requires_grad_(False).eval()


def bind(patcher: Any, bound: BoundMotion) -> Any:
    """Clone a MODEL and let `bound` act in it, with any sampler, beside motions that it has.

    Raises:
        LampError: a motion on the MODEL normalises in another way.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    from comfy.patcher_extension import WrappersMP

    bound = _beside(patcher.get_attachment(KEY), bound)
    model = patcher.clone()
    # Newer hosts stream the weights of core models through a patcher class of their own.
    patcher_class = getattr(
        comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher
    )
    weights = patcher_class(
        bound.motion, management.get_torch_device(), management.unet_offload_device()
    )
    model.set_additional_models(KEY, [*model.get_additional_models_with_key(KEY), weights])
    model.set_attachments(KEY, bound)
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _outer_sample(bound)),
        (WrappersMP.SAMPLER_SAMPLE, _sampler_sample),
        (WrappersMP.PREDICT_NOISE, _predict_noise(bound)),
        (WrappersMP.DIFFUSION_MODEL, _diffusion_model(bound)),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    return model


def _beside(present: BoundMotion | None, bound: BoundMotion) -> BoundMotion:
    if present is None:
        return bound
    if (present.groupnorm, present.first_frame) != (bound.groupnorm, bound.first_frame):
        raise LampError(
            f"The motion on this MODEL was trained with groupnorm '{present.groupnorm}', this one "
            f"with '{bound.groupnorm}', and a video is drawn one way: use one of them, or train "
            "one again."
        )
    return replace(bound, others=present.all)


def bound_motion(patcher: Any) -> BoundMotion:
    """The motion of a MODEL.

    Raises:
        LampError: the MODEL carries none.
    """
    bound = patcher.get_attachment(KEY)
    if bound is None:
        raise LampError(
            "The MODEL has no LAMP motion: connect the MODEL output of Load LAMP Motion or of "
            "LAMP Trainer."
        )
    return bound


def clean_first_frame(model_options: dict[str, Any]) -> Tensor | None:
    """The clean latent of frame 1 (`1 c h w`, model scale) of the sampling run under way."""
    run = model_options.get("transformer_options", {}).get(KEY)
    return None if run is None else run["first"]


def _outer_sample(bound: BoundMotion) -> Callable[..., Tensor]:
    def outer_sample(
        executor: Any, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        _check_latent(latent_image, executor.class_obj.model_patcher.model.latent_format)
        _check_patches(executor.class_obj)
        for extent in bound.extents:
            if extent is not None:
                extent.check(len(latent_image))
        if not getattr(noise, SHARED_NOISE, False):
            noise = share_noise(noise, bound.alpha)
        out = executor(noise, latent_image, *args, **kwargs)
        # Some samplers stop above sigma 0: frame 1 is the given latent, whatever they return.
        return torch.cat([latent_image[:1].to(out), out[1:]])

    return outer_sample


def _check_patches(guider: Any) -> None:
    from comfy.patcher_extension import WrappersMP

    if guider.model_options.get("context_handler") is not None:
        raise LampError(
            "Context windows cut the video into pieces that do not contain frame 1, which "
            "a LAMP motion needs: remove the Context Windows node from this MODEL and use "
            "LAMP Anchored Windows."
        )
    if guider.model_patcher.get_wrappers(WrappersMP.APPLY_MODEL, "torch.compile"):
        raise LampError(
            "torch.compile would start anew at every layer to which a LAMP motion attaches, for "
            "minutes and to no gain: remove TorchCompileModel from this MODEL."
        )


def _check_latent(latent: Tensor, latent_format: Any) -> None:
    if latent.ndim != 4 or latent.shape[0] < 2:
        raise LampError(
            f"A LAMP motion needs a latent of at least 2 frames, not of shape "
            f"{tuple(latent.shape)}: make it with LAMP First-Frame Condition (16 frames)."
        )
    if latent.shape[1] != latent_format.latent_channels:
        raise LampError(
            f"The latent has {latent.shape[1]} channels, the MODEL needs "
            f"{latent_format.latent_channels}: make it with LAMP First-Frame Condition and the "
            "VAE of the SD 1.x checkpoint."
        )
    if not torch.isfinite(latent).all():
        raise LampError(
            "The latent contains NaN or infinite values: check the first frame's image and the "
            "VAE (SD 1.x VAEs can overflow in fp16; start ComfyUI with --fp32-vae)."
        )
    if not latent[0].any():
        raise LampError(
            "Frame 1 of the latent is empty: a LAMP motion moves a picture that you give it. "
            "Connect LAMP First-Frame Condition in place of an empty latent."
        )


def _sampler_sample(
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Callable[..., Any] | None,
    noise: Tensor,
    latent_image: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Keep the clean frame 1 for the run, in the run's own copy of the options."""
    options = extra_args["model_options"].setdefault("transformer_options", {})
    options[KEY] = {"first": latent_image[:1].clone()}
    options[SAMPLING] = guider.inner_model.model_sampling
    return executor(
        guider,
        sigmas,
        extra_args,
        _preview_middle_frame(callback),
        noise,
        latent_image,
        *args,
        **kwargs,
    )


def _preview_middle_frame(callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Previews show the first image of a batch, which never moves here: put another one first."""
    if callback is None:
        return None

    def preview(step: int, x0: Tensor, x: Tensor, total: int) -> Any:
        return callback(step, x0.roll(-(x0.shape[0] // 2), 0), x, total)

    return preview


def _predict_noise(bound: BoundMotion) -> Callable[..., Tensor]:
    def predict_noise(
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Show the model the clean frame 1 (paper sec. 3.3), and keep it: its prediction is
        itself. So is that of all frames where the extents hold them."""
        options = model_options or {}
        first = clean_first_frame(options)
        if first is None:
            return executor(x, timestep, options, seed)
        first = first.to(x)
        sampling = executor.class_obj.inner_model.model_sampling
        input_scale = sampling.calculate_input(timestep[:1], torch.ones_like(first))
        shown = torch.cat([first / input_scale, x[1:]])
        out = held(executor(shown, timestep, options, seed), first, bound.extents)
        return torch.cat([first, out[1:]])

    return predict_noise


def _diffusion_model(bound: BoundMotion) -> Callable[..., Tensor]:
    """Attach the motions for one UNet call; each acts from its start to its end percent."""

    def diffusion_model(
        executor: Any,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        videos = len(options.get("cond_or_uncond", [0]))
        frames = x.shape[0] // videos
        places, total = options.get(WINDOW, (None, frames))
        layout = FrameLayout(frames, videos, places, total)
        _check_whole_picture(bound.extents, x, options)
        motions = [
            Acting(each.motion, each.strength if _within(each, options) else 0.0, each.extent)
            for each in bound.all
        ]
        with attached(
            executor.class_obj,
            motions,
            layout,
            groupnorm=bound.groupnorm,
            first_frame=bound.first_frame,
        ):
            given = (x, timesteps, context, y, control, options)
            out = executor(*given, **kwargs)
            if not out.isfinite().all():
                networks = {f"motion {n}": e.motion for n, e in enumerate(bound.all, start=1)}
                with overflow_seen({**networks, "MODEL": executor.class_obj}) as found:
                    executor(*given, **kwargs)
                raise LampError(_overflow(found, x.dtype))
            return out

    return diffusion_model


def _overflow(found: list[str], dtype: torch.dtype) -> str:
    place = f"in {found[0]}" if found else "on the way to the MODEL"
    return (
        f"The video became NaN or infinite {place}, computed in {dtype}, and would be black: lower "
        "cfg and the strength of the motion, or start ComfyUI with --force-fp32."
    )


def _check_whole_picture(extents: list[Extent | None], x: Tensor, options: dict[str, Any]) -> None:
    first = clean_first_frame({"transformer_options": options})
    masked = any(extent is not None and extent.mask is not None for extent in extents)
    if masked and first is not None and x.shape[-2:] != first.shape[-2:]:
        raise LampError(
            "A mask on the motion needs the whole picture in every call, and a prompt for an area "
            "shows the model a part of it: use Conditioning (Set Mask) in place of Conditioning "
            "(Set Area), or take the mask off."
        )


def _within(bound: BoundMotion, options: dict[str, Any]) -> bool:
    """Whether the noise level of this call lies where the motion acts; always without one."""
    sampling, sigmas = options.get(SAMPLING), options.get("sigmas")
    if sampling is None or sigmas is None:
        return True
    start, end = (sampling.percent_to_sigma(p) for p in (bound.start_percent, bound.end_percent))
    return start >= sigmas[0].item() > end
