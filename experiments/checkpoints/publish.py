"""Put a finished run's weights into the package, as one of the demo's hosts: `python -m` with this module."""

import argparse
import json
from pathlib import Path

from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.shipped import NAME, weights_folder
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file, sha256


def publish(run: Path, metrics: Path, command: str, folder: Path, name: str = NAME, half: bool = False) -> None:
    """Write a finished run's weights into `folder` as one file, and describe them there.

    Args:
        run: folder of `memcomp train`.
        metrics: `metrics.json` of its evaluation.
        command: what trained it.
        folder: to write the two files into.
        name: of the two files, without suffix.
        half: store half-precision weights, half as large.

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
    file = folder / f"{name}.safetensors"
    host = trained.build()
    save_run(file, recipe, host.half() if half else host, trained.step, info=trained.info)
    about = {
        "sha256": sha256(file),
        "command": command,
        "seed": recipe.seed,
        "steps": trained.step,
        "recipe": recipe.to_dict(),
        "info": trained.info,
        "metrics": {"pairs": measured["pairs"], "pairs_seed": measured["pairs_seed"], "results": measured["results"]},
    }
    with atomic_write(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Put a finished run's weights into the package.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json of its evaluation")
    parser.add_argument("--command", required=True, help="the command that trained it")
    parser.add_argument("--name", default=NAME, help="of the files, without suffix (default: %(default)s)")
    parser.add_argument("--half", action="store_true", help="store half-precision weights")
    given = parser.parse_args()
    publish(given.run, given.metrics, given.command, weights_folder(), given.name, given.half)
