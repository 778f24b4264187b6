"""Tuning: the loss of eq. 4, the optimiser, what survives a stop, and that the base stays as is."""

import copy
import math

import pytest
import torch
from torch import Tensor

from benchmarks.samples.small_training import FRAMES
from lamp.clips.load import clips_from_images
from lamp.errors import ClipError, LampError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.schedule import scaled_linear_alphas
from lamp.training.batches import Batches
from lamp.training.gradient_checkpointing import checkpointed
from lamp.training.latents import SCALE, LatentClips, Posterior, cache_latents
from lamp.training.loop import StepReport, Training, noise_later_frames, predict_loss, train
from lamp.training.optimizers import apply_gradients, make_optimizer, rate_factor, set_rate
from lamp.training.recipe import TrainConfig, learning_rate_factor, preset
from lamp.training.validation import split_clips
from tests.helpers.small_models import hook_count


@pytest.fixture
def motion(host: DiffusersHost) -> Motion:
    return Motion(map_unet(host.unet)).initialise(0)


def config(**settings: object) -> TrainConfig:
    return TrainConfig(**{"steps": 4, "frames": FRAMES, "learning_rate": 1e-2, **settings})


class NoisePlus:
    """Predicts the true noise plus an error that is known frame by frame."""

    def __init__(self, noise: Tensor, errors: Tensor) -> None:
        self.unet, self.alphas_cumprod = torch.nn.Identity(), scaled_linear_alphas()
        self.v_prediction = False
        self._answer = noise + errors

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        self.seen = x
        return self._answer


def test_the_loss_counts_frames_2_to_l_and_shows_frame_1_clean() -> None:
    latents, noise = torch.randn(2 * FRAMES, 4, 2, 2), torch.randn(2 * FRAMES, 4, 2, 2)
    errors = torch.tensor([100.0, 1, 2, 100.0, 3, 4]).view(-1, 1, 1, 1).expand_as(noise)
    host = NoisePlus(noise, errors)
    loss = predict_loss(host, latents, noise, torch.tensor([10, 900]), torch.zeros(2, 1, 1))
    assert loss.item() == pytest.approx((1 + 4 + 9 + 16) / 4, rel=1e-5)
    assert torch.equal(host.seen[[0, FRAMES]], latents[[0, FRAMES]])
    alpha = host.alphas_cumprod[900].item()
    expected = math.sqrt(alpha) * latents[-1] + math.sqrt(1 - alpha) * noise[-1]
    torch.testing.assert_close(host.seen[-1], expected)


def test_each_video_gets_the_noise_level_of_its_own_timestep() -> None:
    alphas = torch.tensor([1.0, 0.25])
    noisy = noise_later_frames(torch.ones(4, 1, 1, 1), torch.full((4, 1, 1, 1), 2.0), alphas)
    last = 0.5 + 2 * math.sqrt(0.75)
    torch.testing.assert_close(noisy.flatten(), torch.tensor([1.0, 1.0, 1.0, last]))


def test_only_the_learned_parts_change(
    host: DiffusersHost, motion: Motion, clips: LatentClips
) -> None:
    base = {name: tensor.clone() for name, tensor in host.unet.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in motion.state_dict().items()}
    train(host, motion, clips, config())
    for name, tensor in host.unet.state_dict().items():
        assert torch.equal(tensor, base[name]), name
    for name, tensor in motion.state_dict().items():
        # q, k and v of temporal attention get their first gradient in step 2 at the earliest.
        assert torch.equal(tensor, before[name]) == (".norm_temp." in name), name


def test_gate_and_temporal_queries_have_no_gradient_in_the_first_step(
    host: DiffusersHost, motion: Motion
) -> None:
    make_optimizer(motion, config())
    x, text = torch.randn(FRAMES, 4, 8, 8), torch.randn(1, 5, 16)
    with motion.attached(host.unet, FrameLayout(FRAMES)):
        predict_loss(host, x, torch.randn_like(x), torch.tensor([400]), text).backward()
    for name, parameter in motion.trained_parameters().items():
        silent = ".conv_gate." in name or name.endswith(
            ("attn_temp.to_q.weight", "attn_temp.to_k.weight", "attn_temp.to_v.weight")
        )
        assert (parameter.grad.abs().max() == 0) == silent, name


