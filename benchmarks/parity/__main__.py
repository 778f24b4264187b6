"""Compare this project's numbers with the official code's: `python -m benchmarks.parity`.

Runs every case found in a folder of reference figures, prints one line a case, and ends with one
line of JSON. Exit status: 0 if all hold, 1 if one does not (or none could run), 2 if the folder or
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lamp.errors import IncompatibleModelError
from scripts.server.host import HostMissing, use_host

from . import (
    cases as parity_cases,
)
from . import (
    pictures as parity_pictures,
)
from . import (
    training as parity_training,
)
from . import (
    units as parity_units,
)
from .fixtures import Fixture, Measure, Unmeasured, find_fixtures
from .hosts import ComfyModel, DiffusersModel, DoubleModel, Model

HOSTS: dict[str, Callable[[Fixture], Model]] = {"diffusers": DiffusersModel, "comfy": ComfyModel}
DOUBLE = "float64"
_KINDS = {**HOSTS, DOUBLE: DoubleModel}
_IN_DOUBLE = ("forward", "sample", "inversion")
_ABOUT_ROUNDING = """\
In float64 the figures here are without rounding, the recorded ones are not: each AdaIN step
amplifies what fp32 rounded before it, in the published code as here. So a figure may be off by
three times the distance of fp32 from float64, which stands beside it, and by 1e-4 where that is
less."""
_ABOUT_MODELS = {
    "forward": parity_cases.forward,
    "sample": parity_cases.sample,
    "inversion": parity_cases.inversion,
    "train": parity_training.training,
    "train_main": parity_training.training,
}
_ABOUT_PICTURES = {
    "adain": parity_pictures.adain_cases,
    "histogram": parity_pictures.histogram_cases,
    "first_frame": parity_pictures.first_frame_cases,
}


@dataclass
class Report:
    """Counts the cases, keeps the worst, and writes the lines."""

    cases: int = 0
    failed: int = 0
    worst: tuple[float, dict[str, object]] = field(default_factory=lambda: (-1.0, {}))

    def add(self, host: str, fixture: Fixture, measure: Measure) -> None:
        """One case that was compared."""
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

    def broke(self, host: str, fixture: Fixture, error: Exception) -> None:
        """A case that ended in an error counts as failed."""
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        self.add(host, fixture, Measure("did not run", math.inf, 0.0, reason))

    def skip(self, host: str, fixture: Fixture, reason: str) -> None:
        """A case that is not counted."""
        print(f"{host:9} {fixture.name}: skipped, {reason}", flush=True)

    def summary(self) -> str:
        passed = self.cases > 0 and self.failed == 0
        return json.dumps({"pass": passed, "cases": self.cases, "worst": self.worst[1] or None})


def run(folder: Path, hosts: list[str]) -> Report:
    """Compare everything in `folder`; ComfyUI must be importable if it is among `hosts`."""
    report = Report()
    fixtures = _readable(find_fixtures(folder), report)
    for fixture in fixtures:
        if cases := _ABOUT_PICTURES.get(fixture.kind):
            _collect(report, "both", fixture, partial(cases, fixture))
    for host in hosts:
        models = _Models(host)
        for fixture in fixtures:
            if host == DOUBLE and fixture.kind not in _IN_DOUBLE:
                continue
            if fixture.kind == "units":
                _collect(report, host, fixture, partial(parity_units.units, host, fixture))
            elif fixture.kind in _ABOUT_MODELS:
                _collect(report, host, fixture, partial(_about_model, models, fixture))
    for fixture in fixtures:
        if (reason := _not_compared(fixture)) is not None:
            report.skip("-", fixture, reason)
    return report


def _readable(fixtures: list[Fixture], report: Report) -> list[Fixture]:
    """Those that can be read, the fixtures of one model one after the other."""
    by_model = {}
    for fixture in fixtures:
        try:
            by_model[fixture] = (fixture.kind, str(fixture.info.get("model", "")), fixture.name)
        except Exception as error:  # damaged in whatever way
            report.broke("both", fixture, error)
    return sorted(by_model, key=lambda fixture: by_model[fixture][1:])


def _about_model(models: _Models, fixture: Fixture) -> Iterator[Measure]:
    return _ABOUT_MODELS[fixture.kind](models.of(fixture), fixture)


def _not_compared(fixture: Fixture) -> str | None:
    if fixture.kind == "dataset":
        return "official clips are squeezed and cut otherwise, on purpose"
    return None if fixture.kind else "not a known kind of reference figures"


def _collect(
    report: Report, host: str, fixture: Fixture, cases: Callable[[], Iterator[Measure]]
) -> None:
    try:
        for measure in cases():
            report.add(host, fixture, measure)
    except (IncompatibleModelError, Unmeasured) as reason:
        report.skip(host, fixture, str(reason))
    except Exception as error:  # whatever it is, the other cases still run
        report.broke(host, fixture, error)


class _Models:
    """The models of a host; the last one is kept, since fixtures come sorted by model."""

    def __init__(self, host: str) -> None:
        self._build = _KINDS[host]
        self._last: tuple[Path, Model] | None = None

    def of(self, fixture: Fixture) -> Model:
        path = fixture.model_path
        if self._last is None or self._last[0] != path:
            self._last = None  # frees the one before
            self._last = (path, self._build(Fixture(path)))
        return self._last[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hosts' own news between the lines."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.parity", description=__doc__)
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of reference figures")
    parser.add_argument("--host", choices=[*HOSTS, "both"], default="both")
    parser.add_argument(
        "--float64",
        action="store_true",
        help="run forward passes, sampling and inversion in float64 on diffusers, and tell how far "
        "fp32 is off it",
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
    torch.set_num_threads(1)  # more change the order of sums, and gain nothing at this size
    with _quiet(), tempfile.TemporaryDirectory() as base:
        if "comfy" in hosts:
            try:
                use_host(Path(base))
            except HostMissing as missing:
                print(f"The cases of ComfyUI cannot run: {missing} (or use --host diffusers).")
                return 2
        report = run(options.fixtures, hosts)
    if options.float64:
        print(_ABOUT_ROUNDING)
    print(report.summary())
    return 0 if report.cases and not report.failed else 1


if __name__ == "__main__":
    sys.exit(main())
