"""Picture every node for its help page: `python -m scripts.assets.help_pictures`.

ComfyUI's own front end draws the nodes, each as it comes from the node library.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from PIL import Image

from scripts.assets.locales import HELP
from scripts.server.browser import BrowserMissing, open_page
from scripts.server.host import HostMissing
from scripts.server.server import ComfyServer

PICTURE = "node.webp"
_MOTION = "horse_run_00001.safetensors"
_MARGIN = 12
_NODES = """() => Object.keys(LiteGraph.registered_node_types)
    .filter(name => name.startsWith('LAMP_')).sort()"""
# A canvas with this node alone, at its natural size; where it stands on the page.
_SHOW = """async ([name, margin]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(name)
    app.graph.add(node)
    const [width, height] = node.computeSize()
    node.size = [Math.max(width, 320), height]
    // The badge that names the pack stands on the title.
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
    """The node on the empty canvas."""
    clip = page.evaluate(_SHOW, [node, _MARGIN])
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def main() -> int:
    try:
        with ComfyServer() as server:
            # An empty folder of motions would show in the menu.
            (server.base / "models" / "lamp_motion" / _MOTION).touch()
            with open_page(server.url, 1400, 1600) as page:
                take(page)
    except (HostMissing, BrowserMissing) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def take(page: Any) -> None:
    """A picture of every node beside its help page."""
    for node in page.evaluate(_NODES):
        path = HELP / node / PICTURE
        picture(page, node).save(path, quality=80, method=6)
        print(path.relative_to(HELP), path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