def test_the_same_seed_gives_the_same_motion_and_another_seed_another(
    host: DiffusersHost, clips: LatentClips
) -> None:
    runs = {}
    for label, seed in (("a", 3), ("b", 3), ("c", 4)):
        motion = Motion(map_unet(host.unet)).initialise(0)
        runs[label] = train(host, motion, clips, config(seed=seed))
    assert runs["a"] == runs["b"]
    assert runs["a"] != runs["c"]


@pytest.mark.slow
def test_checkpointing_changes_nothing(host: DiffusersHost, clips: LatentClips) -> None:
    plain = Motion(map_unet(host.unet)).initialise(0)
    saving = Motion(map_unet(host.unet)).initialise(0)
    losses = train(host, plain, clips, config(batch=2))
    assert train(host, saving, clips, config(batch=2, gradient_checkpointing=True)) == losses
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, saving.state_dict()[name]), name
    assert not any("forward" in vars(module) for module in host.unet.modules())


def test_checkpointing_gives_back_the_forward_of_others(
    host: DiffusersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's hooks, for one, stand in place of a module's own."""
    sites = map_unet(host.unet)
    block = host.unet.get_submodule(sites.resnets[0])
    own = block.forward
    monkeypatch.setitem(block.__dict__, "forward", own)
    with checkpointed(host.unet, Motion(sites, device="meta")):
        assert block.__dict__["forward"] is not own
    assert block.__dict__["forward"] is own
    assert "forward" not in host.unet.get_submodule(sites.resnets[1]).__dict__


def test_a_stop_keeps_what_was_learned_and_leaves_no_hook(
    host: DiffusersHost, motion: Motion, clips: LatentClips
) -> None:
    class Cancelled(BaseException):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 2:
            raise Cancelled

    straight = Motion(map_unet(host.unet)).initialise(0)
    with pytest.raises(Cancelled):
        train(host, motion, clips, config(steps=9), stop)
    train(host, straight, clips, config(steps=2))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, motion.state_dict()[name]), name
    assert hook_count(host.unet) == 0


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(
    host: DiffusersHost, motion: Motion, clips: LatentClips
) -> None:
    with torch.no_grad():
        motion.get_parameter("conv_in.conv1d.bias").fill_(float("nan"))
    with pytest.raises(LampError, match="loss.*nan.*step 1 .*0.01"):
        train(host, motion, clips, config())


def test_ema_ends_at_the_average_of_the_steps(host: DiffusersHost, clips: LatentClips) -> None:
    name = "conv_in.conv1d.weight"
    motion = Motion(map_unet(host.unet)).initialise(0)
    seen = [motion.get_parameter(name).detach().clone()]
    train(
        host,
        motion,
        clips,
        config(ema=0.5),
        lambda report: seen.append(motion.get_parameter(name).detach().clone()),
    )
    expected = seen[0]
    for number, value in enumerate(seen[1:], start=1):
        decay = min(0.5, number / (number + 9))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(motion.get_parameter(name).detach(), expected)


def test_learning_rate_rises_then_stays_or_falls_as_a_cosine() -> None:
    constant = config(steps=100, warmup=4)
    cosine = config(steps=104, warmup=4, rate_schedule="cosine")
    assert [learning_rate_factor(s, constant) for s in (0, 3, 4, 99)] == [0.2, 0.8, 1.0, 1.0]
    assert learning_rate_factor(54, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(103, cosine) < 0.001


def test_clipping_joins_all_gradients() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    (3 * parameters[0] + 4 * parameters[1]).backward()
    unscaled = torch.amp.GradScaler("cpu", enabled=False)
    norm = apply_gradients(optimizer, parameters, 1.0, unscaled)
    assert norm.item() == pytest.approx(5.0)
    assert [p.item() for p in parameters] == pytest.approx([-0.6, -0.8], rel=1e-4)


@pytest.mark.parametrize("kept", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_a_rate_is_set_as_the_optimiser_keeps_it(kept: float | Tensor) -> None:
    """torchao's optimisers refuse a number where they keep a tensor."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    group = {"params": [parameter], "factor": 0.5, "lr": kept}
    optimizer = torch.optim.SGD([group], foreach=False)
    set_rate(optimizer, 0.4)
    (parameter * 1).sum().backward()
    optimizer.step()
    assert parameter.item() == pytest.approx(-0.2)
    assert isinstance(optimizer.param_groups[0]["lr"], type(kept))


def test_posteriors_are_sampled_not_taken_at_their_mode() -> None:
    posterior = Posterior(torch.full((4, 4, 32, 32), 2.0), torch.full((4, 4, 32, 32), 0.5))
    drawn = posterior.sample(slice(0, 4), torch.Generator().manual_seed(0)) / SCALE
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.02)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.02)


