"""TPSM's numbers at every stage equal upstream's, for several configurations.

The stored numbers (tests/data/tpsm_golden.*) are those of unmodified upstream code with weights and pictures made by
the formulas of conftest.py; `MEMCOMP_UPSTREAM=folder python tests/adapters/test_tpsm_golden.py` makes them anew, and
the tests marked `upstream` compare with upstream itself, in another seed.
"""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from memcomp.adapters import Keypoints, create_host
from memcomp.adapters.tpsm.splines import RandomSpline

DATA = Path(__file__).parents[1] / "data"
SEED = 5
NETWORKS = ("kp_detector", "bg_predictor", "avd_network")  # of full width whatever the configuration
LOSSES = {"equivariance_value": "equivariance_value", "warp": "warp_loss", "background": "bg"}  # ours → upstream's
UPSTREAM = (
    "tpsm",
    *(f"modules.{name}" for name in ("keypoint_detector", "bg_motion_predictor", "dense_motion", "inpainting_network")),
    *(f"modules.{name}" for name in ("avd_network", "model", "util")),
)
# name → upstream's model_params and the (batch, height, width) of the pictures
CONFIGS = json.loads((DATA / "tpsm_configs.json").read_text())
upstream = pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")


def part(output, *names):
    """What upstream, or we, call by one of these names."""
    return next(output[n] if isinstance(output, dict) else getattr(output, n) for n in names if has(output, n))


def has(output, name):
    return name in output if isinstance(output, dict) else hasattr(output, name)


def ours(golden, name, seed=SEED, networks=()):
    """Our host; of the wide networks only those named are filled, which takes a second each."""
    host = create_host("tpsm", CONFIGS[name]["model"])
    return filled(golden, host.sections(), seed, networks), host.eval()


def theirs(golden, modules, name, seed=SEED, networks=()):
    model = CONFIGS[name]["model"]
    common = model["common_params"]
    sections = {
        "kp_detector": modules.keypoint_detector.KPDetector(**common),
        "bg_predictor": modules.bg_motion_predictor.BGMotionPredictor(),
        "dense_motion_network": modules.dense_motion.DenseMotionNetwork(**common, **model["dense_motion_params"]),
        "inpainting_network": modules.inpainting_network.InpaintingNetwork(**model["generator_params"], **common),
        "avd_network": modules.avd_network.AVDNetwork(num_tps=common["num_tps"], **model["avd_network_params"]),
    }
    return filled(golden, sections, seed, networks)


def filled(golden, sections, seed, networks):
    for section, network in sections.items():
        network.eval()
        if section not in NETWORKS or section in networks:
            golden.fill(section, network, seed)
    return sections


def points(golden, seed, which, name):
    shape = (CONFIGS[name]["size"][0], 5 * CONFIGS[name]["model"]["common_params"]["num_tps"], 2)
    return torch.from_numpy(1.8 * golden.uniform(seed, f"{which}/points", int(np.prod(shape))).reshape(shape) - 0.9)


def generate(golden, sections, name, dtype, seed=SEED):
    """Every stage from keypoints to prediction, with and without the background's motion: name → tensor."""
    source = golden.picture(seed, "source", *CONFIGS[name]["size"]).to(dtype)
    kp = [{"fg_kp": points(golden, seed, which, name).to(dtype)} for which in ("source", "driving")]
    affine = torch.eye(3, dtype=dtype).repeat(len(source), 1, 1)
    affine[:, :2] = golden.transform(seed, len(source))[0]
    dense, network = sections["dense_motion_network"].to(dtype), sections["inpainting_network"].to(dtype)
    stages = {}
    hook = dense.hourglass.encoder.register_forward_hook(lambda module, args, output: stages.update(guides=args[0]))
    for prefix, background in (("", None), ("background.", affine)):
        motion = dense(source_image=source, kp_driving=kp[1], kp_source=kp[0], bg_param=background)
        made = network(source, motion)
        maps, flow = part(motion, "occlusion_map"), part(motion, "deformation")
        stages |= {f"{prefix}{key}": part(motion, key) for key in ("deformation", "contribution_maps")}
        stages |= {f"{prefix}occlusion_map_{i}": each for i, each in enumerate(maps)}
        stages |= {f"{prefix}deformed_source": part(motion, "deformed_source")}
        stages |= {f"{prefix}{key}": part(made, key) for key in ("deformed", "prediction")}
        if isinstance(made, dict):
            warped = made["warped_encoder_maps"]
        else:
            warped = network.occlude([network.deform_input(level, flow) for level in made.encoded], maps)
        stages |= {f"{prefix}warped_{i}": each for i, each in enumerate(warped)}
    hook.remove()
    return stages


