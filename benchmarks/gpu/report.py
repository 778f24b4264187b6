"""The results as a Markdown section for docs/performance.md."""

from __future__ import annotations

from typing import Any

from .device import GB
from .session import shown

_NAMES = {
    "lamp_seconds": "lamp", "plain_seconds": "plain", "literal_seconds": "literal",
    "unfused_seconds": "without fused kernels", "tax": "overhead",
}  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """A heading with the machine, one row per case, and what was not measured."""
    machine = found["machine"]
    memory = machine["memory"]
    lines = [
        f"## {machine['name']}" + (f", {memory / GB:.0f} GiB" if memory else ""),
        "",
        f"{found['size']}. PyTorch {machine['pytorch']}"
        + (f", ROCm {machine['rocm']}" if machine["rocm"] else "")
        + (f", CUDA {machine['cuda']}" if machine["cuda"] else "")
        + f". `python -m benchmarks.gpu` took {found['seconds']:.0f} s.",
        "",
        "| Part | Case | Result |",
        "|---|---|---|",
    ]
    lines += [f"| {row['part']} | {row['case']} | {_figures(row)} |" for row in found["rows"]]
    if found["skipped"]:
        lines += ["", "Not measured:", "", *(f"- {each}" for each in found["skipped"])]
    return "\n".join(lines) + "\n"


def _figures(row: dict[str, Any]) -> str:
    own = {name: value for name, value in row.items() if name not in ("part", "case", "took")}
    return ", ".join(
        f"{_name(name)} {shown(name, value)}" for name, value in own.items() if value is not None
    )


def _name(name: str) -> str:
    plain = name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
    return _NAMES.get(name, plain)
