"""What hosts take and give: keypoints, and the pictures made with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of an image, with the local affine motion around each if the host estimates one.

    Attributes:
        value: (B, K, D), (x, y) or (x, y, z) in [-1, 1]; ±1 are the centres of the border pixels. K = 0: the host has
            no keypoints, and moves by what a subclass carries.
        jacobian: (B, K, D, D) or None; rows are the output's x and y.

    ``kp["value"]`` and ``"jacobian" in kp`` work as well, so modules written for dicts of keypoints accept these: every
    tensor has its name as its key, also those that a subclass adds.
    """

    value: Tensor
    jacobian: Tensor | None = None

    @classmethod
    def of(cls, keypoints: Keypoints | Mapping[str, Tensor]) -> Keypoints:
        """Make `Keypoints` of a dict with "value" and perhaps "jacobian"; `Keypoints` are returned as they are."""
        if isinstance(keypoints, Keypoints):
            return keypoints
        return cls(keypoints["value"], keypoints.get("jacobian"))

    def detach(self) -> Keypoints:
        """Keypoints with the same numbers and no gradient history."""
        return self.each(Tensor.detach)

    def each(self, change: Callable[[Tensor], Tensor]) -> Keypoints:
        """Keypoints of the same kind, `change` applied to every tensor: ``kp.each(lambda x: x[:1])``, for example."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(x) for name, x in tensors.items() if isinstance(x, Tensor)})

    def to(self, device: torch.device | str) -> Keypoints:
        """The same keypoints on a device."""
        return self.each(lambda x: x.to(device))

    def expand(self, count: int) -> Keypoints:
        """The keypoints of one image (1, K, D) for each of `count` images; none is copied."""
        return self.each(lambda x: x.expand(count, *x.shape[1:]))

    def __getitem__(self, key: str) -> Tensor:
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and isinstance(getattr(self, key, None), Tensor)


@dataclass(frozen=True)
class EncodedSource:
    """What a host has computed of one source image, for all driving frames that follow: see `Host.encode_source`.

    Attributes:
        image: (1, 3, H, W), or as many channels as the host's pictures have.
        keypoints: of the image, (1, K, D).
        features: what the host's generator takes in place of encoding the image again; None = it encodes it each time.
    """

    image: Tensor
    keypoints: Keypoints
    features: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class HostOutput:
    """What a host makes of one source image and one driving pose. h, w: size of its dense-motion network.

    Attributes:
        prediction: (B, 3, H, W) in [0, 1].
        deformed: (B, 3, H, W), the source image warped by the flow alone; None if the host warps no image.
        deformation: (B, h, w, 2), for every output place the (x, y) in [-1, 1] of the source to look at; in a volume
            (B, D, h, w, 3), the (x, y, z).
        occlusion_map: (B, 1, h, w) in [0, 1], 1 = visible in the source; None if the host estimates none.
        mask: (B, K + 1, h, w), in a volume (B, K + 1, D, h, w), weights of the K local motions and of the still
            background (first); sums to 1.
        sparse_deformed: (B, K + 1, 3, h, w), the source warped by each of these motions; None if it was not.
        kp_source, kp_driving: the keypoints the host was given.
    """

    prediction: Tensor
    deformed: Tensor | None
    deformation: Tensor
    occlusion_map: Tensor | None
    mask: Tensor
    sparse_deformed: Tensor | None
    kp_source: Keypoints
    kp_driving: Keypoints
