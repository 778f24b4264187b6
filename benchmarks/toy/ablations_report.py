"""Table, plot and the paper's claims of benchmarks/toy/ablations.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measure:
    """Heading, whether more is better, decimal places, the end of the plot's axis if fixed, and
    whether the axis begins at zero."""

    head: str
    more: bool
    places: int = 2
    high: float | None = None
    zero: bool = True


Results = dict[str, dict[int, Any]]  # variant -> seed -> set -> measure
# What the paper says that a variant does worse, the variant, the measures that would show it, and
# than which other variant; an empty name is the full method.
Claim = tuple[str, str, tuple[str, ...], str]
COLOURS = ("#185aa8", "#c8782a")  # of the sets


def spread(
    results: Results,
    measures: Mapping[str, Measure],
    sets: tuple[str, ...],
) -> dict[str, dict[str, dict[str, list[float] | None]]]:
    """Variant -> set -> measure -> mean and sample deviation over the seeds."""
    return {
        name: {which: {m: _mean(_values(rows, which, m)) for m in measures} for which in sets}
        for name, rows in results.items()
    }


def _values(rows: dict[int, Any], which: str, measure: str) -> list[float]:
    return [row[which][measure] for row in rows.values() if row[which][measure] is not None]


def _mean(values: list[float]) -> list[float] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [round(statistics.fmean(values), 4), round(deviation, 4)]


def print_table(
    results: Results,
    measures: Mapping[str, Measure],
    sets: tuple[str, ...],
) -> None:
    """Mean and deviation over the seeds, in Markdown."""
    means = spread(results, measures, sets)
    for which in sets:
        print(f"\n| {which} | " + " | ".join(m.head for m in measures.values()) + " |")
        print("|---" * (1 + len(measures)) + "|")
        for name, found in means.items():
            cells = (_cell(m, found[which][key]) for key, m in measures.items())
            print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def _cell(measure: Measure, found: list[float] | None) -> str:
    if found is None:
        return "-"
    return f"{found[0]:.{measure.places}f} ± {found[1]:.{measure.places}f}"


def verdicts(
    results: Results,
    full: str,
    claims: tuple[Claim, ...],
    measures: Mapping[str, Measure],
    sets: tuple[str, ...],
) -> list[dict[str, Any]]:
    """For each claim, set and measure: on how many seeds the variant is worse."""
    return [
        {"says": says, "variant": variant, "set": which, "measure": name,
         **_verdict(results[variant], results[than or full], which, name, measures[name])}
        for says, variant, names, than in claims
        for name in names
        for which in sets
    ]  # fmt: skip


def _verdict(
    rows: dict[int, Any], base: dict[int, Any], which: str, name: str, measure: Measure
) -> dict[str, Any]:
    pairs = [(rows[seed][which][name], base[seed][which][name]) for seed in rows]
    there = [(one, other) for one, other in pairs if one is not None and other is not None]
    seeds = len(there)
    worse = sum((one < other) if measure.more else (one > other) for one, other in there)
    verdict = "not shown" if worse * 2 <= seeds else "unclear"
    if seeds and worse == seeds:
        verdict = "shown"
    told = f"({measure.head}, {which}: {worse} of {seeds} seeds)"
    return {"worse": worse, "seeds": seeds, "verdict": verdict, "figures": told}


# --- the plot ---------------------------------------------------------------------------------

_PANEL, _GAP, _LEFT, _TOP, _ROW = 128, 18, 190, 52, 34


def save_plot(
    path: Path,
    results: Results,
    measures: Mapping[str, Measure],
    colours: Mapping[str, str],
) -> None:
    """An SVG with a panel per measure and a row per variant: dots are seeds, bars are means.

    `colours`: set -> colour of its dots.
    """
    width = _LEFT + len(measures) * (_PANEL + _GAP)
    height = _TOP + _ROW * len(results) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, name in enumerate(results):
        parts.append(_text(_LEFT - 12, _middle(row) + 4, name, "end"))
    for column, (name, measure) in enumerate(measures.items()):
        parts += _panel(_LEFT + column * (_PANEL + _GAP), name, measure, results, colours)
    for number, (which, colour) in enumerate(colours.items()):
        x, y = _LEFT + 110 * number, height - 10
        parts += [_circle(x, y - 4, 4, colour), _text(x + 10, y, which, "start")]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(
    left: int, name: str, measure: Measure, results: Results, colours: Mapping[str, str]
) -> list[str]:
    values = [
        v for rows in results.values() for which in colours for v in _values(rows, which, name)
    ]
    bottom = _TOP + _ROW * len(results)
    low = min(0.0, *values) if measure.zero else float(math.floor(min(values)))
    high = measure.high or max(values) * 1.05 or 1.0
    better = "more is better" if measure.more else "less is better"
    parts = [
        f'<rect x="{left}" y="{_TOP}" width="{_PANEL}" height="{bottom - _TOP}" fill="none" '
        'stroke="#d8d8d8"/>',
        _text(left + _PANEL / 2, _TOP - 24, measure.head, "middle"),
        _text(left + _PANEL / 2, _TOP - 9, better, "middle", 10),
        _text(left, bottom + 14, f"{low:g}", "start", 10),
        _text(left + _PANEL, bottom + 14, f"{high:.3g}", "end", 10),
    ]
    for row, rows in enumerate(results.values()):
        for number, (which, colour) in enumerate(colours.items()):
            y = _middle(row) + 12 * number - 6 * (len(colours) - 1)
            own = _values(rows, which, name)
            places = [left + _PANEL * (value - low) / (high - low) for value in own]
            parts += [_circle(x, y, 3, colour) for x in places]
            if places:
                bar = f"M{statistics.fmean(places):.1f} {y - 6}v12"
                parts.append(f'<path d="{bar}" stroke="{colour}" stroke-width="2"/>')
    return parts


def _middle(row: int) -> int:
    return _TOP + _ROW * row + _ROW // 2


def _circle(x: float, y: float, radius: int, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y}" r="{radius}" fill="{colour}" opacity="0.6"/>'


def _text(x: float, y: float, words: str, anchor: str, size: int = 12) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="#404040">'
        f"{words}</text>"
    )
