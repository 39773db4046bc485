"""MRAA's numbers at every stage equal upstream's, for two small configurations and the published one.

The numbers in tests/data/mraa_golden.* are samples of those that unmodified upstream code gave, with weights by
formula, in files NAME.json and NAME.safetensors of a folder. `MEMCOMP_REFERENCE=folder python
tests/adapters/test_mraa_golden.py` takes the samples anew, and the tests marked `upstream` compare with these files.
"""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from memcomp.adapters import create_host
from memcomp.adapters.shared.losses import RandomTransform

DATA = Path(__file__).parents[1] / "data"
SMALL = {"pca": "mraa_golden", "regressed": "mraa_golden_b"}
WHOLE = SMALL | {"published": "mraa_full_golden"}
SHOWN = 200  # stored numbers per stage
FACTORS = (".u", ".d")  # of the frame: stages that are not compared
# upstream's name of a term → ours
TERMS = {"equivariance_shift": "equivariance_value", "equivariance_affine": "equivariance_jacobian"}
reference = pytest.mark.skipif("MEMCOMP_REFERENCE" not in os.environ, reason="MEMCOMP_REFERENCE is not set")


MADE = {}


def host_of(golden, about):
    """The file's host, in single precision; making its weights takes a second."""
    key = json.dumps(about["constructor"])
    if key not in MADE:
        MADE[key] = create_host("mraa", about["constructor"]["model_params"]).eval()
        for section, network in MADE[key].sections().items():
            golden.fill_by_rules(section, network, about["constructor"]["seed"], about["recipe_rules"])
    return copy.deepcopy(MADE[key])


def region_stages(host, images):
    predictor, stages = host.region_predictor, {}
    image = images["source"]
    stages["region_predictor.downsampled"] = predictor.down(image)
    stages["region_predictor.hourglass"] = predictor.predictor(predictor.down(image))
    for name, image in images.items():
        regions = host.keypoints(image)
        stages[f"region_{name}.shift"], stages[f"region_{name}.covar"] = regions.shift, regions.covar
        stages[f"region_{name}.affine"], stages[f"region_{name}.heatmap"] = regions.jacobian, predictor.maps(image)[0]
    return stages


def generator_stages(host, prefix, source, kp_source, kp_driving, background=None):
    """What passes through the generator, by hooks on its modules."""
    generator, seen, hooks = host.generator, {}, []

    def watch(module, name):
        def hook(module, args, output):
            seen[name.format("input")], seen[name.format("output")] = args[0].clone(), output

        hooks.append(module.register_forward_hook(hook))

    flow = generator.pixelwise_flow_predictor
    for name in ("bottleneck", "final"):
        watch(generator.get_submodule(name), f"{name}_{{}}")
    watch(flow.hourglass, "hourglass_{}")
    for index, block in enumerate(generator.up_blocks):
        watch(block, f"up_{{}}_{index}")
    output = host.generate(source, kp_source, kp_driving, background=background)
    for hook in hooks:
        hook.remove()
    size = output.deformation.shape[1:3]
    shown = seen["hourglass_input"].unflatten(1, (flow.num_regions + 1, -1))
    levels = [generator.deform_input(level, output.deformation) for level in generator.encode(source)]
    stages = {
        "flow.downsampled_source": flow.down(source),
        "flow.heatmap": shown[:, :, :1],
        "flow.sparse_motion": flow.motions(kp_source, kp_driving, background, *size),
        "flow.deformed_source": shown[:, :, 1:],
        "flow.mask": output.mask,
        "flow.optical_flow": output.deformation,
        "flow.occlusion_map": output.occlusion_map,
        "generator.encoder_feature": generator.encode(source)[0],
        "generator.deformed": output.deformed,
        "generator.warped_source_image": output.deformed,
        "generator.warped_feature": levels[0],
        "generator.sigmoid_image": torch.sigmoid(seen["final_output"]),
        "prediction": output.prediction,
        **{f"generator.warped_skip_{index}": level for index, level in enumerate(levels)},
        **{f"generator.{name}": value for name, value in seen.items()},
    }
    return {prefix + name: value for name, value in stages.items()}


def run(host, numbers, dtype):
    """Every stage that the files hold: name → tensor."""
    names = ("source", "driving", "driving_initial")
    images = {name: (numbers[f"in.{name}_u8"].float() / 255).to(dtype) for name in names}
    host.to(dtype)
    with torch.no_grad():
        source, driving, initial = (host.keypoints(image) for image in images.values())
        image = images["source"]
        stages = region_stages(host, images) | generator_stages(host, "", image, source, driving)
        background = host.bg_predictor(image, images["driving"])
        stages |= {"bg_params": background} | generator_stages(host, "bg.", image, source, driving, background)
        again = host.reconstruct(image, images["driving"]).prediction
        torch.testing.assert_close(again, stages["bg.prediction"], atol=1e-6, rtol=0)
        moved = host.transfer_motion(source, driving, initial, mode="avd")
        stages |= regions("avd", moved) | generator_stages(host, "avd.", image, source, moved)
        first, *others = (points.each(lambda x: x[:1]) for points in (source, driving, initial))
        moved = host.transfer_motion(first, *others)
        return stages | regions("relative", moved) | generator_stages(host, "relative.", image[:1], first, moved)


