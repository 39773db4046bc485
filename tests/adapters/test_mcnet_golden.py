"""MCNet's numbers at every stage equal upstream's, with the published memory unit and without one.

The stored numbers (tests/data/mcnet_golden.*) are those of unmodified upstream code with weights, noise and pictures
made by the formulas of conftest.py; `MEMCOMP_UPSTREAM=folder python tests/adapters/test_mcnet_golden.py` makes them
anew, and the tests marked `upstream` compare with upstream itself, in another seed. Upstream fixes the widths and the
number of keypoints of its unit, whose layers of these sizes are replaced by narrower ones from outside.
"""

import contextlib
import copy
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from memcomp import CompensationConfig
from memcomp.adapters import attach, create_host
from memcomp.adapters.fomm.motion import local_motions
from memcomp.adapters.shared import losses
from memcomp.release import KEYS

DATA = Path(__file__).parents[1] / "data"
SEED = 5
SECTIONS = ("kp_detector", "generator", "discriminator")
SIZES = (32, 64, 128)
UPSTREAM = ("mcnet", *(f"modules.{name}" for name in ("keypoint_detector", "generator", "discriminator", "model")))
ABSENT = {"torchdiffeq": ["odeint_adjoint"], "cv2": []}  # imported by upstream, not used in what is run here
# name → upstream's model_params, the memory's sizes, and the (batch, height, width) of the pictures
CONFIGS = json.loads((DATA / "mcnet_configs.json").read_text())


class State:
    """A state dict in place of a network, for `golden.fill`."""

    def __init__(self, state):
        self.state = dict(state)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


class PassThrough(nn.Module):
    def forward(self, feature, output_dict, keypoints):
        return feature


class Wrapped(nn.Module):
    """What upstream's losses expect: a network inside of nn.DataParallel."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def part(output, name):
    return output.get(name) if isinstance(output, dict) else getattr(output, name)


def run(networks, source, driving):
    """Every stage of one forward pass, of our networks or of upstream's: name → tensor."""
    seen = {}
    generator, dense = networks.generator, networks.generator.dense_motion_network
    watched = {"motion": dense, "hourglass": dense.hourglass, "down": dense.down, "encoder": generator.down_blocks[-1]}
    watched |= {f"resblock.{index}": block for index, block in enumerate(generator.resblock) if index % 2 == 0}
    watched |= {"final": generator.final}

    def watch(name):
        return lambda module, args, output: seen.update({name: (args, output)})

    hooks = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    output, kp_source, kp_driving = networks.forward(source, driving)
    for hook in hooks:
        hook.remove()
    motion, small = seen["motion"][1], seen["down"][1]
    stages = {
        "dense_motion.downsampled_source": small,
        "dense_motion.heatmap": seen["hourglass"][0][0].unflatten(1, (-1, 4))[:, :, :1],
        "dense_motion.sparse_motion": networks.sparse_motion(dense, small, kp_driving, kp_source),
        "generator.encoder_feature": seen["encoder"][1],
        **{f"generator.{name}.input": seen[name][0][0] for name in watched if name.startswith(("resblock", "final"))},
        **{f"kp_source.{key}": kp_source[key] for key in ("value", "jacobian") if key in kp_source},
        **{f"kp_driving.{key}": kp_driving[key] for key in ("value", "jacobian") if key in kp_driving},
        **{
            f"dense_motion.{key}": part(motion, key)
            for key in ("sparse_deformed", "mask", "deformation", "occlusion_map")
        },
        **{name: part(output, name) for name in ("deformed", "prediction")},
    }
    for scale, prediction in enumerate(networks.judge(stages["prediction"], kp_driving)):
        stages[f"discriminator.{scale}.prediction"] = prediction
    return stages


def noise_maps(golden, name, seed, like):
    """Noise for each scale of the memory; None without one."""
    settings, batch = CONFIGS[name]["memory"], CONFIGS[name]["size"][0]
    if settings is None:
        return None
    shape = (batch, 1, *settings["memory_size"])
    numbers = [golden.uniform(seed, f"noise{size}", batch * shape[2] * shape[3]) for size in SIZES]
    return [torch.from_numpy(4 * u - 2).view(shape).to(like) for u in numbers]


