"""Train the toy base: first the VAE, then UNet and text encoder together.

    python scripts/train_toy_base.py vae  --steps 1800
    python scripts/train_toy_base.py unet --steps 200000 --stop 10000 --workers 2
    python scripts/train_toy_base.py pack --workers 2

The weights in the repository (VAE 40 dB; UNet 320,000 scenes, averaged) were made almost this way:
the VAE's schedule was shortened from 3000 steps during its run, and scenes with two objects were
added after 5500 steps of the UNet. Another run gives an equally good model, not the same weights.
The UNet stops on the plateau of its learning rate on purpose: after the decay it made better
pictures, but learned motions worse. Takes about three CPU hours.

Each phase stores a checkpoint in ``--out`` and resumes from it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lamp.files.atomic import write_file  # noqa: E402
from lamp.toy import base, world  # noqa: E402


def save_atomic(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint atomically, so that a killed run leaves the old one."""
    write_file(path, lambda temporary: torch.save(state, temporary))


def learning_rate(step: int, steps: int, peak: float, warm: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warm:
        return peak * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share))))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def scene_batch(seed: int, step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, h, w) in -1..1 and coverage (n, 1, h, w); a function of seed and step only."""
    rng = np.random.default_rng([seed, step])
    images, cover = world.draw(world.sample_scenes(rng, count))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return pixels.contiguous(), torch.from_numpy(cover)[:, None].float()


# --- VAE ------------------------------------------------------------------------------------


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    """PSNR in dB of two batches in -1..1."""
    return 10.0 * math.log10(4.0 / F.mse_loss(images.detach().clamp(-1, 1), others).item())


def vae_loss(
    model: torch.nn.Module, pixels: torch.Tensor, cover: torch.Tensor, noise: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared and absolute error, weighted four times on and around the object, plus a small KL."""
    posterior = model.encode(pixels).latent_dist
    decoded = model.decode(posterior.sample(generator=noise)).sample
    weight = 1.0 + 3.0 * F.max_pool2d(cover, 3, 1, 1)
    error = decoded - pixels
    fit = (weight * (error.square() + 0.1 * error.abs())).mean()
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    return fit + 1e-4 * divergence, decoded