def regions(name, found):
    return {f"{name}.shift": found.shift, f"{name}.affine": found.jacobian, f"{name}.covar": found.covar}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMALL)
def test_every_stage_equals_the_stored_numbers(golden, name, dtype):
    numbers, about = golden.stored("mraa", name)
    compared = golden.errors(run(host_of(golden, about), numbers, dtype), numbers, dtype, about, FACTORS)
    assert len(compared) >= 45
    golden.assert_within(compared)


def losses(golden, numbers, about, drawn, monkeypatch):
    """Name of each term → value, and of each parameter → norm and sum of the gradient, as the file has them."""
    host = host_of(golden, about).double()
    source, driving = (numbers[f"in.{name}_u8"].double() / 255 for name in ("source", "driving"))
    theta, control = (drawn[f"transform.{name}"].double() for name in ("theta", "control_params"))
    transform = RandomTransform(theta, control.squeeze(1))
    monkeypatch.setattr(RandomTransform, "draw", lambda *args, **kwargs: transform)
    output = host.training_output(source, driving, epoch=0, generator=torch.Generator())
    terms = host.loss_terms(output, source, driving, TERMS.values(), generator=torch.Generator(), transform_params={})
    found = {theirs: 10 * terms[ours] for theirs, ours in TERMS.items()}
    total = sum(found.values()) + 10 * (output.prediction - driving).abs().mean()
    total.backward()
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: drawn["avd.scale_uniform"])
    host.enter_stage("avd")
    second = host.stage_loss("avd", source, driving, generator=torch.Generator())
    second.backward()
    grads = {name: value.grad for name, value in host.named_parameters() if value.grad is not None}
    return {**found, "total": total, "avd": second}, {k: (g.norm().item(), g.sum().item()) for k, g in grads.items()}


@pytest.mark.parametrize("name", SMALL)
def test_losses_and_gradients_equal_the_stored_numbers(golden, name, monkeypatch):
    numbers, about = golden.stored("mraa", name)
    expected = about["losses"]
    drawn = {key.removeprefix("drawn."): value for key, value in numbers.items() if key.startswith("drawn.")}
    found, gradients = losses(golden, numbers, about, drawn, monkeypatch)
    for term, value in expected["values"].items():
        assert found[term].item() == pytest.approx(value, rel=2e-6), term
    assert gradients.keys() == expected["gradients"].keys()
    tolerance = 1e-2 if name == "pca" else 1e-3
    for key, (norm, total) in expected["gradients"].items():
        assert gradients[key][0] == pytest.approx(norm, rel=tolerance, abs=1e-5), key
        assert gradients[key][1] == pytest.approx(total, rel=tolerance, abs=max(tolerance * norm, 1e-5)), key


@reference
@pytest.mark.upstream
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WHOLE)
def test_every_stage_equals_upstream_s(golden, name, dtype):
    numbers, about = golden.whole(WHOLE[name])
    compared = golden.errors(run(host_of(golden, about), numbers, dtype), numbers, dtype, about, FACTORS)
    for stage, (error, allowed) in compared.items():
        print(f"{name} {str(dtype).removeprefix('torch.')} {stage}: {error:.1e} of {allowed:.1e}")
    golden.assert_within(compared)


def store(golden):
    abouts, numbers = {}, {}
    for name, file in SMALL.items():
        tensors, about = golden.whole(file)
        drawn, lost = golden.whole(file.replace("golden", "losses_golden"))
        values = {term: lost["losses"][term] for term in TERMS}
        values |= {"total": lost["total"], "avd": sum(lost["avd_losses"].values())}
        abouts[name] = {key: about[key] for key in ("constructor", "recipe_rules")}
        abouts[name]["losses"] = {"values": values, "gradients": lost["gradient_l2_norm_and_sum"]}
        abouts[name]["stages"] = golden.limits_of(tensors, about, FACTORS)
        numbers |= {f"{name}/{key}": value for key, value in golden.stages_of(tensors, SHOWN, FACTORS)}
        for key in ("transform.theta", "transform.control_params", "avd.scale_uniform"):
            numbers[f"{name}/drawn.{key}"] = drawn[key]
    save_file(numbers, DATA / "mraa_golden.safetensors")
    (DATA / "mraa_golden.json").write_text(json.dumps(abouts, indent=1) + "\n")


if __name__ == "__main__":
    from conftest import GOLDEN

    store(GOLDEN)
