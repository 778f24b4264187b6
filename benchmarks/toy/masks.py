"""Does a mask keep the ground still, and the motion as it was? `python -m benchmarks.toy.masks`.

Tunes one motion on the toy world ('moves right') and draws unseen objects with it: without a mask,
with one painted around the true path, with the one that LAMP Motion Map finds by itself, and with
the painted one on the residuals alone, nothing held outside of it.

In the clips the ground darkens while the object goes its way, as in the paper's limitation: moving
the foreground disturbs the background. The truth is a ground that stays as it is in frame 1.
`--fade 0` takes clips of a still ground; then the motion leaves it alone by itself, and there is
little for a mask to mend. AdaIN is off: it undoes a change of light as well.

- error: mean squared difference on frames 2 and later to the true video, over all pixels that lie
  more than one away from the object, the true and the found one (its soft edge is no ground). In
  bytes squared, mean over the videos. The VAE alone makes an error, which no mask can undo, so the
  true video is taken as the VAE gives it back. share: in units of the error without a mask. dB: the
  same as PSNR, mean over the videos.
- overlap: with the true place. travel: the object's change of place per frame, in units of the
  truth's.
- white: the share of the picture that the mask leaves free.

Then the strengths of single frames: the way (pixels) that the object has gone at every frame.

Prints tables and, last, one line of JSON. Exit status 0 only if both masks at least halve the error
and keep overlap and travel within 5 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamp.method.masks import MotionMask
from lamp.method.motion_map import mask_from_activity, record_activity
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.cases import Case, evaluation_cases
from lamp.toy.measures import centroids, object_mask, overlap
from lamp.toy.score import ground_psnr
from lamp.toy.world import FRAMES

from .control import Figures, Studio, around, learned
from .motion import FIRST, RECIPES

MARGIN, FEATHER, ROUGH_STEPS = 0.1, 0.05, 4  # the nodes' defaults
MASKS = ("none", "painted", "automatic", "painted, nothing held")
HELD = MASKS[1:3]
MOST_ERROR, MOST_CHANGE = 0.5, 0.05
STRENGTHS = {"1": [1.0], "1 to 0.5": [1.0, 0.5], "1 to 1.5": [1.0, 1.5]}


def painted(case: Case) -> Tensor:
    """A mask `h w` around the true path, as wide as the automatic one's margin."""
    path = np.any([target.masks.any(0) for target in case.targets], axis=0)
    return mask_from_activity(torch.from_numpy(path).float(), margin=MARGIN)


def automatic(studio: Studio, case: Case, first: Tensor) -> Tensor:
    """The mask `h w` of the motion's own activity in a rough video, as LAMP Motion Map makes it."""
    rough = replace(studio, recipe=replace(studio.recipe, sample_steps=ROUGH_STEPS))
    with record_activity(studio.motion) as activity:
        rough.draw(case, first, FRAMES)
    height, width = case.frames.shape[1:3]
    return mask_from_activity(activity.map(height, width), margin=MARGIN)


def extent_of(name: str, studio: Studio, case: Case, first: Tensor) -> MotionMask | None:
    if name == "none":
        return None
    mask = automatic(studio, case, first) if name == "automatic" else painted(case)
    return MotionMask(mask, feather=FEATHER, hold=0.0 if name.endswith("held") else 1.0)


def film(
    studio: Studio, case: Case, first: Tensor, motion_mask: MotionMask | None
) -> NDArray[np.uint8]:
    """Frames `f h w 3`, the given first one included."""
    latents = studio.draw(case, first, FRAMES, motion_mask=motion_mask)
    video = (studio.toy.decode(latents) * 255.0).round().to(torch.uint8).numpy()
    return np.concatenate([case.frames[:1], video[1:]])


def truth_of(toy: ToyBase, case: Case) -> NDArray[np.uint8]:
    """The true video `f h w 3`, as the VAE gives it back."""
    return (toy.decode(toy.encode(case.frames)) * 255.0).round().to(torch.uint8).numpy()


