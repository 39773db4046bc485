"""Capacity control: a host as large as host and memory together, that starts as the trained host does."""

import dataclasses

import pytest
import torch

from memcomp.adapters import create_host
from memcomp.experiments.benchmark.runs import label
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.cli import main
from memcomp.experiments.cost import amount
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe, recipe_from_dict, with_overrides
from memcomp.experiments.training.capacity import resolved, transplant, widened

MODELS = {
    "fomm": {
        "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
        "kp_detector_params": {
            "temperature": 0.1,
            "block_expansion": 4,
            "max_features": 8,
            "scale_factor": 0.5,
            "num_blocks": 2,
        },
        "generator_params": {
            "block_expansion": 4,
            "max_features": 10,
            "num_down_blocks": 2,
            "num_bottleneck_blocks": 1,
            "estimate_occlusion_map": True,
            "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
        },
    },
    "mcnet": {
        "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
        "kp_detector_params": {
            "temperature": 0.1,
            "block_expansion": 4,
            "max_features": 8,
            "scale_factor": 0.5,
            "num_blocks": 2,
        },
        "generator_params": {
            "block_expansion": 4,
            "max_features": 12,
            "num_down_blocks": 3,
            "estimate_occlusion_map": True,
            "dense_motion_params": {"block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.5},
        },
    },
    "facevid2vid": {
        "common_params": {"num_kp": 3, "image_channel": 3, "feature_channel": 4, "estimate_jacobian": False},
        "kp_detector_params": {
            **{"temperature": 0.1, "block_expansion": 4, "max_features": 8, "scale_factor": 0.5, "num_blocks": 2},
            **{"reshape_channel": 32, "reshape_depth": 4},
        },
        "he_estimator_params": {"block_expansion": 4, "widths": [8, 8, 8, 8]},
        "generator_params": {
            **{"block_expansion": 4, "max_features": 16, "num_down_blocks": 2, "num_resblocks": 1},
            **{"reshape_channel": 4, "reshape_depth": 4, "estimate_occlusion_map": True},
            "dense_motion_params": {
                **{"block_expansion": 4, "max_features": 8, "num_blocks": 2, "reshape_depth": 4, "compress": 2},
            },
        },
    },
}


def wider(model, factor):
    """The same model, its generator so many times as wide."""
    section = model["generator_params"]
    grown = {key: section[key] * factor for key in ("block_expansion", "max_features")}
    return model | {"generator_params": section | grown}


@pytest.mark.parametrize("match", ["parameters", "flops"])
def test_the_control_has_no_less_than_host_and_memory_and_one_step_less_width_would(small_recipe, match):
    def capacity(recipe):
        return amount(build_host(recipe).eval(), match, recipe.size)

    control = widened(with_overrides(small_recipe, ["loss.consistency=1", "loss.teacher=1"], "test"), match)
    assert control.memory is None and control.capacity is None and control.loss == small_recipe.loss
    section = control.host.model["generator_params"]
    width = section["block_expansion"]
    assert control.host.widened == width / 4 > 1 and section["max_features"] == 2 * width
    assert capacity(control) >= capacity(small_recipe)
    narrower = section | {"block_expansion": width - 1, "max_features": 2 * (width - 1)}
    model = control.host.model | {"generator_params": narrower}
    one_less = dataclasses.replace(control, host=dataclasses.replace(control.host, model=model))
    assert width - 1 == 4 or capacity(one_less) < capacity(small_recipe)
    assert small_recipe.host.model["generator_params"]["block_expansion"] == 4  # the original is as it was
    assert control.host.model["kp_detector_params"] == small_recipe.host.model["kp_detector_params"]
    assert recipe_from_dict(control.to_dict(), "test") == control
    assert label(control) == f"fomm, {width / 4:.3g} times as wide"


@pytest.mark.parametrize("name", MODELS)
def test_a_widened_host_starts_as_the_trained_one_and_can_leave_it(name):
    torch.manual_seed(0)
    small, wide = create_host(name, MODELS[name]), create_host(name, wider(MODELS[name], 2))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    source, driving = torch.rand(2, 2, 3, 32, 32)
    with torch.no_grad():
        small(source, driving)  # batch statistics move away from their start
        expected = small.eval()(source, driving).prediction
    transplant(small, wide.train(), 32)
    assert wide.training
    with torch.no_grad():
        torch.testing.assert_close(wide.eval()(source, driving).prediction, expected, atol=1e-6, rtol=1e-5)
    wide.train()(source, driving).prediction.square().sum().backward()
    added = {
        key: value
        for key, value in wide.generator.named_parameters()
        if value.shape != small.generator.get_parameter(key).shape
    }
    assert len(added) > 10
    weight = wide.generator.final.weight
    assert not weight[:, 4:].any() and weight.grad[:, 4:].abs().max() > 0  # the new channels count as soon as it helps


def test_a_host_that_would_start_as_another_is_refused():
    torch.manual_seed(0)
    small, wide = create_host("fomm", MODELS["fomm"]), create_host("fomm", wider(MODELS["fomm"], 2))
    wide.generator.register_forward_hook(
        lambda module, args, out: dataclasses.replace(out, prediction=1 - out.prediction)
    )
    with pytest.raises(UserError, match=r"cannot start as the trained one .*: expected init=null"):
        transplant(small, wide, 32)
    with pytest.raises(UserError, match="is in one of the two hosts only"):
        transplant(small, create_host("mcnet", MODELS["mcnet"]), 32)


def test_a_control_is_trained_from_a_trained_host(small_recipe, tmp_path, head_cache):
    alone = dataclasses.replace(small_recipe, memory=None, loss=dataclasses.replace(small_recipe.loss, consistency=0.0))
    host = build_host(alone).eval()
    save_run(tmp_path / "host.safetensors", alone, host, 0)
    recipe = tmp_path / "recipe.yaml"
    few = ["data.identities=2", "optim.steps=1", "optim.batch_size=1", "log.held_out_pairs=1", "optim.lr=1e-9"]
    control = with_overrides(
        small_recipe, ["capacity=parameters", f"init={tmp_path / 'host.safetensors'}", *few], "test"
    )
    recipe.write_text(control.to_yaml())
    assert main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 0
    state = read_trained(tmp_path / "run")
    assert state.recipe.memory is None and state.recipe.host.widened > 1 and state.recipe.capacity is None
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == state.recipe
    trained = build_host(state.recipe)
    trained.load_state_dict(state.weights)
    pictures = torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad():
        before, after = (one.eval()(*pictures).prediction for one in (host, trained))
    assert (before - after).abs().max() < 0.05  # one step, whose batch statistics moved a little
    assert not any("memory" in key for key in state.weights)


def test_what_cannot_be_matched_is_said(small_recipe):
    alone = dataclasses.replace(small_recipe, memory=None)
    assert resolved(small_recipe) is small_recipe
    with pytest.raises(UserError, match="capacity: expected a recipe with a memory"):
        widened(alone, "parameters")
    large = with_overrides(small_recipe, ["memory.memory_channels=600"], "test")
    with pytest.raises(UserError, match="8 times as wide still has less"):
        widened(large, "parameters")
    for words, message in (
        (["memory=null", "capacity=flops"], "capacity: expected a memory to be as large as"),
        (["capacity=flops", "freeze_host=true"], "capacity: expected freeze_host: false"),
        (["capacity=both"], "capacity"),
        (["host.widened=0"], "host.widened: expected a number above 0"),
    ):
        with pytest.raises(UserError, match=message):
            with_overrides(small_recipe, words, "test")
