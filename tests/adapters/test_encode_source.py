"""A source that is encoded once gives the pictures that a source encoded at every call gives."""

import pytest
import torch

from memcomp import CompensationConfig
from memcomp.adapters import attach, create_host

MOTION = {"block_expansion": 4, "max_features": 16, "num_blocks": 2, "scale_factor": 0.25}
DETECTOR = {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.25}
FIRST_ORDER = {
    "common_params": {"num_kp": 5, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": DETECTOR,
    "generator_params": {
        **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
        **{"estimate_occlusion_map": True, "dense_motion_params": MOTION},
    },
}
MODELS = {
    "fomm": FIRST_ORDER,
    "dagan": FIRST_ORDER | {"depth": "zeros"},
    "mcnet": FIRST_ORDER | {"generator_params": FIRST_ORDER["generator_params"] | {"num_down_blocks": 3}},
    "tpsm": {
        "common_params": {"num_tps": 5, "num_channels": 3, "bg": False, "multi_mask": True},
        "generator_params": {"block_expansion": 8, "max_features": 32, "num_down_blocks": 3},
        "dense_motion_params": MOTION | {"block_expansion": 8},
    },
    "facevid2vid": {
        "common_params": {"num_kp": 5, "image_channel": 3, "feature_channel": 8, "estimate_jacobian": False},
        "kp_detector_params": DETECTOR | {"reshape_channel": 32, "reshape_depth": 4},
        "he_estimator_params": {"block_expansion": 4, "widths": [8, 8, 12, 16]},
        "generator_params": {
            **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "reshape_channel": 8},
            **{"reshape_depth": 4, "num_resblocks": 1, "estimate_occlusion_map": True},
            "dense_motion_params": {
                **{"block_expansion": 4, "max_features": 8, "num_blocks": 2, "reshape_depth": 4, "compress": 2},
            },
        },
    },
    "mraa": {
        "num_regions": 5,
        "region_predictor_params": DETECTOR | {"pca_based": True},
        "generator_params": {
            **{"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "num_bottleneck_blocks": 1},
            "skips": True,
            "pixelwise_flow_predictor_params": MOTION | {"use_covar_heatmap": True, "estimate_occlusion_map": True},
        },
    },
}


def made(name):
    torch.manual_seed(0)
    host = create_host(name, MODELS[name])
    with torch.no_grad():
        for parameter in host.parameters():
            parameter += 0.04 * torch.randn_like(parameter)
    return host.double().eval()  # float32 rounds batches of other sizes otherwise


def both(host):
    """Predictions of three driving poses with the source encoded each time, and once; and whether features are kept."""
    generator = torch.Generator().manual_seed(1)
    source, *driving = torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        moved = host.keypoints(torch.stack(driving))
        pictures = source.expand(3, -1, -1, -1)
        each = host.generate(pictures, host.keypoints(pictures), moved).prediction
        encoded = host.encode_source(source[None])
        return each, host.generate_from(encoded, moved).prediction, encoded.features is not None


@pytest.mark.parametrize("name", MODELS)
def test_alone_and_with_a_memory(name):
    host = made(name)
    each, once, kept = both(host)
    assert kept and each.std() > 0.004 and torch.allclose(once, each, atol=1e-9)
    config = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4))
    handle = attach(host, config)
    host.eval()
    each_with, once_with, kept = both(host)
    assert kept and torch.allclose(once_with, each_with, atol=1e-9)
    assert not torch.allclose(each_with, each, atol=1e-4)  # the memory has its say
    handle.remove()
    attach(host, CompensationConfig.placed(memory_channels=8, memory_size=(4, 4)))
    each, once, kept = both(host.eval())
    assert kept and torch.allclose(once, each, atol=1e-9)


@pytest.mark.parametrize("name", ["fomm", "dagan"])
def test_skips_look_at_the_encoder_of_each_call(name):
    host = made(name)
    handle = attach(host, CompensationConfig.paper(memory_channels=8, memory_size=(4, 4)), mode="skip")
    with torch.no_grad():
        for parameter in handle.compensation.skips.parameters():
            parameter += 0.1
    each, once, kept = both(host.eval())
    assert not kept and torch.allclose(once, each, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_hooks_in_the_encoder_do_too(name):
    host = made(name)
    root = host.sections()[host.generator_section]
    hook = root.down_blocks[0].register_forward_hook(lambda module, args, output: output * 0.5)
    each, once, kept = both(host)
    hook.remove()
    assert not kept and torch.allclose(once, each, atol=1e-9)


def test_a_host_that_names_no_encoder_keeps_the_keypoints(monkeypatch):
    host = made("fomm")
    monkeypatch.setattr(type(host), "encoder", ())
    source, driving = torch.rand(2, 1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        encoded = host.encode_source(source)
        moved = host.keypoints(driving)
        expected = host.generate(source, encoded.keypoints, moved).prediction
        assert encoded.features is None
        assert torch.equal(host.generate_from(encoded, moved).prediction, expected)