def ours(golden, name, seed=SEED):
    """A host that got memory and weights by `load_upstream`."""
    model, settings = CONFIGS[name]["model"], CONFIGS[name]["memory"]
    pattern = create_host("mcnet", model)
    if settings is not None:
        attach(pattern, CompensationConfig.release(**settings), scales=[0, 1, 2])
    filled = {section: State(state) for section, state in pattern.upstream_sections().items()}
    for section, state in filled.items():
        golden.fill(section, state, seed)
    host = create_host("mcnet", model)
    host.load_upstream({section: state.state for section, state in filled.items()})
    host.eval()

    def forward(source, driving):
        output = host(source, driving, noise=noise_maps(golden, name, seed, source))
        return output, output.kp_source, output.kp_driving

    def sparse_motion(dense, image, kp_driving, kp_source):
        return local_motions(kp_source, kp_driving, *image.shape[2:])

    return SimpleNamespace(
        **{section: host.sections()[section] for section in SECTIONS},
        host=host,
        forward=forward,
        judge=lambda image, kp: host.discriminator(image, kp).predictions,
        sparse_motion=sparse_motion,
    )


@contextlib.contextmanager
def upstream_modules(golden):
    """Upstream's modules, what they import in vain replaced, and with the CPU as its GPU."""
    added = {name: ModuleType(name) for name in ABSENT if name not in sys.modules}
    for name, module in added.items():
        module.__dict__.update(dict.fromkeys(ABSENT[name]))
    sys.modules.update(added)
    try:
        with (
            mock.patch.object(torch.Tensor, "cuda", lambda tensor, *args: tensor),
            golden.upstream(*UPSTREAM) as modules,
        ):
            yield modules
    finally:
        for name in added:
            del sys.modules[name]


def theirs(golden, modules, name, seed=SEED):
    params, settings = copy.deepcopy(CONFIGS[name]["model"]), CONFIGS[name]["memory"]
    common = params["common_params"]
    sizes = {"mb_spatial": settings["memory_size"][0], "mb_channel": settings["memory_channels"]} if settings else {}
    generator = modules.generator.Unet_Generator_keypoint_aware(
        **params["generator_params"],
        **common,
        **{"mbunit": "ExpendMemoryUnit", "mb_spatial": 4, "mb_channel": 4, **sizes},
    )
    generator.mbUnit = narrowed(generator.mbUnit, params, settings) if settings else PassThrough()
    networks = {
        "kp_detector": modules.keypoint_detector.KPDetector(**params["kp_detector_params"], **common),
        "generator": generator,
        "discriminator": modules.discriminator.MultiScaleDiscriminator(**params["discriminator_params"], **common),
    }
    for section, network in networks.items():
        golden.fill(section, network, seed)
        network.eval()
    detector, discriminator = networks["kp_detector"], networks["discriminator"]
    pyramid = modules.model.ImagePyramide(discriminator.scales, 3)

    def forward(source, driving):
        kp_source, kp_driving = detector(source), detector(driving)
        with with_noise(generator, noise_maps(golden, name, seed, source)):
            return generator(source, kp_source=kp_source, kp_driving=kp_driving), kp_source, kp_driving

    def judge(image, kp):
        maps = discriminator(pyramid.to(image.dtype)(image), kp)
        return [maps[f"prediction_map_{scale}"] for scale in discriminator.scales]

    def sparse_motion(dense, image, kp_driving, kp_source):
        return dense.create_sparse_motions(image, kp_driving, kp_source)

    return SimpleNamespace(**networks, forward=forward, judge=judge, sparse_motion=sparse_motion)


def narrowed(unit, params, settings):
    """Upstream's unit with the layers of fixed widths replaced."""
    channels, widths = settings["memory_channels"], params["generator_params"]["max_features"]
    for level, size in enumerate(SIZES):
        width = widths // 2 ** (level + 1)
        setattr(unit, f"feat_forward_proj_{size}", nn.Conv2d(width, channels, 1))
        setattr(unit, f"conv_{size}", nn.Conv2d(channels, width, 3, padding=1))
        setattr(unit, f"norm_{size}", nn.InstanceNorm2d(width, affine=True))
    unit.style_route[0] = nn.Linear(channels + 2 * params["common_params"]["num_kp"], 128)
    return unit


