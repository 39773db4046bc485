"""FOMM's numbers at every stage equal upstream's, for several configurations.

The stored numbers (tests/data/fomm_golden.*) are those of unmodified upstream code with weights and pictures made by
the formulas below; `MEMCOMP_UPSTREAM=folder python tests/adapters/test_fomm_golden.py` makes them anew, and the tests
marked `upstream` compare with upstream itself, in another seed.
"""

import contextlib
import copy
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from memcomp.adapters import create_host, losses
from memcomp.adapters.fomm.motion import local_motions

DATA = Path(__file__).parents[1] / "data"
SAMPLES = 400  # stored numbers per stage
SEED = 5
# name → upstream's model_params and the (batch, height, width) of the pictures; "wide" ones are not square
CONFIGS = json.loads((DATA / "fomm_configs.json").read_text())


def uniform(seed, name, count):
    """`count` numbers in [0, 1) that depend on seed and name alone (splitmix64)."""
    start = np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "<u8")
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / 2**24


def fill(section, network, seed):
    """Weights that make every part of the network matter: running statistics, affines and biases are not trivial."""
    state = network.state_dict()
    for key, old in state.items():
        u = uniform(seed, f"{section}/{key}", old.numel()).reshape(old.shape)
        s, last = 2 * u - 1, key.rsplit(".", 1)[-1]
        if key.endswith("down.weight"):
            continue
        if last in ("num_batches_tracked", "running_mean", "running_var"):
            new = {"num_batches_tracked": 100 + 0 * u, "running_mean": 0.2 * s, "running_var": 0.5 + u}[last]
        elif key.endswith("jacobian.bias"):
            new = 0.1 * s + np.tile([1, 0, 0, 1], len(s) // 4)
        elif last == "bias":
            new = 0.1 * s
        elif old.ndim == 1:
            new = 0.5 + u
        else:
            gains = {"jacobian.weight": 0.4, "final.weight": 0.2, "kp.weight": 0.35, "mask.weight": 0.7}
            gain = np.prod([value for name, value in gains.items() if key.endswith(name)])
            new = s * gain * np.sqrt(6 / np.prod(old.shape[1:]))
        state[key] = torch.from_numpy(np.asarray(new)).to(old.dtype)
    for key in [key for key in state if key.endswith("weight_u")]:  # singular vectors that fit the weight
        weight = state[key.removesuffix("_u") + "_orig"].double().flatten(1)
        left = torch.linalg.svd(weight, full_matrices=False).U[:, 0]
        right = torch.nn.functional.normalize(weight.T @ left, dim=0)
        state[key], state[key.removesuffix("_u") + "_v"] = left.float(), right.float()
    network.load_state_dict(state)


def picture(seed, name, batch, height, width):
    """A smooth coloured picture in steps of 1/255, (batch, 3, height, width)."""
    y, x = np.mgrid[0:height, 0:width] / 64.0
    waves = uniform(seed, name, batch * 3 * 4 * 3).reshape(batch, 3, 4, 3, 1, 1)
    total = np.sin(9 * (waves[:, :, :, 0] * x + waves[:, :, :, 1] * y) + 6.3 * waves[:, :, :, 2]).sum(2)
    return torch.from_numpy(np.round(127.5 + 31 * total)).float() / 255


def part(output, name):
    return output.get(name) if isinstance(output, dict) else getattr(output, name)


def run(networks, source, driving):
    """Every stage of one forward pass, of our networks or of upstream's: name → tensor."""
    seen = {}
    dense = networks.generator.dense_motion_network
    watched = {"motion": dense, "hourglass": dense.hourglass, "bottleneck": networks.generator.bottleneck}
    watched |= {"encoder": [networks.generator.first, *networks.generator.down_blocks][-1]}
    watched |= {"down": dense.down} if hasattr(dense, "down") else {}

    def watch(name):
        return lambda module, args, output: seen.update({name: (args, output)})

    hooks = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    kp_source, kp_driving = networks.kp_detector(source), networks.kp_detector(driving)
    output = networks.generator(source, kp_source=kp_source, kp_driving=kp_driving)
    for hook in hooks:
        hook.remove()
    small = seen["down"][1] if "down" in seen else source
    motion, encoded = seen["motion"][1], seen["encoder"][1]
    guides = seen["hourglass"][0][0].unflatten(1, (-1, 4))
    stages = {
        "dense_motion.downsampled_source": small,
        "dense_motion.heatmap": guides[:, :, :1],
        "dense_motion.sparse_motion": networks.sparse_motion(dense, small, kp_driving, kp_source),
        "generator.encoder_feature": encoded,
        "generator.warped_feature": networks.generator.deform_input(encoded, part(motion, "deformation")),
        "generator.bottleneck_input": seen["bottleneck"][0][0],
        "generator.bottleneck_output": seen["bottleneck"][1],
        **{f"kp_source.{key}": kp_source[key] for key in ("value", "jacobian") if key in kp_source},
        **{f"kp_driving.{key}": kp_driving[key] for key in ("value", "jacobian") if key in kp_driving},
        **{
            f"dense_motion.{key}": part(motion, key)
            for key in ("sparse_deformed", "mask", "deformation", "occlusion_map")
            if part(motion, key) is not None
        },
        **{name: part(output, name) for name in ("deformed", "prediction")},
    }
    for scale, (features, prediction) in enumerate(networks.judge(stages["prediction"], kp_driving)):
        stages[f"discriminator.{scale}.prediction"] = prediction
        stages |= {f"discriminator.{scale}.feature.{i}": feature for i, feature in enumerate(features)}
    return stages


def ours(name, seed=SEED, **options):
    host = create_host("fomm", CONFIGS[name]["model"] | options)
    for section, network in host.sections().items():
        fill(section, network, seed)
    host.eval()

    def judge(image, kp):
        judgement = host.discriminator(image, kp)
        return zip(judgement.features, judgement.predictions, strict=True)

    def sparse_motion(dense, image, kp_driving, kp_source):
        return local_motions(kp_source, kp_driving, *image.shape[2:])

    return SimpleNamespace(**host.sections(), host=host, judge=judge, sparse_motion=sparse_motion)


@contextlib.contextmanager
def upstream_modules():
    """Upstream's modules, importable inside of this block only."""
    before = set(sys.modules)
    sys.path.insert(0, str(Path(os.environ["MEMCOMP_UPSTREAM"]) / "first-order-model"))
    try:
        names = ("keypoint_detector", "generator", "discriminator", "util", "model")
        yield SimpleNamespace(**{name: importlib.import_module(f"modules.{name}") for name in names})
    finally:
        sys.path.pop(0)
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("modules", "sync_batchnorm"):
                del sys.modules[name]


def theirs(modules, name, seed=SEED):
    params = copy.deepcopy(CONFIGS[name]["model"])
    common = params["common_params"]
    detector = modules.keypoint_detector.KPDetector(**params["kp_detector_params"], **common)
    generator = modules.generator.OcclusionAwareGenerator(**params["generator_params"], **common)
    discriminator = modules.discriminator.MultiScaleDiscriminator(**params["discriminator_params"], **common)
    networks = {"kp_detector": detector, "generator": generator, "discriminator": discriminator}
    for section, network in networks.items():
        fill(section, network, seed)
        network.eval()
    pyramid = modules.model.ImagePyramide(discriminator.scales, 3)

    def judge(image, kp):
        maps = discriminator(pyramid.to(image.dtype)(image), kp)
        return [(maps[f"feature_maps_{scale}"], maps[f"prediction_map_{scale}"]) for scale in discriminator.scales]

    def sparse_motion(dense, image, kp_driving, kp_source):
        return dense.create_sparse_motions(image, kp_driving, kp_source)

    return SimpleNamespace(**networks, judge=judge, sparse_motion=sparse_motion, pyramid=pyramid)


def run_at(networks, name, dtype, seed=SEED):
    for section in ("kp_detector", "generator", "discriminator"):
        getattr(networks, section).to(dtype)
    size = CONFIGS[name]["size"]
    with torch.no_grad():
        return run(networks, *(picture(seed, which, *size).to(dtype) for which in ("source", "driving")))


def shapes(networks):
    """Section, key and shape of every entry of the state dicts, in their order."""
    sections = ("kp_detector", "generator", "discriminator")
    return [(s, key, value.shape) for s in sections for key, value in getattr(networks, s).state_dict().items()]


def sample(tensor):
    flat = tensor.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)].clone()


