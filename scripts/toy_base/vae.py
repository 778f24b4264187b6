"""The VAE of a toy base: training, and the map that gives its latents unit variance."""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from lamp.toy import base

from .schedule import learning_rate, save_atomic, set_rate
from .worlds import WORLDS, World


def scene_batch(
    world: World, seed: int, step: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, h, w) in -1..1 and coverage (n, 1, h, w); a function of seed and step only."""
    rng = np.random.default_rng([seed, step])
    images, cover = world.pictures(rng, count)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return pixels.contiguous(), torch.from_numpy(cover)[:, None].float()


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    """PSNR in dB of two batches in -1..1."""
    return 10.0 * math.log10(4.0 / F.mse_loss(images.detach().clamp(-1, 1), others).item())


def edge_error(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the differences of neighbouring pixels: small bright things count."""
    across = (error[..., :, 1:] - error[..., :, :-1]).abs() * weight[..., :, 1:]
    down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]
    return across.mean() + down.mean()


def vae_loss(
    model: torch.nn.Module,
    pixels: torch.Tensor,
    cover: torch.Tensor,
    noise: torch.Generator,
    edges: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared and absolute error, weighted four times on and around the object, plus a small KL.

    ``edges``: weight of `edge_error`.
    """
    posterior = model.encode(pixels).latent_dist
    decoded = model.decode(posterior.sample(generator=noise)).sample
    weight = 1.0 + 3.0 * F.max_pool2d(cover, 3, 1, 1)
    error = decoded - pixels
    fit = (weight * (error.square() + 0.1 * error.abs())).mean()
    if edges:
        fit = fit + edges * edge_error(error, weight)
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    return fit + 1e-4 * divergence, decoded


def train_vae(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    world = WORLDS[args.world]
    model = base.build_vae(world.vae)
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
        pixels, cover = scene_batch(world, args.seed, step, args.batch)
        noise = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        loss, decoded = vae_loss(model, pixels, cover, noise, world.edges)
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
    world = WORLDS[args.world]
    model = base.build_vae(world.vae)
    model.load_state_dict(state["model"])
    model.eval().requires_grad_(False)
    whiten(model, scene_batch(world, args.seed + 10, 0, 4096)[0])
    return model
