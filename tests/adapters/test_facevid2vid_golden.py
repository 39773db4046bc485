"""face-vid2vid's numbers at every stage equal upstream's, for small configurations and the published ones.

The numbers in tests/data/facevid2vid_golden.* are samples of those that unmodified upstream code gave, with weights by
formula, in files NAME.json and NAME.safetensors of a folder. `MEMCOMP_REFERENCE=folder python
tests/adapters/test_facevid2vid_golden.py` takes the samples anew, and the tests marked `upstream` compare with these.
"""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from memcomp.adapters import create_host
from memcomp.adapters.facevid2vid.motion import local_motions
from memcomp.adapters.facevid2vid.pose import in_degrees, rotation, with_pose
from memcomp.adapters.facevid2vid.volumes import warp_volume
from memcomp.adapters.shared.losses import RandomTransform

DATA = Path(__file__).parents[1] / "data"
SMALL = {"original": "facevid2vid_golden", "jacobians": "facevid2vid_golden_b", "spade": "facevid2vid_spade_golden"}
FULL = {"published": "facevid2vid_full_golden", "published spade": "facevid2vid_spade_full_golden"}
WHOLE = SMALL | FULL
WITH_LOSSES = ("original", "jacobians")
SHOWN = 150  # stored numbers per stage
# upstream's name of a term → ours, and its published weight
TERMS = {
    "gen_gan": ("generator_gan", 1),
    "feature_matching": ("feature_matching", 10),
    "equivariance_value": ("equivariance_value", 10),
    "equivariance_jacobian": ("equivariance_jacobian", 10),
    "keypoint": ("keypoint_prior", 10),
    "headpose": ("headpose", 20),
    "expression": ("expression", 5),
}
reference = pytest.mark.skipif("MEMCOMP_REFERENCE" not in os.environ, reason="MEMCOMP_REFERENCE is not set")
MADE = {}


def host_of(golden, about):
    """The file's host, in single precision; making its weights takes seconds."""
    constructor = about["constructor"]
    key = json.dumps(constructor)
    if key not in MADE:
        model = constructor["model_params"] | {"generator": constructor["gen"]}
        MADE[key] = create_host("facevid2vid", model).eval()
        for section, network in MADE[key].sections().items():
            golden.fill_by_rules(section, network, constructor["seed"], about["recipe_rules"])
    return copy.deepcopy(MADE[key])


def keypoint_stages(host, images, found):
    """What the keypoint detector and the head-pose network make of the pictures, and of that the keypoints found."""
    detector, estimator, image = host.kp_detector, host.he_estimator, images["source"]
    heatmap, feature = detector.maps(image)
    small = detector.down(image) if detector.scale_factor != 1 else image
    source = next(iter(found.values()))
    stages = {
        "kp_detector.downsampled": small,
        "kp_detector.reshape_conv": detector.predictor.conv(detector.predictor.down_blocks(small)),
        "kp_detector.hourglass": feature,
        "kp_detector.heatmap": heatmap,
        "kp_canonical.value": source.canonical,
        "kp_canonical.jacobian": source.canonical_jacobian,
        "he.stem": estimator.stem(image),
    }
    for name, image in images.items():
        kp, code = found[name].on(source), estimator.code(image)
        logits, pose = estimator.logits(code), kp.pose
        stages.setdefault("he.pooled", code)
        torch.testing.assert_close(in_degrees(logits), pose.degrees)
        stages |= {f"he_{name}.{angle}": logits[:, index] for index, angle in enumerate(("yaw", "pitch", "roll"))}
        stages |= {f"he_{name}.t": pose.shift, f"he_{name}.exp": pose.expression.flatten(1)}
        stages |= {f"he_{name}.degrees": pose.degrees, f"he_{name}.rotation": rotation(pose.degrees)}
        stages |= {f"kp_{name}.value": kp.value, f"kp_{name}.jacobian": kp.jacobian}
    return stages


