"""Which file a path to a trained host means: a file, a run's folder, a pretrained folder, or "demo".

A run's folder holds `checkpoints/last.safetensors` while it trains and is a pretrained folder once it is done. Where
both are there, the one of more steps counts: a run that goes on is ahead of what it had finished before.
"""

import json
import math
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from memcomp.adapters.folder import CONFIG, FORMAT, WEIGHTS
from memcomp.adapters.upstream.checkpoint import read_checkpoint, recognise
from memcomp.experiments.checkpoints.shipped import shipped_host
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import existing_file
from memcomp.formats import weights_format

CHECKPOINT = "checkpoints/last.safetensors"  # of a run's folder: what training goes on from
DEMO_HOST = "demo"  # the name, as a path to a checkpoint, of the host that comes with the package


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The file of weights that `path` means.

    Raises:
        UserError: there is none, it is upstream's, or no checkpoint at all.
    """
    if os.fspath(path) == DEMO_HOST:
        return shipped_host()[0]
    file = Path(path)
    if is_upstream(file):
        try:
            host = recognise(read_checkpoint(file).sections).host
        except ValueError as error:  # a way out that leads nowhere is none
            why = str(error).removeprefix(f"{file}: ")
            raise UserError(f"{file}: expected a checkpoint of ours, or one for memcomp convert: {why}") from None
        way = f"memcomp convert {file} --output FOLDER"
        raise UserError(f"{file}: expected a checkpoint of ours; first: {way} (by its keys a {host})")
    if not file.is_dir():
        return existing_file(file, "checkpoint")
    found = [file / name for name in (WEIGHTS, CHECKPOINT) if (file / name).is_file()]
    if not found:
        raise UserError(f"{file}: expected a run's folder with {WEIGHTS} or {CHECKPOINT}, found neither")
    return max(found, key=_steps)  # the first, of equals


def is_upstream(file: Path) -> bool:
    """Whether a file, by what is in it, is a checkpoint that was not written here; False where there is no file.

    Raises:
        UserError: it is no checkpoint: says what it is.
    """
    if not file.is_file():
        return False
    try:
        if weights_format(file) == "torch":
            return True
        with safe_open(file, framework="pt") as opened:
            ours = (opened.metadata() or {}).get("format", "").startswith("memcomp-")
    except SafetensorError:  # damaged: who reads it says so
        return False
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    return not ours and not is_pretrained(file)


def metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says about itself; nothing if it cannot be read as one."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def is_pretrained(file: Path) -> bool:
    """Whether a file holds the weights of a pretrained folder."""
    about = metadata(file)
    if not about:  # damaged, perhaps
        return file.name == WEIGHTS and (file.parent / CONFIG).is_file()
    return about.get("format") == FORMAT


def _steps(file: Path) -> float:
    """How many steps the weights have been trained; where they do not tell, a finished host is ahead."""
    about = metadata(file)
    try:
        steps = about["step"] if "step" in about else json.loads(about["about"])["training"]["step"]
        return int(steps)
    except (KeyError, TypeError, ValueError):
        return math.inf if file.name == WEIGHTS else -1
