"""From a first frame to a video: condition, noise, sampler, colours."""

from __future__ import annotations

from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..lamp.clips.images import LATENT_STRIDE, Fit, check_size, fit_images
from ..lamp.errors import LampError
from ..lamp.hosts.comfy.noise import NOISE_LEVEL, SharedNoise
from ..lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video, scheduler_names
from ..lamp.hosts.comfy.vae import encode_first_frame, first_picture
from ..lamp.method.adain import AdaINSchedule
from ..lamp.method.histogram import match_histograms
from ..lamp.motion_file.file import MotionFile
from ..lamp.plain import log
from .common import LampAdaIN, LampMotion, aliases, named_errors, plain_errors, seed_input
from .progress import NodeProgress

_SEED = "The number that decides the noise: the same seed, the same video."
_MAX_SIZE = 8192
_MAX_FRAMES = 1024
# Frames that visit the device together: enough to keep it busy, few enough to fit beside a model.
_CHUNK = 16


class FirstFrameCondition(io.ComfyNode):
    """Encode the first frame and leave room for the others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_FirstFrameCondition",
            display_name="LAMP First-Frame Condition",
            category="LAMP/sampling",
            description="Makes the LATENT of a video from its first frame: frame 1 holds the "
            "picture, the others are empty. The sampler keeps frame 1 exactly as it is.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of the checkpoint that makes the video: SD 1.x's, not "
                    "SD-XL's.",
                ),
                io.Image.Input(
                    "image",
                    tooltip="The first frame, from any image model or a photo; of several images "
                    "the first one.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=LATENT_STRIDE,
                    max=_MAX_SIZE,
                    step=LATENT_STRIDE,
                    tooltip="The width of the video, a multiple of 8; best near the size that the "
                    "motion was trained on.",
                ),
                io.Int.Input(
                    "height",
                    default=320,
                    min=LATENT_STRIDE,
                    max=_MAX_SIZE,
                    step=LATENT_STRIDE,
                    tooltip="The height of the video, a multiple of 8.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=_MAX_FRAMES,
                    tooltip="How many frames the video has, the first one included; best the "
                    "number that the motion was trained on (16).",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(get_args(Fit)),
                    default="crop",
                    tooltip="How a picture of other proportions is fitted: crop cuts the sides, "
                    "pad adds black bars, stretch changes the proportions.",
                ),
                LampMotion.Input(
                    "motion",
                    optional=True,
                    tooltip="From Load LAMP Motion. Only needed for a motion that was trained for "
                    "SD-XL: vae has to be SD-XL's then.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="The video to be: frame 1 encoded, zeros after it.",
                ),
            ],
            **aliases("image to video", "start image", "animate image", "i2v"),
        )

    @classmethod
    @plain_errors
    def validate_inputs(
        cls, width: int | None = None, height: int | None = None, frames: int | None = None
    ) -> bool | str:
        """Say it before anything runs; a value that comes over a link is not known yet."""
        try:
            _check_video(
                LATENT_STRIDE if width is None else width,
                LATENT_STRIDE if height is None else height,
                2 if frames is None else frames,
            )
        except LampError as error:
            return str(error)
        return True

    @classmethod
    @named_errors("LAMP First-Frame Condition")
    def execute(
        cls,
        vae: Any,
        image: torch.Tensor,
        width: int = 512,
        height: int = 320,
        frames: int = 16,
        fit: Fit = "crop",
        motion: MotionFile | None = None,
    ) -> io.NodeOutput:
        _check_video(width, height, frames)
        if image.shape[0] > 1:
            log.warning("LAMP First-Frame Condition: took the first of %d images.", len(image))
        picture = fit_images(first_picture(image, cls._warn), width, height, fit)
        family = "sd1" if motion is None else motion.config.family
        first = encode_first_frame(vae, picture, family)
        others = first.new_zeros(frames - 1, *first.shape[1:])
        return io.NodeOutput({"samples": torch.cat([first, others])})

    @classmethod
    def _warn(cls, sentence: str) -> None:
        """In the log, and under the node where there is a server to show it."""
        log.warning("LAMP First-Frame Condition: %s", sentence)
        NodeProgress(getattr(cls.hidden, "unique_id", None)).say(sentence)


def _check_video(width: int, height: int, frames: int) -> None:
    check_size(width, height)
    if max(width, height) > _MAX_SIZE:
        raise LampError(
            f"The video is {width} x {height}: no side is longer than {_MAX_SIZE} pixels. Use 512 "
            "x 320, for instance."
        )
    if not 2 <= frames <= _MAX_FRAMES:
        raise LampError(
            f"frames is {frames}: a video has between 2 and {_MAX_FRAMES} frames, the first one "
            "included. Use 16, for instance."
        )


class SharedNoiseLatents(io.ComfyNode):
    """Starting noise that the frames share in part."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_SharedNoise",
            display_name="Shared Noise Latents",
            category="LAMP/sampling",
            description="Starting noise whose frames resemble each other, for LAMP KSampler's "
            "noise or for SamplerCustomAdvanced. A MODEL with a motion does not mix it again.",
            inputs=[
                io.Latent.Input(
                    "latent", tooltip="The LATENT of the video; only its shape matters here."
                ),
                seed_input(_SEED),
                io.Float.Input(
                    "alpha",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of its noise every frame shares with the others: 0 nothing, "
                    "1 everything; 0.2 is the paper's value.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "noise_latent",
                    display_name="noise_latent",
                    tooltip="The noise as a LATENT, for the noise input of LAMP KSampler.",
                ),
                io.Noise.Output(
                    "noise", display_name="noise", tooltip="The noise for SamplerCustomAdvanced."
                ),
            ],
            **aliases("video noise", "consistent noise"),
        )

    @classmethod
    @named_errors("Shared Noise Latents")
    def execute(cls, latent: dict[str, Any], seed: int, alpha: float = 0.2) -> io.NodeOutput:
        noise = SharedNoise(seed, alpha)
        return io.NodeOutput({"samples": noise.generate_noise(latent)}, noise)


