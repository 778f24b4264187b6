"""Train the toy base: first the VAE, then UNet and text encoder together.

    python scripts/train_toy_base.py vae  --steps 1800
    python scripts/train_toy_base.py unet --steps 200000 --stop 10000 --workers 2
    python scripts/train_toy_base.py pack --workers 2

The weights in the repository (VAE 40 dB; UNet 320,000 scenes, averaged) were made almost this way:
the VAE's schedule was shortened from 3000 steps during its run, and scenes with two objects were
added after 5500 steps of the UNet. Another run gives an equally good model, not the same weights.
The UNet stops on the plateau of its learning rate on purpose: after the decay it made better
pictures, but learned motions worse. Takes about three CPU hours.

The world of landscapes (lamp/toy/scenes) needs one worker and starts from the sprites' UNet, which
is ahead of fresh weights by a tenth of the loss after 200 steps (0.116 against 0.131):

    python scripts/train_toy_base.py vae  --world scenes --steps 2400 --batch 12 --lr 1.5e-3
    python scripts/train_toy_base.py unet --world scenes --steps 200000 --stop 20000 --lr 1.5e-3 \\
        --unet-from lamp/toy/toy_base.safetensors
    python scripts/train_toy_base.py pack --world scenes

Each phase stores a checkpoint in ``--out`` and resumes from it: give each world its own folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.toy_base.pack import pack  # noqa: E402
from scripts.toy_base.unet import train_unet  # noqa: E402
from scripts.toy_base.vae import train_vae  # noqa: E402
from scripts.toy_base.worlds import WORLDS  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("vae", "unet", "pack"))
    parser.add_argument("--world", choices=tuple(WORLDS), default="sprites")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--stop", type=int, help="end the unet phase before its schedule does")
    parser.add_argument("--workers", type=int, default=1, help="processes of the unet phase")
    parser.add_argument("--port", type=int, default=29517)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/toy"))
    parser.add_argument("--unet-from", type=Path, help="a packed base whose UNet is the start")
    parser.add_argument("--pack-to", type=Path, help="default: the world's file in lamp/toy")
    args = parser.parse_args()
    {"vae": train_vae, "unet": train_unet, "pack": pack}[args.phase](args)


if __name__ == "__main__":
    main()
