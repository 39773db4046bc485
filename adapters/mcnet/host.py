"""MCNet as a host: the paper's baseline, and with the published memory the published model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from memcomp import inject
from memcomp.adapters.fomm.host import FOMM
from memcomp.adapters.layout import Layout
from memcomp.adapters.mcnet import release, upstream
from memcomp.adapters.mcnet.generator import UNetGenerator
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.handle import Handle


class MCNet(FOMM):
    """MCNet's baseline: FOMM's keypoints and dense motion, and a generator that warps every level of its encoder.

    Args:
        model: upstream's `model_params`, as `memcomp.adapters.fomm.FOMM` takes them; ``avd_network_params``,
            ``num_bottleneck_blocks`` and ``memsize`` are in upstream's file too, and have no effect there either.

    The generator samples with align_corners=True. ``align_corners`` (default False: what upstream's code does on
    current torch) is that of the dense motion and of the frame of the equivariance terms.

    Raises:
        ValueError: an unknown or a missing key in `model`.
    """

    name: ClassVar[str] = "mcnet"
    generator_type: ClassVar[type[nn.Module]] = UNetGenerator
    layouts: ClassVar[tuple[Layout, ...]] = upstream.LAYOUTS
    read_model = staticmethod(upstream.read_model)
    published: ClassVar[Mapping[str, Any]] = {
        **FOMM.published,
        "common_params": {"num_kp": 15, "num_channels": 3, "estimate_jacobian": True},
        "generator_params": {**FOMM.published["generator_params"], "num_down_blocks": 3},
        "discriminator_params": {
            "scales": [1],
            "block_expansion": 32,
            "max_features": 512,
            "num_blocks": 4,
            "use_kp": True,
        },
    }

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__({key: value for key, value in model.items() if key != "avd_network_params"})
        self.model = dict(model)

    def forward(self, source: Tensor, driving: Tensor, noise: Sequence[Tensor] | None = None) -> HostOutput:
        """The source images in the pose of the driving images, both (B, 3, H, W); `noise` as in `generate`."""
        return self.generate(source, self.keypoints(source), self.keypoints(driving), noise)

    def generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        noise: Sequence[Tensor] | None = None,
        *,
        encoded: tuple[Tensor, ...] | None = None,
    ) -> HostOutput:
        """The source images (B, 3, H, W) in the driving pose.

        Args:
            source, kp_source, kp_driving, encoded: see `FOMM.generate`.
            noise: for each scale of an attached memory of variant "release" a (B or 1, 1, H_m, W_m), standard normal.
                None = none, unless the memory's config asks for noise in training mode. Upstream draws it at
                every call.

        Raises:
            ValueError: noise for a host without memory, or of another number or shape.
        """
        if noise is None:
            return super().generate(source, kp_source, kp_driving, encoded=encoded)
        if self.memory is None:
            raise ValueError("noise was given, but the host has no memory to add it to")
        with self.memory.supplying(noise):
            return super().generate(source, kp_source, kp_driving, encoded=encoded)

    def load_upstream(self, sections: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load upstream's sections; a generator with the published memory (``mbUnit.*``) gets it attached.

        All sizes are read off the weights. A memory of the same kind and sizes that is attached already is filled.

        Raises:
            ValueError: as `Host.load_upstream`, or the memory is incomplete, does not fit the host, or another one is
                attached. Nothing is changed then.
        """
        unit, rest = release.split(sections.get("generator", {}))
        if not unit:
            super().load_upstream(sections)
            return
        places, keypoints = self.taps()
        memory = release.read(unit, self.generator, places)
        super().load_upstream({**sections, "generator": rest})
        if self.memory is None:
            inject(self.generator, memory, places[:-1], keypoints)
        else:
            self.memory.load_state_dict(memory.state_dict())

    def upstream_sections(self) -> dict[str, dict[str, Tensor]]:
        """Upstream's sections; a memory like the published one, at its places, becomes ``mbUnit.*`` in them."""
        sections = super().upstream_sections()
        handle, places = Handle.of(self.generator), self.taps()[0]
        if handle is not None and release.is_released(handle, places):
            sections["generator"] |= release.write(handle.compensation, release.level_sizes(places))
        return sections
