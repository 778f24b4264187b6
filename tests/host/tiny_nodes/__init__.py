"""Nodes for tests only: tiny models, broken inputs, and checks of what a run left on a model."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, InputImpl, io
from safetensors.torch import save_file

_ROOT = Path(__file__).resolve().parents[3]
_MOTION = io.Custom("LAMP_MOTION")


def _helpers(file):
    """Load a module of shared test code by its path. It imports `lamp` from the repository."""
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))  # last: the host has modules of the same names
    name = f"lamp_tests_{file}"
    if name not in sys.modules:
        folders = (_ROOT / "benchmarks" / "samples", _ROOT / "tests" / "helpers")
        path = next(path for folder in folders if (path := folder / f"{file}.py").is_file())
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _tiny_models():
    return _helpers("tiny_models")


class TinyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyModel",
            inputs=[io.Int.Input("text_width", default=32), io.Int.Input("seed", default=0)],
            outputs=[io.Model.Output(), io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text_width, seed):
        tiny = _tiny_models()
        text = [[tiny.text(1, width=text_width), {}]]
        return io.NodeOutput(tiny.tiny_patcher(text_width, seed), text)


class OtherModel(io.ComfyNode):
    """A small SD 2.x or SD-XL with the toy's VAE."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OtherModel",
            inputs=[io.String.Input("kind")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, kind):
        other = _helpers("other_unets")
        from lamp.hosts.comfy.toy import load_toy_models
        from lamp.toy.base import toy_state

        vae = load_toy_models(toy_state()).vae
        return io.NodeOutput(other.patcher_of(kind), other.SmallClip(kind), vae)


class TinyMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyMotion",
            inputs=[
                io.Model.Input("model"),
                io.String.Input("family", default=""),
                io.Boolean.Input("broken", default=False),
                io.Int.Input("seed", default=1, optional=True),
            ],
            outputs=[_MOTION.Output()],
        )

    @classmethod
    def execute(cls, model, family, broken, seed=1):
        import dataclasses

        file = _tiny_models().random_motion(model, seed)
        config = dataclasses.replace(file.config, family=family or file.config.family)
        if broken:
            next(iter(file.state.values()))[0] = float("nan")
        return io.NodeOutput(dataclasses.replace(file, config=config))


class TinyControl(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyControl",
            inputs=[io.Model.Input("model")],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(_helpers("tiny_patches").tiny_control(model))


class TinyLora(io.ComfyNode):
    """Write a LoRA for the tiny model to the server's models."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyLora",
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, name):
        folder = Path(folder_paths.get_folder_paths("loras")[0])
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_helpers("tiny_patches").lora_state(model), folder / name)
        return io.NodeOutput()


class ImageTokens(io.ComfyNode):
    """A MODEL that attends to image tokens besides those of the text, like an IP-Adapter."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ImageTokens",
            inputs=[io.Model.Input("model"), io.Int.Input("seed", default=0)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, seed):
        tokens = _tiny_models().text(seed, tokens=4)[0]
        model = model.clone()
        model.set_model_attn2_patch(_helpers("tiny_patches").image_tokens(tokens)[0])
        return io.NodeOutput(model)


class TinyVae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        kinds = ["sd1", "sdxl", "video", "16 channels", "nan"]
        return io.Schema(
            node_id="TinyVae",
            inputs=[io.Combo.Input("kind", options=kinds)],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, kind):
        from comfy.latent_formats import SD15, SDXL

        family = SDXL() if kind == "sdxl" else SD15()
        factors = torch.tensor(family.latent_rgb_factors)

        def encode(picture):
            colours = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1) * 2 - 1, 8)
            latent = torch.einsum("bchw,ck->bkhw", colours, torch.linalg.pinv(factors))
            return family.process_out(latent) * (float("nan") if kind == "nan" else 1.0)

        return io.NodeOutput(
            SimpleNamespace(
                encode=encode,
                latent_channels=16 if kind == "16 channels" else 4,
                latent_dim=3 if kind == "video" else 2,
            )
        )


class TinyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TinyLatent",
            inputs=[
                io.Int.Input("frames", default=6),
                io.Int.Input("channels", default=4),
                io.Float.Input("value", default=0.0),
                io.Boolean.Input("nan", default=False),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, frames, channels, value, nan):
        latent = torch.full((frames, channels, 8, 8), value)
        latent[0] = torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(3))
        latent[0, 0, 0, 0] = float("nan") if nan else 1.0
        return io.NodeOutput({"samples": latent})


class NanImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="NanImage", inputs=[], outputs=[io.Image.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(torch.full((1, 64, 64, 3), float("nan")))


class LookAtLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LookAtLatent",
            inputs=[io.Latent.Input("latent"), io.Latent.Input("given", optional=True)],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, given=None):
        samples = latent["samples"]
        found = {
            "digest": [hashlib.sha256(samples.float().numpy().tobytes()).hexdigest()],
            "shape": [list(samples.shape)],
            "finite": [bool(samples.isfinite().all())],
        }
        if given is not None:
            found["first_equal"] = [torch.equal(samples[0], given["samples"][0])]
            found["rest_moved"] = [not torch.equal(samples[1:], given["samples"][1:])]
        return io.NodeOutput(ui=found)


class CountHooks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CountHooks",
            inputs=[io.Model.Input("model")],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return float("nan")  # run every time

    @classmethod
    def execute(cls, model):
        modules = list(model.model.diffusion_model.modules())
        hooks = sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m))
            for m in modules
        )
        return io.NodeOutput(ui={"hooks": [hooks]})


class FailWhileSampling(io.ComfyNode):
    """A MODEL whose second UNet call fails, in the middle of the UNet."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FailWhileSampling",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        model, calls = model.clone(), []

        def patch(q, k, v, options):
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("the UNet broke in the middle")
            return q, k, v

        model.set_model_attn2_patch(patch)
        return io.NodeOutput(model)


class TestVideos(io.ComfyNode):
    """The outputs of a video dataset loader: a list of videos and a list of texts."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestVideos",
            inputs=[io.String.Input("files"), io.String.Input("texts")],
            outputs=[
                io.Video.Output(is_output_list=True),
                io.String.Output(is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, files, texts):
        folder = Path(folder_paths.get_input_directory())
        films = [InputImpl.VideoFromFile(str(folder / name)) for name in files.splitlines()]
        return io.NodeOutput(films, texts.splitlines())


class TinyExtension(ComfyExtension):
    async def get_node_list(self):
        return [
            TinyModel,
            OtherModel,
            TinyMotion,
            TinyControl,
            TinyLora,
            ImageTokens,
            TinyVae,
            TinyLatent,
            NanImage,
            LookAtLatent,
            CountHooks,
            FailWhileSampling,
            TestVideos,
        ]


async def comfy_entrypoint():
    return TinyExtension()
