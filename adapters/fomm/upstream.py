"""The first-order-motion generator as upstream wrote it: how it is known and tapped, what its weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from memcomp.adapters.layout import Layout, Sections
from memcomp.adapters.upstream import shapes
from memcomp.taps import KeypointTap, Tap


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """The warped, occluded feature before the bottleneck, then the decoder's features of each doubled size.

    Of vox-256 at 256×256: 256 channels 64×64, 128 channels 128×128, 64 channels 256×256.
    """
    blocks = generator.get_submodule("up_blocks")
    decoder = [f"up_blocks.{index}" for index in range(1, len(list(blocks.children())))]
    return [Tap(name) for name in ("bottleneck", *decoder, "final")]


LAYOUTS = (
    Layout(
        name="FOMM",
        section="generator",
        parts=frozenset({"first", "dense_motion_network", "bottleneck", "final"}),  # there may be no further level
        taps=inplace_taps,
        keypoints=KeypointTap("dense_motion_network"),
        warps_one=True,
    ),
)


def read_model(sections: Sections, published: Mapping[str, Any]) -> shapes.Params:
    """Read `model` off a checkpoint of FOMM or a descendant (see `Host.read_model`)."""
    shapes.check_params(published)
    generator, detector = sections["generator"], sections["kp_detector"]
    num_kp, num_channels = shapes.rows(detector, "kp.weight"), generator["first.conv.weight"].shape[1]
    common = {"num_kp": num_kp, "num_channels": num_channels, "estimate_jacobian": "jacobian.weight" in detector}
    return {
        "common_params": common,
        "kp_detector_params": _detector(detector, num_kp, published["kp_detector_params"]),
        "generator_params": _first_order(generator, published["generator_params"]),
        "discriminator_params": discriminator(sections.get("discriminator"), num_channels, published),
    }


def _detector(state: shapes.State, num_kp: int, published: Mapping[str, Any]) -> shapes.Params:
    params = shapes.hourglass(state, "predictor.", published) | shapes.scale(state, "down.weight", published)
    if "jacobian.weight" in state and num_kp != 1 and shapes.rows(state, "jacobian.weight") == 4:
        params["single_jacobian_map"] = True
    return params


def _first_order(state: shapes.State, published: Mapping[str, Any]) -> shapes.Params:
    params = shapes.encoder(state, published)
    if blocks := shapes.indices(state, "bottleneck.r", ".conv1.weight"):
        params["num_bottleneck_blocks"] = blocks
    params["estimate_occlusion_map"] = "dense_motion_network.occlusion.weight" in state
    params["dense_motion_params"] = shapes.motion(state, "dense_motion_network.", published["dense_motion_params"])
    return params


def discriminator(state: shapes.State | None, num_channels: int, published: Mapping[str, Any]) -> shapes.Params | None:
    """Parameters of FOMM's multi-scale discriminator; None if there are no weights of one."""
    if not state:
        return None
    names = list(dict.fromkeys(key.split(".")[1] for key in state if key.startswith("discs.")))
    scales = [int(name) if name.isdigit() else float(name.replace("-", ".")) for name in names]
    prefix = f"discs.{names[0]}." if names else "discs."
    kernel = "conv.weight_orig" if f"{prefix}conv.weight_orig" in state else "conv.weight"
    blocks = shapes.indices(state, f"{prefix}down_blocks.", ".conv.bias")
    widths = [shapes.rows(state, f"{prefix}down_blocks.{level}.{kernel}") for level in range(blocks)]
    return {
        "scales": scales,
        "block_expansion": widths[0] // 2,
        "max_features": shapes.widest(
            widths, (published.get("discriminator_params") or {}).get("max_features", widths[-1])
        ),
        "num_blocks": blocks,
        "sn": kernel == "conv.weight_orig",
        "use_kp": state[f"{prefix}down_blocks.0.{kernel}"].shape[1] != num_channels,
    }
