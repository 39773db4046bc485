"""The laboratory host: encoder and decoder of FOMM or TPSM around a motion that is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp import KeypointTap, Tap
from memcomp.adapters.base import Host
from memcomp.adapters.fomm.generator import OcclusionAwareGenerator
from memcomp.adapters.fomm.motion import DenseMotion
from memcomp.adapters.fomm.upstream import inplace_taps as fomm_taps
from memcomp.adapters.mcnet.generator import UNetGenerator
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import Norm, instance_norm
from memcomp.adapters.shared.params import checked_params
from memcomp.adapters.shared.warped_skip import inplace_taps as tpsm_taps
from memcomp.adapters.true_motion.given import Given, GivenMotion
from memcomp.taps import tap_channels

KEYPOINTS = KeypointTap("dense_motion_network")


class GlobalCompletion(nn.Module):
    """An upper bound for what completes a warped feature: a wide encoder-decoder over the whole of it.

    It sees the feature (B, C, h, w), its visibility and both poses' keypoints, and what it makes is added to the
    feature; it starts as nothing.

    Args:
        channels: C.
        num_kp: K.
        width: of every layer; four levels halve the size, and a hidden layer sees all of the lowest.
        side: height and width that the lowest level is brought to.
    """

    def __init__(self, channels: int, num_kp: int, width: int, side: int = 2) -> None:
        super().__init__()
        steps = [nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(4)]
        self.encoder = nn.ModuleList([nn.Conv2d(channels + 1 + 4 * num_kp, width, 3, padding=1), *steps])
        self.whole = nn.Sequential(nn.Linear(width * side**2, 256), nn.ReLU(), nn.Linear(256, width * side**2))
        self.decoder = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(4))
        self.output = nn.Conv2d(width, channels, 1)
        self.side = side
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor, visibility: Tensor, poses: Tensor) -> Tensor:
        """Feature (B, C, h, w), visibility (B, 1, h, w), poses (B, 4 K) → (B, C, h, w)."""
        spread = poses[:, :, None, None].expand(-1, -1, *feature.shape[2:])
        x = torch.cat([feature, visibility, spread], dim=1)
        levels = []
        for conv in self.encoder:
            x = F.relu(conv(x))
            levels.append(x)
        seen = F.adaptive_avg_pool2d(x, self.side).flatten(1)
        seen = self.whole(seen).unflatten(1, (-1, self.side, self.side))
        x = x + F.interpolate(seen, size=x.shape[2:], mode="nearest")
        for conv, skip in zip(self.decoder, reversed(levels[:-1]), strict=True):
            x = F.relu(conv(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="bilinear"), skip], dim=1)))
        return feature + self.output(x)


class TrueFOMM(OcclusionAwareGenerator):
    """FOMM's encoder, bottleneck and decoder; the motion is given."""

    motion_type: ClassVar[type[nn.Module]] = GivenMotion
    completion: GlobalCompletion | None  # set by the host

    def warped_feature(
        self,
        source_image: Tensor,
        kp_driving: Keypoints,
        kp_source: Keypoints,
        encoded: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, DenseMotion]:
        """Warp as FOMM does; a `completion` then completes the feature."""
        feature, motion = super().warped_feature(source_image, kp_driving, kp_source, encoded)
        return complete(self.completion, feature, motion, kp_driving, kp_source), motion


class TrueTPSM(UNetGenerator):
    """TPSM's encoder, warped skips and decoder (instance norms, one visibility for all levels); the motion is given."""

    motion_type: ClassVar[type[nn.Module]] = GivenMotion
    norm: ClassVar[Norm] = staticmethod(instance_norm)
    completion: GlobalCompletion | None  # set by the host

    def warped_features(
        self,
        source_image: Tensor,
        kp_driving: Keypoints,
        kp_source: Keypoints,
        encoded: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], DenseMotion]:
        """Warp as TPSM does; a `completion` then completes the feature of the lowest level."""
        (lowest, *finer), motion = super().warped_features(source_image, kp_driving, kp_source, encoded)
        return [complete(self.completion, lowest, motion, kp_driving, kp_source), *finer], motion