def train_vae(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model = base.build_vae()
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    path, step = args.out / "vae.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    begin, first = time.monotonic(), step
    while step < args.steps:
        set_rate(optimizer, learning_rate(step, args.steps, args.lr))
        pixels, cover = scene_batch(args.seed, step, args.batch)
        noise = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        loss, decoded = vae_loss(model, pixels, cover, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            speed = (step - first) * args.batch / (time.monotonic() - begin)
            print(
                f"vae {step} loss {loss.item():.5f} psnr {psnr(decoded, pixels):.2f} dB "
                f"{speed:.1f} images/s",
                flush=True,
            )
        if step % 500 == 0 or step == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomic(path, {**state, "step": step})


def whiten(model: torch.nn.Module, images: torch.Tensor) -> None:
    """Fold a per-channel affine map into the two 1x1 convolutions around the latent, so that
    ``latent * 0.18215``, Stable Diffusion 1.x's scale, has zero mean and unit variance.
    """
    channels = model.config.latent_channels
    with torch.no_grad():
        mean = torch.cat([model.encode(part).latent_dist.mean for part in images.split(256)])
        shift = mean.mean((0, 2, 3))
        spread = mean.std((0, 2, 3)) * base.SCALE
        undo = model.post_quant_conv
        undo.bias += undo.weight[:, :, 0, 0] @ shift
        undo.weight *= spread[None, :, None, None]
        do = model.quant_conv
        do.bias[:channels] = (do.bias[:channels] - shift) / spread
        do.weight[:channels] /= spread[:, None, None, None]
        do.bias[channels:] -= 2.0 * spread.log()  # the second half is the log variance


def finish_vae(args: argparse.Namespace) -> torch.nn.Module:
    """The trained VAE, whitened on 4096 scenes, frozen."""
    state = torch.load(args.out / "vae.pt", weights_only=True, map_location="cpu")
    model = base.build_vae()
    model.load_state_dict(state["model"])
    model.eval().requires_grad_(False)
    whiten(model, scene_batch(args.seed + 10, 0, 4096)[0])
    return model


# --- UNet and text encoder --------------------------------------------------------------------


def caption(scene: str, rng: np.random.Generator) -> str:
    """The prompts of training: full and short captions, motion words, nothing."""
    draw = rng.random()
    motion = str(rng.choice(world.MOTION_PHRASES))
    if draw < 0.10:
        return ""
    if draw < 0.15:
        return motion
    if rng.random() < 0.15:
        scene = scene.split(" on ")[0]
    return f"{scene} {motion}" if rng.random() < 0.35 else scene


def base_scenes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
    """Images (n, h, w, 3) and captions; every fifth scene has two objects."""
    two = count // 5
    one = world.sample_scenes(rng, count - two, varied=0.4)
    first, second = sample_two(rng, two)
    images = np.concatenate([world.draw(one)[0], world.draw(first, second)[0]])
    return images, one.captions() + world.captions_of_two(first, second)


class Pool:
    """A ring of encoded scenes. A chunk depends on seed and number only, so a run can resume."""

    def __init__(self, vae: torch.nn.Module, seed: int, chunk: int = 2048, keep: int = 10) -> None:
        self.vae, self.seed, self.chunk, self.keep = vae, seed, chunk, keep
        self.chunks: dict[int, tuple[torch.Tensor, list[str]]] = {}

    def fill(self, newest: int) -> None:
        wanted = range(newest, newest + self.keep)
        self.chunks = {k: v for k, v in self.chunks.items() if k in wanted}
        for number in wanted:
            if number not in self.chunks:
                self.chunks[number] = self._encode(number)

    def _encode(self, number: int) -> tuple[torch.Tensor, list[str]]:
        rng = np.random.default_rng([self.seed, 7, number])
        images, texts = base_scenes(rng, self.chunk)
        noise = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        latents = []
        for start in range(0, self.chunk, 128):
            part = torch.from_numpy(images[start : start + 128])
            pixels = part.permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with torch.no_grad():
                posterior = self.vae.encode(pixels).latent_dist
            latents.append(posterior.sample(generator=noise) * base.SCALE)
        return torch.cat(latents), texts

    def batch(self, rng: np.random.Generator, count: int) -> tuple[torch.Tensor, list[str]]:
        chunks = np.array(list(self.chunks))[rng.integers(len(self.chunks), size=count)]
        picks = list(zip(chunks, rng.integers(self.chunk, size=count), strict=True))
        latents = torch.stack([self.chunks[c][0][i] for c, i in picks])
        return latents, [caption(self.chunks[c][1][i], rng) for c, i in picks]


def compact_tokens(
    texts: list[str], rng: np.random.Generator, strange: float = 0.01
) -> torch.Tensor:
    """Rows of the small embedding table; sometimes a word becomes row 0, 'any other token'."""
    rows = {token: row + 1 for row, token in enumerate(compact_ids(base.WORDS))}
    ids = base.tokenize(texts, base.WORDS)
    table = torch.tensor([rows[int(i)] for i in ids.reshape(-1)]).reshape(ids.shape)
    lost = torch.from_numpy(rng.random(table.shape) < strange)
    return torch.where(lost & (ids < base.START), 0, table)


class Models(torch.nn.Module):
    """UNet and text encoder with a small embedding table, trained together."""

    def __init__(self) -> None:
        super().__init__()
        rows = 1 + len(compact_ids(base.WORDS))
        small = {**base.TEXT_CONFIG, "vocab_size": rows}
        small |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        self.unet = base.build_unet()
        self.text_encoder = base.build_text_encoder(small)
        # transformers' 0.02 suits deep models; two layers learn faster from a larger deviation
        torch.nn.init.normal_(self.text_encoder.get_input_embeddings().weight, std=0.5)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t, self.text_encoder(tokens)[0], return_dict=False)[0]


def alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion 1.x's noise schedule, (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0).float()


def trapezoid(step: int, steps: int, peak: float, warm: int = 300, fall: float = 0.25) -> float:
    """Warm-up, plateau, and linear decay over the last quarter, so that a run can be prolonged."""
    left = (steps - step) / max(1.0, fall * steps)
    return peak * max(0.01, min(1.0, (step + 1) / warm, left))


def unet_loss(
    model: Models, pool: Pool, alphas: torch.Tensor, args: argparse.Namespace, part: int
) -> torch.Tensor:
    """Noise prediction with min-SNR-5 weights (Hang et al. 2023); ``part`` numbers the batches."""
    rng = np.random.default_rng([args.seed, 11, part])
    noise_rng = torch.Generator().manual_seed(args.seed * 7_000_003 + part)
    latents, texts = pool.batch(rng, args.batch)
    t = torch.randint(0, 1000, (len(latents),), generator=noise_rng)
    noise = torch.randn(latents.shape, generator=noise_rng)
    alpha = alphas[t][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1.0 - alpha).sqrt() * noise
    error = (model(noisy, t, compact_tokens(texts, rng)) - noise).square().mean((1, 2, 3))
    snr = alphas[t] / (1.0 - alphas[t])
    return (error * snr.clamp(max=5.0) / snr).mean()


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], model: Models, step: int) -> None:
    decay = min(0.9985, (1.0 + step) / (20.0 + step))
    for name, value in model.named_parameters():
        average[name].lerp_(value, 1.0 - decay)


def average_gradients(model: Models, workers: int) -> None:
    """Average the gradients of all workers in one message."""
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= workers
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def train_unet(args: argparse.Namespace) -> None:
    """One process per worker, each with one thread: faster than one with several threads."""
    if args.workers == 1:
        return train_unet_worker(0, args)
    torch.multiprocessing.spawn(train_unet_worker, (args,), nprocs=args.workers)


