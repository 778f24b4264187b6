"""LAMP: learn a motion pattern from a few clips, in plain torch.

The package knows nothing of ComfyUI; only ``lamp.hosts`` binds it to a host.
Video latents lie with frames in the batch dimension, ``(b f) c h w``; images and
clips are ``f h w c``, as ComfyUI's IMAGE is. Frames are counted from 1 in texts.
"""
