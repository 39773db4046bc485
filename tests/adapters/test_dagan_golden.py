"""DaGAN's numbers at every stage equal upstream's: depth networks of 18 and 50 layers, both generators, the losses.

The stored numbers (tests/data/dagan_golden.*) are those of unmodified upstream code with weights and pictures made by
the formulas of conftest.py; `MEMCOMP_UPSTREAM=folder python tests/adapters/test_dagan_golden.py` makes them anew, and
the tests marked `upstream` compare with upstream itself, in another seed.
"""

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from memcomp.adapters import create_host
from memcomp.adapters.fomm.motion import local_motions
from memcomp.adapters.shared import losses

DATA = Path(__file__).parents[1] / "data"
SEED = 5
DEPTH = ("depth_encoder", "depth_decoder")
LOSSES = ("generator_gan", "feature_matching", "equivariance_value", "equivariance_jacobian")
UPSTREAM = (
    "dagan",
    *(f"modules.{name}" for name in ("keypoint_detector", "generator", "discriminator", "util", "model")),
    "depth",
)
# name → our `model` and the (batch, height, width) of the pictures; "truth" takes a fourth channel of the pictures
CONFIGS = json.loads((DATA / "dagan_configs.json").read_text())


def part(output, name):
    return output.get(name) if isinstance(output, dict) else getattr(output, name)


def energies(attention, depth, feature):
    queries, keys = F.relu(attention.query_conv(depth)).flatten(2), F.relu(attention.key_conv(feature)).flatten(2)
    return queries.transpose(1, 2) @ keys


def run(networks, source, driving):
    """Every stage of one forward pass, of our networks or of upstream's: name → tensor."""
    generator, seen, stages = networks.generator, {}, {}
    dense = generator.dense_motion_network
    watched = {"motion": dense, "hourglass": dense.hourglass, "attention": generator.AttnModule}
    watched |= {"encoder": [generator.first, *generator.down_blocks][-1]}
    watched |= {"down": dense.down} if hasattr(dense, "down") else {}

    def watch(name):
        return lambda module, args, output: seen.update({name: (args, output)})

    hooks = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    pictures, disparities = [source[:, :3], driving[:, :3]], [source[:, 3:], driving[:, 3:]]
    if networks.depth_encoder is not None:
        features = [networks.depth_encoder(picture) for picture in pictures]
        found = [networks.disparities(networks.depth_decoder(feature)) for feature in features]
        disparities = [finest for finest, *_ in found]
        stages |= {f"depth.encoder_feature_{i}": feature for i, feature in enumerate(features[0])}
        stages |= {f"depth.disp_{i}": disparity for i, disparity in enumerate(found[0])}
        stages |= {"depth.driving_disp_0": disparities[1]}
    both = [torch.cat(pair, dim=1) for pair in zip(pictures, disparities, strict=True)]
    kp_source, kp_driving = (networks.kp_detector(rgbd) for rgbd in both)
    output = networks.generate(pictures[0], kp_source, kp_driving, *disparities)
    for hook in hooks:
        hook.remove()
    small = seen["down"][1] if "down" in seen else pictures[0]
    motion, encoded = seen["motion"][1], seen["encoder"][1]
    (depth, occluded), attended = seen["attention"]
    stages |= {
        "dense_motion.downsampled_source": small,
        "dense_motion.heatmap": seen["hourglass"][0][0].unflatten(1, (-1, 4))[:, :, :1],
        "dense_motion.sparse_motion": networks.sparse_motion(dense, small, kp_driving, kp_source),
        "generator.encoder_feature": encoded,
        "generator.depth_feature": depth,
        "generator.warped_feature": generator.deform_input(encoded, part(motion, "deformation")),
        "generator.occluded_feature": occluded,
        "generator.attention": energies(generator.AttnModule, depth, occluded).softmax(-1),
        "generator.attention_output": attended[0] if isinstance(attended, tuple) else attended,
        **{f"kp_source.{key}": kp_source[key] for key in ("value", "jacobian") if key in kp_source},
        **{f"kp_driving.{key}": kp_driving[key] for key in ("value", "jacobian") if key in kp_driving},
        **{
            f"dense_motion.{key}": part(motion, key)
            for key in ("sparse_deformed", "mask", "deformation", "occlusion_map")
            if part(motion, key) is not None
        },
        "generator.deformed": part(output, "deformed"),
        "prediction": part(output, "prediction"),
    }
    for scale, prediction in zip(networks.discriminator.scales, networks.judge(output, kp_driving), strict=True):
        stages[f"discriminator.prediction_map_{scale}"] = prediction
    return stages


