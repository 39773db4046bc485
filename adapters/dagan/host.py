"""DaGAN as a host: FOMM's, with a disparity beside every picture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.base import watched
from memcomp.adapters.dagan import upstream
from memcomp.adapters.dagan.depth import NOT_WEIGHTS, SECTIONS, DepthDecoder, DepthEncoder, num_layers, read_depth
from memcomp.adapters.dagan.generator import DepthAwareGenerator, SPADEDepthAwareGenerator
from memcomp.adapters.fomm.discriminator import Judgement
from memcomp.adapters.fomm.host import FOMM
from memcomp.adapters.layout import Layout
from memcomp.adapters.outputs import EncodedSource, HostOutput, Keypoints
from memcomp.adapters.shared.params import checked_params

GENERATORS = {kind.__name__: kind for kind in (DepthAwareGenerator, SPADEDepthAwareGenerator)}


def _model(
    common_params: Mapping[str, Any],
    kp_detector_params: Mapping[str, Any],
    generator_params: Mapping[str, Any],
    discriminator_params: Mapping[str, Any] | None = None,
    align_corners: bool = False,
    generator: str = "DepthAwareGenerator",
    depth: Any = None,
) -> None:
    """The signature of `model`."""


class DaGAN(FOMM):
    """The depth-aware generator: pictures are (B, 3, H, W), or (B, 4, H, W) with the disparity as fourth channel.

    A disparity is in [0, 1], large where near. The keypoint detector sees it as fourth channel; the generator attends
    to the source's. The depth network, if there is one, never trains: no gradients, always in eval mode.

    Args:
        model: as FOMM's (see `memcomp.adapters.fomm.FOMM`), where ``common_params.num_channels`` is the picture's, and

            - ``generator``: upstream's option of that name, "DepthAwareGenerator" (default) or
              "SPADEDepthAwareGenerator";
            - ``depth``: where disparities come from. "zeros": there are none, 0 everywhere. "truth": the pictures' own
              fourth channel. ``{"num_layers": 18}`` (default; or 50): the depth network, whose weights come with the
              checkpoint. Anything else: the file or folder to read that network's weights from (see
              `memcomp.adapters.dagan.depth.read_depth`); `host.model` then holds the mapping instead.

    Raises:
        ValueError: an unknown or a missing key in `model`, a wrong value, a file that does not fit.
    """

    name: ClassVar[str] = "dagan"
    model_signature: ClassVar[Callable[..., None]] = staticmethod(_model)
    further_channels: ClassVar[int] = 1
    generator_type: ClassVar[type[nn.Module]] = DepthAwareGenerator  # by default, and for the names of its parameters
    optional_sections: ClassVar[frozenset[str]] = FOMM.optional_sections | set(SECTIONS)
    layouts: ClassVar[tuple[Layout, ...]] = upstream.LAYOUTS
    section_files: ClassVar[Mapping[str, re.Pattern[str]]] = upstream.SECTION_FILES
    not_weights: ClassVar[Mapping[str, str]] = NOT_WEIGHTS
    read_model = staticmethod(upstream.read_model)
    published: ClassVar[Mapping[str, Any]] = {  # vox-adv-256 with upstream's --rgbd --kp_num 15
        **FOMM.published,
        "common_params": {"num_kp": 15, "num_channels": 3, "estimate_jacobian": True},
        "discriminator_params": {
            "scales": [1],
            "block_expansion": 32,
            "max_features": 512,
            "num_blocks": 4,
            "use_kp": True,
        },
        "generator": "DepthAwareGenerator",
        "depth": {"num_layers": 18},
    }

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__({"generator": "DepthAwareGenerator", "depth": {"num_layers": 18}, **model})
        if self.generator.num_channels != 3:
            raise ValueError("model.common_params.num_channels: expected 3, the disparity is added to that by the host")
        self.depth_encoder: DepthEncoder | None = None
        self.depth_decoder: DepthDecoder | None = None
        self._fresh_depth = False  # a depth network that was never loaded
        depth = self.model["depth"]
        if isinstance(depth, Mapping):
            self._build_depth(**checked_params("model.depth", depth, DepthEncoder))
        elif depth not in ("zeros", "truth"):
            if not isinstance(depth, str | Path):
                raise ValueError(
                    f'model.depth: expected zeros, truth, a file or {{"num_layers": 18 or 50}}, got {depth!r}'
                )
            self._build_depth(18)
            self.load_upstream(self.upstream_sections() | read_depth(depth))

    def _build_depth(self, num_layers: int) -> None:
        place = next(self.generator.parameters())
        self.depth_encoder = DepthEncoder(num_layers).to(place).requires_grad_(False).eval()
        self.depth_decoder = DepthDecoder(self.depth_encoder.encoder.channels).to(place).requires_grad_(False).eval()
        self.model["depth"] = {"num_layers": num_layers}
        self._fresh_depth = True

    def make_generator(self, **params: Any) -> nn.Module:
        """The generator that `model` names; called by the constructor."""
        kind = self.model["generator"]
        if kind not in list(GENERATORS):
            raise ValueError(f"model.generator: expected {' or '.join(GENERATORS)}, got {kind!r}")
        return GENERATORS[kind](**params)

    def sections(self) -> dict[str, nn.Module]:
        """FOMM's and, if the host has a depth network, ``depth_encoder`` and ``depth_decoder``."""
        depth = {name: getattr(self, name) for name in SECTIONS}
        return super().sections() | {name: network for name, network in depth.items() if network is not None}

    def train(self, mode: bool = True) -> DaGAN:
        """Set the mode of all but the depth network, which stays in eval mode."""
        super().train(mode)
        for network in (self.depth_encoder, self.depth_decoder):
            if network is not None:
                network.eval()
        return self

    def check_trainable(self) -> None:
        """Raise ValueError if the depth network, which stays as it is, has random weights."""
        if self._fresh_depth:
            raise ValueError(
                "model.depth: the depth network was never loaded; give its file or folder, zeros or truth, or start "
                "from a checkpoint that has one"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict, after which a depth network that was in it is no longer fresh."""
        loaded = super().load_state_dict(state_dict, *args, **kwargs)
        sections = {key.partition(".")[0] for key in state_dict}
        self._fresh_depth = self._fresh_depth and not sections.issuperset(SECTIONS)
        return loaded

    def with_disparity(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), or (B, 4, H, W) with a disparity, → (B, 4, H, W) with the one that `model` names.

        Raises:
            ValueError: another number of channels; no disparity is given and ``depth`` is "truth".
        """
        if image.ndim != 4 or image.shape[1] not in (3, 4):
            raise ValueError(
                f"expected pictures (B, 3, H, W), or (B, 4, H, W) with a disparity, got {tuple(image.shape)}"
            )
        picture = image[:, :3]
        if self.depth_encoder is not None and self.depth_decoder is not None:
            with torch.no_grad():
                return torch.cat([picture, self.depth_decoder(self.depth_encoder(picture))[0]], dim=1)
        if self.model["depth"] == "zeros":
            return F.pad(picture, (0, 0, 0, 0, 0, 1))
        if image.shape[1] != 4:
            raise ValueError(
                'this host was made with depth: "truth", so pictures need their disparity as a fourth channel; '
                "they have 3 channels (procedural heads give it with data.depth: true)"
            )
        return image

    def keypoints(self, image: Tensor) -> Keypoints:
        """Keypoints, with Jacobians if estimated, of pictures (B, 3 or 4, H, W)."""
        return self.kp_detector(self.with_disparity(image))

    def generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        *,
        encoded: tuple[Tensor, ...] | None = None,
    ) -> HostOutput:
        """The source pictures (B, 3 or 4, H, W) in the driving pose; `encoded` as `encode_source` keeps it."""
        return self._generate(self.with_disparity(source), kp_source, kp_driving, encoded)

    def encode_source(self, source: Tensor) -> EncodedSource:
        """Keep disparity, keypoints and both encoders' features of one source picture (1, 3 or 4, H, W)."""
        source = self.with_disparity(source)
        generator: Any = self.generator
        keypoints, features = self.kp_detector(source), None
        if not watched(generator, "first", "down_blocks", "src_first", "src_down_blocks"):
            features = (*generator.encode(source[:, :3]), generator.encode_depth(source[:, 3:]))
        return EncodedSource(source, keypoints, features)

    def generate_from(self, encoded: EncodedSource, kp_driving: Keypoints) -> HostOutput:
        """The encoded source in each of the driving poses, (B, K, 2)."""
        count, one = len(kp_driving.value), encoded.features is not None
        source = encoded.image if one else encoded.image.expand(count, -1, -1, -1)
        return self._generate(source, encoded.keypoints.expand(count), kp_driving, encoded.features)

    def _generate(
        self,
        source: Tensor,
        kp_source: Keypoints,
        kp_driving: Keypoints,
        encoded: tuple[Tensor, ...] | None = None,
    ) -> HostOutput:
        picture, disparity = source.split([3, 1], dim=1)
        return self.generator(
            picture, kp_source=kp_source, kp_driving=kp_driving, source_depth=disparity, encoded=encoded
        )

    def forward(self, source: Tensor, driving: Tensor) -> HostOutput:
        """The source pictures in the pose of the driving pictures, both (B, 3 or 4, H, W)."""
        source, driving = self.with_disparity(source), self.with_disparity(driving)
        return self._generate(source, self.kp_detector(source), self.kp_detector(driving))

    def _judge(self, image: Tensor, kp: Keypoints) -> Judgement:
        return super()._judge(image[:, :3], kp)

    def load_upstream(self, sections: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the sections of an upstream checkpoint (see `memcomp.adapters.Host.load_upstream`).

        ``depth_encoder`` and ``depth_decoder`` are loaded if they are there and the host has a depth network; it gets
        the number of layers that they have.

        Raises:
            ValueError: as of `Host.load_upstream`; one of the two depth sections without the other.
        """
        given = {name: state for name, state in sections.items() if name not in SECTIONS}
        before = (self.depth_encoder, self.depth_decoder, self.model["depth"], self._fresh_depth)
        if self.depth_encoder is not None:
            depth = {name: sections[name] for name in SECTIONS if name in sections}
            if len(depth) == 1:
                raise ValueError(f"{' and '.join(SECTIONS)} come together, there is only {next(iter(depth))}")
            if depth:
                given |= {name: {k: v for k, v in d.items() if k not in NOT_WEIGHTS} for name, d in depth.items()}
                layers = num_layers(depth["depth_encoder"])
                if layers != self.model["depth"]["num_layers"]:
                    self._build_depth(layers)
            elif self._fresh_depth:
                warnings.warn("no depth sections: the depth network keeps its random weights", stacklevel=2)
        try:
            super().load_upstream(given)
        except ValueError:
            self.depth_encoder, self.depth_decoder, self.model["depth"], self._fresh_depth = before
            raise
        self._fresh_depth = self._fresh_depth and "depth_encoder" not in given