@contextlib.contextmanager
def with_noise(generator, maps):
    """Upstream draws noise at every call of its style convolution, unless it is given."""
    if maps is None:
        yield
        return
    left = list(maps)
    hook = generator.mbUnit.styleconv.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"noise": left.pop(0)}), with_kwargs=True
    )
    yield
    hook.remove()


def sections(networks):
    return {name: getattr(networks, name) for name in SECTIONS}


def pictures(golden, networks, name, dtype, seed):
    """Source and driving picture; the networks are cast to their dtype."""
    for network in sections(networks).values():
        network.to(dtype)
    return [golden.picture(seed, which, *CONFIGS[name]["size"]).to(dtype) for which in ("source", "driving")]


def run_at(golden, networks, name, dtype, seed=SEED):
    source, driving = pictures(golden, networks, name, dtype, seed)
    with torch.no_grad():
        return run(networks, source, driving)


def terms_of(name):
    """Losses that the configuration has; Jacobians have one of their own."""
    names = ["generator_gan", "feature_matching", "equivariance_value", "keypoint_distance"]
    return names + ["equivariance_jacobian"] * CONFIGS[name]["model"]["common_params"]["estimate_jacobian"]


def our_losses(golden, networks, name, monkeypatch, seed=SEED):
    source, driving = pictures(golden, networks, name, torch.float64, seed)
    drawn = losses.RandomTransform(*golden.transform(seed, len(source)))
    monkeypatch.setattr(losses.RandomTransform, "draw", lambda *args, **kwargs: drawn)
    memory = networks.host.memory
    with memory.recording() if memory else contextlib.nullcontext() as record:
        output = networks.forward(source, driving)[0]
    terms = networks.host.loss_terms(
        output, source, driving, terms_of(name), generator=torch.Generator(), transform_params={"sigma_affine": 0.05}
    )
    if record is not None:
        terms["feat_consistent"] = record.consistency_loss()
    # upstream's distance has a value and no gradient
    torch.stack([value for key, value in terms.items() if key != "keypoint_distance"]).sum().backward()
    values = {key: float(value.detach()) for key, value in terms.items()}
    values["disc_gan"] = float(networks.host.discriminator_loss(output, driving).detach())
    return values, in_their_names(golden.norms(sections(networks)))


def in_their_names(norms):
    table = {
        ours.format(scale=i): theirs.format(level=size) for theirs, ours in KEYS.items() for i, size in enumerate(SIZES)
    }
    prefix = "generator.memory_compensation."
    return {
        f"generator.mbUnit.{table[key.removeprefix(prefix)]}" if key.startswith(prefix) else key: value
        for key, value in norms.items()
    }


