"""Command lines, tables and plots of the benchmarks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]
_AXIS = (96, 96, 96)
_NAMES = 90  # pixels for the names of the lines


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.NAME` whose help is the module's docstring."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"benchmarks.{name}", description=about, formatter_class=raw)


def finish(result: Mapping[str, Any]) -> int:
    """Print the result as the last line, JSON; the exit status is 0 if it passed."""
    print(json.dumps(result))
    return 0 if result["pass"] else 1


class Table:
    """Prints aligned rows as they come; None is a dash.

    Args:
        labels: headings of the left columns with their widths.
        numbers: headings of the others.
    """

    def __init__(
        self, labels: Mapping[str, int], numbers: Sequence[str], width: int = 10, places: int = 2
    ) -> None:
        self._widths, self._width, self._places = list(labels.values()), width, places
        self._print(list(labels), list(numbers))

    def row(self, *values: str | float | None) -> None:
        """The labels, then the numbers."""
        count = len(self._widths)
        self._print(values[:count], [self._shown(value) for value in values[count:]])

    def _shown(self, value: str | float | None) -> str:
        if value is None or isinstance(value, str):
            return value or "-"
        return f"{value:.{self._places}f}"

    def _print(self, labels: Sequence[Any], numbers: Sequence[str]) -> None:
        left = (f"{label!s:<{width}}" for label, width in zip(labels, self._widths, strict=True))
        print(" ".join(left) + "".join(f"{text:>{self._width}}" for text in numbers), flush=True)


def save_plot(
    path: Path,
    panels: Mapping[str, Sequence[tuple[str, Points]]],
    colours: Mapping[str, tuple[int, int, int]],
    size: tuple[int, int] = (720, 320),
) -> None:
    """Panels side by side, lines `(name, points)` on axes from zero, their names at the right."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    width = (size[0] - _NAMES) // len(panels)
    for row, (name, colour) in enumerate(colours.items()):
        draw.text((size[0] - _NAMES, 32 + 14 * row), name, fill=colour)
    for number, (title, lines) in enumerate(panels.items()):
        left, right = 56 + number * width, (number + 1) * width - 16
        top, bottom = 32, size[1] - 32
        last, most = (max(point[axis] for _, line in lines for point in line) for axis in (0, 1))
        draw.rectangle((left, top, right, bottom), outline=_AXIS)
        draw.text((left, 12), title, fill=_AXIS)
        draw.text((left - 50, top), f"{most:.3g}", fill=_AXIS)
        draw.text((left - 14, bottom - 12), "0", fill=_AXIS)
        for name, points in lines:
            dots = [
                (left + (right - left) * x / last, bottom - (bottom - top) * y / most)
                for x, y in points
            ]
            draw.line(dots, fill=colours[name], width=2)
            for x, y in dots:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colours[name])
        for x in sorted({x for _, line in lines for x, _ in line}):
            draw.text((left + (right - left) * x / last - 6, bottom + 8), f"{x:g}", fill=_AXIS)
    picture.save(path)
