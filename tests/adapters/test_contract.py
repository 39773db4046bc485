"""What a host may be like beyond the ones here: keypoints in space, or none; no warped image."""

import pytest
import torch
from torch import nn

from memcomp import CompensationConfig, KeypointTap, Tap
from memcomp.adapters import Host, HostOutput, Keypoints, Layout, attach, from_pretrained, registry
from memcomp.adapters.attachment import attach as attachment
from memcomp.experiments.training.held_out import sample_grid

MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity")
LAYOUT = Layout(
    name="Volume",
    section="generator",
    parts=frozenset({"encode", "decode"}),
    taps=lambda root: [Tap("decode")],
    keypoints=KeypointTap(""),
    keypoint_dims=3,
)


class Volume(nn.Module):
    """A generator that moves a volume, and warps no image."""

    num_kp = 5

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, source, kp_source, kp_driving):
        return torch.sigmoid(self.decode(self.encode(source)))


class Solid(Host):
    """Its keypoints are points in space."""

    name, layouts, dims, count = "solid", (LAYOUT,), 3, 5

    def __init__(self, model):
        super().__init__(model)
        self.generator = Volume()

    def sections(self):
        return {"generator": self.generator}

    def keypoints(self, image):
        return Keypoints(image.mean((1, 2, 3))[:, None, None].expand(-1, self.count, self.dims))

    def generate(self, source, kp_source, kp_driving):
        flow, mask = torch.zeros(len(source), 2, 4, 4, 3), torch.zeros(len(source), 1, 2, 4, 4)
        made = self.generator(source, kp_source=kp_source, kp_driving=kp_driving)
        return HostOutput(made, None, flow, None, mask, None, kp_source, kp_driving)

    def transfer_motion(self, kp_source, kp_driving, kp_driving_initial, **options):
        return kp_driving


class Blind(Solid):
    """It has no keypoints, hence takes no memory."""

    name, layouts, count = "blind", (), 0


def pictures():
    return torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def test_keypoints_in_space_reach_the_memory():
    host = Solid({}).eval()
    source, driving = pictures()
    plain = host(source, driving)
    handle = attach(host, MEMORY)
    memory = handle.compensation
    assert (memory.keypoints, memory.keypoint_dims, memory.iicm[0].mlp[0].in_features) == (5, 3, 8 + 15)
    assert torch.equal(host(source, driving).prediction, plain.prediction)
    nn.init.ones_(memory.scales[0].gate)
    assert not torch.equal(host(source, driving).prediction, plain.prediction)


def test_an_upstream_generator_with_keypoints_in_space_is_attached(monkeypatch):
    monkeypatch.setattr(attachment, "host_classes", lambda: [Solid])
    assert attach(Volume(), MEMORY).compensation.keypoint_dims == 3


class Bare(Solid):
    """Its taps are its own: no layout tells what its keypoints are."""

    name, layouts = "bare", ()

    def taps(self):
        return [Tap("decode")], KeypointTap("")


@pytest.mark.parametrize("said", [{}, {"keypoint_dims": 3}], ids=["by its network", "by whoever attaches"])
def test_a_host_without_a_layout_has_keypoints_in_space_too(said, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_HOSTS", {**registry._HOSTS, "bare": Bare})
    host = Bare({}).eval()
    if not said:
        monkeypatch.setattr(Volume, "keypoint_dims", 3, raising=False)
    source, driving = pictures()
    plain = host(source, driving).prediction
    memory = attach(host, MEMORY, **said).compensation
    assert memory.keypoint_dims == 3 and torch.equal(host(source, driving).prediction, plain)
    nn.init.ones_(memory.scales[0].gate)
    host.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.memory.keypoint_dims == 3
    assert torch.equal(again(source, driving).prediction, host(source, driving).prediction)


def test_a_host_without_keypoints_works_and_takes_no_memory():
    host = Blind({}).eval()
    source, driving = pictures()
    assert host(source, driving).kp_source.value.shape == (2, 0, 3)
    with pytest.raises(ValueError, match="host 'blind' takes no memory: it names no taps"):
        attach(host, MEMORY)


def test_a_grid_has_no_column_for_an_image_that_is_not_warped():
    source, driving = pictures()
    assert sample_grid(source, driving, Solid({})(source, driving)).shape == (2 * 16, 3 * 16, 3)


def test_keypoints_of_any_kind_are_changed_tensor_by_tensor():
    flat, affine = Keypoints(torch.rand(2, 5, 2)), Keypoints(torch.rand(2, 5, 3), torch.rand(2, 5, 3, 3))
    assert flat.each(lambda x: x[:1]).value.shape == (1, 5, 2) and flat.each(torch.neg).jacobian is None
    half = affine.each(torch.Tensor.half)
    assert (half.value.dtype, half.jacobian.dtype) == (torch.float16, torch.float16)
