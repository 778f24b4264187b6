"""Measure how lamp/ hangs together: `python -m scripts.structure [FOLDER_OF_ANOTHER_CHECKOUT]`.

Prints files and lines; of modules and of packages their number, the imports between them, the
floors (modules on the longest chain of imports) and circles; and imports that go up the layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp

# A layer imports only from those below it. pyproject.toml has the same rule for import-linter.
LAYERS = (
    ("cli",),
    ("hosts",),
    ("training",),
    ("metrics", "motion_file"),
    ("method", "clips", "toy"),
    ("files",),
    ("errors",),
    ("plain",),
)


def circles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Groups of modules that import each other, directly or not."""
    below = {name: graph.find_upstream_modules(name) for name in graph.modules}
    groups: list[set[str]] = []
    for name in graph.modules:
        group = {other for other in below[name] if name in below[other]} | {name}
        if len(group) > 1 and group not in groups:
            groups.append(group)
    return groups


def floors(graph: grimp.ImportGraph) -> int:
    """Modules on the longest chain of imports; a circle counts as one chain."""
    depth: dict[str, int] = {}

    def measure(name: str, above: frozenset[str]) -> int:
        if name not in depth:
            above |= {name}
            below = graph.find_modules_directly_imported_by(name) - above
            depth[name] = 1 + max((measure(each, above) for each in below), default=0)
        return depth[name]

    return max(measure(name, frozenset()) for name in graph.modules)


def upward(graph: grimp.ImportGraph) -> list[str]:
    """Imports between packages that go up."""
    height = {f"lamp.{part}": -n for n, layer in enumerate(LAYERS) for part in layer}
    pairs = [(a, b) for a in height for b in height if a in graph.modules and b in graph.modules]
    wrong = [pair for pair in pairs if height[pair[1]] > height[pair[0]]]
    return [f"{a} -> {b}" for a, b in wrong if graph.direct_import_exists(importer=a, imported=b)]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    sys.path.insert(0, str(root))
    files = [*(root / "lamp").rglob("*.py")]
    print(f"files {len(files)}, lines {sum(len(path.read_bytes().splitlines()) for path in files)}")
    graph = grimp.build_graph("lamp", cache_dir=None)
    for kind in ("modules", "packages"):
        if kind == "packages":
            for part in graph.find_children("lamp"):
                graph.squash_module(part)
        found = [", ".join(sorted(group)) for group in circles(graph)]
        print(f"{kind} {len(graph.modules)}, arrows {graph.count_imports()}, ", end="")
        print("; ".join([f"floors {floors(graph)}, circles {len(found)}", *found]))
    print("; ".join([f"imports upwards {len(upward(graph))}", *upward(graph)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
