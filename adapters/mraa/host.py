"""MRAA as a host: the networks put together, their sections, taps, loss terms and the second training stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memcomp.adapters.base import Host
from memcomp.adapters.layout import Layout
from memcomp.adapters.mraa import losses, upstream
from memcomp.adapters.mraa.avd import AVDNetwork
from memcomp.adapters.mraa.background import BackgroundPredictor
from memcomp.adapters.mraa.flow import PixelwiseFlowPredictor
from memcomp.adapters.mraa.generator import Generator
from memcomp.adapters.mraa.regions import RegionPredictor, Regions
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.losses import RandomTransform, equivariance_value
from memcomp.adapters.shared.params import checked_params
from memcomp.adapters.shared.transfer import transfer_motion


def _model(
    num_regions: int,
    region_predictor_params: Mapping[str, Any],
    generator_params: Mapping[str, Any],
    num_channels: int = 3,
    estimate_affine: bool = False,
    revert_axis_swap: bool = True,
    bg_predictor_params: Mapping[str, Any] | None = None,
    avd_network_params: Mapping[str, Any] | None = None,
) -> None:
    """The signature of `model`."""


class MRAA(Host):
    """Motion representations for articulated animation.

    Args:
        model: upstream's `model_params`: ``num_regions``, ``num_channels``, ``estimate_affine``, ``revert_axis_swap``,
            ``region_predictor_params``, ``generator_params`` (with ``pixelwise_flow_predictor_params``) and, unless
            the host is to have no background predictor or no animation via disentanglement,
            ``bg_predictor_params`` and ``avd_network_params``.

    Raises:
        ValueError: an unknown or a missing key in `model`, or values that do not go together.
    """

    name: ClassVar[str] = "mraa"
    moving: ClassVar[tuple[str, ...]] = ("pixelwise_flow_predictor",)
    encoder = ("first", "down_blocks")
    loss_names: ClassVar[tuple[str, ...]] = ("equivariance_value", "equivariance_jacobian")
    optional_sections: ClassVar[frozenset[str]] = frozenset({"bg_predictor", "avd_network"})
    stages: ClassVar[Mapping[str, tuple[str, ...]]] = {"avd": ("avd_network",)}
    layouts: ClassVar[tuple[Layout, ...]] = upstream.LAYOUTS
    read_model = staticmethod(upstream.read_model)
    epoch_entry: ClassVar[str] = "epoch_reconstruction"
    published: ClassVar[Mapping[str, Any]] = {  # vox256
        "num_regions": 10,
        "num_channels": 3,
        "estimate_affine": True,
        "revert_axis_swap": True,
        "bg_predictor_params": {"block_expansion": 32, "max_features": 1024, "num_blocks": 5, "bg_type": "affine"},
        "region_predictor_params": {
            "temperature": 0.1,
            "block_expansion": 32,
            "max_features": 1024,
            "scale_factor": 0.25,
            "num_blocks": 5,
            "pca_based": True,
            "fast_svd": False,
        },
        "generator_params": {
            "block_expansion": 64,
            "max_features": 512,
            "num_down_blocks": 2,
            "num_bottleneck_blocks": 6,
            "skips": True,
            "pixelwise_flow_predictor_params": {
                "block_expansion": 64,
                "max_features": 1024,
                "num_blocks": 5,
                "scale_factor": 0.25,
                "use_deformed_source": True,
                "use_covar_heatmap": True,
                "estimate_occlusion_map": True,
            },
        },
        "avd_network_params": {"id_bottle_size": 64, "pose_bottle_size": 64},
    }

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__(model)
        given: dict[str, Any] = {"num_channels": 3, "estimate_affine": False, "revert_axis_swap": True}
        given |= checked_params("model", model, _model)
        self.revert_axis_swap: bool = given["revert_axis_swap"]

        def params(name: str, constructor: Any, *shared: str) -> dict[str, Any]:
            own = checked_params(f"model.{name}", given[name], constructor, supplied=shared)
            return own | {key: given[key] for key in shared}

        sizes = ("num_regions", "num_channels")
        self.region_predictor = RegionPredictor(
            **params("region_predictor_params", RegionPredictor, *sizes, "estimate_affine")
        )
        generator = params("generator_params", Generator, *sizes, "revert_axis_swap")
        where = "model.generator_params.pixelwise_flow_predictor_params"
        flow = generator["pixelwise_flow_predictor_params"]
        checked_params(where, flow, PixelwiseFlowPredictor, supplied=(*sizes, "revert_axis_swap"))
        if flow.get("use_covar_heatmap") and not self.region_predictor.framed:
            raise ValueError(f"{where}.use_covar_heatmap: expected false without pca_based or estimate_affine")
        if generator.get("skips") and not flow.get("estimate_occlusion_map"):
            raise ValueError(f"{where}.estimate_occlusion_map: expected true with skips, or nothing decoded is seen")
        self.generator = Generator(**generator)
        self.bg_predictor: BackgroundPredictor | None = None
        if given.get("bg_predictor_params") is not None:
            self.bg_predictor = BackgroundPredictor(
                **params("bg_predictor_params", BackgroundPredictor, "num_channels")
            )
        self.avd_network: AVDNetwork | None = None
        if given.get("avd_network_params") is not None:
            self.avd_network = AVDNetwork(**params("avd_network_params", AVDNetwork, "num_regions"))
            if self.region_predictor.framed:
                self.motion_modes = (*Host.motion_modes, "avd")

    def sections(self) -> dict[str, nn.Module]:
        """The networks, without those that the host has not."""
        names = ("region_predictor", "bg_predictor", "generator", "avd_network")
        return {name: module for name in names if (module := getattr(self, name)) is not None}

    def keypoints(self, image: Tensor) -> Regions:
        """K regions of images (B, 3, H, W)."""
        return self.region_predictor(image)

    def generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        *,
        background: Tensor | None = None,
        encoded: tuple[Tensor, ...] | None = None,
    ) -> HostOutput:
        """The source images (B, 3, H, W) in the driving pose.

        `background` is its motion (B, 3, 3), None = still; `encoded` what the generator's `encode` made of one source
        image for all poses.
        """
        return self.generator(
            source,
            driving_region_params=kp_driving,
            source_region_params=kp_source,
            bg_params=background,
            encoded=encoded,
        )

    def forward(self, source: Tensor, driving: Tensor, *, background: bool = False) -> HostOutput:
        """The source images in the pose of the driving images, both (B, 3, H, W).

        With `background` its motion is predicted: right for two frames of one video, wrong for two persons.

        Raises:
            ValueError: `background` in a host without background predictor.
        """
        moved = None
        if background:
            if self.bg_predictor is None:
                raise ValueError("the host has no background predictor: its model lacks bg_predictor_params")
            moved = self.bg_predictor(source, driving)
        return self.generate(source, self.keypoints(source), self.keypoints(driving), background=moved)

    def reconstruct(self, source: Tensor, driving: Tensor) -> HostOutput:
        """Reconstruct frames of one video, with the background's motion if the host predicts one; see `forward`."""
        return self(source, driving, background=self.bg_predictor is not None)

    def transfer_motion(
        self,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        relative: bool = True,
        adapt_scale: bool = True,
        mode: str | None = None,
    ) -> Regions:
        """Move the source's regions: see `shared.transfer`; with `mode` "avd" a network splits pose and identity.

        Relative motion leaves the covariances, which only show the flow predictor the regions, those of the driving
        frame, as published.

        Raises:
            ValueError: an unknown mode, or "avd" in a host without `avd_network`.
        """
        driving = Regions.of(kp_driving)
        if mode == "avd":
            return self._avd()(Regions.of(kp_source).expand(len(driving.value)), driving)
        if mode not in (None, *self.motion_modes):
            raise ValueError(f"unknown motion mode {mode!r}; the host {self.name!r} has {', '.join(self.motion_modes)}")
        relative = relative if mode is None else mode == "relative"
        if not relative:
            return driving
        moved = transfer_motion(kp_source, driving, kp_driving_initial, adapt_scale=adapt_scale)
        return Regions(moved.value, moved.jacobian, driving.covar)

    def enter_stage(self, stage: str) -> None:
        """Freeze all but what the stage trains (see `Host.enter_stage`); "avd" needs an `avd_network` and frames."""
        if stage == "avd":
            self._avd()
        super().enter_stage(stage)

    def _avd(self) -> AVDNetwork:
        if self.avd_network is None:
            raise ValueError("the host has no avd_network: its model lacks avd_network_params")
        if not self.region_predictor.framed:
            raise ValueError("its avd_network needs frames: set pca_based or estimate_affine to true")
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

        They share one random warp of the driving frame, drawn from `generator` with `transform_params`
        (``sigma_affine``, ``sigma_tps``, ``points_tps``). ``equivariance_value`` is of upstream's shifts,
        ``equivariance_jacobian`` of its affines, see `memcomp.adapters.mraa.losses`.

        Raises:
            ValueError: an unknown name, or regions without frames for a term that needs them.
        """
        names = self.known_losses(names)
        if not names:
            return {}
        transform = RandomTransform.draw(driving, generator, **transform_params)
        regions, moved = Regions.of(output.kp_driving), self.keypoints(transform.warp_frame(driving))
        terms: dict[str, Tensor] = {}
        if "equivariance_value" in names:
            terms["equivariance_value"] = equivariance_value(regions, moved, transform)
        if "equivariance_jacobian" in names:
            terms["equivariance_jacobian"] = losses.equivariance_affine(
                regions, moved, transform, revert_axis_swap=self.revert_axis_swap
            )
        return terms

    def stage_loss(self, stage: str, source: Tensor, driving: Tensor, *, generator: torch.Generator) -> Tensor:
        """Stage "avd": see `memcomp.adapters.mraa.losses.disentanglement`.

        The region predictor should be in eval mode, as `enter_stage` sets it; upstream leaves it in train mode there.
        """
        if stage != "avd":
            return super().stage_loss(stage, source, driving, generator=generator)
        with torch.no_grad():
            of_source, of_driving = self.keypoints(source), self.keypoints(driving)
        return losses.disentanglement(self._avd(), of_source, of_driving, generator)
