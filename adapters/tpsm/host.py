"""TPSM as a host: the networks put together, their sections, taps, loss terms and the second training stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memcomp import KeypointTap, Tap
from memcomp.adapters.base import Host
from memcomp.adapters.layout import Layout
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.draws import to_device
from memcomp.adapters.shared.losses import equivariance_value
from memcomp.adapters.shared.params import checked_params
from memcomp.adapters.shared.transfer import transfer_motion
from memcomp.adapters.tpsm import losses, upstream
from memcomp.adapters.tpsm.avd import AVDNetwork
from memcomp.adapters.tpsm.inpainting import InpaintingNetwork, TPSMOutput
from memcomp.adapters.tpsm.keypoints import BackgroundPredictor, KeypointDetector
from memcomp.adapters.tpsm.motion import DenseMotionNetwork
from memcomp.adapters.tpsm.schedule import Schedule
from memcomp.adapters.tpsm.splines import RandomSpline


def _common(num_tps: int, num_channels: int = 3, bg: bool = True, multi_mask: bool = True) -> None:
    """The signature of ``common_params``."""


def _model(
    common_params: Mapping[str, Any],
    generator_params: Mapping[str, Any],
    dense_motion_params: Mapping[str, Any],
    avd_network_params: Mapping[str, Any] | None = None,
    train_params: Mapping[str, Any] | None = None,
) -> None:
    """The signature of `model`."""


class TPSM(Host):
    """The thin-plate spline motion model.

    Args:
        model: upstream's `model_params`: ``common_params``, ``generator_params``, ``dense_motion_params`` and, unless
            the host is to have no animation via disentanglement, ``avd_network_params``; besides, those entries of
            upstream's ``train_params`` that concern the networks (see `Schedule`), as published by default.

    Raises:
        ValueError: an unknown or a missing key in `model`, or values that do not go together.
    """

    name: ClassVar[str] = "tpsm"
    encoder = ("first", "down_blocks")
    loss_names: ClassVar[tuple[str, ...]] = ("equivariance_value", "warp", "background")
    generator_section: ClassVar[str] = "inpainting_network"
    optional_sections: ClassVar[frozenset[str]] = frozenset({"bg_predictor", "avd_network"})
    stages: ClassVar[Mapping[str, tuple[str, ...]]] = {"avd": ("avd_network",)}
    layouts: ClassVar[tuple[Layout, ...]] = upstream.LAYOUTS
    read_model = staticmethod(upstream.read_model)
    published: ClassVar[Mapping[str, Any]] = {  # vox-256
        "common_params": {"num_tps": 10, "num_channels": 3, "bg": True, "multi_mask": True},
        "generator_params": {"block_expansion": 64, "max_features": 512, "num_down_blocks": 3},
        "dense_motion_params": {"block_expansion": 64, "max_features": 1024, "num_blocks": 5, "scale_factor": 0.25},
        "avd_network_params": {"id_bottle_size": 128, "pose_bottle_size": 128},
        "train_params": asdict(Schedule()),
    }

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__(model)
        sections = checked_params("model", model, _model)
        common = {"num_channels": 3, "bg": True, "multi_mask": True}
        common |= checked_params("model.common_params", sections["common_params"], _common)

        def params(name: str, constructor: Any, *shared: str) -> dict[str, Any]:
            own = checked_params(f"model.{name}", sections[name], constructor, supplied=shared)
            return own | {key: common[key] for key in shared}

        self.kp_detector = KeypointDetector(common["num_tps"])
        self.bg_predictor = BackgroundPredictor() if common["bg"] else None
        self.dense_motion_network = DenseMotionNetwork(
            **params("dense_motion_params", DenseMotionNetwork, "num_tps", "num_channels", "multi_mask")
        )
        self.inpainting_network = InpaintingNetwork(
            **params("generator_params", InpaintingNetwork, "num_channels", "multi_mask")
        )
        self.avd_network: AVDNetwork | None = None
        if sections.get("avd_network_params") is not None:
            self.avd_network = AVDNetwork(**params("avd_network_params", AVDNetwork, "num_tps"))
            self.motion_modes = (*Host.motion_modes, "avd")
        schedule = sections.get("train_params")
        self.schedule = Schedule(**checked_params("model.train_params", {} if schedule is None else schedule, Schedule))

    def sections(self) -> dict[str, nn.Module]:
        """The networks, without those that the host has not."""
        names = ("kp_detector", "bg_predictor", "dense_motion_network", "inpainting_network", "avd_network")
        return {name: module for name in names if (module := getattr(self, name)) is not None}

    def keypoints(self, image: Tensor) -> Keypoints:
        """5 K keypoints of images (B, 3, H, W), those of one spline after another."""
        return self.kp_detector(image)

    def generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        *,
        background: Tensor | None = None,
        kept: Tensor | None = None,
        encoded: Sequence[Tensor] | None = None,
    ) -> TPSMOutput:
        """The source images (B, 3, H, W) in the driving pose.

        `background` is its affine motion (B, 3, 3), `kept` which motions take part, (B, K + 1) bool; `encoded` what
        the generator's `encode` made of one source image for all poses.
        """
        motion = self.dense_motion_network(
            source_image=source, kp_driving=kp_driving, kp_source=kp_source, bg_param=background, kept=kept
        )
        made = self.inpainting_network(source, motion, encoded)
        maps = motion.occlusion_map
        return TPSMOutput(
            prediction=made.prediction,
            deformed=made.deformed,
            deformation=motion.deformation,
            occlusion_map=min(maps, key=lambda each: abs(each.shape[2] - motion.deformation.shape[1])),
            mask=motion.contribution_maps,
            sparse_deformed=motion.deformed_source,
            kp_source=kp_source,
            kp_driving=kp_driving,
            occlusion_maps=maps,
            encoded=made.encoded,
            background=background,
        )

    def forward(self, source: Tensor, driving: Tensor, *, background: bool = False) -> TPSMOutput:
        """The source images in the pose of the driving images, both (B, 3, H, W).

        With `background` its motion is predicted: right for two frames of one video, wrong for two persons.

        Raises:
            ValueError: `background` in a host without background predictor.
        """
        moved = self._background(source, driving) if background else None
        return self.generate(source, self.keypoints(source), self.keypoints(driving), background=moved)

    def reconstruct(self, source: Tensor, driving: Tensor) -> TPSMOutput:
        """Reconstruct frames of one video, with the background's motion if the host predicts one; see `forward`."""
        return self(source, driving, background=self.bg_predictor is not None)

    def training_output(
        self, source: Tensor, driving: Tensor, *, epoch: float, generator: torch.Generator
    ) -> TPSMOutput:
        """Reconstruct as upstream trains: the background moves from an epoch on, motions are dropped until one."""
        kept = self.schedule.kept(epoch, len(source), self.dense_motion_network.num_tps, generator)
        moves = self.bg_predictor is not None and epoch >= self.schedule.bg_start
        with self.drawn_noise(source, generator):
            return self.generate(
                source,
                self.keypoints(source),
                self.keypoints(driving),
                background=self._background(source, driving) if moves else None,
                kept=None if kept is None else to_device(kept, source.device),
            )

    def _background(self, source: Tensor, driving: Tensor) -> Tensor:
        if self.bg_predictor is None:
            raise ValueError("the host has no background predictor: its model sets common_params.bg to false")
        return self.bg_predictor(source, driving)

    def transfer_motion(
        self,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        relative: bool = True,
        adapt_scale: bool = True,
        mode: str | None = None,
    ) -> Keypoints:
        """Move the source's keypoints: see `shared.transfer`; with `mode` "avd" a network splits pose and identity.

        Raises:
            ValueError: an unknown mode, or "avd" in a host without `avd_network`.
        """
        if mode == "avd":
            identity = kp_source.value.expand(len(kp_driving.value), -1, -1)
            return self._avd()(Keypoints(identity), kp_driving)
        if mode not in (None, *self.motion_modes):
            raise ValueError(f"unknown motion mode {mode!r}; the host {self.name!r} has {', '.join(self.motion_modes)}")
        relative = relative if mode is None else mode == "relative"
        return transfer_motion(kp_source, kp_driving, kp_driving_initial, relative=relative, adapt_scale=adapt_scale)

    def enter_stage(self, stage: str) -> None:
        """Freeze all but what the stage trains (see `Host.enter_stage`); "avd" needs an `avd_network`."""
        if stage == "avd":
            self._avd()
        super().enter_stage(stage)

    def _avd(self) -> AVDNetwork:
        if self.avd_network is None:
            raise ValueError("the host has no avd_network: its model lacks avd_network_params")
        return self.avd_network

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

        ``equivariance_value``: of a random warp of the driving frame, drawn from `generator` with `transform_params`.
        ``warp``, ``background``: see `memcomp.adapters.tpsm.losses`; the latter is zero while the background is taken
        to stand still.

        Raises:
            ValueError: an unknown name.
        """
        if not isinstance(output, TPSMOutput):
            raise TypeError(f"expected the output of a {self.name} host, got {type(output).__name__}")
        terms: dict[str, Tensor] = {}
        for name in names:
            if name == "equivariance_value":
                transform = RandomSpline.draw(driving, generator, **transform_params)
                moved = self.keypoints(transform.warp_frame(driving, align_corners=True))
                terms[name] = equivariance_value(output.kp_driving, moved, transform)
            elif name == "warp":
                terms[name] = losses.warp(self.inpainting_network, output, driving)
            elif name == "background":
                terms[name] = output.prediction.new_zeros(())
                if output.background is not None:
                    terms[name] = losses.background(output.background, self._background(driving, source))
            else:
                raise ValueError(f"the host {self.name!r} has no loss {name!r}; it has {', '.join(self.loss_names)}")
        return terms

    def stage_loss(self, stage: str, source: Tensor, driving: Tensor, *, generator: torch.Generator) -> Tensor:
        """Stage "avd": see `memcomp.adapters.tpsm.losses.disentanglement`. The detector should be in eval mode."""
        if stage != "avd":
            return super().stage_loss(stage, source, driving, generator=generator)
        with torch.no_grad():
            kp_source, kp_driving = self.keypoints(source), self.keypoints(driving)
        return losses.disentanglement(self._avd(), kp_source, kp_driving, generator)

    def taps(self) -> tuple[list[Tap], KeypointTap]:
        """The lowest warped feature, the warped skips and the blend before the last convolution."""
        return super().taps()[0], KeypointTap("dense_motion_network")  # our keypoints are no dict with "fg_kp"