def test_an_epoch_visits_every_clip_once(clips: LatentClips) -> None:
    batches = Batches(clips, [0, 1, 2, 3], torch.Generator().manual_seed(0))
    seen = [batches.next(1).text[0, 0, 0].item() for _ in range(8)]
    lengths = sorted(float(len(caption)) for caption in clips.clips.captions)
    assert sorted(seen[:4]) == lengths
    assert sorted(seen[4:]) == lengths


def test_prompts_of_different_length_share_a_batch(clips: LatentClips) -> None:
    long = {**clips.text, "one": torch.cat([clips.text["one"]] * 2, dim=1)}
    mixed = LatentClips(clips.clips, clips.posteriors, clips.mirrored, long)
    batch = Batches(mixed, [0, 1, 2, 3], torch.Generator().manual_seed(0)).next(4)
    assert batch.text.shape == (4, 10, 16)


def test_a_vae_that_overflows_is_named_with_its_clip() -> None:
    clips = clips_from_images([torch.rand(3, 8, 8, 3)], "moves", FRAMES, 8, 8)
    nan = torch.full((3, 4, 1, 1), float("nan"))
    with pytest.raises(ClipError, match="NaN for the clip 'clip 1'"):
        cache_latents(clips, lambda pixels: (nan, nan), lambda texts: {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"rate_schedule": "square"}, "rate_schedule is 'square'"),
        ({"warmup": 10}, "warmup is 10"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(LampError, match=message):
        config(**settings)


def test_clips_cut_for_another_length_are_refused(
    host: DiffusersHost, motion: Motion, clips: LatentClips
) -> None:
    with pytest.raises(LampError, match="windows of 3 frames.*frames 5"):
        train(host, motion, clips, config(frames=5))


def test_min_snr_weighs_each_video_by_its_noise_level() -> None:
    latents, noise = torch.randn(2 * FRAMES, 4, 2, 2), torch.randn(2 * FRAMES, 4, 2, 2)
    errors = torch.tensor([9.0, 1, 1, 9.0, 2, 2]).view(-1, 1, 1, 1).expand_as(noise)
    host = NoisePlus(noise, errors)
    clean, noisy = 5, 900
    snr = [float(a / (1 - a)) for a in host.alphas_cumprod[[clean, noisy]]]
    assert snr[0] > 5 > snr[1]
    loss = predict_loss(
        host, latents, noise, torch.tensor([clean, noisy]), torch.zeros(2, 1, 1), min_snr=5.0
    )
    assert loss.item() == pytest.approx((1 * 5 / snr[0] + 4 * 1) / 2, rel=1e-4)


@pytest.mark.parametrize("min_snr", [0.0, 5.0])
def test_the_difference_loss_counts_changes_between_the_later_frames(min_snr: float) -> None:
    """Errors of 2, 5 and 5 in frames 2 to 4 change by 3 and by 0; frame 1 does not count."""
    latents, noise = torch.randn(2 * 4, 4, 2, 2), torch.randn(2 * 4, 4, 2, 2)
    errors = torch.tensor([9.0, 2, 5, 5, 9.0, 1, 1, 1]).view(-1, 1, 1, 1).expand_as(noise)
    host, steps = NoisePlus(noise, errors), torch.tensor([5, 900])
    given = (host, latents, noise, steps, torch.zeros(2, 1, 1), min_snr)
    snr = [float(a / (1 - a)) for a in host.alphas_cumprod[steps]]
    weights = [min(s, min_snr) / s for s in snr] if min_snr else [1.0, 1.0]
    plain = (weights[0] * (4 + 25 + 25) / 3 + weights[1] * 1) / 2
    changes = weights[0] * (9 + 0) / 2 / 2
    assert predict_loss(*given).item() == pytest.approx(plain, rel=1e-4)
    both = predict_loss(*given, difference_loss=0.5).item()
    assert both == pytest.approx(plain + 0.5 * changes, rel=1e-4)


def test_the_difference_loss_needs_three_frames() -> None:
    with pytest.raises(LampError, match="difference_loss is 0.5 with 2 frames"):
        TrainConfig(frames=2, difference_loss=0.5)


def test_fp32_is_refused_on_a_host_in_half_precision(
    host: DiffusersHost, motion: Motion, clips: LatentClips
) -> None:
    half = DiffusersHost(copy.deepcopy(host.unet))
    half.compute_in(torch.bfloat16)
    with pytest.raises(LampError, match="fp32.*bfloat16"):
        train(half, motion, clips, config(precision="fp32"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same_and_keeps_fp32_masters(
    host: DiffusersHost, clips: LatentClips, precision: str
) -> None:
    losses = {}
    for name in ("fp32", precision):
        motion = Motion(map_unet(host.unet)).initialise(0)
        own = DiffusersHost(copy.deepcopy(host.unet))  # a run sets the precision of its host
        losses[name] = train(own, motion, clips, config(precision=name, learning_rate=1e-3))
        assert {p.dtype for p in motion.parameters()} == {torch.float32}
    assert losses[precision] != losses["fp32"]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)


def test_accumulated_gradients_are_the_mean_over_the_batches(
    host: DiffusersHost, clips: LatentClips
) -> None:
    name = "conv_in.conv1d.weight"

    def gradient(batches: int, skip: int = 0) -> Tensor:
        motion = Motion(map_unet(host.unet)).initialise(0)
        training = Training(host, motion, clips, config(accumulate=batches))
        for _ in range(skip):
            training._next_batch()
        training._gradients(1.0)
        grad = motion.get_parameter(name).grad
        assert grad is not None
        return grad

    torch.testing.assert_close(gradient(2), (gradient(1) + gradient(1, skip=1)) / 2)


def test_rates_follow_the_part_and_the_width() -> None:
    wide, narrow = torch.zeros(256, 256, 3), torch.zeros(4, 4, 3)
    own = config(conv_rate=2.0, attention_rate=3.0, query_rate=5.0, reference_width=64)
    assert rate_factor("x.conv1d.weight", wide, own) == pytest.approx(2 * 64 / 256)
    assert rate_factor("x.conv1d.weight", narrow, own) == 2.0  # never more than the rate itself
    assert rate_factor("x.conv1d.bias", wide[:, 0, 0], own) == 2.0
    assert rate_factor("x.attn_temp.to_q.weight", wide[..., 0], own) == pytest.approx(0.75)
    assert rate_factor("x.attn1.to_q.weight", wide[..., 0], own) == pytest.approx(1.25)


def test_the_papers_preset_is_the_default_and_fast_is_complete() -> None:
    assert TrainConfig(**preset("paper", 30_000)) == TrainConfig()
    paper = TrainConfig()
    assert (paper.learning_rate, paper.weight_decay, paper.clip_norm) == (3e-5, 1e-2, 1.0)
    assert TrainConfig(steps=10, **preset("fast", 10)).rate_schedule == "cosine"
    with pytest.raises(LampError, match="no recipe 'slow'"):
        preset("slow", 10)


def test_held_out_clips_are_not_learned_from_and_measured_at_fixed_noise(
    host: DiffusersHost, motion: Motion, clips: LatentClips
) -> None:
    learned, held_out = split_clips(4, 1, seed=0)
    assert sorted(learned + held_out) == [0, 1, 2, 3] and len(held_out) == 1
    training = Training(host, motion, clips, config(hold_out=1))
    lengths = {float(len(clips.clips.captions[clip])) for clip in learned}
    seen = {training._next_batch()[0].text[0, 0, 0].item() for _ in range(9)}
    assert seen == lengths
    first = training.validate()
    assert first == training.validate()
    training.advance()
    assert training.validate() != first
    with pytest.raises(LampError, match="hold_out is 4.*4 clips"):
        Training(host, motion, clips, config(hold_out=4))
