"""The method of the paper in plain PyTorch; it imports neither ComfyUI nor diffusers.

======================================  ==========================================================
Paper                                   Code
======================================  ==========================================================
Eq. 2, the noised latent x_t            `schedule.add_noise`; one DDIM step: `schedule.ddim_step`
Eq. 4, the training loss                `lamp.training.loop.predict_loss`
Eq. 5, keys and values of frame 1       `attention.first_frame_kv`
Eq. 6, shared noise                     `noise.share_noise`
Algorithm 1 (supplement), sampling      `sampling.sample`
Algorithm 1, AdaIN after each step      `adain.AdaINSchedule.after_step`
Algorithm 1, histogram matching         `histogram.match_histograms`
Fig. 3a, convolution over time          `layers.causal_conv1d`
Fig. 3b, temporal-spatial motion layer  `layers.MotionConv`
Sec. 3.4, temporal attention            `layers.TemporalAttention`
Sec. 3.4, where the layers attach       `architecture.map_unet`, `motion.attached`
Sec. 4.1, which parameters are trained  `motion.Motion.trained_parameters`
Sec. 5.2, editing by DDIM inversion     `inversion.invert`
======================================  ==========================================================

Not in the paper: `windows` and `extend` (long videos), `masks`, `motion_map` and `motion_guidance`.
"""
