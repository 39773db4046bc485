"""Read the sizes of networks off the shapes of an upstream checkpoint's weights: what the hosts' `read_model` share.

Keys are without ``module.`` prefixes; parameters come back under the names that upstream's `model_params` have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
Params = dict[str, Any]


def check_params(params: Mapping[str, Any]) -> None:
    """Raise ValueError unless every entry is what its name says: upstream's `…_params` are mappings, or absent."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            check_params(value)
        elif str(key).endswith("_params") and value is not None:
            raise ValueError(f"{key}: expected a mapping of parameters, got {value!r}")
        elif key == "max_features" and not isinstance(value, int):
            raise ValueError(f"{key}: expected an integer, got {value!r}")


def motion(state: State, prefix: str, published: Mapping[str, Any]) -> Params:
    """Parameters of a dense-motion network whose keys start with `prefix`."""
    return hourglass(state, f"{prefix}hourglass.", published) | scale(state, f"{prefix}down.weight", published)


def encoder(state: State, published: Mapping[str, Any]) -> Params:
    """Parameters of a generator's encoder: its first convolution and the levels below."""
    levels = indices(state, "down_blocks.", ".conv.weight")
    widths = [rows(state, "first.conv.weight")]
    widths += [rows(state, f"down_blocks.{level}.conv.weight") for level in range(levels)]
    limit = widest(widths, published["max_features"])
    return {"block_expansion": widths[0], "max_features": limit, "num_down_blocks": levels}


def hourglass(state: State, prefix: str, published: Mapping[str, Any]) -> Params:
    """Parameters of an hourglass whose keys start with `prefix`."""
    blocks = indices(state, f"{prefix}encoder.down_blocks.", ".conv.weight")
    widths = [rows(state, f"{prefix}decoder.up_blocks.{blocks - 1}.conv.weight")]
    widths += [rows(state, f"{prefix}encoder.down_blocks.{level}.conv.weight") for level in range(blocks)]
    limit = widest(widths, published["max_features"])
    return {"block_expansion": widths[0], "max_features": limit, "num_blocks": blocks}


def scale(state: State, key: str, published: Mapping[str, Any]) -> Params:
    """`scale_factor` s, from two neighbours in the blur's kernel, a Gaussian of deviation (1/s - 1)/2."""
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


def widest(widths: Sequence[int], published: int) -> int:
    """`max_features`, known where a level has not twice the channels of the one above; else the published one."""
    limited = [coarse for fine, coarse in pairwise(widths) if coarse < 2 * fine]
    return limited[0] if limited else max(published, widths[-1])


def indices(state: State, before: str, after: str) -> int:
    """Count the numbers i for which `before` + i + `after` is a key."""
    pattern = re.compile(re.escape(before) + r"\d+" + re.escape(after))
    return sum(pattern.fullmatch(key) is not None for key in state)


def rows(state: State, key: str) -> int:
    """Output channels of a layer."""
    return state[key].shape[0]
