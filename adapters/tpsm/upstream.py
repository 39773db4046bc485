"""TPSM's networks as upstream wrote them: how they are known and tapped, what their weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcomp.adapters.layout import Layout, Sections
from memcomp.adapters.shared.warped_skip import PARTS, inplace_taps
from memcomp.adapters.upstream import shapes
from memcomp.taps import KeypointTap

LAYOUTS = (
    Layout(
        name="TPSM",
        section="inpainting_network",
        parts=PARTS,
        taps=inplace_taps,
        keypoints=KeypointTap("dense_motion_network", key="fg_kp"),
        count=("num_tps", 5),  # each transform has five keypoints
    ),
)


def read_model(sections: Sections, published: Mapping[str, Any]) -> shapes.Params:
    """Read `model` off a checkpoint (see `Host.read_model`); background and disentanglement may not be trained yet."""
    shapes.check_params(published)
    motion, avd = sections["dense_motion_network"], sections.get("avd_network")
    avd_params: shapes.Params | None = None
    if avd:
        sizes = {name: shapes.rows(avd, f"{name}_encoder.9.weight") for name in ("id", "pose")}
        avd_params = {f"{name}_bottle_size": size for name, size in sizes.items()}
    return {
        "common_params": {
            "num_tps": shapes.rows(motion, "maps.weight") - 1,
            "num_channels": sections["inpainting_network"]["first.conv.weight"].shape[1],
            "bg": "bg_predictor" in sections,
            "multi_mask": shapes.indices(motion, "occlusion.", ".weight") > 1,
        },
        "generator_params": shapes.encoder(sections["inpainting_network"], published["generator_params"]),
        "dense_motion_params": shapes.motion(motion, "", published["dense_motion_params"]),
        "avd_network_params": avd_params,
    }
