"""Image models from a folder, a file and the pack: equal to the models that were saved."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from lamp.errors import LampError
from lamp.hosts.diffusers import single_file
from lamp.hosts.diffusers.models import (
    ImageModel,
    decode,
    find_tokenizer,
    load_image_model,
    on_device,
)
from lamp.toy.base import load_toy_base
from lamp.training.latents import SCALE
from tests.helpers.sd1_files import Source, linked, predicting

pytestmark = pytest.mark.slow  # many of them

SD1 = single_file.CONFIGS


@pytest.fixture(scope="module", params=["file", "folder"])
def model(request: pytest.FixtureRequest, file: Path, folder: Path, tokenizer: Path) -> ImageModel:
    if request.param == "file":
        return load_image_model(file, tokenizer)
    return load_image_model(folder)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def worst(seen: torch.Tensor, expected: torch.Tensor) -> float:
    return ((seen - expected).abs().max() / expected.abs().max()).item()


def test_the_unet_gives_the_numbers_of_its_source(model: ImageModel, source: Source) -> None:
    x, text, time = random(2, 4, 16, 16), random(2, 77, 48), torch.tensor([3, 700])
    with torch.no_grad():
        expected = source.unet(x, time, text).sample
        assert worst(model.unet(x, time, text).sample, expected) < 1e-6


def test_the_vae_gives_the_numbers_of_its_source(model: ImageModel, source: Source) -> None:
    frames = random(2, 32, 48, 3).sigmoid()
    seen = model.encode_posterior(frames)
    pictures = decode(model.vae, seen[0] * SCALE)
    # One by one on both sides: a batch of another size is summed in another order.
    for number, frame in enumerate(frames):
        with torch.no_grad():
            pixels = frame.movedim(-1, 0)[None].contiguous() * 2 - 1
            posterior = source.vae.encode(pixels).latent_dist
            decoded = source.vae.decode(posterior.mean * SCALE / SCALE).sample[0]
        picture = (decoded.movedim(0, -1) / 2 + 0.5).clamp(0, 1)
        assert worst(seen[0][number], posterior.mean[0]) < 1e-6
        assert worst(seen[1][number], posterior.std[0]) < 1e-6
        assert worst(pictures[number], picture) < 1e-6


def test_prompts_are_embedded_as_by_the_source_from_the_ids_that_clip_gives(
    model: ImageModel, source: Source
) -> None:
    # "a horse runs", by CLIP's published vocabulary; SD 1.x pads with the last token.
    ids = torch.tensor([[49406, 320, 4558, 5586, *[49407] * 73]])
    with torch.no_grad():
        expected = source.text_encoder(ids).last_hidden_state
    seen = model.encode_prompts(["A horse runs"])["A horse runs"]
    assert seen.shape == (1, 77, 48)
    assert worst(seen, expected) < 1e-6


def test_long_prompts_take_several_chunks_as_in_comfyui(
    model: ImageModel, comfy: ModuleType
) -> None:
    from comfy.sd1_clip import SDTokenizer

    text = " ".join(f"number {i}," for i in range(40))
    chunks = SDTokenizer().tokenize_with_weights(text)
    expected = [[token for token, _ in chunk] for chunk in chunks]
    assert model.tokens(text).tolist() == expected
    assert len(expected) > 1
    assert model.encode_prompts([text])[text].shape == (1, 77 * len(expected), 48)
    assert model.tokens("").tolist() == [[49406, *[49407] * 76]]


def test_all_is_frozen_and_has_no_dropout(model: ImageModel) -> None:
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_a_file_in_half_precision_is_widened(file: Path, tokenizer: Path, tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in load_file(file).items()}
    path = tmp_path / "half.safetensors"
    save_file(state, path)
    model = load_image_model(path, tokenizer)
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}


def test_a_text_encoder_without_its_outer_level_is_read(
    file: Path, tokenizer: Path, tmp_path: Path
) -> None:
    state = {name.replace("text_model.", ""): tensor for name, tensor in load_file(file).items()}
    save_file(state, tmp_path / "flat.safetensors")
    flat, usual = (
        load_image_model(path, tokenizer) for path in (tmp_path / "flat.safetensors", file)
    )
    assert worst(flat.encode_prompts(["a"])["a"], usual.encode_prompts(["a"])["a"]) == 0.0


def test_every_tensor_of_sd_1_5_has_its_place(
    comfy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of the UNet and the VAE by ComfyUI's own tables, without their gigabytes."""
    from comfy.diffusers_convert import convert_vae_state_dict
    from comfy.utils import unet_to_diffusers

    monkeypatch.setattr(single_file, "CONFIGS", SD1)
    names = unet_to_diffusers(
        {
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1] * 9 + [0] * 3,
            "transformer_depth_middle": 1,
        }
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).state_dict()
        vae = AutoencoderKL(**SD1["vae"]).state_dict()
    given = {
        "unet": {f"model.diffusion_model.{names[name]}": t for name, t in unet.items()},
        "vae": {f"first_stage_model.{name}": t for name, t in convert_vae_state_dict(vae).items()},
    }
    assert (len(unet), len(vae)) == (686, 248)
    for part, expected in (("unet", unet), ("vae", vae)):
        seen = {
            name: tensor.shape for name, tensor in single_file.convert(part, given[part]).items()
        }
        assert seen == {name: tensor.shape for name, tensor in expected.items()}


