"""The small host that comes with the package, trained on procedural heads by `demo/fomm`, then `demo/fomm_detail`.

Two files in `experiments/weights/`: `demo_fomm.safetensors` (an ordinary checkpoint, weights alone) and
`demo_fomm.json` (its sha256, recipe, seed, steps, metrics and the command that made it).
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import existing_file, sha256

NAME = "demo_fomm"


def weights_folder() -> Path:
    """Where the package keeps its weights."""
    return Path(str(resources.files("memcomp.experiments").joinpath("weights")))


def shipped_host() -> tuple[Path, dict[str, Any]]:
    """Find the shipped host's checkpoint, compared with its sha256, and what is known about it.

    Raises:
        UserError: a file is missing, or the checkpoint is not the one that the description is of.
    """
    return shipped(NAME, "demo's host", "install the package again, or run `memcomp demo --from-scratch`")


def shipped(name: str, what: str, advice: str = "install the package again") -> tuple[Path, dict[str, Any]]:
    """Find weights of the package, compared with their sha256, and what is known about them.

    Args:
        name: of the two files, without suffix.
        what: these are, for the message of an error.
        advice: how to come by them again.

    Raises:
        UserError: a file is missing, or the weights are not those that the description is of.
    """
    try:
        weights = existing_file(weights_folder() / f"{name}.safetensors", f"file of the {what}")
        about = json.loads(existing_file(weights_folder() / f"{name}.json", "description of it").read_text("utf-8"))
        expected = about["sha256"]
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the {what}: {error}; {advice}") from None
    found = sha256(weights)
    if found != expected:
        raise UserError(f"{weights}: sha256 {found[:12]}…, its description says {expected[:12]}…; {advice}")
    return weights, about