def train_unet_worker(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.workers > 1:
        store = f"tcp://127.0.0.1:{args.port}"
        torch.distributed.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=args.workers
        )
    torch.manual_seed(args.seed)
    pool = Pool(finish_vae(args), args.seed)
    model, alphas = Models(), alphas_cumprod()
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        model.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    path, step = args.out / "unet.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]
    begin, first, running = time.monotonic(), step, 0.0
    stop = min(args.steps, args.stop or args.steps)
    while step < stop:
        pool.fill(step // 256)
        set_rate(optimizer, trapezoid(step, args.steps, args.lr))
        loss = unet_loss(model, pool, alphas, args, step * args.workers + rank)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if args.workers > 1:
            average_gradients(model, args.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        update_average(average, model, step)
        running += (loss.item() - running) / min(200, step - first)
        if rank == 0 and step % 100 == 0:
            speed = (step - first) * args.batch * args.workers / (time.monotonic() - begin)
            print(f"unet {step} loss {running:.4f} {speed:.1f} images/s", flush=True)
        if rank == 0 and (step % 250 == 0 or step == stop):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomic(path, {**state, "average": average, "step": step})


def pack(args: argparse.Namespace) -> None:
    """Averaged weights and the whitened VAE in one fp16 file."""
    state = torch.load(args.out / "unet.pt", weights_only=True)
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text_encoder": {}}
    for name, value in state["average"].items():
        part, key = name.split(".", 1)
        if part == "text_encoder":
            key = "text_model." + key.removeprefix("text_model.")
        parts[part][key] = value
    parts["vae"] = finish_vae(args).state_dict()
    about = {"steps": state["step"], "samples": state["step"] * args.batch * args.workers}
    write_toy_state(args.pack_to, parts, about)
    print(f"{args.pack_to}: {args.pack_to.stat().st_size / 1e6:.2f} MB, {about}")


def sample_two(
    rng: np.random.Generator, count: int, pairs: NDArray[np.int64] | None = None
) -> tuple[world.Scenes, world.Scenes]:
    """Two small objects on one ground, one in each half of the picture: they never touch.

    Their colours can be told apart from each other as well as from the ground. ``pairs`` (n, 2)
    fixes shape and colour of the first; the second is free.
    """
    first = world.sample_scenes(rng, count, pairs)
    scores = rng.random((count, len(world.OBJECT_COLOURS)))
    scores[~world.contrast_table().T[first.ground]] = -1.0
    scores[~world.far_apart(world.OBJECT_COLOURS, world.OBJECT_COLOURS)[first.colour]] -= 1.0
    radius = rng.uniform(*world.SMALL_RADIUS, size=(2, count))
    half = world.SIZE / 2
    room = half / 2 - radius - 0.5
    across = half + (half - radius) * rng.uniform(-1.0, 1.0, size=(2, count))
    along = half + np.array([[-1.0], [1.0]]) * rng.choice([-1.0, 1.0], size=count) * half / 2
    along = along + room * rng.uniform(-1.0, 1.0, size=(2, count))
    stacked = rng.random(count) < 0.5
    x, y = np.where(stacked, across, along), np.where(stacked, along, across)
    one = replace(first, x=x[0], y=y[0], radius=radius[0], angle=np.zeros(count))
    other = replace(
        one,
        shape=rng.integers(len(world.SHAPES), size=count),
        colour=scores.argmax(axis=1),
        x=x[1],
        y=y[1],
        radius=radius[1],
    )
    return one, other


def compact_ids(words: dict[str, int]) -> list[int]:
    """Token ids that own an embedding row in the file; row 0 before them is every other token."""
    return [base.START, base.END, *sorted(set(words.values()))]


def write_toy_state(
    path: Path | str, parts: dict[str, dict[str, torch.Tensor]], about: dict[str, Any]
) -> None:
    """Pack trained state dicts; the text encoder's table has one row per ``compact_ids`` + 1."""
    from safetensors.torch import save_file

    tensors = {
        f"{part}.{name}": value.detach().half().contiguous()
        for part in base.PARTS
        for name, value in parts[part].items()
        if not name.endswith("position_ids")
    }
    metadata = {
        "unet": base.UNET_CONFIG,
        "vae": base.VAE_CONFIG,
        "text_encoder": base.TEXT_CONFIG,
        "words": base.WORDS,
        "tokens": compact_ids(base.WORDS),
        **about,
    }
    save_file(tensors, str(path), metadata={"format": "pt", "lamp.toy": json.dumps(metadata)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("vae", "unet", "pack"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--stop", type=int, help="end the unet phase before its schedule does")
    parser.add_argument("--workers", type=int, default=1, help="processes of the unet phase")
    parser.add_argument("--port", type=int, default=29517)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/toy"))
    parser.add_argument("--pack-to", type=Path, default=base.PATH)
    args = parser.parse_args()
    {"vae": train_vae, "unet": train_unet, "pack": pack}[args.phase](args)


if __name__ == "__main__":
    main()