def test_the_toy_base_loads_without_files() -> None:
    model, toy = load_image_model("toy"), load_toy_base()
    frames = random(2, 32, 32, 3).sigmoid()
    text = "a red star moves right"
    assert torch.equal(model.encode_prompts([text])[text], toy.encode_text([text]))
    mean, _ = model.encode_posterior(frames)
    assert worst(mean * SCALE, toy.encode(frames)) < 1e-6
    assert worst(decode(model.vae, mean * SCALE), toy.decode(mean * SCALE)) < 1e-6
    with pytest.raises(LampError, match="'a horse'.*'horse'"):
        model.encode_prompts(["a horse"])


def test_the_cache_depends_on_model_and_text(
    model: ImageModel, source: Source, tmp_path: Path
) -> None:
    cache = model.cache(tmp_path)
    other = ImageModel("other", source.unet, model.vae, model.text_encoder, model.tokens)
    assert other.cache(tmp_path).vae == cache.vae
    assert other.cache(tmp_path).prompt("a") == cache.prompt("a") != cache.prompt("b")
    weight = model.vae.quant_conv.weight
    kept = weight.clone()
    weight.add_(1e-3)
    try:
        assert model.cache(tmp_path).vae != cache.vae
    finally:
        weight.copy_(kept)


def test_models_return_to_the_cpu() -> None:
    one, device = torch.nn.Linear(2, 2), torch.device("meta")
    with pytest.raises(RuntimeError, match="stop"), on_device(torch.device("cpu"), one):
        raise RuntimeError("stop")
    assert one.weight.device.type == "cpu" and device.type == "meta"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_scheduler_of_a_folder_selects_v_prediction(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    for name in ("unet", "vae", "text_encoder", "tokenizer"):
        (tmp_path / name).symlink_to(folder / name)
    assert load_image_model(predicting(tmp_path, kind)).v_prediction == (kind == "v_prediction")


def test_sd_2_pads_prompts_as_its_tokenizer_says(folder: Path, tmp_path: Path) -> None:
    for name in ("unet", "vae", "text_encoder"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "tokenizer").mkdir()
    for file in (folder / "tokenizer").iterdir():
        (tmp_path / "tokenizer" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"pad_token": "!"}')
    tokens = load_image_model(tmp_path).tokens("A horse runs")
    assert tokens.tolist() == [[49406, 320, 4558, 5586, 49407, *[0] * 72]]


def test_the_tokenizer_of_newer_transformers_is_read(
    folder: Path, tokenizer: Path, tmp_path: Path
) -> None:
    from transformers import CLIPTokenizer

    linked(folder, tmp_path, "unet", "vae", "text_encoder")
    CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    tokens = load_image_model(tmp_path).tokens("A horse runs")
    assert torch.equal(tokens, load_image_model(folder).tokens("A horse runs"))


def test_escaped_parentheses_are_text_as_in_comfyui(
    model: ImageModel, comfy: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy.sd1_clip import SDTokenizer

    text = r"a horse \(brown\) runs"
    ((*expected,),) = SDTokenizer().tokenize_with_weights(text)
    assert model.tokens(text).tolist() == [[token for token, _ in expected]]
    assert {weight for _, weight in expected} == {1.0} and not caplog.text
    weighted = f"a horse (of {model.name}) runs"  # said once for each caption
    escaped = weighted.replace("(", r"\(").replace(")", r"\)")
    assert torch.equal(model.tokens(weighted), model.tokens(escaped))
    assert caplog.text.count(weighted) == 1


def test_a_folder_of_fp16_files_is_read(folder: Path, source: Source, tmp_path: Path) -> None:
    source.unet.save_pretrained(tmp_path / "unet", variant="fp16")
    for name in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / name).symlink_to(folder / name)
    model = load_image_model(tmp_path)
    assert torch.equal(model.unet.conv_in.weight, source.unet.conv_in.weight)


def test_the_vocabulary_of_a_nearby_comfyui_is_found(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tokenizer.parent.parent))
    assert find_tokenizer() == tokenizer
    assert find_tokenizer(tokenizer) == tokenizer
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(LampError, match=r"tokenizer.*COMFYUI_PATH"):
        find_tokenizer()
    with pytest.raises(LampError, match=f"{re.escape(str(tmp_path))}.*vocab.json"):
        find_tokenizer(tmp_path)


def test_decoding_needs_the_memory_of_one_frame() -> None:
    """Whatever is free, so that it never is the peak of a run."""
    seen = []

    class Vae(torch.nn.Linear):
        def decode(self, latents: torch.Tensor) -> Any:
            seen.append(len(latents))
            return SimpleNamespace(sample=latents[:, :3])

    latents = torch.rand(5, 4, 2, 2) * SCALE
    pictures = decode(Vae(1, 1), latents)
    assert seen == [1] * 5
    torch.testing.assert_close(pictures, (latents[:, :3] / SCALE / 2 + 0.5).movedim(1, -1))
