"""The pack's nodes, listed for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    clips,
    custom_sampling,
    edit,
    first_frame,
    histogram,
    longer,
    metrics,
    motion,
    motion_files,
    motion_map,
    preset,
    recipe,
    sampling,
    toy,
    train,
)
from .model_paths import register_motion_folder
from .training_run import add_route
from .words import watch_prompts

# Before the first schema is made: the list of motions is one of its menus.
register_motion_folder()
watch_prompts()
add_route()


class LampExtension(ComfyExtension):
    """LAMP for ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        modules = (
            clips,
            train,
            recipe,
            preset,
            motion,
            motion_files,
            motion_map,
            first_frame,
            sampling,
            histogram,
            custom_sampling,
            edit,
            longer,
            metrics,
            toy,
        )
        return [node for module in modules for node in module.NODES]
