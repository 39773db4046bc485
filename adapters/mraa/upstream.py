"""MRAA's networks as upstream wrote them: how they are known and tapped, what their weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from memcomp.adapters.fomm.upstream import inplace_taps as decoder_taps
from memcomp.adapters.layout import Layout, Sections
from memcomp.adapters.mraa.background import NUMBERS
from memcomp.adapters.upstream import shapes
from memcomp.taps import KeypointTap, Tap


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """The warped, occluded feature before the bottleneck, then the decoder's features of each size.

    With skips the warped feature is used twice: before the bottleneck, and blended into what comes out of it. No module
    stands between that blend and the first up block, so the block's input is tapped, where the second use arrives
    too. Without skips it is the bottleneck's output, and is not. Of vox-256 at 256×256: 256 channels 64×64, twice, 128
    channels 128×128, 64 channels 256×256.
    """
    first, *finer = decoder_taps(generator)
    twice = getattr(generator, "skips", False) and any(True for _ in generator.get_submodule("up_blocks").children())
    return [first, *([Tap("up_blocks.0")] if twice else []), *finer]


LAYOUTS = (
    Layout(
        name="MRAA",
        section="generator",
        parts=frozenset({"first", "pixelwise_flow_predictor", "bottleneck", "final"}),
        taps=inplace_taps,
        keypoints=KeypointTap(
            "pixelwise_flow_predictor", argument="source_region_params", key="shift", driving="driving_region_params"
        ),
        count=("num_regions", 1),
    ),
)


def read_model(sections: Sections, published: Mapping[str, Any]) -> shapes.Params:
    """Read `model` off a checkpoint (see `Host.read_model`); the disentanglement may not be trained yet."""
    shapes.check_params(published)
    regions, generator, avd = sections["region_predictor"], sections["generator"], sections.get("avd_network")
    num_regions, num_channels = shapes.rows(regions, "regions.weight"), generator["first.conv.weight"].shape[1]
    region_params = shapes.hourglass(regions, "predictor.", published["region_predictor_params"])
    region_params |= shapes.scale(regions, "down.weight", published["region_predictor_params"])
    common: shapes.Params = {"num_regions": num_regions, "num_channels": num_channels}
    if "jacobian.weight" in regions:  # frames by regression; without it they are of the other kind, or there are none
        common["estimate_affine"], region_params["pca_based"] = True, False
    avd_params: shapes.Params | None = None
    if avd:
        sizes = {name: shapes.rows(avd, f"{name}_encoder.9.weight") for name in ("id", "pose")}
        avd_params = {f"{name}_bottle_size": size for name, size in sizes.items()}
    return {
        **common,
        "region_predictor_params": region_params,
        "bg_predictor_params": _background(sections.get("bg_predictor"), published),
        "generator_params": _generator(generator, num_regions, published["generator_params"]),
        "avd_network_params": avd_params,
    }


def _background(state: shapes.State | None, published: Mapping[str, Any]) -> shapes.Params:
    if not state:
        return {"bg_type": "zero"}
    blocks = shapes.indices(state, "encoder.down_blocks.", ".conv.weight")
    widths = [shapes.rows(state, f"encoder.down_blocks.{level}.conv.weight") for level in range(blocks)]
    numbers = shapes.rows(state, "fc.weight")
    known = (published.get("bg_predictor_params") or {}).get("max_features", widths[-1])
    return {
        "block_expansion": widths[0] // 2,
        "max_features": shapes.widest(widths, known),
        "num_blocks": blocks,
        "bg_type": next((kind for kind, count in NUMBERS.items() if count == numbers), f"of {numbers} numbers"),
    }


def _generator(state: shapes.State, num_regions: int, published: Mapping[str, Any]) -> shapes.Params:
    params = shapes.encoder(state, published)
    if blocks := shapes.indices(state, "bottleneck.r", ".conv1.weight"):
        params["num_bottleneck_blocks"] = blocks
    prefix = "pixelwise_flow_predictor."
    flow = shapes.motion(state, prefix, published["pixelwise_flow_predictor_params"])
    flow["estimate_occlusion_map"] = f"{prefix}occlusion.weight" in state
    seen = state[f"{prefix}hourglass.encoder.down_blocks.0.conv.weight"].shape[1]
    flow["use_deformed_source"] = seen > num_regions + 1
    if not flow["estimate_occlusion_map"]:  # what skips blend with
        params["skips"] = False
    return params | {"pixelwise_flow_predictor_params": flow}
