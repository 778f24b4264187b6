"""ComfyUI's UNet as host: a motion bound to a MODEL by wrappers and scoped hooks.

Only ComfyUI's public means are used: a `ModelPatcher` clone, wrappers, and an additional model
under its memory manager. Forward hooks exist for one sampling run only: none remain after a
success, an error or a cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...errors import LampError, MotionFileError
from ...method.architecture import base_hash, map_unet
from ...method.masks import MotionMask, all_hold, hold_first_frame, restore_held
from ...method.motion import ActiveMotion, Motion, motion_masks_of
from ...method.motion_guidance import check_motion_guidance
from ...method.noise import share_noise
from ...motion_file.file import MotionFile
from ...plain import log
from .canvas import warn_below_running_node
from .compiled import CompiledCalls, is_compiled, take_over
from .frames import cut_hints
from .latent import check_latent, check_start, fill_protected, mask_of_step
from .levels import check_level, ends_clean, start_inverted
from .motion_guidance import call_guided, has_plain_guidance
from .noise import NOISE_LEVEL, SHARED_NOISE, plain_noise
from .other_nodes import check_one_noise_level, check_other_nodes, keep_on_one_gpu
from .overflow import find_overflow, overflow_text
from .run import AD_PARAMS, KEY, PIECE, Run, run_of

# In the options of a call that processes one window: the rows of the run in that window.
WINDOW = "lamp_window"


@dataclass(frozen=True)
class BoundMotion(ActiveMotion):
    """A motion and its settings, as `bind` attaches it to a MODEL.

    With several motions on one MODEL, `others` are the earlier ones and `alpha` is the last one's.
    `trained_frames` is 0 where it is not known.
    """

    groupnorm: str = "pooled"
    trained_frames: int = 0
    first_frame: bool = True
    alpha: float = 0.2
    motion_guidance: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    others: tuple[BoundMotion, ...] = ()

    @property
    def all(self) -> tuple[BoundMotion, ...]:
        """All motions on the MODEL, in the order of their nodes."""
        return *self.others, self

    @property
    def motion_masks(self) -> list[MotionMask | None]:
        """The masks of the motions on the MODEL."""
        return motion_masks_of(self.all)


def unet_of(patcher: Any) -> torch.nn.Module:
    """The UNet inside a MODEL.

    Raises:
        IncompatibleModelError: the MODEL is not a Stable Diffusion UNet.
    """
    unet = patcher.model.diffusion_model
    map_unet(unet)
    return unet


def unpatched_weights(patcher: Any, part: str = "") -> dict[str, Tensor]:
    """The weights of a model, or of a `part` of it, by name and without patches, even while patches
    of a clone (such as a LoRA of another run) are applied."""
    prefix = part and f"{part}."
    return {
        name.removeprefix(prefix): patcher.backup[name].weight if name in patcher.backup else weight
        for name, weight in patcher.model.state_dict().items()
        if name.startswith(prefix)
    }


def image_model_hash(patcher: Any) -> str:
    """`base_hash` of a MODEL without its LoRAs. A motion file stores it, and loading compares it.

    Empty if the weights cannot be read (GGUF): the hash is a hint and no reason to fail."""
    try:
        return base_hash(
            patcher.model.diffusion_model, unpatched_weights(patcher, "diffusion_model")
        )
    except Exception as error:  # other packs' weights fail in ways of their own
        log.info("cannot identify the checkpoint of this MODEL: %s", error)
        return ""


def load_motion(patcher: Any, file: MotionFile) -> Motion:
    """Build the motion of `file` from ComfyUI's layer classes, which cast and stream weights.

    Raises:
        IncompatibleModelError: the motion was trained for another family of models.
        MotionFileError: a value is too large for the dtype in which the MODEL computes.
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
                f"{file.name}: '{name}' has values too large for {tensor.dtype}, in which the "
                "MODEL computes: start ComfyUI with --force-fp32."
            )
    return motion.requires_grad_(False).eval()


