"""FOMM's numbers at every stage equal upstream's, for several configurations.

The stored numbers (tests/data/fomm_golden.*) are those of unmodified upstream code with weights and pictures made by
the formulas of conftest.py; `MEMCOMP_UPSTREAM=folder python tests/adapters/test_fomm_golden.py` makes them anew, and
the tests marked `upstream` compare with upstream itself, in another seed.
"""

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from memcomp.adapters import create_host
from memcomp.adapters.fomm.motion import local_motions
from memcomp.adapters.shared import losses

DATA = Path(__file__).parents[1] / "data"
SEED = 5
SECTIONS = ("kp_detector", "generator", "discriminator")
LOSSES = ("generator_gan", "feature_matching", "equivariance_value", "equivariance_jacobian")
UPSTREAM = (
    "first-order-model",
    *(f"modules.{name}" for name in ("keypoint_detector", "generator", "discriminator", "util", "model")),
)
# name → upstream's model_params and the (batch, height, width) of the pictures; "wide" ones are not square
CONFIGS = json.loads((DATA / "fomm_configs.json").read_text())


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


def ours(golden, name, seed=SEED):
    host = create_host("fomm", CONFIGS[name]["model"])
    for section, network in host.sections().items():
        golden.fill(section, network, seed)
    host.eval()

    def judge(image, kp):
        judgement = host.discriminator(image, kp)
        return zip(judgement.features, judgement.predictions, strict=True)

    def sparse_motion(dense, image, kp_driving, kp_source):
        return local_motions(kp_source, kp_driving, *image.shape[2:])

    return SimpleNamespace(
        **{name: host.sections()[name] for name in SECTIONS}, host=host, judge=judge, sparse_motion=sparse_motion
    )


def theirs(golden, modules, name, seed=SEED):
    params = copy.deepcopy(CONFIGS[name]["model"])
    common = params["common_params"]
    detector = modules.keypoint_detector.KPDetector(**params["kp_detector_params"], **common)
    generator = modules.generator.OcclusionAwareGenerator(**params["generator_params"], **common)
    discriminator = modules.discriminator.MultiScaleDiscriminator(**params["discriminator_params"], **common)
    networks = {"kp_detector": detector, "generator": generator, "discriminator": discriminator}
    for section, network in networks.items():
        golden.fill(section, network, seed)
        network.eval()
    pyramid = modules.model.ImagePyramide(discriminator.scales, 3)

    def judge(image, kp):
        maps = discriminator(pyramid.to(image.dtype)(image), kp)
        return [(maps[f"feature_maps_{scale}"], maps[f"prediction_map_{scale}"]) for scale in discriminator.scales]

    def sparse_motion(dense, image, kp_driving, kp_source):
        return dense.create_sparse_motions(image, kp_driving, kp_source)

    return SimpleNamespace(**networks, judge=judge, sparse_motion=sparse_motion, pyramid=pyramid)


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


def our_losses(golden, networks, name, monkeypatch, seed=SEED):
    source, driving = pictures(golden, networks, name, torch.float64, seed)
    drawn = losses.RandomTransform(*golden.transform(seed, len(source)))
    monkeypatch.setattr(losses.RandomTransform, "draw", lambda *args, **kwargs: drawn)
    output = networks.host(source, driving)
    terms = networks.host.loss_terms(
        output, source, driving, LOSSES, generator=torch.Generator(), transform_params={"sigma_affine": 0.05}
    )
    torch.stack([terms[key] for key in LOSSES]).sum().backward()
    values = {key: float(value.detach()) for key, value in terms.items()}
    return values | {"disc_gan": float(networks.host.discriminator_loss(output, driving).detach())}, golden.norms(
        sections(networks)
    )


def their_losses(golden, modules, networks, name, seed=SEED):
    source, driving = pictures(golden, networks, name, torch.float64, seed)
    theta, control = golden.transform(seed, len(source))

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
    return {key: float(value.detach()) for key, value in values.items()}, golden.norms(sections(networks))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_equals_the_stored_numbers(golden, name):
    stored = load_file(DATA / "fomm_golden.safetensors")
    expected = {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
    deviations = json.loads((DATA / "fomm_golden.json").read_text())["float64_deviation"][name]
    networks = ours(golden, name)
    for dtype, factor, floor in ((torch.float32, 10, 2e-5), (torch.float64, 3, 0)):
        measured = {stage: golden.sample(value) for stage, value in run_at(golden, networks, name, dtype).items()}
        golden.assert_close(measured, expected, deviations, factor, floor)


@pytest.mark.parametrize("name", ["spectral", "use_kp"])
def test_losses_and_gradients_equal_the_stored_numbers(golden, name, monkeypatch):
    expected = json.loads((DATA / "fomm_golden.json").read_text())["losses"][name]
    golden.assert_losses(our_losses(golden, ours(golden, name), name, monkeypatch), expected)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "vox-256"])
def test_equals_upstream_in_another_seed(golden, name, monkeypatch):
    with golden.upstream(*UPSTREAM) as modules:
        networks, host = theirs(golden, modules, name, seed=6), ours(golden, name, seed=6)
        assert golden.shapes(sections(networks)) == golden.shapes(sections(host))
        single, double = (run_at(golden, networks, name, dtype, seed=6) for dtype in (torch.float32, torch.float64))
        if name in ("spectral", "use_kp"):
            expected = their_losses(golden, modules, theirs(golden, modules, name, seed=6), name, seed=6)
            measured = our_losses(golden, ours(golden, name, seed=6), name, monkeypatch, seed=6)
            golden.assert_losses(measured, expected)
    deviations = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
    golden.assert_close(run_at(golden, host, name, torch.float32, seed=6), single, deviations, 10, 2e-5)
    golden.assert_close(run_at(golden, host, name, torch.float64, seed=6), double, deviations, 0, 1e-9)


def store(golden):
    numbers, deviations, loss_values = {}, {}, {}
    with golden.upstream(*UPSTREAM) as modules:
        for name in CONFIGS:
            networks = theirs(golden, modules, name)
            single, double = (run_at(golden, networks, name, dtype) for dtype in (torch.float32, torch.float64))
            numbers |= {f"{name}/{stage}": golden.sample(value) for stage, value in single.items()}
            deviations[name] = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
            if name in ("spectral", "use_kp"):
                loss_values[name] = their_losses(golden, modules, theirs(golden, modules, name), name)
    save_file(numbers, DATA / "fomm_golden.safetensors")
    (DATA / "fomm_golden.json").write_text(
        json.dumps({"float64_deviation": deviations, "losses": loss_values}, indent=1) + "\n"
    )


if __name__ == "__main__":
    from conftest import GOLDEN

    store(GOLDEN)
