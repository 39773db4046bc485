"""face-vid2vid's networks as its re-implementation wrote them: how they are known and tapped, what weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from memcomp.adapters.fomm.upstream import discriminator
from memcomp.adapters.layout import Layout, Sections
from memcomp.adapters.upstream import shapes
from memcomp.taps import KeypointTap, Tap


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """The flat feature after the occlusion, then the decoder's features of each doubled size.

    The SPADE decoder takes that feature as its input and as the guide of every norm: what is tapped is its argument.
    Of vox-256 at 256×256: 256 channels 64×64, 128 (SPADE: 256) channels 128×128, 64 channels 256×256.
    """
    flat = dict(generator.get_submodule("fourth").named_parameters())["weight"].shape[0]
    if hasattr(generator, "decoder"):
        middle = dict(generator.get_submodule("decoder.up_0.conv_1").named_parameters())["weight_orig"]
        return [
            Tap("decoder", channels=flat),
            Tap("decoder.up_0", where="output", channels=middle.shape[0]),
            Tap("decoder.conv_img"),
        ]
    blocks = range(1, len(list(generator.get_submodule("up_blocks").children())))
    return [
        Tap("resblocks_2d", channels=flat),
        *(Tap(f"up_blocks.{index}") for index in blocks),
        Tap("final"),
    ]


_VOLUME = frozenset({"first", "dense_motion_network", "second", "third", "fourth"})
LAYOUTS = tuple(
    Layout(
        name=name,
        section="generator",
        parts=_VOLUME | decoder,
        taps=inplace_taps,
        keypoints=KeypointTap("dense_motion_network"),
        keypoint_dims=3,
    )
    for name, decoder in (("face-vid2vid", {"final"}), ("face-vid2vid (SPADE)", {"decoder"}))
)


def read_model(sections: Sections, published: Mapping[str, Any]) -> shapes.Params:
    """Read `model` off a checkpoint (see `Host.read_model`)."""
    shapes.check_params(published)
    generator, detector, pose = (sections[name] for name in ("generator", "kp_detector", "he_estimator"))
    num_kp, image_channel = shapes.rows(detector, "kp.weight"), generator["first.conv.weight"].shape[1]
    kind = "spade" if "decoder.fc.weight" in generator else "original"
    volume = generator["dense_motion_network.compress.weight"].shape[1]
    judge = discriminator(sections.get("discriminator"), image_channel, published)
    return {
        "common_params": {
            "num_kp": num_kp,
            "image_channel": image_channel,
            "feature_channel": volume,
            "estimate_jacobian": "jacobian.weight" in detector,
        },
        "kp_detector_params": _detector(detector, num_kp, published["kp_detector_params"]),
        "he_estimator_params": {
            "block_expansion": shapes.rows(pose, "conv1.weight"),
            "num_bins": shapes.rows(pose, "fc_yaw.weight"),
            **_widths(pose),
        },
        "generator_params": _generator(generator, volume, published["generator_params"]),
        "discriminator_params": judge,
        "generator": kind,
    }


def _widths(state: shapes.State) -> shapes.Params:
    """The widths of the head-pose network, where they are not those that upstream fixed."""
    from memcomp.adapters.facevid2vid.pose import WIDTHS

    widths = [shapes.rows(state, f"conv{number}.weight") for number in range(2, 6)]
    return {} if widths == list(WIDTHS) else {"widths": widths}


def _detector(state: shapes.State, num_kp: int, published: Mapping[str, Any]) -> shapes.Params:
    blocks = shapes.indices(state, "predictor.down_blocks.down", ".conv.weight")
    last = f"predictor.up_blocks.up{blocks - 1}.conv.weight"
    widths = [shapes.rows(state, last)]
    widths += [shapes.rows(state, f"predictor.down_blocks.down{level}.conv.weight") for level in range(blocks)]
    channels = shapes.rows(state, "predictor.conv.weight")
    params = {
        "block_expansion": widths[0],
        "max_features": shapes.widest(widths, published["max_features"]),
        "num_blocks": blocks,
        "reshape_channel": channels,
        "reshape_depth": channels // state["predictor.up_blocks.up0.conv.weight"].shape[1],
    }
    if "jacobian.weight" in state and num_kp != 1 and shapes.rows(state, "jacobian.weight") == 9:
        params["single_jacobian_map"] = True
    return params | shapes.scale(state, "down.weight", published)


def _generator(state: shapes.State, volume: int, published: Mapping[str, Any]) -> shapes.Params:
    flat = shapes.rows(state, "second.weight")
    prefix = "dense_motion_network."
    motion = shapes.hourglass(state, f"{prefix}hourglass.", published["dense_motion_params"])
    motion |= {"compress": shapes.rows(state, f"{prefix}compress.weight"), "reshape_depth": flat // volume}
    params = shapes.encoder(state, {"max_features": flat}) | {
        "reshape_channel": volume,
        "reshape_depth": flat // volume,
        "estimate_occlusion_map": f"{prefix}occlusion.weight" in state,
        "dense_motion_params": motion,
    }
    if blocks := shapes.indices(state, "resblocks_3d.3dr", ".conv1.weight"):
        params["num_resblocks"] = blocks
    return params