def complete(
    completion: GlobalCompletion | None,
    feature: Tensor,
    motion: DenseMotion,
    kp_driving: Keypoints,
    kp_source: Keypoints,
) -> Tensor:
    """The warped feature (B, C, h, w), completed if there is something that does."""
    if completion is None or motion.occlusion_map is None:
        return feature
    visible = F.interpolate(motion.occlusion_map, size=feature.shape[2:], mode="bilinear", align_corners=False)
    return completion(feature, visible, torch.cat([kp_source.value.flatten(1), kp_driving.value.flatten(1)], dim=1))


GENERATORS: dict[str, type[TrueFOMM] | type[TrueTPSM]] = {"fomm": TrueFOMM, "tpsm": TrueTPSM}


def _model(
    decoder: Literal["fomm", "tpsm"],
    generator_params: Mapping[str, Any],
    num_kp: int = 10,
    num_channels: int = 3,
    completion_width: int = 0,
) -> None:
    """The signature of `model`."""


class TrueMotion(Host):
    """A host that is given its motion: exact flow, visibility and landmarks, as procedural heads alone can give them.

    It has no motion to learn and makes no error in it, so what its picture lacks is what completes the warped features:
    a memory, or what stands in its place. It is no generator to animate with.

    Args:
        model: ``decoder`` (``fomm`` or ``tpsm``), ``generator_params`` (``block_expansion``, ``max_features``,
            ``num_down_blocks`` and, for ``fomm``, ``num_bottleneck_blocks``), ``num_kp`` (10 of the 68 landmarks) and
            ``completion_width``: above 0, a `GlobalCompletion` of that width stands where a memory's first tap is.

    Pictures have seven channels (see `given.pack`): a recipe asks for them by ``data.motion=true``. The visibility
    reaches the decoder as its occlusion map. `host(driving, driving)`, with one tensor given twice, is no motion at
    all: what the decoder would see if nothing were hidden.

    Raises:
        ValueError: an unknown or a missing key in `model`.
    """

    name: ClassVar[str] = "true_motion"

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__(model)
        given = checked_params("model", model, _model)
        if given["decoder"] not in GENERATORS:
            raise ValueError(f"model.decoder: expected one of {', '.join(GENERATORS)}, got {given['decoder']!r}")
        self.decoder = given["decoder"]
        shared = {"num_kp": given.get("num_kp", 10), "num_channels": given.get("num_channels", 3)}
        supplied = (*shared, "dense_motion_params", "align_corners", "estimate_occlusion_map")
        params = checked_params(
            "model.generator_params", given["generator_params"], GENERATORS[self.decoder], supplied=supplied
        )
        self.num_kp = shared["num_kp"]
        corners = self.decoder == "tpsm"  # of TPSM's sampling, where it is of the given motion
        self.generator = GENERATORS[self.decoder](
            **shared, **params, dense_motion_params={}, estimate_occlusion_map=True, align_corners=corners
        )
        (lowest,), width = tap_channels(self.generator, self.taps()[0][:1]), given.get("completion_width", 0)
        self.generator.completion = GlobalCompletion(lowest, self.num_kp, width) if width else None

    def sections(self) -> dict[str, nn.Module]:
        """``generator`` alone."""
        return {"generator": self.generator}

    def keypoints(self, image: Tensor) -> Given:
        """The landmarks of pictures (B, 7, H, W), and the motion that leads to them."""
        return Given.unpack(image, self.num_kp)

    def generate(self, source: Tensor, kp_source: Keypoints, kp_driving: Keypoints) -> HostOutput:
        """The source pictures (B, 7 or 3, H, W) moved as `kp_driving`, of `keypoints`, says."""
        return self.generator(source[:, :3], kp_source=kp_source, kp_driving=kp_driving)

    def forward(self, source: Tensor, driving: Tensor) -> HostOutput:
        """The source moved by the driving picture's motion; one tensor given twice: not moved."""
        kp_driving = self.keypoints(driving)
        if source is driving:
            return self.generate(source, kp_driving, kp_driving.still())
        return self.generate(source, self.keypoints(source), kp_driving)

    def taps(self) -> tuple[list[Tap], KeypointTap]:
        """Name the taps of the host whose decoder it is."""
        return (fomm_taps if self.decoder == "fomm" else tpsm_taps)(self.generator), KEYPOINTS

    def transfer_motion(
        self,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        kp_driving_initial: Keypoints,
        *,
        relative: bool = True,
        adapt_scale: bool = True,
    ) -> Keypoints:
        """Raise ValueError: a motion that is given for one source does not fit another."""
        raise ValueError("the host 'true_motion' is given its motion: there is none to transfer")
