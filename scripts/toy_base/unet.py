"""UNet and text encoder of a toy base, trained together on latents of captioned scenes."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from lamp.toy import base

from .schedule import save_atomic, set_rate, trapezoid
from .vae import finish_vae
from .worlds import WORLDS, World, compact_ids


class Pool:
    """A ring of encoded scenes. A chunk depends on seed and number only, so a run can resume."""

    def __init__(
        self, world: World, vae: torch.nn.Module, seed: int, chunk: int = 2048, keep: int = 10
    ) -> None:
        self.world, self.vae, self.seed, self.chunk, self.keep = world, vae, seed, chunk, keep
        self.chunks: dict[int, tuple[torch.Tensor, list[str]]] = {}

    def fill(self, newest: int) -> None:
        wanted = range(newest, newest + self.keep)
        self.chunks = {k: v for k, v in self.chunks.items() if k in wanted}
        for number in wanted:
            if number not in self.chunks:
                self.chunks[number] = self._encode(number)

    def _encode(self, number: int) -> tuple[torch.Tensor, list[str]]:
        rng = np.random.default_rng([self.seed, 7, number])
        images, texts = self.world.captioned(rng, self.chunk)
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
        return latents, [self.world.caption(self.chunks[c][1][i], rng) for c, i in picks]


def compact_tokens(
    texts: list[str], words: dict[str, int], rng: np.random.Generator, strange: float = 0.01
) -> torch.Tensor:
    """Rows of the small embedding table; sometimes a word becomes row 0, 'any other token'."""
    rows = {token: row + 1 for row, token in enumerate(compact_ids(words))}
    ids = base.tokenize(texts, words)
    table = torch.tensor([rows[int(i)] for i in ids.reshape(-1)]).reshape(ids.shape)
    lost = torch.from_numpy(rng.random(table.shape) < strange)
    return torch.where(lost & (ids < base.START), 0, table)


class Models(torch.nn.Module):
    """UNet and text encoder with a small embedding table, trained together."""

    def __init__(self, words: dict[str, int]) -> None:
        super().__init__()
        rows = 1 + len(compact_ids(words))
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
    tokens = compact_tokens(texts, pool.world.words, rng)
    error = (model(noisy, t, tokens) - noise).square().mean((1, 2, 3))
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
    world = WORLDS[args.world]
    pool = Pool(world, finish_vae(args), args.seed)
    model, alphas = Models(world.words), alphas_cumprod()
    if args.unet_from:
        model.unet.load_state_dict(base.toy_state(args.unet_from)["unet"])
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