def predict(golden, sections, name, dtype, seed=SEED):
    """What the networks of full width give: keypoints, the background's motion, disentangled keypoints."""
    source, driving = (golden.picture(seed, which, *CONFIGS[name]["size"]).to(dtype) for which in ("source", "driving"))
    for network in NETWORKS:
        sections[network].to(dtype)
    kp = [sections["kp_detector"](image) for image in (source, driving)]
    moved = sections["avd_network"](*kp)
    names = ("kp_source", "kp_driving", "avd")
    stages = {name: part(each, "fg_kp", "value") for name, each in zip(names, (*kp, moved), strict=True)}
    return stages | {"background": sections["bg_predictor"](source, driving)}


def our_losses(golden, sections, host, name, monkeypatch, seed=SEED):
    source, driving = (golden.picture(seed, which, *CONFIGS[name]["size"]).double() for which in ("source", "driving"))
    drawn = RandomSpline(*golden.transform(seed, len(source)))
    monkeypatch.setattr(RandomSpline, "draw", lambda *args, **kwargs: drawn)
    output = host.double().training_output(source, driving, epoch=50, generator=torch.Generator())
    terms = host.loss_terms(output, source, driving, LOSSES, generator=torch.Generator(), transform_params={})
    torch.stack(list(terms.values())).sum().backward()
    return {key: float(value.detach()) for key, value in terms.items()}, golden.norms(sections)


def their_losses(golden, modules, sections, name, seed=SEED):
    source, driving = (golden.picture(seed, which, *CONFIGS[name]["size"]).double() for which in ("source", "driving"))
    theta, control = golden.transform(seed, len(source))

    class Injected(modules.util.TPS):
        def __init__(self, mode, bs, **kwargs):
            super().__init__(mode, bs, **kwargs)
            if mode == "random":
                self.theta, self.control_params = theta, control.unsqueeze(1)

    modules.model.TPS = Injected
    order = ("kp_detector", "bg_predictor", "dense_motion_network", "inpainting_network")
    params = {"scales": [1], "bg_start": 10, "dropout_epoch": 35, "dropout_maxp": 0.3, "dropout_inc_epoch": 10}
    params |= {"dropout_startp": 0.1, "transform_params": {"sigma_affine": 0.05, "sigma_tps": 0.005, "points_tps": 5}}
    params |= {"loss_weights": {"perceptual": [0]} | dict.fromkeys(LOSSES.values(), 1)}
    full = modules.model.GeneratorFullModel(*(sections[key].double() for key in order), params)
    values, _ = full({"source": source, "driving": driving}, 50)
    sum(values.values()).backward()
    return {key: float(values[value].detach()) for key, value in LOSSES.items()}, golden.norms(sections)


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_equals_the_stored_numbers(golden, name):
    sections, _ = ours(golden, name)
    compare_with_stored(golden, name, lambda dtype: generate(golden, sections, name, dtype))


@torch.no_grad()
def test_keypoints_and_background_equal_the_stored_numbers(golden):
    sections, _ = ours(golden, "multi", networks=NETWORKS)
    compare_with_stored(golden, "networks", lambda dtype: predict(golden, sections, "multi", dtype))


def compare_with_stored(golden, name, run):
    stored = load_file(DATA / "tpsm_golden.safetensors")
    expected = {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
    deviations = json.loads((DATA / "tpsm_golden.json").read_text())["float64_deviation"][name]
    for dtype, factor, floor in ((torch.float32, 10, 2e-5), (torch.float64, 3, 0)):
        measured = {stage: golden.sample(value) for stage, value in run(dtype).items()}
        golden.assert_close(measured, expected, deviations, factor, floor)


def test_losses_and_gradients_equal_the_stored_numbers(golden, monkeypatch):
    expected = json.loads((DATA / "tpsm_golden.json").read_text())["losses"]["multi"]
    sections, host = ours(golden, "multi", networks=NETWORKS)
    golden.assert_losses(our_losses(golden, sections, host, "multi", monkeypatch), expected)


@upstream
@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_upstream_in_another_seed(golden, name):
    sections, _ = ours(golden, name, seed=6)
    with golden.upstream(*UPSTREAM) as modules, torch.no_grad():
        networks = theirs(golden, modules, name, seed=6)
        assert golden.shapes(networks) == golden.shapes({key: sections[key] for key in networks})
        single, double = (generate(golden, networks, name, dtype, seed=6) for dtype in (torch.float32, torch.float64))
        deviations = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}
        measured = generate(golden, sections, name, torch.float32, seed=6)
        golden.assert_close(measured, single, deviations, 10, 2e-5)
        golden.assert_close(generate(golden, sections, name, torch.float64, seed=6), double, deviations, 0, 1e-9)


@upstream
@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
def test_the_wide_networks_equal_upstreams_in_either_mode(golden, training):
    sections, _ = ours(golden, "half", 6, NETWORKS)
    with golden.upstream(*UPSTREAM) as modules, torch.no_grad():
        networks = theirs(golden, modules, "half", 6, NETWORKS)
        for network in (*sections.values(), *networks.values()):
            network.train(training)
        expected = predict(golden, networks, "half", torch.float64, 6)
    for stage, value in predict(golden, sections, "half", torch.float64, 6).items():
        torch.testing.assert_close(value, expected[stage], atol=1e-12, rtol=0)
    for section in NETWORKS:  # in training mode the running statistics moved alike
        for key, value in networks[section].state_dict().items():
            torch.testing.assert_close(sections[section].state_dict()[key], value, atol=1e-12, rtol=1e-12)


