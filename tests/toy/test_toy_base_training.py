"""The script that trains the toy bases, as far as a few seconds show."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from lamp.toy import base
from scripts.toy_base import pack, unet, vae
from scripts.toy_base.worlds import WORLDS


@pytest.mark.parametrize("name", WORLDS)
def test_captions_are_in_the_vocabulary_and_motions_mean_nothing(name: str) -> None:
    world, rng = WORLDS[name], np.random.default_rng(0)
    images, captions = world.captioned(rng, 30)
    assert images.shape[0] == len(captions) == 30 and images.dtype == np.uint8
    texts = [world.caption(caption, rng) for caption in captions for _ in range(20)]
    base.tokenize(texts, world.words)  # raises for an unknown word
    share = np.mean([any(text.endswith(phrase) for phrase in world.motions) for text in texts])
    assert 0.25 < share < 0.5
    assert "" in texts


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_the_vae_resumes_where_it_stopped(name: str, tmp_path: Path) -> None:
    def train(folder: str, *steps: int) -> dict[str, torch.Tensor]:
        out = tmp_path / folder
        out.mkdir()
        for last in steps:
            args = argparse.Namespace(world=name, out=out, seed=1, steps=last, batch=2, lr=1e-3)
            vae.train_vae(args)
        state: dict[str, torch.Tensor] = torch.load(out / "vae.pt", weights_only=True)["model"]
        return state

    whole, parted = train("whole", 2), train("parted", 1, 2)
    # The rate's schedule depends on the number of steps, but its warm-up does not.
    for key, value in whole.items():
        torch.testing.assert_close(parted[key], value)


@pytest.mark.parametrize("name", WORLDS)
def test_the_packed_file_is_read_as_a_base(name: str, tmp_path: Path) -> None:
    world = WORLDS[name]
    models = unet.Models(world.words)
    parts = {
        "unet": models.unet.state_dict(),
        "vae": base.build_vae(world.vae).state_dict(),
        "text_encoder": {
            "text_model." + key.removeprefix("text_model."): value
            for key, value in models.text_encoder.state_dict().items()
        },
    }
    pack.write_toy_state(tmp_path / "base.safetensors", world, parts, {"steps": 0})
    toy = base.load_toy_base(path=tmp_path / "base.safetensors")
    side = world.vae["sample_size"]
    latents = toy.encode(np.zeros((1, side, side, 3), np.uint8))
    assert latents.shape == (1, 4, 16, 16)
    word = sorted(world.words)[0]
    found = toy.encode_text([word])
    with torch.no_grad():
        tokens = unet.compact_tokens([word], world.words, np.random.default_rng(0), strange=0.0)
        wanted = models.text_encoder(tokens)[0]
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)  # fp16 in the file
