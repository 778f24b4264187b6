"""A node that takes time and shows texts, to test the harness itself."""

import time

import comfy.model_management
import comfy.utils
from comfy_api.latest import ComfyExtension, io
from PIL import Image
from server import PromptServer


class Probe(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Probe",
            inputs=[io.Int.Input("steps"), io.Float.Input("seconds_per_step")],
            outputs=[],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        return time.time()

    @classmethod
    def execute(cls, steps, seconds_per_step):
        PromptServer.instance.send_progress_text(f"{steps} steps", cls.hidden.unique_id)
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            time.sleep(seconds_per_step)
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(step + 1, steps, ("JPEG", Image.new("RGB", (8, 8)), 8))
        return io.NodeOutput(ui={"steps": [steps]})


class ProbeExtension(ComfyExtension):
    async def get_node_list(self):
        return [Probe]


async def comfy_entrypoint():
    return ProbeExtension()
