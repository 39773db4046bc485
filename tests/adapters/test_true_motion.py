"""The laboratory host: what is warped by the exact flow is the driving frame, but for what is hidden."""

import pytest
import torch

from memcomp import CompensationConfig
from memcomp.adapters import attach, create_host
from memcomp.adapters.true_motion import Given, pack

MODELS = {
    "fomm": {"block_expansion": 4, "max_features": 8, "num_down_blocks": 1, "num_bottleneck_blocks": 1},
    "tpsm": {"block_expansion": 4, "max_features": 8, "num_down_blocks": 2},
}


def pictures(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A source, and a driving picture that shows it moved four pixels to the right, its left edge hidden."""
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(2, 3, size, size, generator=generator)
    at = (torch.arange(size) + 0.5) * (2 / size) - 1
    rows, columns = torch.meshgrid(at, at, indexing="ij")
    flow = torch.stack([columns - 8 / size, rows], -1).expand(2, -1, -1, -1)
    visible = torch.ones(2, 1, size, size)
    visible[..., :4] = 0
    driving = source.roll(4, -1)
    still = torch.stack([columns, rows], -1).expand(2, -1, -1, -1)
    points = torch.rand(2, 5, 2, generator=generator) * 2 - 1
    return pack(source, still, torch.ones_like(visible), points), pack(driving, flow, visible, points.flip(1))


def host(decoder: str):
    torch.manual_seed(0)
    return create_host("true_motion", {"decoder": decoder, "num_kp": 5, "generator_params": MODELS[decoder]})


def test_packing_is_undone() -> None:
    source, driving = pictures()
    given = Given.unpack(driving, 5)
    torch.testing.assert_close(given.flow[:, :, 4:, 0] * 16, Given.unpack(source, 5).flow[:, :, :-4, 0] * 16)
    assert (given.visibility[..., :4] == 0).all() and (given.visibility[..., 4:] == 1).all()
    torch.testing.assert_close(given.value, Given.unpack(source, 5).value.flip(1))
    with pytest.raises(ValueError, match="7 channels"):
        Given.unpack(source[:, :3], 5)


@pytest.mark.parametrize("decoder", MODELS)
def test_the_flow_warps_the_source_onto_the_driving_picture(decoder: str) -> None:
    source, driving = pictures()
    output = host(decoder).eval()(source, driving)
    assert output.prediction.shape == (2, 3, 32, 32)
    torch.testing.assert_close(output.deformed[..., 4:], driving[:, :3, :, 4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("decoder", MODELS)
def test_one_picture_given_twice_does_not_move(decoder: str) -> None:
    _, driving = pictures()
    output = host(decoder).eval()(driving, driving)
    torch.testing.assert_close(output.deformed, driving[:, :3], atol=1e-4, rtol=0)
    assert (output.occlusion_map == 1).all()


@pytest.mark.parametrize("decoder", MODELS)
def test_a_memory_attaches_and_starts_as_nothing(decoder: str) -> None:
    source, driving = pictures()
    plain = host(decoder).eval()
    with_memory = host(decoder).eval()
    config = CompensationConfig.paper(start="identity", memory_channels=8, memory_size=(4, 4))
    handle = attach(with_memory, config)
    assert handle.compensation.keypoints == 5
    assert torch.equal(with_memory(source, driving).prediction, plain(source, driving).prediction)


def test_a_wrong_decoder_is_named() -> None:
    with pytest.raises(ValueError, match="expected one of fomm, tpsm"):
        create_host("true_motion", {"decoder": "dagan", "generator_params": {}})
