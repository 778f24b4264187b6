"""A whole image model without ComfyUI: UNet, VAE, text encoder and tokenizer of SD 1.x or 2.x.

From a diffusers folder, a .safetensors checkpoint, or the toy base; never from the network or a
pickle.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import IncompatibleModelError, LampError
from ...files.cache import TensorCache, digest
from ...files.strict_json import read_json
from ...method.architecture import describe_family, map_unet, unet_family
from ...method.schedule import BETAS, TRAIN_TIMESTEPS
from ...plain import log, plain
from ...toy.base import load_toy_base, tokenize
from ...training.latents import SCALE, LatentCache
from .single_file import load_single_file

TOY = "toy"
"""Instead of a path: the toy base of this package."""

Tokens = Callable[[str], Tensor]

_PACK = Path(__file__).resolve().parents[3]
_TOKENS = 77  # per chunk, including its first and last token


@dataclass
class ImageModel:
    """SD 1.x or 2.x from diffusers and transformers, in fp32, frozen, on the CPU.

    - ``name``: as stored in motion files;
    - ``tokens``: text -> token ids `k 77` in k chunks;
    - ``v_prediction``: the UNet predicts v, not the noise.
    """

    name: str
    unet: nn.Module
    vae: Any
    text_encoder: Any
    tokens: Tokens
    v_prediction: bool = False

    @torch.no_grad()
    def encode_posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the VAE's posterior `f c h w`, unscaled, of `f h w 3` in 0..1.

        Frame by frame, so that the result does not depend on their number.
        """
        device = _device(self.vae)
        pixels = (frames.movedim(-1, 1).contiguous() * 2.0 - 1.0).split(1)
        posteriors = [self.vae.encode(pixel.to(device)).latent_dist for pixel in pixels]
        means, stds = ([p.mean for p in posteriors], [p.std for p in posteriors])
        return torch.cat(means).float().cpu(), torch.cat(stds).float().cpu()

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """One embedding `1 n d` per distinct prompt."""
        device = _device(self.text_encoder)
        found = {}
        for prompt in dict.fromkeys(prompts):
            states = self.text_encoder(self.tokens(prompt).to(device)).last_hidden_state
            found[prompt] = states.flatten(0, 1)[None].float().cpu()
        return found

    def cache(self, folder: Path) -> LatentCache:
        """The cache of posteriors and embeddings of this model in `folder`."""
        device = _device(self.vae).type  # CPU and GPU round differently
        heads = self.text_encoder.config.num_attention_heads  # not visible in the weights
        text = digest("diffusers", device, heads, dict(self.text_encoder.state_dict()))
        return LatentCache(
            TensorCache(folder),
            digest("diffusers", device, dict(self.vae.state_dict())),
            lambda prompt: digest(text, self.tokens(prompt)),
        )