def transform(seed, batch):
    theta = torch.eye(2, 3) + 0.1 * torch.from_numpy(2 * uniform(seed, "theta", batch * 6) - 1).view(-1, 2, 3)
    return theta, 0.01 * torch.from_numpy(2 * uniform(seed, "tps", batch * 25) - 1).view(-1, 25)


LOSSES = ("generator_gan", "feature_matching", "equivariance_value", "equivariance_jacobian")


def doubled(networks, name, seed):
    """Networks and pictures in float64: long chains of gradients in float32 differ by more than a bug might."""
    for section in ("kp_detector", "generator", "discriminator"):
        getattr(networks, section).double()
    size = CONFIGS[name]["size"]
    return picture(seed, "source", *size).double(), picture(seed, "driving", *size).double()


def norms(networks):
    """Name of each parameter that got a gradient → norm of the gradient, in the units of the section's largest."""
    found = {}
    for section in ("kp_detector", "generator", "discriminator"):
        parameters = getattr(networks, section).named_parameters()
        grads = {f"{section}.{k}": float(p.grad.norm()) for k, p in parameters if p.grad is not None}
        found |= {key: value / max(grads.values()) for key, value in grads.items()} | {section: max(grads.values())}
    return found


def our_losses(networks, name, monkeypatch, seed=SEED):
    source, driving = doubled(networks, name, seed)
    drawn = losses.RandomTransform(*transform(seed, len(source)))
    monkeypatch.setattr(losses.RandomTransform, "draw", lambda *args, **kwargs: drawn)
    output = networks.host(source, driving)
    terms = networks.host.loss_terms(
        output, source, driving, LOSSES, generator=torch.Generator(), transform_params={"sigma_affine": 0.05}
    )
    torch.stack([terms[key] for key in LOSSES]).sum().backward()
    values = {key: float(value.detach()) for key, value in terms.items()}
    return values | {"disc_gan": float(networks.host.discriminator_loss(output, driving).detach())}, norms(networks)


