"""face-vid2vid as a host: the networks put together, their sections, taps, loss terms and the free view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memcomp.adapters.base import Host
from memcomp.adapters.facevid2vid import losses, upstream
from memcomp.adapters.facevid2vid.generator import Generator, SpadeGenerator
from memcomp.adapters.facevid2vid.keypoints import KeypointDetector
from memcomp.adapters.facevid2vid.motion import DenseMotionNetwork
from memcomp.adapters.facevid2vid.pose import HeadPoseEstimator, PosedKeypoints, pose_of
from memcomp.adapters.facevid2vid.transfer import hull_volume
from memcomp.adapters.fomm.discriminator import Judgement, MultiScaleDiscriminator
from memcomp.adapters.layout import Layout
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.losses import (
    RandomTransform,
    equivariance_jacobian,
    equivariance_value,
    feature_matching,
    gan_discriminator,
    gan_generator,
)
from memcomp.adapters.shared.params import checked_params
from memcomp.adapters.shared.transfer import transfer_motion

GENERATORS = {"original": Generator, "spade": SpadeGenerator}
GAN = {  # mode → losses of generator and discriminator
    "hinge": (losses.hinge_generator, losses.hinge_discriminator),
    "ls": (gan_generator, gan_discriminator),
}


def _common(num_kp: int, image_channel: int = 3, feature_channel: int = 32, estimate_jacobian: bool = False) -> None:
    """The signature of ``common_params``."""


def _model(
    common_params: Mapping[str, Any],
    kp_detector_params: Mapping[str, Any],
    he_estimator_params: Mapping[str, Any],
    generator_params: Mapping[str, Any],
    discriminator_params: Mapping[str, Any] | None = None,
    generator: str = "original",
    gan_mode: str = "hinge",
) -> None:
    """The signature of `model`."""


class FaceVid2Vid(Host):
    """One-shot free-view talking-head synthesis; keypoints are 3-D, and pictures tell pose and expression.

    Keypoints of a picture (`PosedKeypoints`) are those of its own person. A source is moved by its own canonical
    keypoints in the driving pose, as published: `generate` and `transfer_motion` see to that.

    Args:
        model: upstream's `model_params`: ``common_params``, ``kp_detector_params``, ``he_estimator_params``,
            ``generator_params`` (with ``dense_motion_params``) and, unless the host is to have no discriminator,
            ``discriminator_params``; besides,

            - ``generator``: upstream's option --gen, "original" (default) or "spade";
            - ``gan_mode``: upstream's training parameter, "hinge" (default) or "ls".

    Pictures are (B, 3, H, W), or (B, 6, H, W) with the head pose that a teacher saw (`pose.with_pose`), for training.

    Raises:
        ValueError: an unknown or a missing key in `model`, or values that do not go together.
    """

    name: ClassVar[str] = "facevid2vid"
    encoder = ("first", "down_blocks", "second", "resblocks_3d")
    moving: ClassVar[tuple[str, ...]] = (*encoder, "dense_motion_network")  # which looks at the encoded source
    loss_names: ClassVar[tuple[str, ...]] = (
        "equivariance_value",
        "equivariance_jacobian",
        "keypoint_prior",
        "headpose",
        "expression",
        "generator_gan",
        "feature_matching",
    )
    free_view: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = upstream.LAYOUTS
    read_model = staticmethod(upstream.read_model)
    published: ClassVar[Mapping[str, Any]] = {  # vox-256
        "common_params": {"num_kp": 15, "image_channel": 3, "feature_channel": 32, "estimate_jacobian": False},
        "kp_detector_params": {
            "temperature": 0.1,
            "block_expansion": 32,
            "max_features": 1024,
            "scale_factor": 0.25,
            "num_blocks": 5,
            "reshape_channel": 16384,
            "reshape_depth": 16,
        },
        "he_estimator_params": {"block_expansion": 64, "max_features": 2048, "num_bins": 66},
        "generator_params": {
            "block_expansion": 64,
            "max_features": 512,
            "num_down_blocks": 2,
            "reshape_channel": 32,
            "reshape_depth": 16,
            "num_resblocks": 6,
            "estimate_occlusion_map": True,
            "dense_motion_params": {
                "block_expansion": 32,
                "max_features": 1024,
                "num_blocks": 5,
                "reshape_depth": 16,
                "compress": 4,
            },
        },
        "discriminator_params": {
            "scales": [1],
            "block_expansion": 32,
            "max_features": 512,
            "num_blocks": 4,
            "sn": True,
        },
        "generator": "original",
    }

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__(model)
        given = {"generator": "original", "gan_mode": "hinge"} | checked_params("model", model, _model)
        for name, known in (("generator", GENERATORS), ("gan_mode", GAN)):
            if given[name] not in list(known):
                raise ValueError(f"model.{name}: expected {' or '.join(known)}, got {given[name]!r}")
        common = {"image_channel": 3, "feature_channel": 32, "estimate_jacobian": False}
        common |= checked_params("model.common_params", given["common_params"], _common)

        def params(name: str, constructor: Any, *shared: str, other: tuple[str, ...] = ()) -> dict[str, Any]:
            own = checked_params(f"model.{name}", given[name], constructor, supplied=(*shared, *other))
            return own | {key: common[key] for key in shared}

        kind = GENERATORS[given["generator"]]
        sizes = ("num_kp", "image_channel")
        detector = params("kp_detector_params", KeypointDetector, *sizes, "estimate_jacobian")
        pose = params("he_estimator_params", HeadPoseEstimator, *sizes)
        generator = params("generator_params", kind, *sizes, "feature_channel")
        where = "model.generator_params.dense_motion_params"
        supplied = ("num_kp", "feature_channel", "estimate_occlusion_map")
        checked_params(where, generator["dense_motion_params"], DenseMotionNetwork, supplied=supplied)
        self.gan_mode: str = given["gan_mode"]
        try:
            self.kp_detector, self.he_estimator = KeypointDetector(**detector), HeadPoseEstimator(**pose)
            self.generator = kind(**generator)
        except ValueError as error:
            raise ValueError(f"model.{error}") from None
        self.discriminator: MultiScaleDiscriminator | None = None
        if given.get("discriminator_params") is not None:
            judge = checked_params(
                "model.discriminator_params",
                given["discriminator_params"],
                MultiScaleDiscriminator,
                supplied=("num_channels", "num_kp"),
            )
            judge |= {"num_channels": common["image_channel"], "num_kp": common["num_kp"]}
            self.discriminator = MultiScaleDiscriminator(**judge)

    def sections(self) -> dict[str, nn.Module]:
        """``generator``, ``kp_detector``, ``he_estimator`` and, if the host has one, ``discriminator``."""
        names = ("generator", "discriminator", "kp_detector", "he_estimator")
        return {name: module for name in names if (module := getattr(self, name)) is not None}

    def keypoints(self, image: Tensor) -> PosedKeypoints:
        """K keypoints of images (B, 3 or 6, H, W), (B, K, 3), with canonical ones, head pose and expression."""
        image = image[:, :3]
        return PosedKeypoints.make(self.kp_detector(image), self.he_estimator(image))

    def generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        *,
        encoded: tuple[Tensor, ...] | None = None,
    ) -> HostOutput:
        """The source images (B, 3 or 6, H, W) in the driving pose.

        Of driving keypoints as `keypoints` gives them the pose counts, for the source's canonical keypoints; others,
        those of `transfer_motion`, are taken as they are. `encoded`: what the generator's `encode` made of one source.
        """
        if isinstance(kp_driving, PosedKeypoints):
            kp_driving = kp_driving.on(kp_source)
        return self.generator(source[:, :3], kp_source=kp_source, kp_driving=kp_driving, encoded=encoded)

    def forward(self, source: Tensor, driving: Tensor) -> HostOutput:
        """The source images in the pose of the driving images, both (B, 3 or 6, H, W)."""
        kp_source = self.keypoints(source)
        kp_driving = PosedKeypoints.make(kp_source.rest, self.he_estimator(driving[:, :3]))
        return self.generate(source, kp_source, kp_driving)

    def turned(self, keypoints: Keypoints, degrees: Tensor) -> Keypoints:
        """The head of these keypoints turned further by yaw, pitch and roll, (3,) or (B, 3) degrees.

        Raises:
            ValueError: keypoints without a pose.
        """
        if not isinstance(keypoints, PosedKeypoints):
            raise ValueError("a view is chosen by keypoints with their pose, as `keypoints` gives them")
        return keypoints.turned(degrees)

    def transfer_motion(
        self,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        relative: bool = True,
        adapt_scale: bool = True,
    ) -> Keypoints:
        """Move the source's keypoints as the driving head moved, in three dimensions: see `shared.transfer`."""
        moved, initial = (
            kp.on(kp_source) if isinstance(kp, PosedKeypoints) else kp for kp in (kp_driving, kp_driving_initial)
        )
        return transfer_motion(kp_source, moved, initial, relative=relative, adapt_scale=adapt_scale, hull=hull_volume)

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

        The equivariance terms share one random warp of the driving frame, drawn from `generator` with
        `transform_params` (``sigma_affine``, ``sigma_tps``, ``points_tps``); they compare x and y alone.
        ``keypoint_prior``, ``headpose`` and ``expression`` are of the driving frame; see
        `memcomp.adapters.facevid2vid.losses`. ``generator_gan`` and ``feature_matching`` leave gradients in the
        discriminator: zero these before its own step.

        Raises:
            ValueError: an unknown name, driving pictures without a pose for ``headpose``, a host without
                discriminator or without Jacobians for a term that needs them.
        """
        names = self.known_losses(names)
        kp = output.kp_driving
        if not isinstance(kp, PosedKeypoints):
            raise ValueError("the losses are of keypoints with their pose, as `forward` gives them")
        terms = self._equivariance(kp, driving, names, generator, transform_params)
        if "keypoint_prior" in names:
            terms["keypoint_prior"] = losses.keypoint_prior(kp)
        if "headpose" in names:
            target = pose_of(driving)
            if target is None:
                raise ValueError(
                    "headpose needs the head pose that a teacher sees: of procedural heads data.pose: true, of faces "
                    "loss.pose_teacher, a network's file"
                )
            terms["headpose"] = losses.head_pose(kp.pose.degrees, target)
        if "expression" in names:
            terms["expression"] = losses.expression(kp.pose.expression)
        if "generator_gan" in names or "feature_matching" in names:
            fake = self._judge(output.prediction)
            if "generator_gan" in names:
                terms["generator_gan"] = GAN[self.gan_mode][0](fake.predictions)
            if "feature_matching" in names:
                terms["feature_matching"] = feature_matching(self._judge(driving[:, :3]).features, fake.features)
        return terms

    def _equivariance(
        self,
        kp: PosedKeypoints,
        driving: Tensor,
        names: list[str],
        generator: torch.Generator,
        transform_params: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        """The equivariance terms that are named; the warped frame tells a pose for the source's keypoints alone."""
        if not any(name.startswith("equivariance") for name in names):
            return {}
        transform = RandomTransform.draw(driving, generator, **transform_params)
        warped = transform.warp_frame(driving[:, :3])
        flat, moved = (_flat(one) for one in (kp, PosedKeypoints.make(kp.rest, self.he_estimator(warped))))
        terms = {"equivariance_value": equivariance_value, "equivariance_jacobian": equivariance_jacobian}
        return {name: term(flat, moved, transform) for name, term in terms.items() if name in names}

    def discriminator_loss(self, output: HostOutput, driving: Tensor) -> Tensor:
        """The `gan_mode`'s loss on the driving frame (real) and the detached prediction (fake)."""
        fake = self._judge(output.prediction.detach())
        return GAN[self.gan_mode][1](self._judge(driving[:, :3]).predictions, fake.predictions)

    def _judge(self, image: Tensor) -> Judgement:
        if self.discriminator is None:
            raise ValueError("the host has no discriminator: its model lacks discriminator_params")
        return self.discriminator(image)


def _flat(kp: Keypoints) -> Keypoints:
    """Keypoints as the picture shows them: x and y."""
    return Keypoints(kp.value[..., :2], None if kp.jacobian is None else kp.jacobian[..., :2, :2])
