"""Motion that comes with the pictures, as further channels: flow, visibility, and landmarks as keypoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from memcomp.adapters.fomm.motion import DenseMotion
from memcomp.adapters.outputs import Keypoints

CHANNELS = 7  # of a picture: red, green, blue, flow x, flow y, visibility, landmarks


def pack(picture: Tensor, flow: Tensor, visibility: Tensor, landmarks: Tensor) -> Tensor:
    """Put a motion beside the picture that it leads to.

    Args:
        picture: (B, 3, H, W) in [0, 1].
        flow: (B, H, W, 2), for every place the picture coordinates in [-1, 1] of the source to look at; ±1 are the
            picture's edges.
        visibility: (B, 1, H, W) in [0, 1], 1 = the source shows it.
        landmarks: (B, K, 2), picture coordinates of the picture's own landmarks; 2 K <= H W.

    Returns:
        (B, 7, H, W).
    """
    written = picture.new_zeros(len(picture), picture[0, 0].numel())  # (B, H W): the first 2 K are coordinates
    written[:, : landmarks[0].numel()] = landmarks.flatten(1)
    plane = written.view(len(picture), 1, *picture.shape[2:])
    return torch.cat([picture, flow.permute(0, 3, 1, 2), visibility, plane], dim=1)


@dataclass(frozen=True)
class Given(Keypoints):
    """Landmarks as keypoints, and the motion that leads to the picture they are of.

    Attributes:
        flow: (B, H, W, 2) in picture coordinates.
        visibility: (B, 1, H, W).
    """

    flow: Tensor | None = None
    visibility: Tensor | None = None

    @classmethod
    def unpack(cls, image: Tensor, num_kp: int) -> Given:
        """Read what `pack` wrote.

        Raises:
            ValueError: pictures without these channels.
        """
        if image.shape[1] != CHANNELS:
            raise ValueError(
                f"expected pictures of {CHANNELS} channels, with their exact motion (recipe: data.kind=heads, "
                f"data.motion=true); got {image.shape[1]}"
            )
        value = image[:, 6].flatten(1)[:, : 2 * num_kp].unflatten(1, (num_kp, 2))
        return cls(value, flow=image[:, 3:5].permute(0, 2, 3, 1), visibility=image[:, 5:6])

    def still(self) -> Given:
        """Keep the landmarks and give no motion at all: every place looks at itself, and all is visible."""
        assert self.flow is not None and self.visibility is not None
        height, width = self.flow.shape[1:3]
        x, y = ((torch.arange(n, device=self.flow.device) + 0.5) * (2 / n) - 1 for n in (width, height))
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        flow = torch.stack([columns, rows], dim=-1).to(self.flow.dtype).expand_as(self.flow)
        return Given(self.value, flow=flow, visibility=torch.ones_like(self.visibility))


class GivenMotion(nn.Module):
    """Stands where a generator has its dense-motion network, and hands on the motion that it is given.

    Args:
        num_kp: K.
        align_corners: of the generator's `grid_sample`: with True, ±1 are the centres of the border pixels.
        num_channels, estimate_occlusion_map: of a network that would have to find the motion; without effect.
    """

    def __init__(self, num_kp: int, num_channels: int, estimate_occlusion_map: bool, align_corners: bool) -> None:
        super().__init__()
        self.num_kp, self.align_corners = num_kp, align_corners

    def forward(self, source_image: Tensor, kp_driving: Given, kp_source: Keypoints) -> DenseMotion:
        """The flow (B, H, W, 2) and visibility (B, 1, H, W) of `kp_driving`; one motion, so the mask is 1."""
        flow, visibility = kp_driving.flow, kp_driving.visibility
        assert flow is not None and visibility is not None
        if self.align_corners:
            height, width = flow.shape[1:3]
            flow = flow * flow.new_tensor([width / (width - 1), height / (height - 1)])
        return DenseMotion(flow, visibility, torch.ones_like(visibility), None)
