"""MCNet's generator as upstream wrote it: how it is known and tapped, what its weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcomp.adapters.fomm import upstream as fomm
from memcomp.adapters.layout import Layout, Sections
from memcomp.adapters.shared.warped_skip import PARTS, inplace_taps
from memcomp.adapters.upstream import shapes
from memcomp.taps import KeypointTap

LAYOUTS = (
    Layout(
        name="MCNet",
        section="generator",
        parts=PARTS | {"dense_motion_network"},
        taps=inplace_taps,
        keypoints=KeypointTap("dense_motion_network"),
        own_memory="mbUnit",
    ),
)


def read_model(sections: Sections, published: Mapping[str, Any]) -> dict[str, Any]:
    """Read `model` off a checkpoint (see `Host.read_model`): the decoder's widths follow `max_features` alone."""
    params = fomm.read_model(sections, published)
    params["generator_params"]["max_features"] = shapes.rows(sections["generator"], "resblock.0.conv1.weight")
    return params
