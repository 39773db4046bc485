"""Put a finished run's weights into the package as the demo's host: `python -m` with this module."""

import argparse
import json
from pathlib import Path

from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.shipped import NAME, weights_folder
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file, sha256


def publish(run: Path, metrics: Path, command: str, folder: Path) -> None:
    """Write a finished run's weights into `folder` as one file, and describe them there.

    Args:
        run: folder of `memcomp train`.
        metrics: `metrics.json` of its evaluation.
        command: what trained it.
        folder: to write the two files into.

    Raises:
        UserError: a file is missing or cannot be written, or the run's recipe names a path of this machine.
    """
    trained = read_trained(existing_file(run / "model.safetensors", "finished run's weights"))
    measured = json.loads(existing_file(metrics, "evaluation").read_text("utf-8"))
    recipe = trained.recipe
    if recipe is None:
        raise UserError(f"{run}: expected the recipe that trained it beside its weights")
    for key, value in (("init", recipe.init), ("data.cache", recipe.data.cache)):
        if value is not None and Path(value).is_absolute():
            raise UserError(f"{run}: trained with {key}={value}, a path of this machine; expected a relative one")
    file = folder / f"{NAME}.safetensors"
    save_run(file, recipe, trained.build(), trained.step, info=trained.info)
    about = {
        "sha256": sha256(file),
        "command": command,
        "seed": recipe.seed,
        "steps": trained.step,
        "recipe": recipe.to_dict(),
        "info": trained.info,
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