def bind(patcher: Any, bound: BoundMotion) -> Any:
    """Clone a MODEL and attach `bound`, in addition to motions that it has. Works with any sampler.

    Raises:
        LampError: motion guidance is below 1, or a motion on the MODEL normalises in another way.
    """
    import comfy.model_patcher
    from comfy.patcher_extension import WrappersMP

    check_motion_guidance(bound.motion_guidance)
    bound = _stack_on(patcher.get_attachment(KEY), bound)
    model = patcher.clone()
    # Newer versions stream the weights of core models through their own patcher class, which
    # torch.compile cannot follow.
    patcher_class = comfy.model_patcher.ModelPatcher
    if not is_compiled(patcher):
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    weights = patcher_class(bound.motion, model.load_device, model.offload_device)
    keep_on_one_gpu(weights)
    model.set_additional_models(KEY, [*model.get_additional_models_with_key(KEY), weights])
    model.set_attachments(KEY, bound)
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _outer_sample(bound)),
        (WrappersMP.SAMPLER_SAMPLE, _sampler_sample(bound)),
        (WrappersMP.PREDICT_NOISE, _predict_noise(bound)),
        (WrappersMP.DIFFUSION_MODEL, _diffusion_model(bound)),
    ):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    # Outermost: a cache on the MODEL must see the clean frame 1, and frame 1 its own prediction
    # also where the cache skips a step.
    predicting = model.wrappers[WrappersMP.PREDICT_NOISE]
    model.wrappers[WrappersMP.PREDICT_NOISE] = {KEY: predicting.pop(KEY), **predicting}
    return model


def _stack_on(present: BoundMotion | None, bound: BoundMotion) -> BoundMotion:
    if present is None:
        return bound
    if (present.groupnorm, present.first_frame) != (bound.groupnorm, bound.first_frame):
        raise LampError(
            f"The motion on this MODEL was trained with groupnorm '{present.groupnorm}', this one "
            f"with '{bound.groupnorm}'. A video can use only one: load one of the motions, or "
            "train one again with the other's groupnorm."
        )
    if present.motion_guidance != bound.motion_guidance:
        raise LampError(
            f"motion_guidance is {present.motion_guidance:g} for the motion on this MODEL and "
            f"{bound.motion_guidance:g} for this one, and guidance amplifies all of them at once: "
            "set the same value in every Load LAMP Motion."
        )
    return replace(bound, others=present.all)


def bound_motion(patcher: Any) -> BoundMotion:
    """The motion of a MODEL.

    Raises:
        LampError: the MODEL has none.
    """
    bound = patcher.get_attachment(KEY)
    if bound is None:
        raise LampError(
            "The MODEL has no LAMP motion: connect the MODEL output of Load LAMP Motion or of "
            "LAMP Trainer."
        )
    return bound


