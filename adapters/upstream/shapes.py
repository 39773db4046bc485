"""What the shapes of an upstream checkpoint's weights tell about the `model` that they belong to.

One function for each host: sections, without ``module.`` prefixes, and the published `model` → the parameters that can
be read, nested as in `model`. A value of None says that the checkpoint has no such network. What leaves no trace in
the weights (temperature, variances, paddings) is not in the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
Sections = Mapping[str, State]
Params = dict[str, Any]


def fomm(sections: Sections, published: Mapping[str, Any]) -> Params:
    """Of the first-order motion model."""
    generator, detector = sections["generator"], sections["kp_detector"]
    num_kp, num_channels = _rows(detector, "kp.weight"), generator["first.conv.weight"].shape[1]
    common = {"num_kp": num_kp, "num_channels": num_channels, "estimate_jacobian": "jacobian.weight" in detector}
    return {
        "common_params": common,
        "kp_detector_params": _detector(detector, num_kp, published["kp_detector_params"]),
        "generator_params": _first_order(generator, published["generator_params"]),
        "discriminator_params": _discriminator(sections.get("discriminator"), num_channels, published),
    }


def mcnet(sections: Sections, published: Mapping[str, Any]) -> Params:
    """Of MCNet, whose decoder's widths follow `max_features` alone; the host reads the memory's sizes itself."""
    params = fomm(sections, published)
    params["generator_params"]["max_features"] = _rows(sections["generator"], "resblock.0.conv1.weight")
    return params


def dagan(sections: Sections, published: Mapping[str, Any]) -> Params:
    """Of DaGAN, with the depth network that upstream keeps in files of its own.

    Raises:
        ValueError: there is no depth network, and the model does not say that there is none.
    """
    spade = "decoder.compress.weight" in sections["generator"]
    params = fomm(sections, published) | {"generator": "SPADEDepthAwareGenerator" if spade else "DepthAwareGenerator"}
    if {"depth_encoder", "depth_decoder"} <= sections.keys():
        layers = 50 if "encoder.layer1.0.conv3.weight" in sections["depth_encoder"] else 18
        params["depth"] = {"num_layers": layers}
    elif published.get("depth") not in ("zeros", "truth"):
        raise ValueError(
            "DaGAN's depth network is in further files: give upstream's encoder.pth and depth.pth as well, "
            "or by --model FILE (model= in Python) a model whose depth is zeros or truth"
        )
    return params


def tpsm(sections: Sections, published: Mapping[str, Any]) -> Params:
    """Of the thin-plate spline motion model; background and disentanglement come with later epochs and stages."""
    motion, avd = sections["dense_motion_network"], sections.get("avd_network")
    avd_params: Params | None = None
    if avd:
        sizes = {name: _rows(avd, f"{name}_encoder.9.weight") for name in ("id", "pose")}
        avd_params = {f"{name}_bottle_size": size for name, size in sizes.items()}
    return {
        "common_params": {
            "num_tps": _rows(motion, "maps.weight") - 1,
            "num_channels": sections["inpainting_network"]["first.conv.weight"].shape[1],
            "bg": "bg_predictor" in sections,
            "multi_mask": _indices(motion, "occlusion.", ".weight") > 1,
        },
        "generator_params": _encoder(sections["inpainting_network"], published["generator_params"]),
        "dense_motion_params": _motion(motion, "", published["dense_motion_params"]),
        "avd_network_params": avd_params,
    }


def _detector(state: State, num_kp: int, published: Mapping[str, Any]) -> Params:
    params = _hourglass(state, "predictor.", published) | _scale(state, "down.weight", published)
    if "jacobian.weight" in state and num_kp != 1 and _rows(state, "jacobian.weight") == 4:
        params["single_jacobian_map"] = True
    return params


def _first_order(state: State, published: Mapping[str, Any]) -> Params:
    params = _encoder(state, published)
    if blocks := _indices(state, "bottleneck.r", ".conv1.weight"):
        params["num_bottleneck_blocks"] = blocks
    params["estimate_occlusion_map"] = "dense_motion_network.occlusion.weight" in state
    params["dense_motion_params"] = _motion(state, "dense_motion_network.", published["dense_motion_params"])
    return params


def _motion(state: State, prefix: str, published: Mapping[str, Any]) -> Params:
    return _hourglass(state, f"{prefix}hourglass.", published) | _scale(state, f"{prefix}down.weight", published)


def _encoder(state: State, published: Mapping[str, Any]) -> Params:
    """Of a generator: its first convolution and the levels below."""
    levels = _indices(state, "down_blocks.", ".conv.weight")
    widths = [_rows(state, "first.conv.weight")]
    widths += [_rows(state, f"down_blocks.{level}.conv.weight") for level in range(levels)]
    most = _most(widths, published["max_features"])
    return {"block_expansion": widths[0], "max_features": most, "num_down_blocks": levels}


def _hourglass(state: State, prefix: str, published: Mapping[str, Any]) -> Params:
    blocks = _indices(state, f"{prefix}encoder.down_blocks.", ".conv.weight")
    widths = [_rows(state, f"{prefix}decoder.up_blocks.{blocks - 1}.conv.weight")]
    widths += [_rows(state, f"{prefix}encoder.down_blocks.{level}.conv.weight") for level in range(blocks)]
    most = _most(widths, published["max_features"])
    return {"block_expansion": widths[0], "max_features": most, "num_blocks": blocks}


def _discriminator(state: State | None, num_channels: int, published: Mapping[str, Any]) -> Params | None:
    if not state:
        return None
    names = list(dict.fromkeys(key.split(".")[1] for key in state if key.startswith("discs.")))
    scales = [int(name) if name.isdigit() else float(name.replace("-", ".")) for name in names]
    prefix = f"discs.{names[0]}." if names else "discs."
    kernel = "conv.weight_orig" if f"{prefix}conv.weight_orig" in state else "conv.weight"
    blocks = _indices(state, f"{prefix}down_blocks.", ".conv.bias")
    widths = [_rows(state, f"{prefix}down_blocks.{level}.{kernel}") for level in range(blocks)]
    return {
        "scales": scales,
        "block_expansion": widths[0] // 2,
        "max_features": _most(widths, (published.get("discriminator_params") or {}).get("max_features", widths[-1])),
        "num_blocks": blocks,
        "sn": kernel == "conv.weight_orig",
        "use_kp": state[f"{prefix}down_blocks.0.{kernel}"].shape[1] != num_channels,
    }


def _scale(state: State, key: str, published: Mapping[str, Any]) -> Params:
    """`scale_factor` s, from the ratio of two neighbours in the blur's kernel, a Gaussian of deviation (1/s - 1)/2."""
    if key not in state:
        return {"scale_factor": 1} if "scale_factor" in published else {}
    row = state[key][0, 0, state[key].shape[2] // 2].double()
    if len(row) == 1:
        return {}
    middle = len(row) // 2
    inverse = 1 + 2 * math.sqrt(0.5 / math.log(row[middle] / row[middle + 1]))
    if abs(inverse - round(inverse)) < 1e-3:
        return {"scale_factor": 1 / round(inverse)}
    return {"scale_factor": round(1 / inverse, 4)}


def _most(widths: Sequence[int], published: int) -> int:
    """`max_features`: where a level has not twice the channels of the one above; told by nothing, the published one."""
    limited = [coarse for fine, coarse in pairwise(widths) if coarse < 2 * fine]
    return limited[0] if limited else max(published, widths[-1])


def _indices(state: State, before: str, after: str) -> int:
    """How many numbers i make `before` + i + `after` a key."""
    pattern = re.compile(re.escape(before) + r"\d+" + re.escape(after))
    return sum(pattern.fullmatch(key) is not None for key in state)


def _rows(state: State, key: str) -> int:
    return state[key].shape[0]