@upstream
@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
def test_losses_and_gradients_equal_upstreams(golden, monkeypatch):
    with golden.upstream(*UPSTREAM) as modules:
        expected = their_losses(golden, modules, theirs(golden, modules, "multi", 6, NETWORKS), "multi", 6)
    sections, host = ours(golden, "multi", 6, NETWORKS)
    golden.assert_losses(our_losses(golden, sections, host, "multi", monkeypatch, 6), expected)


@upstream
@pytest.mark.upstream
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epoch", [0, 4, 20])
def test_motions_are_dropped_as_upstream_does(golden, epoch):
    sections, host = ours(golden, "multi")
    kp = [{"fg_kp": points(golden, SEED, which, "multi").float()} for which in ("source", "driving")]
    source = golden.picture(SEED, "source", *CONFIGS["multi"]["size"])
    with golden.upstream(*UPSTREAM) as modules, torch.no_grad():
        network = theirs(golden, modules, "multi")["dense_motion_network"]
        torch.manual_seed(4)
        p = min(epoch / 10 * 0.3 + 0.1, 0.3)
        expected = network(source, kp_driving=kp[1], kp_source=kp[0], dropout_flag=True, dropout_p=p)
        kept = host.schedule.kept(epoch, len(source), 3, torch.Generator().manual_seed(4))
        motion = sections["dense_motion_network"](source, kp_driving=kp[1], kp_source=kp[0], kept=kept)
    assert motion.contribution_maps.amin() == 0  # something was dropped
    torch.testing.assert_close(motion.contribution_maps, expected["contribution_maps"], atol=2e-5, rtol=0)
    torch.testing.assert_close(motion.deformation, expected["deformation"], atol=2e-5, rtol=0)


def upstream_function(path, name, **scope):
    """One function of an upstream file, without the file's many imports."""
    path = Path(os.environ["MEMCOMP_UPSTREAM"]) / "tpsm" / path
    functions = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == name]
    exec(compile(ast.Module(functions, []), str(path), "exec"), scope)
    return scope[name]


@upstream
@pytest.mark.upstream
def test_motion_is_transferred_as_upstream_does(golden):
    hull = pytest.importorskip("scipy.spatial").ConvexHull
    relative_kp = upstream_function("demo.py", "relative_kp", np=np, ConvexHull=hull)
    source, driving, initial = (points(golden, seed, "any", "single") for seed in (1, 2, 3))
    expected = relative_kp(*({"fg_kp": each.clone()} for each in (source, driving, initial)))["fg_kp"]
    host = create_host("tpsm", CONFIGS["single"]["model"])
    moved = host.transfer_motion(*(Keypoints(each) for each in (source, driving, initial)))
    torch.testing.assert_close(moved.value, expected)


@upstream
@pytest.mark.upstream
def test_the_disentanglement_trains_on_upstreams_random_scaling(golden, monkeypatch):
    random_scale = upstream_function("train_avd.py", "random_scale", torch=torch)
    host = create_host("tpsm", CONFIGS["multi"]["model"]).eval()
    source, driving = (Keypoints(points(golden, SEED, which, "multi").float()) for which in ("source", "driving"))
    torch.manual_seed(3)
    scaled = random_scale({"fg_kp": driving.value}, scale=0.25)
    expected = (driving.value - host.avd_network(source, scaled).value).abs().mean()
    given = iter([source, driving])
    monkeypatch.setattr(host, "keypoints", lambda image: next(given))
    loss = host.stage_loss("avd", source.value, driving.value, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss, expected)


def store(golden):
    numbers, deviations, loss_values = {}, {}, {}

    def keep(name, run):
        with torch.no_grad():
            single, double = run(torch.float32), run(torch.float64)
        numbers.update({f"{name}/{stage}": golden.sample(value) for stage, value in single.items()})
        deviations[name] = {stage: (value - double[stage]).abs().max().item() for stage, value in single.items()}

    with golden.upstream(*UPSTREAM) as modules:
        for name in CONFIGS:
            networks = theirs(golden, modules, name)
            keep(name, lambda dtype: generate(golden, networks, name, dtype))  # noqa: B023
        networks = theirs(golden, modules, "multi", networks=NETWORKS)
        keep("networks", lambda dtype: predict(golden, networks, "multi", dtype))
        loss_values["multi"] = their_losses(golden, modules, networks, "multi")
    save_file(numbers, DATA / "tpsm_golden.safetensors")
    (DATA / "tpsm_golden.json").write_text(
        json.dumps({"float64_deviation": deviations, "losses": loss_values}, indent=1) + "\n"
    )


if __name__ == "__main__":
    from conftest import GOLDEN

    store(GOLDEN)