def _outer_sample(bound: BoundMotion) -> Callable[..., Tensor]:
    def outer_sample(
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Start a run: check its inputs, and return frame 1 as it came in."""
        guider = executor.class_obj
        options = guider.model_options.setdefault("transformer_options", {})
        check_other_nodes(guider)
        check_latent(latent_image, guider.model_patcher.model.latent_format)
        patcher = guider.model_patcher
        sampling = patcher.get_model_object("model_sampling")
        check_start(noise, latent_image, sigmas, patcher.model, sampling)
        inverted_to, shared = getattr(noise, NOISE_LEVEL, None), getattr(noise, SHARED_NOISE, False)
        check_level(sigmas, sampling, latent_image, inverted_to)
        cut_hints(guider, len(latent_image))
        latent_image = fill_protected(latent_image, denoise_mask)
        if inverted_to is not None:
            given = (noise, latent_image, denoise_mask, sigmas, patcher.model, sampling)
            noise, latent_image = start_inverted(*given)
        run = Run(len(latent_image), options.get(PIECE), compile=take_over(guider))
        if shared:
            run.given = noise
        height, width = latent_image.shape[-2:]
        for motion_mask in bound.motion_masks:
            if motion_mask is not None:
                motion_mask.check(run.whole.total)
                if told := motion_mask.differs_from((height, width)):
                    warn_below_running_node(told)
        options[KEY] = run
        try:
            out = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
            run.checks.finish()
        finally:
            run.release()
            options.pop(KEY, None)
            for motion_mask in bound.motion_masks:
                if motion_mask is not None:
                    motion_mask.forget()
        # Some samplers stop above sigma 0. Frame 1 is always the given latent.
        return torch.cat([latent_image[:1].to(out), out[1:]])

    return outer_sample


def _sampler_sample(bound: BoundMotion) -> Callable[..., Tensor]:
    def sampler_sample(
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., Any] | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Store the clean frame 1 for the run, and share the noise here, because nodes after this
        one may have drawn it again."""
        model_options = extra_args["model_options"]
        options = model_options.setdefault("transformer_options", {})
        run: Run = options[KEY]
        run.first, run.latent = latent_image[:1].clone(), latent_image
        run.guider, run.sampling = guider, guider.inner_model.model_sampling
        if run.piece is not None:
            options[AD_PARAMS] = run.piece.published()
        if run.given is None or not torch.equal(run.given.to(noise), noise):
            noise = share_noise(noise, bound.alpha)
        run.first_noise = noise[:1]
        if not noise.any():  # an earlier sampler added it, usually with the same seed
            drawn = plain_noise(latent_image, extra_args.get("seed") or 0)
            run.first_noise = share_noise(drawn, bound.alpha)[:1].to(noise)
        levels = sigmas.clone()  # uni_pc writes into its own
        given = (guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask)
        out = executor(*given, *args, **kwargs)
        # The masks hold frame 1 even where the schedule leaves noise, and under AdaIN.
        if run.denoised is None or not ends_clean(levels, run.sampling):
            return out
        held = run.denoised.to(out)
        mask = mask_of_step(denoise_mask, model_options, guider, levels, len(levels) - 2)
        if denoise_mask is not None and mask is not None:
            # What the latent's mask protects is the latent, also where the last step frees it.
            mask = torch.where(denoise_mask > 0, mask, 0).to(out)
            held = torch.lerp(latent_image.to(out), held, mask)
        return restore_held(out, held, bound.motion_masks, run.whole.frame_indices)

    return sampler_sample


def _predict_noise(bound: BoundMotion) -> Callable[..., Tensor]:
    def predict_noise(
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Give the model the clean frame 1 (paper sec. 3.3) and return it as its own prediction. So
        are all frames where the masks hold them."""
        options = model_options or {}
        run = run_of(options.get("transformer_options", {}))
        if run is None:
            return executor(x, timestep, options, seed)
        model = executor.class_obj.inner_model
        run.check_size(x)
        check_one_noise_level(timestep, run.checks)
        sampling = model.model_sampling
        scale = sampling.calculate_input(timestep[:1], torch.ones_like(x[:1]))
        shown, run.noisy_first = x, x[:1]
        if run.first is not None and run.first_noise is not None:
            first = run.first.to(x)
            shown = torch.cat([first / scale, x[1:]])
            # Not the sampler's own, which a CFG++ sampler or a part of a schedule has otherwise.
            run.noisy_first = sampling.noise_scaling(timestep[:1], run.first_noise.to(x), first)
        run.shown = torch.cat([shown, run.noisy_first]) * scale
        run.bypassed = 0
        run.plain_guidance = has_plain_guidance(executor.class_obj, options)
        convs = bound.motion.sites.convs
        ends = (convs[0].module, convs[-1].module)
        with run.watched(model.diffusion_model, ends, options.get("model_function_wrapper")):
            out = executor(shown, timestep, options, seed)
        if run.first is None:
            return out
        first = run.first.to(x)
        out = torch.cat(
            [first, hold_first_frame(out, first, bound.motion_masks, run.whole.frame_indices)[1:]]
        )
        run.denoised = out if all_hold(bound.motion_masks) else None
        return out

    return predict_noise


def _diffusion_model(bound: BoundMotion) -> Callable[..., Tensor]:
    """Attach the motions for one UNet call; each acts between its start and end percent."""
    compiled = CompiledCalls(with_masks=any(bound.motion_masks))

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
        run = run_of(options)
        if run is None:
            raise LampError(
                "The MODEL with a LAMP motion was called outside a sampling run, so the layout of "
                "its video is unknown: use it with LAMP KSampler or ComfyUI's samplers."
            )
        layout = run.layout(x, options, options.get(WINDOW))
        run.note_length(layout.frames, [each.trained_frames for each in bound.all])
        if any(each is not None and each.mask is not None for each in bound.motion_masks):
            run.check_whole_picture(x, "A mask on the motion", "remove the mask")
        motions = [
            each
            if run.acts(each.start_percent, each.end_percent, options)
            else replace(each, strength=0.0)
            for each in bound.all
        ]
        # Inversion shows frame 1 as it is, and retraces what the model says without guidance.
        guided = bound.motion_guidance != 1.0 and run.first is not None
        unet, how = (
            executor.class_obj,
            {"groupnorm": bound.groupnorm, "first_frame": bound.first_frame},
        )

        def call(unet: Any, control: Any) -> Tensor:
            return unet(x, timesteps, context, y, control, options, **kwargs)

        # The UNet takes the outputs of ControlNets out of their lists.
        untouched = None if control is None else {key: [*part] for key, part in control.items()}
        with run.attending(unet, motions, layout, **how) as seen:
            moving = partial(call, compiled.inside(executor, run, motions, seen))
            if guided and any(each.strength for each in motions):
                out = call_guided(moving, control, run, seen, options, bound.motion_guidance)
            else:
                out = moving(control)

        def explain() -> LampError:
            networks = {f"motion {n}": e.motion for n, e in enumerate(bound.all, start=1)}
            with (
                run.attending(unet, motions, layout, **how),
                find_overflow({**networks, "MODEL": unet}) as found,
            ):
                call(executor, untouched)
            return LampError(overflow_text(found, x.dtype))

        run.checks.add(out.isfinite().all(), explain)
        run.checks.turn()
        return out

    return diffusion_model
