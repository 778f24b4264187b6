"""Train the small CLIP of a toy world, and how well it matches pictures and captions.

    python -m benchmarks.table1.clip_training --world sprites

The symmetric cross entropy of CLIP (Radford et al. 2021, fig. 3): for n pictures and their n
captions, with unit embeddings I and T and a learned scale s,

    L = (CE(s I T^T, 1..n) + CE(s T I^T, 1..n)) / 2.

A caption that two pictures of a batch share is wrong for neither, so such pairs are left out of the
sums. Motion words change no picture; they are added to some captions, because prompts have them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.report import parser
from benchmarks.toy.runs import positive
from lamp.files.atomic import write_file
from lamp.toy.base import END, START, TEXT_CONFIG, tokenize
from lamp.toy.clip import (
    HEADER,
    ToyClip,
    build_clip,
    embed_images,
    embed_texts,
    load_toy_clip,
    normalise,
    vision_config,
)

from .worlds import WORLDS, World

STEPS, BATCH, RATE = 1600, 128, 2e-3
TOLD = 0.4  # share of captions that get a motion's words
STRANGE = 0.02  # share of words that become the row of all unknown tokens
BUILD = Path("build/table1")


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, captions: Sequence[str]
) -> Tensor:
    """The loss of n pairs of embeddings `n d`; see the module's docstring."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    numbers = {text: number for number, text in enumerate(captions)}
    kinds = torch.tensor([numbers[text] for text in captions])
    shared = (kinds[:, None] == kinds[None]) & ~torch.eye(len(kinds), dtype=torch.bool)
    logits = logits.masked_fill(shared, -torch.inf)
    own = torch.arange(len(kinds))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Words:
    """Token ids as rows of a small table: row 0 is any unknown token."""

    def __init__(self, words: dict[str, int]) -> None:
        self.words = words
        self.tokens = [START, END, *sorted(set(words.values()))]
        self._rows = {token: row + 1 for row, token in enumerate(self.tokens)}

    def rows(
        self, texts: list[str], strange: np.random.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows `n t` of the texts and the places of their end tokens."""
        ids = tokenize(texts, self.words)
        ends = (ids == END).int().argmax(1)
        ids = ids[:, : int(ends.max()) + 1]
        rows = torch.tensor([[self._rows[int(i)] for i in row] for row in ids])
        if strange is not None:
            lost = torch.from_numpy(strange.random(rows.shape) < STRANGE)
            rows = torch.where(lost & (ids < START), 0, rows)
        return rows, ends


def train_clip(world: World, words: Words, steps: int, seed: int = 0) -> nn.Module:
    """A trained `CLIPModel` whose token table has one row per token of `words`, plus one."""
    torch.manual_seed(seed)
    text = {**TEXT_CONFIG, "vocab_size": len(words.tokens) + 1}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = build_clip(vision_config(world.size), text)
    nn.init.normal_(model.text_model.get_input_embeddings().weight, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.05)
    rng, began = np.random.default_rng([seed, 211]), time.perf_counter()
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, captions = world.pictures(rng, BATCH)
        told = rng.random(len(captions)) < TOLD
        prompts = [
            f"{caption} {rng.choice(list(world.phrases))}" if tell else caption
            for caption, tell in zip(captions, told, strict=True)
        ]
        pixels = normalise(torch.from_numpy(images) / 255.0)
        seen = embed_images(model, pixels)
        read = embed_texts(model, *words.rows(prompts, rng))
        loss = contrastive_loss(seen, read, model.logit_scale.exp(), captions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100.0))
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - began
            print(f"clip {step + 1}/{steps} loss {loss.item():.3f} {seconds:.0f} s", flush=True)
    return model


def save_clip(path: Path, model: nn.Module, world: World, words: Words, about: Any) -> None:
    tensors = {
        name: value.detach().half().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    metadata = {
        "world": world.name,
        "vision": vision_config(world.size),
        "text": TEXT_CONFIG,
        "words": words.words,
        "tokens": words.tokens,
        **about,
    }
    header = {"format": "pt", HEADER: json.dumps(metadata)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: save_file(tensors, temporary, header))


def retrieval(clip: ToyClip, world: World, count: int = 256, seed: int = 991) -> dict[str, float]:
    """Share of unseen pictures whose own caption is the best of `count` different ones, and of
    captions whose own picture is. Chance is 1 / count."""
    rng = np.random.default_rng([seed, 223])
    images, captions = world.pictures(rng, 8 * count)
    different = np.sort(np.unique(captions, return_index=True)[1])
    chosen = rng.permutation(different)[:count]
    seen = clip.encode_image(torch.from_numpy(images[chosen]) / 255.0)
    read = torch.stack([clip.encode_text(captions[i]) for i in chosen])
    scores = F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T
    own = torch.arange(len(chosen))
    return {
        "pictures": len(chosen),
        "image_to_text": round(float((scores.argmax(1) == own).float().mean()), 4),
        "text_to_image": round(float((scores.argmax(0) == own).float().mean()), 4),
    }


def make_clip(world: World, steps: int, path: Path, seed: int = 0) -> None:
    """Train a CLIP and save it with its retrieval accuracy."""
    table = Words(world.words)
    model = train_clip(world, table, steps, seed)
    about: dict[str, Any] = {"steps": steps, "pictures": steps * BATCH, "seed": seed}
    save_clip(path, model, world, table, about)
    about["retrieval"] = retrieval(load_toy_clip(path), world)
    save_clip(path, model, world, table, about)


def main(arguments: list[str] | None = None) -> int:
    command = parser("table1.clip_training", __doc__)
    add = command.add_argument
    add("--world", choices=WORLDS, default="sprites")
    add("--steps", type=positive, default=STEPS)
    add("--seed", type=int, default=0)
    add("--out", type=Path)
    args: argparse.Namespace = command.parse_args(arguments)
    torch.set_num_threads(1)
    world = WORLDS[args.world]
    path = args.out or BUILD / f"{world.name}.clip.safetensors"
    make_clip(world, args.steps, path, args.seed)
    told = retrieval(load_toy_clip(path), world)
    print(json.dumps({"file": str(path), "bytes": path.stat().st_size, **told}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