def measure(
    video: NDArray[np.uint8], case: Case, motion_mask: MotionMask | None, truth: NDArray[np.uint8]
) -> Figures:
    """Figures of one video `f h w 3`; see this module's beginning."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    outside = ~around(masks | target.masks)
    decibels = ground_psnr(video[1:], truth[1:], outside[1:])
    way, true_way = (np.diff(centroids(m), axis=0) for m in (masks, target.masks))
    steps = np.linalg.norm(way, axis=1)
    white = (
        None if motion_mask is None or motion_mask.mask is None else motion_mask.mask.mean().item()
    )
    return {
        "error": 255.0**2 / 10 ** (decibels / 10),
        "dB": decibels,
        "overlap": float(overlap(masks[1:], target.masks[1:]).mean()),
        "travel": float(np.nanmean(steps) / np.linalg.norm(true_way, axis=1).mean()),
        "white": white,
    }


def average(rows: list[Figures]) -> Figures:
    columns = {name: [v for row in rows if (v := row[name]) is not None] for name in rows[0]}
    return {name: float(np.mean(v)) if v else None for name, v in columns.items()}


def kept(figures: Figures, plain: Figures) -> bool:
    """Whether a mask halves the error and leaves the motion as it was."""
    same = all(
        abs((figures[name] or 0.0) / (plain[name] or 1.0) - 1) <= MOST_CHANGE
        for name in ("overlap", "travel")
    )
    return same and (figures["share"] or 1.0) <= MOST_ERROR


def compare(studio: Studio, cases: list[Case]) -> dict[str, Figures]:
    """Kind of mask -> figures, means over the cases."""
    found: dict[str, Figures] = {}
    for name in MASKS:
        rows = []
        for case in cases:
            first = studio.toy.encode(case.first_frame[None])
            motion_mask = extent_of(name, studio, case, first)
            video = film(studio, case, first, motion_mask)
            rows.append(measure(video, case, motion_mask, truth_of(studio.toy, case)))
        figures = average(rows)
        plain = found.get("none", figures)
        found[name] = {"share": (figures["error"] or 0.0) / (plain["error"] or 1.0), **figures}
        print_row(name, found[name])
    return found


def ways(studio: Studio, cases: list[Case]) -> dict[str, list[float]]:
    """Strengths -> pixels from the object's first place at every frame, means over the cases."""
    found = {}
    for name, strengths in STRENGTHS.items():
        gone = []
        for case in cases:
            first = studio.toy.encode(case.first_frame[None])
            video = film(studio, case, first, MotionMask(strengths=strengths))
            places = centroids(object_mask(video, case.targets[0].colour, case.ground))
            gone.append(np.linalg.norm(places - places[0], axis=1))
        found[name] = [round(value, 2) for value in np.nanmean(gone, axis=0).tolist()]
        print(f"{name:<24}" + "".join(f"{value:>9.2f}" for value in found[name]), flush=True)
    return found


def print_row(name: str, figures: Figures) -> None:
    values = ("-" if value is None else f"{value:.3f}" for value in figures.values())
    print(f"{name:<24}" + "".join(f"{value:>9}" for value in values), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.toy.masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=8, help="unseen objects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=240, help="of the tuning")
    parser.add_argument("--fade", type=float, default=0.5, help="of the ground's light in clips")
    parser.add_argument("--keep", type=Path, help="file of the tuned motion, written once")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    toy = load_toy_base()
    recipe = replace(RECIPES[FIRST], steps=args.steps, fade=args.fade, adain="off")
    motion = learned(toy, recipe, args.seed, args.keep, FIRST)
    studio = Studio(toy, motion, recipe, args.seed)
    cases = evaluation_cases(args.seed, "combination", FIRST, args.cases)
    heads = ("share", "error", "dB", "overlap", "travel", "white")
    print(f"{'mask':<24}" + "".join(f"{head:>9}" for head in heads))
    figures = compare(studio, cases)
    print(f"{'strengths':<24}" + "".join(f"{f'frame {i}':>9}" for i in range(1, FRAMES + 1)))
    gone = ways(studio, cases)
    passed = all(kept(figures[name], figures["none"]) for name in HELD)
    seconds = round(time.perf_counter() - started, 1)
    about = {"pass": passed, "cases": args.cases, "seed": args.seed, "fade": args.fade}
    print(json.dumps({**about, "masks": figures, "way": gone, "seconds": seconds}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
