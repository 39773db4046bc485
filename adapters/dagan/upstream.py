"""DaGAN's generators as upstream wrote them: how they are known and tapped, what their weights tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from memcomp.adapters.dagan.depth import SECTIONS, num_layers
from memcomp.adapters.fomm import upstream as fomm
from memcomp.adapters.layout import Sections
from memcomp.taps import Tap

SECTION_FILES = {  # monodepth2's encoder.pth and depth.pth
    "depth_encoder": re.compile(r"encoder\.(conv1|bn1|layer\d|fc)\..+"),
    "depth_decoder": re.compile(r"decoder\.\d+\..+"),
}


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """FOMM's taps; the first, the input of the bottleneck, is the feature after the depth attention.

    The SPADE variant has no bottleneck. There it is the input of the decoder (256 channels at 1/4 of the size, from
    which the decoder also makes its guide), the output of its first doubling block (256 channels at 1/2) and the input
    of its last convolution (64 channels at full size).
    """
    if not hasattr(generator, "decoder"):
        return fomm.inplace_taps(generator)
    middle = generator.get_submodule("decoder.up_0.conv_1")
    weight = dict(middle.named_parameters())["weight_orig"]  # spectrally normalised: tap_channels would not see it
    return [Tap("decoder"), Tap("decoder.up_0", where="output", channels=weight.shape[0]), Tap("decoder.conv_img")]


_DEPTH = frozenset({"first", "dense_motion_network", "src_first", "AttnModule"})
LAYOUTS = tuple(
    replace(fomm.LAYOUTS[0], name=name, parts=_DEPTH | decoder, taps=inplace_taps)
    for name, decoder in (("DaGAN", {"bottleneck", "final"}), ("DaGAN (SPADE)", {"decoder"}))
)


def read_model(sections: Sections, published: Mapping[str, Any]) -> dict[str, Any]:
    """Read `model` off a checkpoint (see `Host.read_model`), the depth network from upstream's files of its own.

    Raises:
        ValueError: there is no depth network, and the model does not say that there is none.
    """
    spade = "decoder.compress.weight" in sections["generator"]
    params = fomm.read_model(sections, published) | {
        "generator": "SPADEDepthAwareGenerator" if spade else "DepthAwareGenerator"
    }
    if sections.keys() >= set(SECTIONS):
        params["depth"] = {"num_layers": num_layers(sections["depth_encoder"])}
    elif published.get("depth") not in ("zeros", "truth"):
        raise ValueError(
            "DaGAN's depth network is in further files: give upstream's encoder.pth and depth.pth as well, "
            "or by --model FILE (model= in Python) a model whose depth is zeros or truth"
        )
    return params
