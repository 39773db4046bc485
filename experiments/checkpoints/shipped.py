"""The small host that comes with the package, trained on procedural heads by `demo/fomm`, then `demo/fomm_detail`.

Two files in `experiments/weights/`: `demo_fomm.safetensors` (an ordinary checkpoint, weights alone) and
`demo_fomm.json` (its sha256, recipe, seed, steps, metrics and the command that made it).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file

NAME = "demo_fomm"


def weights_folder() -> Path:
    """Where the package keeps its weights."""
    return Path(str(resources.files("memcomp.experiments").joinpath("weights")))


def shipped_host() -> tuple[Path, dict[str, Any]]:
    """The checkpoint, compared with its sha256, and what is known about it.

    Raises:
        UserError: a file is missing, or the checkpoint is not the one that the description is of.
    """
    return shipped(NAME, "demo's host", "install the package again, or run `memcomp demo --from-scratch`")


def shipped(name: str, what: str, advice: str = "install the package again") -> tuple[Path, dict[str, Any]]:
    """Weights of the package, compared with their sha256, and what is known about them.

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


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def publish(run: Path, metrics: Path, command: str, folder: Path) -> None:
    """Copy a finished run's weights into `folder` and describe them there.

    Args:
        run: folder of `memcomp train` with `model.safetensors`.
        metrics: `metrics.json` of its evaluation.
        command: what trained it.
        folder: to write the two files into.

    Raises:
        UserError: a file is missing or cannot be written, or the run's recipe names a path of this machine.
    """
    from memcomp.experiments.checkpoints.run_file import load_run

    model = existing_file(run / "model.safetensors", "finished run's weights")
    measured = json.loads(existing_file(metrics, "evaluation").read_text("utf-8"))
    state = load_run(model)
    for key, value in (("init", state.recipe.init), ("data.cache", state.recipe.data.cache)):
        if value is not None and Path(value).is_absolute():
            raise UserError(f"{model}: trained with {key}={value}, a path of this machine; expected a relative one")
    with atomic_write(folder / f"{NAME}.safetensors") as temporary:
        shutil.copyfile(model, temporary)
    about = {
        "sha256": sha256(model),
        "command": command,
        "seed": state.recipe.seed,
        "steps": state.step,
        "recipe": state.recipe.to_dict(),
        "info": state.info,
        "metrics": {"pairs": measured["pairs"], "pairs_seed": measured["pairs_seed"], "results": measured["results"]},
    }
    with atomic_write(folder / f"{NAME}.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put a finished run's weights into the package as the demo's host.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json of its evaluation")
    parser.add_argument("--command", required=True, help="the command that trained it")
    arguments = parser.parse_args()
    publish(arguments.run, arguments.metrics, arguments.command, weights_folder())