def ours(golden, name, seed=SEED):
    host = create_host("dagan", CONFIGS[name]["model"])
    for section, network in host.sections().items():
        golden.fill(section, network, seed)
    return wrapped(host.eval())


def wrapped(host):
    return SimpleNamespace(
        **{"depth_encoder": None, "depth_decoder": None} | host.sections(),
        host=host,
        disparities=list,
        generate=lambda picture, kp_source, kp_driving, depth, _: host.generator(
            picture, kp_source=kp_source, kp_driving=kp_driving, source_depth=depth
        ),
        judge=lambda output, kp: host.discriminator(output.prediction, kp).predictions,
        sparse_motion=lambda dense, image, kp_driving, kp_source: local_motions(
            kp_source, kp_driving, *image.shape[2:]
        ),
    )


def theirs(golden, modules, name, seed=SEED):
    params = copy.deepcopy(CONFIGS[name]["model"])
    common, depth = params["common_params"], params["depth"]
    make = getattr(modules.generator, params.get("generator", "DepthAwareGenerator"))
    sections = {
        "generator": make(**params["generator_params"], **common),
        "kp_detector": modules.keypoint_detector.KPDetector(
            **params["kp_detector_params"], **common | {"num_channels": 4}
        ),
        "discriminator": modules.discriminator.MultiScaleDiscriminator(**params["discriminator_params"], **common),
    }
    if depth != "truth":
        encoder = modules.depth.ResnetEncoder(depth["num_layers"], False)
        decoder = modules.depth.DepthDecoder(num_ch_enc=encoder.num_ch_enc, scales=range(4))
        sections |= {"depth_encoder": encoder.requires_grad_(False), "depth_decoder": decoder.requires_grad_(False)}
    for section, network in sections.items():
        golden.fill(section, network, seed)
        network.eval()
    generator, discriminator = sections["generator"], sections["discriminator"]
    pyramid = modules.model.ImagePyramide(discriminator.scales, 3)

    def judge(output, kp):
        maps = discriminator(pyramid.to(output["prediction"].dtype)(output["prediction"]), kp)
        return [maps[f"prediction_map_{scale}"] for scale in discriminator.scales]

    return SimpleNamespace(
        **{"depth_encoder": None, "depth_decoder": None} | sections,
        disparities=lambda outputs: [outputs["disp", i] for i in range(4)],
        generate=lambda picture, kp_source, kp_driving, depth, other: generator(
            picture, kp_source=kp_source, kp_driving=kp_driving, source_depth=depth, driving_depth=other
        ),
        judge=judge,
        sparse_motion=lambda dense, image, kp_driving, kp_source: dense.create_sparse_motions(
            image, kp_driving, kp_source
        ),
        pyramid=pyramid,
    )


def sections(networks):
    named = {name: getattr(networks, name) for name in ("generator", "kp_detector", "discriminator", *DEPTH)}
    return {name: network for name, network in named.items() if network is not None}


def pictures(golden, networks, name, dtype, seed):
    """Source and driving picture, with a made-up disparity for "truth"; the networks are cast to their dtype."""
    for network in sections(networks).values():
        network.to(dtype)
    batch, *size = CONFIGS[name]["size"]
    found = [golden.picture(seed, which, batch, *size) for which in ("source", "driving")]
    if networks.depth_encoder is None:
        maps = [golden.picture(seed, f"{which} depth", batch, *size)[:, :1] for which in ("source", "driving")]
        found = [torch.cat(pair, dim=1) for pair in zip(found, maps, strict=True)]
    return [rgbd.to(dtype) for rgbd in found]


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
    values["disc_gan"] = float(networks.host.discriminator_loss(output, driving).detach())
    return values, golden.norms(sections(networks))


