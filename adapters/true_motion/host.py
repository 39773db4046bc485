"""The laboratory host: encoder and decoder of FOMM or TPSM around a motion that is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from memcomp import KeypointTap, Tap
from memcomp.adapters.base import Host
from memcomp.adapters.fomm.generator import OcclusionAwareGenerator
from memcomp.adapters.fomm.upstream import inplace_taps as fomm_taps
from memcomp.adapters.mcnet.generator import UNetGenerator
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import Norm, instance_norm
from memcomp.adapters.shared.params import checked_params
from memcomp.adapters.shared.warped_skip import inplace_taps as tpsm_taps
from memcomp.adapters.true_motion.given import Given, GivenMotion

KEYPOINTS = KeypointTap("dense_motion_network")


class TrueFOMM(OcclusionAwareGenerator):
    """FOMM's encoder, bottleneck and decoder; the motion is given."""

    motion_type: ClassVar[type[nn.Module]] = GivenMotion


class TrueTPSM(UNetGenerator):
    """TPSM's encoder, warped skips and decoder (instance norms, one visibility for all levels); the motion is given."""

    motion_type: ClassVar[type[nn.Module]] = GivenMotion
    norm: ClassVar[Norm] = staticmethod(instance_norm)


GENERATORS: dict[str, type[nn.Module]] = {"fomm": TrueFOMM, "tpsm": TrueTPSM}


def _model(
    decoder: Literal["fomm", "tpsm"], generator_params: Mapping[str, Any], num_kp: int = 10, num_channels: int = 3
) -> None:
    """The signature of `model`."""


class TrueMotion(Host):
    """A host that is given its motion: exact flow, visibility and landmarks, as procedural heads alone can give them.

    It has no motion to learn and makes no error in it, so what its picture lacks is what completes the warped features:
    a memory, or what stands in its place. It is no generator to animate with.

    Args:
        model: ``decoder`` (``fomm`` or ``tpsm``), ``generator_params`` (``block_expansion``, ``max_features``,
            ``num_down_blocks`` and, for ``fomm``, ``num_bottleneck_blocks``) and ``num_kp`` (10 of the 68 landmarks).

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
        """As of the host whose decoder it is."""
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
