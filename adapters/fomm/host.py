"""FOMM as a host: the networks put together, their sections, taps and loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memcomp.adapters.base import Host
from memcomp.adapters.fomm import upstream
from memcomp.adapters.fomm.discriminator import Judgement, MultiScaleDiscriminator
from memcomp.adapters.fomm.generator import OcclusionAwareGenerator
from memcomp.adapters.fomm.keypoints import KeypointDetector
from memcomp.adapters.fomm.motion import DenseMotionNetwork
from memcomp.adapters.layout import Layout
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared import losses
from memcomp.adapters.shared.params import checked_params
from memcomp.adapters.shared.transfer import transfer_motion


def _common(num_kp: int, num_channels: int = 3, estimate_jacobian: bool = False) -> None:
    """The signature of ``common_params``."""


def _model(
    common_params: Mapping[str, Any],
    kp_detector_params: Mapping[str, Any],
    generator_params: Mapping[str, Any],
    discriminator_params: Mapping[str, Any] | None = None,
    align_corners: bool = False,
) -> None:
    """The signature of `model`."""


class FOMM(Host):
    """The first-order motion model.

    Args:
        model: upstream's `model_params`: ``common_params``, ``kp_detector_params``, ``generator_params`` (with
            ``dense_motion_params``) and, unless the host is to have no discriminator, ``discriminator_params``;
            besides, our ``align_corners`` (default False).

    ``align_corners`` is that of every `grid_sample`: the source warped by each local motion, the features and the
    image warped by the flow, and the frame of the equivariance terms. Upstream passes nothing, which is False on
    current torch but was True on torch < 1.3, with which the first checkpoints were trained: give True for those.
    Coordinates put ±1 at the centres of the border pixels in either case, and the resizing of flow and occlusion
    map was and is done with False.

    Raises:
        ValueError: an unknown or a missing key in `model`.
    """

    name: ClassVar[str] = "fomm"
    encoder = ("first", "down_blocks")
    loss_names: ClassVar[tuple[str, ...]] = (
        "equivariance_value",
        "equivariance_jacobian",
        "keypoint_distance",
        "generator_gan",
        "feature_matching",
    )
    model_signature: ClassVar[Callable[..., None]] = staticmethod(_model)  # its parameters are the keys of `model`
    generator_type: ClassVar[type[nn.Module]] = OcclusionAwareGenerator  # descendants of FOMM have another
    further_channels: ClassVar[int] = 0  # that the keypoint detector sees besides the picture's
    layouts: ClassVar[tuple[Layout, ...]] = upstream.LAYOUTS
    read_model = staticmethod(upstream.read_model)
    published: ClassVar[Mapping[str, Any]] = {  # vox-256
        "common_params": {"num_kp": 10, "num_channels": 3, "estimate_jacobian": True},
        "kp_detector_params": {
            "temperature": 0.1,
            "block_expansion": 32,
            "max_features": 1024,
            "scale_factor": 0.25,
            "num_blocks": 5,
        },
        "generator_params": {
            "block_expansion": 64,
            "max_features": 512,
            "num_down_blocks": 2,
            "num_bottleneck_blocks": 6,
            "estimate_occlusion_map": True,
            "dense_motion_params": {"block_expansion": 64, "max_features": 1024, "num_blocks": 5, "scale_factor": 0.25},
        },
        "discriminator_params": {
            "scales": [1],
            "block_expansion": 32,
            "max_features": 512,
            "num_blocks": 4,
            "sn": True,
        },
    }

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__(model)
        sections = checked_params("model", model, self.model_signature)
        common = checked_params("model.common_params", sections["common_params"], _common)
        shared = {"num_kp": common["num_kp"], "num_channels": common.get("num_channels", 3)}
        given = ("num_kp", "num_channels", "estimate_jacobian", "align_corners", "estimate_occlusion_map")
        detector = checked_params(
            "model.kp_detector_params", sections["kp_detector_params"], KeypointDetector, supplied=given
        )
        generator = checked_params(
            "model.generator_params", sections["generator_params"], self.generator_type, supplied=given[:4]
        )
        where = "model.generator_params.dense_motion_params"
        checked_params(where, generator["dense_motion_params"], DenseMotionNetwork, supplied=given)
        self.align_corners = bool(sections.get("align_corners", False))
        jacobian = common.get("estimate_jacobian", False)
        channels = shared | {"num_channels": shared["num_channels"] + self.further_channels}
        self.kp_detector = KeypointDetector(**channels, estimate_jacobian=jacobian, **detector)
        self.generator = self.make_generator(**shared, align_corners=self.align_corners, **generator)
        self.discriminator: MultiScaleDiscriminator | None = None
        if sections.get("discriminator_params") is not None:
            discriminator = checked_params(
                "model.discriminator_params", sections["discriminator_params"], MultiScaleDiscriminator, supplied=given
            )
            self.discriminator = MultiScaleDiscriminator(**shared, **discriminator)

    def make_generator(self, **params: Any) -> nn.Module:
        """The generator with fresh weights; called by the constructor."""
        return self.generator_type(**params)

    def sections(self) -> dict[str, nn.Module]:
        """``generator`` (with the dense motion inside), ``kp_detector`` and, if the host has one, ``discriminator``."""
        sections: dict[str, nn.Module] = {"generator": self.generator, "kp_detector": self.kp_detector}
        return sections if self.discriminator is None else sections | {"discriminator": self.discriminator}

    def keypoints(self, image: Tensor) -> Keypoints:
        """Keypoints, with Jacobians if estimated, of images (B, 3, H, W)."""
        return self.kp_detector(image)

    def generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        *,
        encoded: tuple[Tensor, ...] | None = None,
    ) -> HostOutput:
        """The source images (B, 3, H, W) in the driving pose; `encoded`: what the generator's `encode` made of one."""
        return self.generator(source, kp_source=kp_source, kp_driving=kp_driving, encoded=encoded)

    def transfer_motion(
        self,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        relative: bool = True,
        adapt_scale: bool = True,
    ) -> Keypoints:
        """Move the source as the driving head moved: `memcomp.adapters.shared.transfer.transfer_motion`."""
        return transfer_motion(kp_source, kp_driving, kp_driving_initial, relative=relative, adapt_scale=adapt_scale)

    def loss_terms(
        self,
        output: HostOutput,
        source: Tensor,
        driving: Tensor,
        names: Iterable[str],
        *,
        generator: torch.Generator,
        transform_params: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """The terms of `loss_names` that are named, unweighted.

        ``equivariance_value`` and ``equivariance_jacobian`` share one random warp of the driving frame, drawn from
        `generator` with `transform_params` (``sigma_affine``, ``sigma_tps``, ``points_tps``); ``keypoint_distance``
        sums source and driving; ``generator_gan`` and ``feature_matching`` judge prediction and driving frame, given
        the detached driving keypoints. They leave gradients in the discriminator: zero these before its own step.

        Raises:
            ValueError: an unknown name, a host without discriminator or without Jacobians for a term that needs them.
        """
        names = self.known_losses(names)
        terms: dict[str, Tensor] = {}
        if any(name.startswith("equivariance") for name in names):
            transform = losses.RandomTransform.draw(driving, generator, **transform_params)
            moved = self.keypoints(transform.warp_frame(driving, align_corners=self.align_corners))
            if "equivariance_value" in names:
                terms["equivariance_value"] = losses.equivariance_value(output.kp_driving, moved, transform)
            if "equivariance_jacobian" in names:
                terms["equivariance_jacobian"] = losses.equivariance_jacobian(output.kp_driving, moved, transform)
        if "keypoint_distance" in names:
            terms["keypoint_distance"] = losses.keypoint_distance(output.kp_source) + losses.keypoint_distance(
                output.kp_driving
            )
        if "generator_gan" in names or "feature_matching" in names:
            kp = output.kp_driving.detach()
            fake = self._judge(output.prediction, kp)
            if "generator_gan" in names:
                terms["generator_gan"] = losses.gan_generator(fake.predictions)
            if "feature_matching" in names:
                terms["feature_matching"] = losses.feature_matching(self._judge(driving, kp).features, fake.features)
        return terms

    def discriminator_loss(self, output: HostOutput, driving: Tensor) -> Tensor:
        """Least squares on the driving frame (real) and the detached prediction (fake)."""
        kp = output.kp_driving.detach()
        fake = self._judge(output.prediction.detach(), kp)
        return losses.gan_discriminator(self._judge(driving, kp).predictions, fake.predictions)

    def _judge(self, image: Tensor, kp: Keypoints) -> Judgement:
        if self.discriminator is None:
            raise ValueError("the host has no discriminator: its model lacks discriminator_params")
        return self.discriminator(image, kp)