def generator_stages(host, prefix, source, kp_source, kp_driving):
    """What passes through the generator, by hooks on its modules."""
    generator, seen, hooks = host.generator, {}, []

    def watch(name, stage):
        def hook(module, args, output):
            seen.update({f"{stage}_input": args[0].clone(), stage: output})

        hooks.append(generator.get_submodule(name).register_forward_hook(hook))

    watch("dense_motion_network.hourglass", "hourglass")
    decoder = "decoder" if hasattr(generator, "decoder") else "resblocks_2d"
    modules = ["third", "fourth", "resblocks_2d", "up_blocks.0", "up_blocks.1"]
    if decoder == "decoder":
        middle = [f"G_middle_{index}" for index in range(6)]
        modules = ["third", "fourth", *(f"decoder.{name}" for name in ("fc", *middle, "up_0", "up_1", "conv_img"))]
        modules.append("decoder.G_middle_0.norm_0")
    for name in {*modules, decoder}:
        watch(name, name)
    output = host.generate(source, kp_source, kp_driving)
    for hook in hooks:
        hook.remove()
    names = {"up_blocks.0": "up_0", "up_blocks.1": "up_1", "decoder.fc": "spade_fc"}
    motion, size = generator.dense_motion_network, output.deformation.shape[1:4]
    (volume,) = generator.encode(source)
    shown = seen["hourglass_input"].unflatten(1, (motion.num_kp + 1, -1))
    first = source
    for block in (generator.first, *generator.down_blocks):
        first = block(first)
    stages = {
        "generator.encoder_2d": generator.second(first),
        "generator.feature_3d": volume,
        "dense_motion.compressed": torch.relu(motion.norm(motion.compress(volume))),
        "dense_motion.sparse_motion": local_motions(kp_source, output.kp_driving, *size),
        "dense_motion.deformed_feature": shown[:, :, 1:],
        "dense_motion.heatmap": shown[:, :, :1],
        "dense_motion.hourglass_input": seen["hourglass_input"],
        "dense_motion.hourglass_output": seen["hourglass"],
        "dense_motion.mask": output.mask,
        "dense_motion.deformation": output.deformation,
        "dense_motion.occlusion_map": output.occlusion_map,
        "generator.warped_feature_3d": warp_volume(volume, output.deformation),
        "generator.decoder_input": seen[f"{decoder}_input"],
        "prediction": output.prediction,
        **{f"generator.{names.get(name, name.removeprefix('decoder.'))}": seen[name] for name in modules},
    }
    return {prefix + name: value for name, value in stages.items()}


def run(host, numbers, dtype):
    """Every stage that the files hold: name → tensor."""
    names = ("source", "driving", "driving_initial")
    images = {name: (numbers[f"in.{name}_u8"].float() / 255).to(dtype) for name in names}
    host.to(dtype)
    with torch.no_grad():
        found = {name: host.keypoints(image) for name, image in images.items()}
        (source, driving, initial), image = found.values(), images["source"]
        stages = keypoint_stages(host, images, found) | generator_stages(host, "", image, source, driving)
        if dtype == torch.float32:
            again = host(image, images["driving"]).prediction
            torch.testing.assert_close(again, stages["prediction"], atol=1e-6, rtol=0)
        judged = host.discriminator(stages["prediction"])
        stages |= {f"discriminator.feature_map_1_{i}": value for i, value in enumerate(judged.features[0])}
        stages["discriminator.prediction_map_1"] = judged.predictions[0]
        first, *others = (points.each(lambda x: x[:1]) for points in (source, driving, initial))
        moved = host.transfer_motion(first, *others)
        stages |= {"relative.kp_driving.value": moved.value, "relative.kp_driving.jacobian": moved.jacobian}
        return stages | generator_stages(host, "relative.", image[:1], first, moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMALL)
def test_every_stage_equals_the_stored_numbers(golden, name, dtype):
    numbers, about = golden.stored("facevid2vid", name)
    compared = golden.errors(run(host_of(golden, about), numbers, dtype), numbers, dtype, about)
    assert len(compared) >= 55
    golden.assert_within(compared)


def losses(golden, numbers, about, drawn, mode, monkeypatch):
    """Name of each term → value, and of each parameter → norm and sum of the gradient, as the file has them."""
    host = host_of(golden, about).double()
    host.gan_mode = mode
    source, driving = (numbers[f"in.{name}_u8"].double() / 255 for name in ("source", "driving"))
    target = torch.stack([drawn[f"target_degrees.{angle}"] for angle in ("yaw", "pitch", "roll")], dim=1)
    driving = with_pose(driving, target)
    theta, control = (drawn[f"transform.{name}"].double() for name in ("theta", "control_params"))
    transform = RandomTransform(theta, control.squeeze(1))
    monkeypatch.setattr(RandomTransform, "draw", lambda *args, **kwargs: transform)
    output = host.training_output(source, driving, epoch=0, generator=torch.Generator())
    jacobian = output.kp_driving.jacobian is not None
    names = {theirs: pair for theirs, pair in TERMS.items() if jacobian or theirs != "equivariance_jacobian"}
    asked = [ours for ours, _ in names.values()]
    terms = host.loss_terms(output, source, driving, asked, generator=torch.Generator(), transform_params={})
    found = {theirs: weight * terms[ours] for theirs, (ours, weight) in names.items()}
    found["total"] = sum(found.values())
    found["total"].backward()
    host.discriminator.zero_grad(set_to_none=True)
    found["disc_gan"] = host.discriminator_loss(output, driving)
    found["disc_gan"].backward()
    grads = {name: value.grad for name, value in host.named_parameters() if value.grad is not None}
    return found, {k: (g.norm().item(), g.sum().item()) for k, g in grads.items()}