@contextlib.contextmanager
def on_device(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Move models to `device` for the block, then back to the CPU."""
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model in models:
            model.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents `f c h w` to pictures `f h w 3` in 0..1, on the CPU."""
    scaled = (latents.float() / SCALE).to(_device(vae)).split(1)
    pictures = torch.cat([vae.decode(one).sample.cpu() for one in scaled])
    return (pictures / 2.0 + 0.5).clamp(0.0, 1.0).movedim(1, -1)


def load_image_model(path: str | Path, tokenizer: str | Path = "") -> ImageModel:
    """Load a diffusers folder, a .safetensors checkpoint, or `TOY`.

    Args:
        tokenizer: a folder with CLIP's `vocab.json` and `merges.txt` for a single file; by default
            ComfyUI's, see `find_tokenizer`.

    Raises:
        LampError: something is missing or cannot be read.
        IncompatibleModelError: it is not SD 1.x or, as a folder, SD 2.x.
    """
    _silence_libraries()
    if str(path) == TOY:
        toy = load_toy_base()
        model = ImageModel(TOY, toy.unet, toy.vae, toy.text_encoder, _toy_tokens(toy.config))
    elif Path(path).is_dir():
        model = _load_folder(Path(path), tokenizer)
    else:
        model = _load_file(Path(path), tokenizer)
    family = map_unet(model.unet).family
    if family == "sdxl":
        raise IncompatibleModelError(
            f"{model.name} is {describe_family(family)}, but the command line trains on SD 1.x and "
            "2.x: give such a model, or train in ComfyUI with LAMP Trainer."
        )
    for part in (model.unet, model.vae, model.text_encoder):
        part.float().eval().requires_grad_(False)
    return model


def load_unet(path: str | Path) -> tuple[str, nn.Module]:
    """The model's name and only the UNet of what `load_image_model` loads.

    Raises:
        LampError: something is missing or cannot be read.
        IncompatibleModelError: it is not SD 1.x.
    """
    from diffusers import UNet2DConditionModel

    _silence_libraries()
    place = Path(path)
    if str(path) == TOY:
        return TOY, load_toy_base().unet
    if place.is_dir():
        _predicts_v(place)
        return place.name, _load_part(place, "unet", UNet2DConditionModel)
    return place.name, load_single_file(place, ["unet"])["unet"]


def find_tokenizer(folder: str | Path = "") -> Path:
    """The folder of CLIP's vocabulary: the given one, or that of a ComfyUI at COMFYUI_PATH or
    around this pack.

    Raises:
        LampError: there is none.
    """
    if folder:
        return _with_vocabulary(Path(folder))
    named = os.environ.get("COMFYUI_PATH")
    # The pack is in ComfyUI/custom_nodes, or `make` fetched a ComfyUI into it.
    hosts = [Path(named).expanduser()] if named else [_PACK.parents[1], _PACK / ".comfyui"]
    for host in hosts:
        if (host / "comfy/sd1_tokenizer/vocab.json").is_file():
            return host / "comfy/sd1_tokenizer"
    raise LampError(
        "A single checkpoint file has no vocabulary, and no ComfyUI with CLIP's vocabulary was "
        "found: set tokenizer in [base] to a folder with vocab.json and merges.txt (tokenizer in "
        "any diffusers folder of SD 1.x), or COMFYUI_PATH to a ComfyUI."
    )


def _with_vocabulary(folder: Path) -> Path:
    if (folder / "tokenizer.json").is_file():  # the form of newer versions of transformers
        return folder
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise LampError(
                f"The tokenizer folder {folder} has no {name}: give a folder with vocab.json and "
                "merges.txt, such as tokenizer in a diffusers folder of SD 1.x."
            )
    return folder


def _load_file(path: Path, tokenizer: str | Path) -> ImageModel:
    tokens = _clip_tokens(find_tokenizer(tokenizer))
    return ImageModel(path.name, tokens=tokens, **load_single_file(path))


def _load_folder(path: Path, tokenizer: str | Path) -> ImageModel:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    parts = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    predicts_v = _predicts_v(path)
    models = {name: _load_part(path, name, kind) for name, kind in parts.items()}
    channels = models["unet"].config.in_channels
    if channels != 4 or models["vae"].config.scaling_factor != SCALE:
        raise IncompatibleModelError(
            f"{path.name} is not SD 1.x or 2.x: its UNet takes {channels} channels and its VAE "
            f"scales by {models['vae'].config.scaling_factor} (SD 1.x: 4 and {SCALE}). Give an "
            "SD 1.x or 2.x model, or train in ComfyUI with LAMP Trainer."
        )
    if predicts_v is None and unet_family(models["unet"]) == "sd2":
        raise LampError(
            f"{path.name} has no scheduler/scheduler_config.json, which says whether an SD 2.x "
            "model predicts the noise or v: download that file too."
        )
    tokens = _clip_tokens(_with_vocabulary(Path(tokenizer or path / "tokenizer")))
    return ImageModel(path.name, tokens=tokens, v_prediction=bool(predicts_v), **models)


def _load_part(folder: Path, name: str, kind: Any) -> Any:
    place = folder / name
    files = list(place.glob("*.safetensors"))
    if not files:
        raise LampError(
            f"{place} has no .safetensors file: give a diffusers folder of SD 1.x with unet, vae "
            "and text_encoder. Other formats are never opened, because they can run code."
        )
    # Folders downloaded for fp16 have NAME.fp16.safetensors only.
    half = all(".fp16." in file.name for file in files)
    options: dict[str, Any] = {"variant": "fp16"} if half else {}
    options |= {"local_files_only": True, "use_safetensors": True}
    try:
        model, told = kind.from_pretrained(place, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise LampError(
            f"{place} cannot be loaded ({str(error)[:300]}): download it again."
        ) from error
    # The libraries fill them with random numbers.
    if missing := sorted(n for n in told["missing_keys"] if not n.endswith("position_ids")):
        raise LampError(
            f"{place} is incomplete: {len(missing)} weights are missing, such as {missing[0]}. "
            "Download it again, or save it with diffusers."
        )
    return model


_NOISE = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": BETAS[0],
    "beta_end": BETAS[1],
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
"""`scaled_linear_alphas` in a scheduler's configuration."""


def _predicts_v(folder: Path) -> bool | None:
    """Whether a model predicts v, not the noise; None if its folder does not say it."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    try:
        config = read_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LampError(f"{file} is damaged ({error}): download it again.") from error
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in ("epsilon", "v_prediction"):
        raise IncompatibleModelError(
            f"{folder.name} predicts '{predicts}', but training needs a model that predicts the "
            "noise (epsilon), such as SD 1.x, or v (v_prediction): give such a model."
        )
    for name, usual in _NOISE.items():
        if config.get(name, usual) != usual:
            raise IncompatibleModelError(
                f"{folder.name} has {name} {config[name]}, but training here knows the noise "
                f"levels of SD 1.x and 2.x alone ({name} {usual}): train in ComfyUI with LAMP "
                "Trainer, or give another model."
            )
    return bool(predicts == "v_prediction")


def _clip_tokens(folder: Path) -> Tokens:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id

    def tokens(text: str) -> Tensor:
        text = _without_weights(text)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        room = _TOKENS - 2
        chunks = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
        return torch.tensor(
            [[begin, *chunk, end, *[pad] * (room - len(chunk))] for chunk in chunks]
        )

    return tokens


@functools.cache
def _without_weights(text: str) -> str:
    """A caption whose parentheses are text. ComfyUI reads them as weights, and `\\(` as text."""
    if re.search(r"(?<!\\)[()]", text):
        log.warning(
            "The caption '%s' has parentheses, with which ComfyUI weights the words between them. "
            "Here they are text: write \\( and \\), which are text in both.",
            plain(text, 100),
        )
    return re.sub(r"\\([()])", r"\1", text)


def _toy_tokens(config: dict[str, Any]) -> Tokens:
    def tokens(text: str) -> Tensor:
        try:
            return tokenize([text], config["words"])
        except ValueError as error:
            raise LampError(
                f"Caption '{text}': {error}. It knows {', '.join(sorted(config['words']))}."
            ) from error

    return tokens


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _silence_libraries() -> None:
    """Hide progress bars and notes of the libraries."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
