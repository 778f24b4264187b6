"""Compare this project's numbers with those of the official code.

    python -m benchmarks.parity --fixtures DIR --host both

Runs every case in a folder of reference figures, prints one line per case, and ends with one line
of JSON. Exit status: 0 if all cases pass, 1 if one fails (or none could run), 2 if the folder or
the host is missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lamp.errors import IncompatibleModelError
from scripts.server.host import HostMissing, use_host

from .cases import forward, inversion, sample
from .fixtures import Fixture, Measure, Unmeasured, find_fixtures
from .hosts import ComfyModel, DiffusersModel, DoubleModel, Model
from .pictures import adain_cases, first_frame_cases, histogram_cases
from .training import training
from .units import units

HOSTS = ("diffusers", "comfy")
DOUBLE = "float64"
_BUILD: dict[str, Callable[[Fixture], Model]] = {
    "diffusers": DiffusersModel, "comfy": ComfyModel, DOUBLE: DoubleModel
}  # fmt: skip
_IN_DOUBLE: dict[str, Any] = {"forward": forward, "sample": sample, "inversion": inversion}
_ABOUT_MODELS = {**_IN_DOUBLE, "train": training, "train_main": training}
_ABOUT_PICTURES = {
    "adain": adain_cases,
    "histogram": histogram_cases,
    "first_frame": first_frame_cases,
}
_SKIPPED = {
    "dataset": "this project resizes and crops clips differently from the official code",
    "": "not a known kind of reference figures",
}
_ABOUT_ROUNDING = """\
The figures here are float64, the recorded ones fp32: each AdaIN step amplifies earlier rounding,
in the official code as in this project. A figure may therefore differ by three times the distance
of fp32 from float64, which is shown beside it, or by 1e-4 if that is more."""


@dataclass
class Report:
    """Counts the cases, keeps the worst one, and prints them."""

    cases: int = 0
    failed: int = 0
    worst: tuple[float, dict[str, object]] = field(default_factory=lambda: (-1.0, {}))

    def add(self, host: str, fixture: Fixture, measure: Measure) -> None:
        self.cases += 1
        self.failed += not measure.holds
        case = f"{fixture.name}: {measure.name}"
        numbers = f"{measure.error:9.2e} of {measure.bound:7.1e}"
        verdict = "ok" if measure.holds else "FAIL"
        detail = f"  ({measure.detail})" if measure.detail else ""
        print(f"{host:9} {case:52} {numbers}  {verdict}{detail}", flush=True)
        if measure.ratio > self.worst[0]:
            error = measure.error if math.isfinite(measure.error) else str(measure.error)
            about = {"host": host, "case": case, "error": error, "bound": measure.bound}
            self.worst = (measure.ratio, about)

    def collect(self, host: str, fixture: Fixture, cases: Callable[[], Iterator[Measure]]) -> None:
        """Add the cases; those that cannot be compared are skipped, an error is a failed case."""
        try:
            for measure in cases():
                self.add(host, fixture, measure)
        except (IncompatibleModelError, Unmeasured) as reason:
            print(f"{host:9} {fixture.name}: skipped, {reason}", flush=True)
        except Exception as error:  # the other cases still run
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            self.add(host, fixture, Measure("did not run", math.inf, 0.0, reason))

    @property
    def passed(self) -> bool:
        return self.cases > 0 and self.failed == 0


def run(folder: Path, hosts: list[str]) -> Report:
    """Compare everything in `folder`; `comfy` needs an importable ComfyUI."""
    report = Report()
    fixtures = _readable(find_fixtures(folder), report)
    for fixture in fixtures:
        if cases := _ABOUT_PICTURES.get(fixture.kind):
            report.collect("both", fixture, partial(cases, fixture))
    for host in hosts:
        models = _Models(host)
        kinds = _IN_DOUBLE if host == DOUBLE else _ABOUT_MODELS
        for fixture in fixtures:
            if fixture.kind == "units" and host != DOUBLE:
                report.collect(host, fixture, partial(units, host, fixture))
            elif cases := kinds.get(fixture.kind):
                report.collect(host, fixture, partial(_on_model, cases, models, fixture))
    for fixture in fixtures:
        if reason := _SKIPPED.get(fixture.kind):
            print(f"{'-':9} {fixture.name}: skipped, {reason}", flush=True)
    return report


def _on_model(cases: Any, models: _Models, fixture: Fixture) -> Iterator[Measure]:
    return cases(models.of(fixture), fixture)


def _readable(fixtures: list[Fixture], report: Report) -> list[Fixture]:
    """The fixtures that can be read, sorted by model."""
    keys: dict[Fixture, tuple[str, str]] = {}

    def look(fixture: Fixture) -> Iterator[Measure]:
        _ = fixture.kind
        keys[fixture] = (str(fixture.info.get("model", "")), fixture.name)
        return iter(())

    for fixture in fixtures:
        report.collect("both", fixture, partial(look, fixture))
    return sorted(keys, key=lambda fixture: keys[fixture])


class _Models:
    """The models of a host; only the last one is kept, since fixtures are sorted by model."""

    def __init__(self, host: str) -> None:
        self._build = _BUILD[host]
        self._last: tuple[Path, Model] | None = None

    def of(self, fixture: Fixture) -> Model:
        path = fixture.model_path
        if self._last is None or self._last[0] != path:
            self._last = None  # frees the previous one
            self._last = (path, self._build(Fixture(path)))
        return self._last[1]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of reference figures")
    parser.add_argument("--host", choices=[*HOSTS, "both"], default="both")
    parser.add_argument(
        "--float64",
        action="store_true",
        help="run forward passes, sampling and inversion in float64 on diffusers, and show the "
        "distance of fp32 from it",
    )
    options = parser.parse_args(arguments)
    if not find_fixtures(options.fixtures):
        print(f"There are no reference figures (*.safetensors) in {options.fixtures}.")
        return 2
    hosts = list(HOSTS) if options.host == "both" else [options.host]
    if options.float64:
        if options.host == "comfy":
            print("ComfyUI's UNet does not compute in float64: use --float64 with diffusers.")
            return 2
        hosts = [DOUBLE]
    torch.set_num_threads(1)  # more threads change the order of sums and gain nothing here
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as base:
            if "comfy" in hosts:
                use_host(Path(base))
            report = run(options.fixtures, hosts)
    except HostMissing as missing:
        print(f"ComfyUI is missing: {missing} (or use --host diffusers).")
        return 2
    finally:
        logging.disable(logging.NOTSET)
    if options.float64:
        print(_ABOUT_ROUNDING)
    told = {"pass": report.passed, "cases": report.cases, "worst": report.worst[1] or None}
    print(json.dumps(told))
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
