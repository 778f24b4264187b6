"""LAMP for ComfyUI: learn a motion from a few clips, then play it on any first frame.

ComfyUI imports this file at start-up, test and type checkers import it too. So nothing is
imported here: the nodes come in only when the host asks for them.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import LampExtension

    return LampExtension()
