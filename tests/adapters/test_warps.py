"""Warps: they keep the memory format of what they warp, and the sampler that they use takes any strides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memcomp import CompensationConfig
from memcomp.adapters import attach, create_host
from memcomp.adapters.shared import losses
from memcomp.adapters.shared.blocks import coordinate_grid, warp
from memcomp.adapters.shared.losses import RandomTransform
from memcomp.adapters.tpsm.splines import RandomSpline
from memcomp.adapters.true_motion import pack

LAST = torch.channels_last
MOTION = {"block_expansion": 4, "max_features": 16, "num_blocks": 2, "scale_factor": 0.25}
DETECTOR = {"temperature": 0.1, "block_expansion": 4, "max_features": 8, "num_blocks": 2, "scale_factor": 0.25}
SIZES = {"block_expansion": 8, "max_features": 32, "num_down_blocks": 2, "num_bottleneck_blocks": 1}
GENERATOR = SIZES | {"estimate_occlusion_map": True, "dense_motion_params": MOTION}
FIRST_ORDER = {
    "common_params": {"num_kp": 5, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": DETECTOR,
    "generator_params": GENERATOR,
}
MODELS = {
    "fomm": FIRST_ORDER,
    "dagan": FIRST_ORDER | {"depth": "zeros"},
    "mcnet": FIRST_ORDER | {"generator_params": GENERATOR | {"num_down_blocks": 3}},
    "tpsm": {
        "common_params": {"num_tps": 5, "num_channels": 3, "bg": True, "multi_mask": True},
        "generator_params": {"block_expansion": 8, "max_features": 32, "num_down_blocks": 3},
        "dense_motion_params": MOTION | {"block_expansion": 8},
    },
    "mraa": {
        "num_regions": 5,
        "region_predictor_params": DETECTOR | {"pca_based": True},
        "generator_params": SIZES
        | {"skips": True, "pixelwise_flow_predictor_params": MOTION | {"estimate_occlusion_map": True}},
    },
    "true_motion": {"decoder": "tpsm", "generator_params": {**SIZES, "num_down_blocks": 3}},
}
del MODELS["true_motion"]["generator_params"]["num_bottleneck_blocks"]
WARPS = {  # of the source for the dense motion, of each warped feature, of the picture; of the equivariance term
    "fomm": 3 + 1,
    "dagan": 3 + 1,
    "mcnet": 6 + 1,
    "tpsm": 6 + 1,
    "mraa": 5 + 1,
    "true_motion": 5,
}


def pictures(name):
    source, driving = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    if name == "true_motion":
        flow = (coordinate_grid(64, 64, source) * 0.8).expand(2, -1, -1, -1)
        source, driving = (pack(p, flow, torch.ones(2, 1, 64, 64), torch.zeros(2, 10, 2)) for p in (source, driving))
    return [picture.contiguous(memory_format=LAST) for picture in (source, driving)]


def lies_last(x):
    return x.is_contiguous(memory_format=LAST) and not x.is_contiguous()


@pytest.mark.parametrize("name", MODELS)
def test_every_warp_of_a_host_keeps_channels_last(name, monkeypatch):
    torch.manual_seed(0)
    host = create_host(name, MODELS[name]).train().lay_out(LAST)
    attach(host, CompensationConfig.paper(memory_channels=8, memory_size=(4, 4)))
    sampled, kept, strays = [], [], []
    sampler, format_of = torch.grid_sampler_2d, torch.Tensor.contiguous

    def watched(source, grid, interpolation, padding, align_corners):
        assert interpolation == 0  # bilinear
        mode = {"padding_mode": ("zeros", "border", "reflection")[padding]}
        found = sampler(source, grid, interpolation, padding, align_corners)
        assert torch.equal(found, F.grid_sample(source.contiguous(), grid, align_corners=align_corners, **mode))
        sampled.append(found)
        return found

    def laid_out(self, memory_format=torch.contiguous_format):
        laid = format_of(self, memory_format=memory_format)
        if any(self is found for found in sampled):
            kept.append(lies_last(laid) and torch.equal(laid, self))
        return laid

    def fed(module, args):
        strays.extend([module] * (args[0].shape[1] > 3 and not lies_last(args[0])))

    monkeypatch.setattr(torch, "grid_sampler_2d", watched)
    monkeypatch.setattr(torch.Tensor, "contiguous", laid_out)
    for module in host.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.InstanceNorm2d):
            module.register_forward_pre_hook(fed)
    source, driving = pictures(name)
    output = host.training_output(source, driving, epoch=0.0, generator=torch.Generator())
    terms = ["equivariance_value"] if "equivariance_value" in host.loss_names else []
    host.loss_terms(output, source, driving, terms, generator=torch.Generator(), transform_params={})
    assert kept == [True] * WARPS[name] == [True] * len(sampled)
    assert not strays  # what is made of warps lies so too


@pytest.mark.parametrize("name", MODELS)
def test_the_memory_format_changes_no_picture(name):
    found = []
    for memory_format in (torch.contiguous_format, LAST):
        torch.manual_seed(0)
        host = create_host(name, MODELS[name]).double().eval().lay_out(memory_format)
        pair = [one.double().contiguous(memory_format=memory_format) for one in pictures(name)]
        found.append(host(*pair).prediction)
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


def test_strides_that_are_no_format_of_their_own_are_known():
    grid = torch.rand(3, 8, 8, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    picture = torch.rand(3, 5, 16, 16, generator=torch.Generator().manual_seed(2)).contiguous(memory_format=LAST)
    expected = F.grid_sample(picture.contiguous(), grid, align_corners=True)
    for image in (picture, picture[:, :3], picture[:1], picture[:1].expand(3, -1, -1, -1)):
        warped = warp(image, grid, align_corners=True)
        assert lies_last(warped)
        of_one = F.grid_sample(image.contiguous().expand(3, -1, -1, -1), grid, align_corners=True)
        assert torch.equal(warped, of_one)
        assert image is not picture or torch.equal(warped, expected)
    assert warp(picture.contiguous(), grid, align_corners=True).is_contiguous()


def test_gradients_through_a_warp_are_those_of_any_format():
    grid = torch.rand(2, 8, 8, 2, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    picture = torch.rand(2, 5, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    found = []
    for memory_format in (torch.contiguous_format, LAST):
        image = picture.clone().contiguous(memory_format=memory_format)
        leaves = image.requires_grad_(), grid.clone().requires_grad_()
        warp(*leaves, align_corners=True).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [RandomTransform, RandomSpline])
def test_a_random_warp_is_made_in_parts(kind, monkeypatch):
    frame = torch.rand(3, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    transform = kind.draw(frame, torch.Generator().manual_seed(2), sigma_tps=0.1, points_tps=5)
    sizes, whole = [], kind.warp_coordinates
    expected = transform.warp_frame(frame)
    monkeypatch.setattr(losses, "PLACES_AT_ONCE", 1000)  # of 2880

    def counted(self, places):
        sizes.append(places.shape[1])
        return whole(self, places)

    monkeypatch.setattr(kind, "warp_coordinates", counted)
    weight = torch.ones(3, 1, 1, 1, requires_grad=True)
    warped = transform.warp_frame(frame * weight)
    assert sizes == [333, 333, 294]
    assert torch.equal(warped, expected)
    warped.square().sum().backward()
    once = torch.ones(3, 1, 1, 1, requires_grad=True)
    monkeypatch.setattr(losses, "PLACES_AT_ONCE", 10**6)
    transform.warp_frame(frame * once).square().sum().backward()
    assert torch.equal(weight.grad, once.grad)
