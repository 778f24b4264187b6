"""Table, plot and order of the methods of Table 1."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.toy.ablations_report import Measure, Results, print_table, save_plot, spread

MEAN = "mean over motions"
# The paper's; each world has its own ones beside them.
MEASURES = {
    "alignment": Measure("alignment", True, zero=False),
    "consistency": Measure("consistency", True, zero=False),
    "diversity": Measure("diversity", False, zero=False),
}
Measures = Mapping[str, Measure]
# Table 1 of the paper.
PAPER = {
    "Tune-A-Video": {"alignment": 27.2227, "consistency": 94.8742, "diversity": 84.7186},
    "T2V-Zero": {"alignment": 26.9424, "consistency": 91.4713, "diversity": 73.0136},
    "AnimateDiff*": {"alignment": 28.8779, "consistency": 97.8131, "diversity": 73.4723},
    "LAMP": {"alignment": 31.3547, "consistency": 98.3085, "diversity": 71.6535},
}


def table(results: Results, truth: Measures) -> None:
    """Print mean and deviation over the seeds, in Markdown; `truth`: the world's own measures."""
    print_table(results, {**MEASURES, **truth}, (MEAN,))


def plot(path: Path, results: Results, truth: Measures) -> None:
    save_plot(path, results, {**MEASURES, **truth}, {MEAN: "#185aa8"})


def means(results: Results, truth: Measures) -> dict[str, Any]:
    """Method -> measure -> mean and deviation over the seeds."""
    found = spread(results, {**MEASURES, **truth}, (MEAN,))
    return {name: sets[MEAN] for name, sets in found.items()}


def orders(results: Results) -> list[dict[str, Any]]:
    """For each of the paper's measures: the paper's order and the one here, best first, the pairs
    that differ, each with the number of seeds that show it, and a sentence about them."""
    return [_order(results, measure) for measure in MEASURES]


def _order(results: Results, measure: str) -> dict[str, Any]:
    sign = -1.0 if MEASURES[measure].more else 1.0
    rows = {name: results[name] for name in PAPER if name in results}
    values = {n: {s: row[MEAN][measure] for s, row in seeds.items()} for n, seeds in rows.items()}
    known = {n: v for n, v in values.items() if v and None not in v.values()}
    paper = sorted(known, key=lambda name: sign * PAPER[name][measure])
    here = sorted(known, key=lambda name: sign * statistics.fmean(known[name].values()))
    reversed_pairs = [
        {"better_here": low, "better_in_paper": high, **_seeds(known[low], known[high], sign)}
        for number, high in enumerate(paper)
        for low in paper[number + 1 :]
        if here.index(low) < here.index(high)
    ]
    return {
        "measure": measure,
        "paper": paper,
        "here": here,
        "reversed": reversed_pairs,
        "says": _sentence(measure, paper, reversed_pairs),
    }


def _seeds(one: dict[int, float], other: dict[int, float], sign: float) -> dict[str, int]:
    common = one.keys() & other.keys()
    better = sum(sign * one[seed] < sign * other[seed] for seed in common)
    return {"seeds_better": better, "seeds": len(common)}


def _sentence(measure: str, paper: list[str], pairs: list[dict[str, Any]]) -> str:
    if len(paper) < 2:
        return f"{measure}: there are not enough methods to compare."
    if not pairs:
        return f"{measure}: the paper's order, {' > '.join(paper)}, comes out."
    told = "; ".join(
        f"{pair['better_here']} is better than {pair['better_in_paper']} "
        f"({pair['seeds_better']} of {pair['seeds']} seeds)"
        for pair in pairs
    )
    return f"{measure}: the paper's order, {' > '.join(paper)}, does not come out: {told}."