def their_losses(modules, networks, name, seed=SEED):
    source, driving = doubled(networks, name, seed)
    theta, control = transform(seed, len(source))

    class Injected(modules.model.Transform):
        def __init__(self, bs, **kwargs):
            super().__init__(bs, **kwargs)
            self.theta, self.control_params = theta, control.unsqueeze(1)

    modules.model.Transform = Injected
    params = {
        "scales": networks.discriminator.scales,
        "transform_params": {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5},
        "loss_weights": {"perceptual": [0], "generator_gan": 1, "feature_matching": [1] * 4, "discriminator_gan": 1}
        | {"equivariance_value": 1, "equivariance_jacobian": 1},
    }
    parts = (networks.kp_detector, networks.generator, networks.discriminator, params)
    full, judge = modules.model.GeneratorFullModel(*parts), modules.model.DiscriminatorFullModel(*parts)
    full.pyramid.double(), judge.pyramid.double()
    values, generated = full({"source": source, "driving": driving})
    sum(values.values()).backward()
    values |= judge({"driving": driving}, generated)
    values["generator_gan"] = values.pop("gen_gan")
    return {key: float(value.detach()) for key, value in values.items()}, norms(networks)


def assert_close(measured, expected, deviations, factor, floor):
    """Every stage within factor · (upstream's own float32 error), at least `floor`."""
    assert measured.keys() == expected.keys()
    for stage, value in expected.items():
        error = (measured[stage].double() - value.double()).abs().max().item()
        limit = max(factor * deviations[stage], floor)
        assert error <= limit, f"{stage}: {error:.2e} > {limit:.2e}"


def assert_losses(measured, expected):
    for key, value in expected[0].items():
        assert measured[0][key] == pytest.approx(value, rel=1e-9), key
    assert measured[1].keys() == expected[1].keys()
    for key, value in expected[1].items():  # some are zero but for rounding, as of a bias before an instance norm
        assert measured[1][key] == pytest.approx(value, rel=1e-8, abs=1e-12), key


@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_equals_the_stored_numbers(name):
    stored = load_file(DATA / "fomm_golden.safetensors")
    expected = {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
    deviations = json.loads((DATA / "fomm_golden.json").read_text())["float64_deviation"][name]
    networks = ours(name)
    for dtype, factor, floor in ((torch.float32, 10, 2e-5), (torch.float64, 3, 0)):
        measured = {stage: sample(value) for stage, value in run_at(networks, name, dtype).items()}
        assert_close(measured, expected, deviations, factor, floor)


@pytest.mark.parametrize("name", ["spectral", "use_kp"])
def test_losses_and_gradients_equal_the_stored_numbers(name, monkeypatch):
    expected = json.loads((DATA / "fomm_golden.json").read_text())["losses"][name]
    assert_losses(our_losses(ours(name), name, monkeypatch), expected)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vox-256"])
def test_equals_upstream_in_another_seed(name, monkeypatch):
    with upstream_modules() as modules:
        networks = theirs(modules, name, seed=6)
        assert shapes(networks) == shapes(ours(name))
        expected, exact = (run_at(networks, name, dtype, seed=6) for dtype in (torch.float32, torch.float64))
        if name in ("spectral", "use_kp"):
            networks = theirs(modules, name, seed=6)
            assert_losses(
                our_losses(ours(name, seed=6), name, monkeypatch, seed=6), their_losses(modules, networks, name, seed=6)
            )
    deviations = {stage: (value - exact[stage]).abs().max().item() for stage, value in expected.items()}
    assert_close(run_at(ours(name, seed=6), name, torch.float32, seed=6), expected, deviations, 10, 2e-5)
    assert_close(run_at(ours(name, seed=6), name, torch.float64, seed=6), exact, deviations, 0, 1e-9)


def store():
    numbers, deviations, loss_values = {}, {}, {}
    with upstream_modules() as modules:
        for name in CONFIGS:
            networks = theirs(modules, name)
            single, double = (run_at(networks, name, dtype) for dtype in (torch.float32, torch.float64))
            numbers |= {f"{name}/{stage}": sample(value) for stage, value in single.items()}
            deviations[name] = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
            if name in ("spectral", "use_kp"):
                loss_values[name] = their_losses(modules, theirs(modules, name), name)
    save_file(numbers, DATA / "fomm_golden.safetensors")
    (DATA / "fomm_golden.json").write_text(
        json.dumps({"float64_deviation": deviations, "losses": loss_values}, indent=1) + "\n"
    )


if __name__ == "__main__":
    store()