def sampling_inputs() -> list[Any]:
    """How a video is sampled: steps, guidance, sampler, noise levels, AdaIN."""
    import comfy.samplers

    return [
        io.Int.Input(
            "steps",
            default=50,
            min=1,
            max=1000,
            tooltip="The number of denoising steps; the paper takes 50.",
        ),
        io.Float.Input(
            "cfg",
            default=12.5,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How closely the video follows the prompt; the official scripts use "
            "12.5, few-step LoRAs need 1 to 2.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.SAMPLER_NAMES),
            default="ddim",
            tooltip="The sampling algorithm; ddim is the paper's.",
        ),
        io.Combo.Input(
            "scheduler",
            options=scheduler_names(),
            default=OFFICIAL_SCHEDULER,
            tooltip="The noise levels of the steps; ddim (official) is the paper's.",
        ),
        io.Combo.Input(
            "adain",
            options=["paper", "official", "off"],
            default="paper",
            tooltip="How the frames' statistics are aligned between the steps: as the "
            "paper writes, as the official code does, or not at all.",
        ),
    ]


class LampKSampler(io.ComfyNode):
    """Sample a video by supplement alg. 1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_KSampler",
            display_name="LAMP KSampler",
            category="LAMP/sampling",
            description="Samples a video from its first frame as in the paper: shared noise, "
            "DDIM, and AdaIN between the steps, which keeps the colours steady.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from Load LAMP Motion or LAMP Trainer."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The prompt: what is in the first frame, and the motion's own prompt.",
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What to avoid; the paper leaves it empty."
                ),
                io.Latent.Input("latent", tooltip="The LATENT of LAMP First-Frame Condition."),
                seed_input(_SEED),
                *sampling_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much is drawn anew: 1 everything but frame 1; less keeps some of "
                    "the frames that the LATENT holds.",
                ),
                LampAdaIN.Input(
                    "adain_schedule",
                    optional=True,
                    tooltip="A schedule from LAMP AdaIN Schedule; it takes the place of adain.",
                ),
                io.Latent.Input(
                    "noise",
                    optional=True,
                    tooltip="Starting noise to use as it is, from Shared Noise Latents or LAMP "
                    "DDIM Inversion; it takes the place of the seed's noise.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "video_latent",
                    display_name="latent",
                    tooltip="The video; its first frame is the given one, bit for bit.",
                ),
            ],
            **aliases("video sampler", "image to video", "adain sampler"),
        )

    @classmethod
    @named_errors("LAMP KSampler")
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int = 50,
        cfg: float = 12.5,
        sampler_name: str = "ddim",
        scheduler: str = OFFICIAL_SCHEDULER,
        adain: Any = "paper",
        denoise: float = 1.0,
        adain_schedule: AdaINSchedule | None = None,
        noise: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        video = sample_video(
            model,
            positive,
            negative,
            latent,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler_name,
            scheduler=scheduler,
            schedule=adain_schedule or AdaINSchedule(adain),
            denoise=denoise,
            noise=None if noise is None else noise["samples"],
            noise_level=None if noise is None else noise.get(NOISE_LEVEL),
        )
        return io.NodeOutput(video)


class HistogramMatch(io.ComfyNode):
    """Give all frames the colours of one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_HistogramMatch",
            display_name="Histogram Match",
            category="LAMP/image",
            description="Gives every frame the colour distribution of the first one (or of a "
            "reference), which removes drifting colours and flicker.",
            inputs=[
                io.Image.Input("images", tooltip="The frames of the decoded video."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the colours move: 0 leaves them, 1 matches them fully.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="The picture with the right colours, of any size; without it, frame 1 "
                    "of the images. Of several images the first one counts.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "matched", display_name="images", tooltip="The frames with matched colours."
                ),
            ],
            **aliases("color match", "colour match", "deflicker"),
        )

    @classmethod
    @named_errors("Histogram Match")
    def execute(
        cls,
        images: torch.Tensor,
        strength: float = 1.0,
        reference: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        import comfy.model_management as management

        device = management.get_torch_device()
        target = (images if reference is None else reference)[0].to(device)
        matched = []
        for chunk in images.split(_CHUNK):
            management.throw_exception_if_processing_interrupted()
            matched.append(match_histograms(chunk.to(device), target, strength).cpu())
        return io.NodeOutput(torch.cat(matched))


NODES: list[type[io.ComfyNode]] = [
    FirstFrameCondition,
    SharedNoiseLatents,
    LampKSampler,
    HistogramMatch,
]
