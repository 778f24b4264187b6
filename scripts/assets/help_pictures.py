"""Picture the nodes for their help pages: `python -m scripts.assets.help_pictures [NODE ...]`.

ComfyUI's front end draws the nodes, with the values that they have when they are added. Without
names, those are taken whose picture lacks an input, or shows one that is gone.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from typing import Any

from PIL import Image

from scripts.assets.locales import HELP
from scripts.server.browser import BrowserMissing, open_page
from scripts.server.host import HostMissing
from scripts.server.server import ComfyServer

PICTURE = "node.webp"
_MOTION, _OFFICIAL = "horse_run_00001.safetensors", "horse-run"
_MARGIN = 12
# Shows this node alone, at its natural size, and returns its place on the page.
_SHOW = """async ([name, margin]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(name)
    app.graph.add(node)
    const [width, height] = node.computeSize()
    node.size = [Math.max(width, 320), height]
    // The badge with the name of the pack is above the title.
    node.pos = [margin, margin + 20 + LiteGraph.NODE_TITLE_HEIGHT]
    app.canvas.ds.scale = 1
    const bar = app.canvas.canvas.getBoundingClientRect()
    app.canvas.ds.offset = [160 - bar.x, 200 - bar.y]
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 600))
    const above = 20 + LiteGraph.NODE_TITLE_HEIGHT
    return {
        x: 160, y: 200, width: node.size[0] + 2 * margin, height: node.size[1] + above + 2 * margin
    }
}"""


def picture(page: Any, node: str) -> Image.Image:
    """The node on an empty canvas."""
    clip = page.evaluate(_SHOW, [node, _MARGIN])
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def shown_inputs(node: str) -> list[str]:
    """The names of the inputs in a node's picture, which it carries as XMP metadata."""
    path = HELP / node / PICTURE
    if not path.is_file():
        return []
    with Image.open(path) as found:
        return json.loads(found.info.get("xmp", b"[]"))


def input_names(info: dict[str, Any]) -> list[str]:
    """The names of a node's inputs, as the server describes it."""
    order = info["input_order"]
    return [*order.get("required", []), *order.get("optional", [])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.assets.help_pictures", description=__doc__)
    parser.add_argument("nodes", nargs="*", metavar="NODE")
    args = parser.parse_args()
    try:
        with ComfyServer() as server:
            # The menus of files show what users will have.
            models = server.base / "models"
            (models / "lamp_motion" / _MOTION).touch()
            (models / "diffusers" / _OFFICIAL / "unet").mkdir(parents=True)
            infos = server.object_info()
            nodes = {
                node: input_names(info) for node, info in infos.items() if node.startswith("LAMP_")
            }
            old = [node for node, names in nodes.items() if shown_inputs(node) != names]
            with open_page(server.url, 1400, 1600) as page:
                for node in args.nodes or old:
                    take(page, node, nodes[node])
    except (HostMissing, BrowserMissing) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def take(page: Any, node: str, inputs: list[str]) -> None:
    """Save a picture of a node in the folder of its help page."""
    path = HELP / node / PICTURE
    picture(page, node).save(path, quality=80, method=6, xmp=json.dumps(inputs).encode())
    print(path.relative_to(HELP), path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