def their_losses(golden, modules, networks, name, seed=SEED):
    source, driving = pictures(golden, networks, name, torch.float64, seed)
    theta, control = golden.transform(seed, len(source))

    class Injected(modules.model.Transform):
        def __init__(self, bs, **kwargs):
            super().__init__(bs, **kwargs)
            self.theta, self.control_params = theta, control.unsqueeze(1)

    terms, memory = terms_of(name), CONFIGS[name]["memory"]
    params = {
        "scales": networks.discriminator.scales,
        "transform_params": {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5},
        "loss_weights": {"perceptual": [0], "generator_gan": 1, "feature_matching": [1] * 4, "discriminator_gan": 1}
        | {"equivariance_value": 1, "equivariance_jacobian": int("equivariance_jacobian" in terms)}
        | {"kp_distance": 1, "feat_consistent": int(memory is not None)},
    }
    parts = (networks.kp_detector, Wrapped(networks.generator), Wrapped(networks.discriminator), params)
    unused = mock.patch.object(modules.model.losses, "get_gaussian_kernel", torch.zeros)
    with unused, mock.patch.object(modules.model, "Transform", Injected):
        full, judge = modules.model.GeneratorFullModel(*parts, opt=None), modules.model.DiscriminatorFullModel(*parts)
        full.pyramid.double(), judge.pyramid.double()
        with with_noise(networks.generator, noise_maps(golden, name, seed, source)):
            values, generated = full({"source": source, "driving": driving})
    sum(values.values()).backward()
    values |= judge({"driving": driving}, generated)
    values |= {"generator_gan": values.pop("gen_gan"), "keypoint_distance": values.pop("kp_distance")}
    return {key: float(value.detach()) for key, value in values.items()}, golden.norms(sections(networks))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_equals_the_stored_numbers(golden, name):
    stored = load_file(DATA / "mcnet_golden.safetensors")
    expected = {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
    deviations = json.loads((DATA / "mcnet_golden.json").read_text())["float64_deviation"][name]
    networks = ours(golden, name)
    for dtype, factor, floor in ((torch.float32, 10, 2e-5), (torch.float64, 3, 0)):
        measured = {stage: golden.sample(value) for stage, value in run_at(golden, networks, name, dtype).items()}
        golden.assert_close(measured, expected, deviations, factor, floor)


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_equal_the_stored_numbers(golden, name, monkeypatch):
    expected = json.loads((DATA / "mcnet_golden.json").read_text())["losses"][name]
    golden.assert_losses(our_losses(golden, ours(golden, name), name, monkeypatch), expected)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_upstream_in_another_seed(golden, name, monkeypatch):
    with upstream_modules(golden) as modules:
        networks, host = theirs(golden, modules, name, seed=6), ours(golden, name, seed=6)
        for section, state in host.host.upstream_sections().items():
            expected = getattr(networks, section).state_dict()
            assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in expected.items()}
            assert all(torch.equal(value, expected[key]) for key, value in state.items() if "weight_" not in key)
        single, double = (run_at(golden, networks, name, dtype, seed=6) for dtype in (torch.float32, torch.float64))
        expected = their_losses(golden, modules, theirs(golden, modules, name, seed=6), name, seed=6)
        golden.assert_losses(our_losses(golden, ours(golden, name, seed=6), name, monkeypatch, seed=6), expected)
    deviations = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
    golden.assert_close(run_at(golden, host, name, torch.float32, seed=6), single, deviations, 10, 2e-5)
    golden.assert_close(run_at(golden, host, name, torch.float64, seed=6), double, deviations, 0, 1e-9)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_go_to_upstream_and_come_back(golden, name):
    host, other = ours(golden, name, seed=7), ours(golden, name, seed=8)
    with upstream_modules(golden) as modules:
        networks = theirs(golden, modules, name)
        for section, state in host.host.upstream_sections().items():
            getattr(networks, section).load_state_dict(state)
        given = run_at(golden, networks, name, torch.float32)["prediction"]
        other.host.load_upstream({section: network.state_dict() for section, network in sections(networks).items()})
    source, driving = (golden.picture(SEED, which, *CONFIGS[name]["size"]) for which in ("source", "driving"))
    noise = noise_maps(golden, name, SEED, source)
    with torch.no_grad():
        pictures = [networks.host(source, driving, noise=noise).prediction for networks in (host, other)]
    torch.testing.assert_close(pictures[0], given, atol=2e-4, rtol=0)
    assert torch.equal(*pictures)


def store(golden):
    numbers, deviations, loss_values = {}, {}, {}
    with upstream_modules(golden) as modules:
        for name in CONFIGS:
            networks = theirs(golden, modules, name)
            single, double = (run_at(golden, networks, name, dtype) for dtype in (torch.float32, torch.float64))
            numbers |= {f"{name}/{stage}": golden.sample(value) for stage, value in single.items()}
            deviations[name] = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
            loss_values[name] = their_losses(golden, modules, theirs(golden, modules, name), name)
    save_file(numbers, DATA / "mcnet_golden.safetensors")
    (DATA / "mcnet_golden.json").write_text(
        json.dumps({"float64_deviation": deviations, "losses": loss_values}, indent=1) + "\n"
    )


if __name__ == "__main__":
    from conftest import GOLDEN

    store(GOLDEN)
