"""Loss terms that hosts share: pure functions, unweighted, each a scalar.

Equivariance, least squares GAN and feature matching: Siarohin et al., 2019, §3.3; keypoint distance: MCNet, §3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import coordinate_grid, inverse_2x2, matmul_2x2, warp
from memcomp.adapters.shared.draws import draw_each, to_device

PLACES_AT_ONCE = 4 * 256**2  # of pictures that are warped at random: there, four pictures of 256×256
RADIUS_EPSILON = 1e-6  # inside the logarithm of the thin-plate term


@dataclass(frozen=True)
class RandomTransform:
    """A random smooth warp T of the plane: an affine map and, if it has control parameters, a thin-plate term.

    T(z) = A z + t + Σ_i w_i r_i² log(r_i + 1e-6), the sum added to x and to y, where r_i = |Δx| + |Δy| (L1, as
    published) is the distance of z to control point i of a regular P × P grid over [-1, 1]².

    Attributes:
        theta: (B, 2, 3), [A | t].
        control_params: (B, P²), the weights w, or None.
    """

    theta: Tensor
    control_params: Tensor | None = None

    @classmethod
    def draw(
        cls,
        like: Tensor,
        generator: torch.Generator,
        *,
        sigma_affine: float = 0.05,
        sigma_tps: float | None = None,
        points_tps: int | None = None,
    ) -> RandomTransform:
        """One transform for each image of a batch.

        Args:
            like: (B, ...), gives batch size, dtype and device.
            generator: CPU generator that all numbers come from.
            sigma_affine: deviation of the six affine numbers around the identity.
            sigma_tps, points_tps: deviation of the control parameters and side P of their grid; both or neither.

        Raises:
            ValueError: only one of `sigma_tps` and `points_tps` is given.
        """
        if (sigma_tps is None) != (points_tps is None):
            raise ValueError("transform_params: sigma_tps and points_tps are given together or not at all")
        batch = like.shape[0]
        theta = torch.eye(2, 3) + sigma_affine * draw_each(torch.randn, batch, 2, 3, generator=generator)
        if sigma_tps is None or points_tps is None:
            return cls(to_device(theta.to(like.dtype), like.device))
        control_params = sigma_tps * draw_each(torch.randn, batch, points_tps**2, generator=generator)
        return cls(*(to_device(drawn.to(like.dtype), like.device) for drawn in (theta, control_params)))

    def warp_frame(self, frame: Tensor, *, align_corners: bool = False) -> Tensor:
        """Images (B, C, H, W) sampled at T of each pixel's place, reflected at the border.

        T is taken of `PLACES_AT_ONCE` at most, for the thin-plate term needs several numbers for each place and each
        control point: of 64 pictures of 256×256, that would be the most memory that a whole training step takes.
        """
        batch, (height, width) = len(frame), frame.shape[2:]
        places = coordinate_grid(height, width, self.theta).flatten(0, 1).expand(batch, -1, -1)
        parts = places.split(max(1, PLACES_AT_ONCE // batch), dim=1)
        grid = torch.cat([self.warp_coordinates(part) for part in parts], dim=1).unflatten(1, (height, width))
        return warp(frame, grid, align_corners=align_corners, padding_mode="reflection")

    def warp_coordinates(self, coordinates: Tensor) -> Tensor:
        """T of places (B, N, 2)."""
        theta = self.theta.to(coordinates.dtype).unsqueeze(1)  # (B, 1, 2, 3)
        moved = (theta[..., :2] * coordinates.unsqueeze(-2)).sum(-1) + theta[..., 2]
        if self.control_params is None:
            return moved
        bend = self._bend(self._offsets(coordinates)) * self._weights(coordinates)  # (B, N, P²)
        return moved + bend.sum(-1, keepdim=True)

    def jacobian(self, coordinates: Tensor) -> Tensor:
        """dT/dz at places (B, N, 2) → (B, N, 2, 2) in closed form; row = component of T."""
        linear = self.theta.to(coordinates.dtype)[:, None, :, :2]  # (B, 1, 2, 2)
        if self.control_params is None:
            return linear.expand(-1, coordinates.shape[1], -1, -1)
        slope = self._bend_slope(self._offsets(coordinates))
        gradient = (slope * self._weights(coordinates).unsqueeze(-1)).sum(-2)  # (B, N, 2)
        return linear + gradient.unsqueeze(-2)  # the thin-plate term is the same in both components

    def _bend(self, offsets: Tensor) -> Tensor:
        """The radial term of offsets (..., 2) from a control point → (...)."""
        radius = offsets.abs().sum(-1)
        return radius.square() * torch.log(radius + RADIUS_EPSILON)

    def _bend_slope(self, offsets: Tensor) -> Tensor:
        """Its derivative by the offsets, (..., 2)."""
        radius = offsets.abs().sum(-1, keepdim=True)
        slope = 2 * radius * torch.log(radius + RADIUS_EPSILON) + radius.square() / (radius + RADIUS_EPSILON)
        return slope * offsets.sign()

    def _offsets(self, coordinates: Tensor) -> Tensor:
        """Places minus control points, (B, N, P², 2)."""
        assert self.control_params is not None
        side = round(self.control_params.shape[-1] ** 0.5)
        return coordinates.unsqueeze(-2) - coordinate_grid(side, side, coordinates).flatten(0, 1)

    def _weights(self, coordinates: Tensor) -> Tensor:
        assert self.control_params is not None
        return self.control_params.to(coordinates.dtype).unsqueeze(1)


def equivariance_value(kp: Keypoints, kp_transformed: Keypoints, transform: RandomTransform) -> Tensor:
    """Mean |p - T(p')|: keypoints p of an image and p' of the image warped by T."""
    return (kp.value - transform.warp_coordinates(kp_transformed.value)).abs().mean()


def equivariance_jacobian(kp: Keypoints, kp_transformed: Keypoints, transform: RandomTransform) -> Tensor:
    """Mean |I - J⁻¹ T'(p') J'|: Jacobians J of an image and J' of the image warped by T, with T' = dT/dz.

    Raises:
        ValueError: the keypoints have no Jacobians.
    """
    if kp.jacobian is None or kp_transformed.jacobian is None:
        raise ValueError("equivariance_jacobian needs Jacobians: set common_params.estimate_jacobian to true")
    moved = matmul_2x2(transform.jacobian(kp_transformed.value), kp_transformed.jacobian)
    product = matmul_2x2(inverse_2x2(kp.jacobian), moved)
    return (torch.eye(2, dtype=product.dtype, device=product.device) - product).abs().mean()


def keypoint_distance(kp: Keypoints, threshold: float = 0.2) -> Tensor:
    """Penalty on keypoints that crowd: the mean over all K² ordered pairs of 1 - sign(d - threshold).

    That is the published value, 2 for a close pair and 0 for another, which has no gradient anywhere. The gradient
    here is that of the hinge 2 max(0, 1 - d / threshold), which is 0 for the same pairs and pushes close ones apart.
    Distances are in the units of [-1, 1], smoothed as published: d = √(|Δ|² + 1e-8). A keypoint and itself do not
    count.
    """
    difference = kp.value.unsqueeze(2) - kp.value.unsqueeze(1)  # (B, K, K, 2)
    distance = (difference.square().sum(-1) + 1e-8).sqrt()
    others = 1 - torch.eye(distance.shape[-1], dtype=distance.dtype, device=distance.device)
    hinge = (2 * (1 - distance / threshold).clamp(min=0) * others).mean()
    published = ((1 - torch.sign(distance.detach() - threshold)) * others).mean()
    return published + (hinge - hinge.detach())


def gan_generator(fake: Sequence[Tensor]) -> Tensor:
    """Least squares: the mean of (1 - D(fake))², summed over the discriminator's scales."""
    return torch.stack([(1 - prediction).square().mean() for prediction in fake]).sum()


def gan_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Least squares: the mean of (1 - D(real))² + D(fake)², summed over the discriminator's scales."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([((1 - r).square() + f.square()).mean() for r, f in pairs]).sum()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean |D_i(real) - D_i(fake)|, summed over the discriminator's blocks i and scales; real is not detached."""
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r, f, strict=True)]
    return torch.stack([(r - f).abs().mean() for r, f in pairs]).sum()