def bare(kind, **attributes):
    """A module without its constructor, which in upstream needs a GPU, files, and parts wrapped for DDP."""
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


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
        | {"equivariance_value": 1, "equivariance_jacobian": 1}
        | {"kp_distance": 0, "kp_prior": 0, "kp_scale": 0, "depth_constraint": 0},
    }
    parts = {name: getattr(networks, name) for name in ("generator", "discriminator", "pyramid", *DEPTH)}
    parts |= {"kp_extractor": networks.kp_detector, "train_params": params, "loss_weights": params["loss_weights"]}
    parts |= {"scales": params["scales"], "disc_scales": params["scales"]}
    full = bare(modules.model.GeneratorFullModel, **parts, opt=SimpleNamespace(use_depth=False, rgbd=True)).double()
    judge = bare(modules.model.DiscriminatorFullModel, **parts)
    values, generated = full({"source": source, "driving": driving})
    sum(values.values()).backward()
    values |= judge({"driving": driving}, generated)
    values["generator_gan"] = values.pop("gen_gan")
    return {key: float(value.detach()) for key, value in values.items()}, golden.norms(sections(networks))


@pytest.fixture(scope="module", params=CONFIGS)
def named(request, golden):
    return request.param, ours(golden, request.param)


def test_every_stage_equals_the_stored_numbers(golden, named):
    name, networks = named
    stored = load_file(DATA / "dagan_golden.safetensors")
    expected = {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
    deviations = json.loads((DATA / "dagan_golden.json").read_text())["float64_deviation"][name]
    for dtype, factor, floor in ((torch.float32, 10, 2e-5), (torch.float64, 3, 0)):
        measured = {stage: golden.sample(value) for stage, value in run_at(golden, networks, name, dtype).items()}
        golden.assert_close(measured, expected, deviations, factor, floor)


def test_the_host_puts_the_networks_together_like_upstream(golden, named):
    name, networks = named
    source, driving = pictures(golden, networks, name, torch.float32, SEED)
    with torch.no_grad():
        stages, output = run(networks, source, driving), networks.host(source, driving)
    assert torch.equal(output.prediction, stages["prediction"])
    assert torch.equal(output.kp_driving.value, stages["kp_driving.value"])
    assert torch.equal(output.disparity, stages.get("depth.disp_0", source[:, 3:]))


def test_losses_and_gradients_equal_the_stored_numbers(golden, monkeypatch):
    expected = json.loads((DATA / "dagan_golden.json").read_text())["losses"]["narrow"]
    golden.assert_losses(our_losses(golden, ours(golden, "narrow"), "narrow", monkeypatch), expected)


@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_upstream_in_another_seed(golden, name, monkeypatch):
    with golden.upstream(*UPSTREAM) as modules:
        networks, host = theirs(golden, modules, name, seed=6), ours(golden, name, seed=6)
        assert sorted(golden.shapes(sections(networks))) == sorted(golden.shapes(sections(host)))
        single, double = (run_at(golden, networks, name, dtype, seed=6) for dtype in (torch.float32, torch.float64))
        if name == "narrow":
            expected = their_losses(golden, modules, theirs(golden, modules, name, seed=6), name, seed=6)
            measured = our_losses(golden, ours(golden, name, seed=6), name, monkeypatch, seed=6)
            golden.assert_losses(measured, expected)
    deviations = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
    golden.assert_close(run_at(golden, host, name, torch.float32, seed=6), single, deviations, 10, 2e-5)
    golden.assert_close(run_at(golden, host, name, torch.float64, seed=6), double, deviations, 0, 1e-9)


def store(golden):
    numbers, deviations = {}, {}
    with golden.upstream(*UPSTREAM) as modules:
        for name in CONFIGS:
            networks = theirs(golden, modules, name)
            single, double = (run_at(golden, networks, name, dtype) for dtype in (torch.float32, torch.float64))
            numbers |= {f"{name}/{stage}": golden.sample(value) for stage, value in single.items()}
            deviations[name] = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
        loss_values = {"narrow": their_losses(golden, modules, theirs(golden, modules, "narrow"), "narrow")}
    save_file(numbers, DATA / "dagan_golden.safetensors")
    (DATA / "dagan_golden.json").write_text(
        json.dumps({"float64_deviation": deviations, "losses": loss_values}, indent=1) + "\n"
    )


if __name__ == "__main__":
    from conftest import GOLDEN

    store(GOLDEN)
