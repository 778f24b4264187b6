"""The table, the plot and the paper's claims of benchmarks/toy/ablations.py."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETS = ("combination", "hard")
# Measure -> whether more is better.
MEASURES = {
    "iou": True, "nrmse": False, "followed": True, "kept": True, "looks": True, "fidelity": True,
    "flicker": False, "jerk": False,
}  # fmt: skip
HEADS = {
    "iou": "overlap", "nrmse": "path error", "followed": "followed", "kept": "kept",
    "looks": "looks", "fidelity": "fidelity, dB", "flicker": "flicker", "jerk": "jerk",
}  # fmt: skip
Results = dict[str, dict[int, Any]]  # variant -> seed -> set -> measure


@dataclass(frozen=True)
class Claim:
    """What the paper says a variant does worse than another one, as measures of this world."""

    says: str
    variant: str
    measures: tuple[str, ...]
    than: str = ""  # the full method, if nothing else is named


CLAIMS = (
    Claim(
        "Without the first frame the quality is low, and contents of the clips intrude.",
        "no first frame",
        ("kept", "looks"),
    ),
    Claim(
        "Without the motion layers the motion is not captured.",
        "no motion convolutions",
        ("followed", "nrmse"),
    ),
    Claim(
        "With a plain convolution the main object becomes inconsistent.",
        "plain convolution",
        ("kept", "iou"),
    ),
    Claim("Without shared noise the result lacks smoothness.", "no shared noise", ("jerk",)),
    Claim("Without AdaIN the appearance loses its consistency.", "no AdaIN", ("kept", "fidelity")),
    Claim("Without histogram matching the frames flicker.", "no histogram matching", ("flicker",)),
    Claim(
        "Without the motion layers the motion fails, without shared noise only its smoothness.",
        "no motion convolutions",
        ("followed",),
        "no shared noise",
    ),
)


def spread(results: Results) -> dict[str, dict[str, dict[str, list[float] | None]]]:
    """Variant -> set -> measure -> mean and sample deviation over the seeds."""
    return {
        name: {
            which: {measure: _mean(_values(rows, which, measure)) for measure in MEASURES}
            for which in SETS
        }
        for name, rows in results.items()
    }


def _values(rows: dict[int, Any], which: str, measure: str) -> list[float]:
    return [row[which][measure] for row in rows.values() if row[which][measure] is not None]


def _mean(values: list[float]) -> list[float] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [round(statistics.fmean(values), 4), round(deviation, 4)]


def print_table(results: Results) -> None:
    """Mean and deviation over the seeds, in Markdown."""
    found = spread(results)
    for which in SETS:
        print(f"\n| {which} | " + " | ".join(HEADS.values()) + " |")
        print("|---" * (1 + len(HEADS)) + "|")
        for name, sets in found.items():
            cells = (_cell(sets[which][measure], measure) for measure in MEASURES)
            print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def _cell(figure: list[float] | None, measure: str) -> str:
    if figure is None:
        return "-"
    places = 1 if measure in ("fidelity", "flicker") else 2
    return f"{figure[0]:.{places}f} ± {figure[1]:.{places}f}"


def verdicts(results: Results, full: str) -> list[dict[str, Any]]:
    """Of each claim, set and measure: in how many seeds the variant is the worse one."""
    told = []
    for claim in CLAIMS:
        base = results[claim.than or full]
        for measure in claim.measures:
            for which in SETS:
                worse, seeds = _worse(results[claim.variant], base, which, measure)
                told.append(
                    {
                        "says": claim.says,
                        "set": which,
                        "measure": measure,
                        "worse": worse,
                        "seeds": seeds,
                        "verdict": _verdict(worse, seeds),
                        "figures": f"({HEADS[measure]}, {which}: {worse} of {seeds} seeds)",
                    }
                )
    return told


def _worse(rows: dict[int, Any], base: dict[int, Any], which: str, measure: str) -> tuple[int, int]:
    better = MEASURES[measure]
    pairs = [(rows[seed][which][measure], base[seed][which][measure]) for seed in rows]
    there = [(one, other) for one, other in pairs if one is not None and other is not None]
    return sum((one < other) if better else (one > other) for one, other in there), len(there)


def _verdict(worse: int, seeds: int) -> str:
    if seeds and worse == seeds:
        return "shown"
    return "not shown" if worse * 2 <= seeds else "unclear"


# --- the plot ----------------------------------------------------------------------------------

_COLOURS = {"combination": "#185aa8", "hard": "#c8782a"}
_PANEL, _GAP, _LEFT, _TOP, _ROW = 128, 18, 170, 52, 34
_GREY, _DARK = "#d8d8d8", "#404040"


def save_plot(path: Path, results: Results) -> None:
    """An SVG: a panel for each measure, a row for each variant; a dot for each seed, a bar at the
    mean. Blue: combination set, orange: hard set."""
    width = _LEFT + len(MEASURES) * (_PANEL + _GAP)
    height = _TOP + _ROW * len(results) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, name in enumerate(results):
        parts.append(_text(_LEFT - 12, _middle(row) + 4, name, "end"))
    for column, measure in enumerate(MEASURES):
        parts += _panel(_LEFT + column * (_PANEL + _GAP), measure, results)
    for number, (which, colour) in enumerate(_COLOURS.items()):
        x, y = _LEFT + 110 * number, height - 10
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(_text(x + 10, y, which, "start"))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(left: int, measure: str, results: Results) -> list[str]:
    values = [
        v for rows in results.values() for which in SETS for v in _values(rows, which, measure)
    ]
    low, high = min(0.0, *values), max(values) * 1.05 or 1.0
    if measure in ("iou", "followed", "kept", "looks"):
        high = 1.0
    bottom = _TOP + _ROW * len(results)
    better = "more is better" if MEASURES[measure] else "less is better"
    parts = [
        f'<rect x="{left}" y="{_TOP}" width="{_PANEL}" height="{bottom - _TOP}" fill="none" '
        f'stroke="{_GREY}"/>',
        _text(left + _PANEL / 2, _TOP - 24, HEADS[measure], "middle"),
        _text(left + _PANEL / 2, _TOP - 9, better, "middle", 10),
        _text(left, bottom + 14, f"{low:g}", "start", 10),
        _text(left + _PANEL, bottom + 14, f"{high:.3g}", "end", 10),
    ]
    for row, rows in enumerate(results.values()):
        for which, shift in zip(SETS, (-6, 6), strict=True):
            own, y = _values(rows, which, measure), _middle(row) + shift
            places = [left + _PANEL * (value - low) / (high - low) for value in own]
            parts += [
                f'<circle cx="{x:.1f}" cy="{y}" r="3" fill="{_COLOURS[which]}" opacity="0.6"/>'
                for x in places
            ]
            if places:
                x = statistics.fmean(places)
                parts.append(
                    f'<path d="M{x:.1f} {y - 6}v12" stroke="{_COLOURS[which]}" stroke-width="2"/>'
                )
    return parts


def _middle(row: int) -> int:
    return _TOP + _ROW * row + _ROW // 2


def _text(x: float, y: float, words: str, anchor: str, size: int = 12) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{_DARK}">'
        f"{words}</text>"
    )