@pytest.mark.parametrize("mode", ["hinge", "ls"])
@pytest.mark.parametrize("name", WITH_LOSSES)
def test_losses_and_gradients_equal_the_stored_numbers(golden, name, mode, monkeypatch):
    numbers, about = golden.stored("facevid2vid", name)
    drawn = {key.removeprefix("drawn."): value for key, value in numbers.items() if key.startswith("drawn.")}
    found, gradients = losses(golden, numbers, about, drawn, mode, monkeypatch)
    expected = about["losses"][mode]
    assert found.keys() == expected["values"].keys()
    for term, value in expected["values"].items():
        assert found[term].item() == pytest.approx(value, rel=1e-5), term
    if not expected["gradients"]:  # they are of the published mode alone
        return
    assert gradients.keys() == expected["gradients"].keys()
    for key, (norm, total) in expected["gradients"].items():
        assert gradients[key][0] == pytest.approx(norm, rel=2e-3, abs=2e-3), key
        assert gradients[key][1] == pytest.approx(total, rel=2e-3, abs=max(5e-2 * norm, 2e-3)), key  # of float32


def by_planes(conv, x):
    """A 3-D convolution as sums of 2-D ones: a CPU's of doubles lays out all that it reads, 20 GB of the published."""
    assert conv.stride == conv.dilation == (1, 1, 1) and conv.groups == 1
    (deep, *_), (along, *across) = conv.kernel_size, conv.padding
    planes = F.pad(x, (0, 0, 0, 0, along, along)).transpose(1, 2)  # (B, D + 2 along, C, H, W)
    count = planes.shape[1] - deep + 1
    parts = (
        F.conv2d(planes[:, k : k + count].flatten(0, 1), conv.weight[:, :, k], padding=across) for k in range(deep)
    )
    out = sum(parts).unflatten(0, (len(x), count)).transpose(1, 2)
    return out + conv.bias[:, None, None, None]


@reference
@pytest.mark.upstream
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WHOLE)
def test_every_stage_equals_upstream_s(golden, name, dtype, monkeypatch):
    if dtype == torch.float64:
        monkeypatch.setattr(nn.Conv3d, "forward", by_planes)
    numbers, about = golden.whole(WHOLE[name])
    compared = golden.errors(run(host_of(golden, about), numbers, dtype), numbers, dtype, about)
    for stage, (error, allowed) in compared.items():
        print(f"{name} {str(dtype).removeprefix('torch.')} {stage}: {error:.1e} of {allowed:.1e}")
    golden.assert_within(compared)


def store(golden):
    abouts, numbers = {}, {}
    for name, file in SMALL.items():
        tensors, about = golden.whole(file)
        abouts[name] = {key: about[key] for key in ("constructor", "recipe_rules")}
        abouts[name]["stages"] = golden.limits_of(tensors, about)
        numbers |= {f"{name}/{key}": value for key, value in golden.stages_of(tensors, SHOWN)}
        if name not in WITH_LOSSES:
            continue
        drawn, lost = golden.whole(file.replace("golden", "losses_golden"))
        kept = {key: value for key, value in drawn.items() if key.startswith(("transform.", "target_degrees."))}
        numbers |= {f"{name}/drawn.{key}": value for key, value in kept.items()}
        abouts[name]["losses"] = {
            mode: {
                "values": {**entry["losses"], **entry["discriminator_losses"], "total": entry["total"]},
                "gradients": entry.get("gradient_l2_norm_and_sum", {}),
            }
            for mode, entry in lost["gan_mode"].items()
        }
    save_file(numbers, DATA / "facevid2vid_golden.safetensors")
    (DATA / "facevid2vid_golden.json").write_text(json.dumps(abouts, indent=1) + "\n")


if __name__ == "__main__":
    from conftest import GOLDEN

    store(GOLDEN)
