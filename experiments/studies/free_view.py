"""How far heads turn when a host with a free view is asked to turn them: measured yaw against asked yaw.

`python -m memcomp.experiments.studies.free_view CHECKPOINT [--heads N] [--json FILE]`

Procedural heads that training did not see, looking straight ahead, are turned by each of `YAWS`; a regressor that comes
with the package reads the yaw of what the host made, and of the sources themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.data.heads import Poses
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.errors import UserError
from memcomp.experiments.output.tables import versions, write_json
from memcomp.experiments.video import to_frame

YAWS = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0)  # degrees, towards the right edge of the picture if positive


@dataclass(frozen=True)
class Turned:
    """Measured yaw against asked yaw, in degrees.

    Attributes:
        r: their correlation over all views.
        error: mean |measured - asked|.
        slope: of the line through them.
        means: asked → mean and standard deviation of what was measured.
        source: mean |measured| of the sources, which look straight ahead: what the regressor adds.
    """

    r: float
    error: float
    slope: float
    means: dict[float, tuple[float, float]]
    source: float


def measure(measured: np.ndarray, sources: np.ndarray) -> Turned:
    """Compare yaws (N, len(YAWS)) measured of N heads with `YAWS`; `sources` are those of the sources, (N,)."""
    asked = np.broadcast_to(YAWS, measured.shape).ravel()
    found = measured.ravel()
    columns = zip(YAWS, measured.mean(0).tolist(), measured.std(0).tolist(), strict=True)
    return Turned(
        r=float(np.corrcoef(asked, found)[0, 1]),
        error=float(np.abs(found - asked).mean()),
        slope=float(np.polyfit(asked, found, 1)[0]),
        means={yaw: (mean, deviation) for yaw, mean, deviation in columns},
        source=float(np.abs(sources).mean()),
    )


def turn(checkpoint: str, count: int, backend: Backend | None = None) -> tuple[Turned, str]:
    """Turn `count` heads and measure them; also returns what the regressor is.

    Raises:
        UserError: no such checkpoint, or a host without a free view.
    """
    trained, motion = read_trained(checkpoint), Motion(turn=(max(YAWS), 0.0, 0.0))
    host = trained.host(torch.device("cpu"))
    motion.check(host)
    heads = HeadsSet("test", count, 1, trained.size)
    reader = backend or create_backend("pose", read_choices([], trained.size), trained.size)
    degrees = torch.tensor([[yaw, 0.0, 0.0] for yaw in YAWS])
    measured, sources = [], []
    for number in tqdm(range(count), unit="head", desc="turn"):
        picture = heads.render(heads.identity(number), Poses.make())[0]
        views = Animator(host, picture, motion).view(degrees)
        labels = reader([to_frame(view) for view in (picture, *views)])
        yaws = [float(label[0]) for label in labels if not isinstance(label, NotFound)]
        if len(yaws) == len(labels):
            sources.append(yaws[0])
            measured.append(yaws[1:])
    return measure(np.array(measured), np.array(sources)), reader.about


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each yaw."""
    parser = argparse.ArgumentParser(prog="free_view", description="Measured yaw against asked yaw.")
    parser.add_argument("checkpoint", help="run or pretrained folder of a host with a free view")
    parser.add_argument("--heads", type=int, default=48, metavar="N", help="people turned (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    found, about = turn(args.checkpoint, args.heads)
    print(f"{args.heads} heads, each turned by {len(YAWS)} yaws; {about}")
    for yaw, (mean, deviation) in found.means.items():
        print(f"asked {yaw:+.0f}°: measured {mean:+.1f}° ± {deviation:.1f}")
    print(
        f"r {found.r:.3f}, slope {found.slope:.2f}, mean error {found.error:.1f}° (of the sources {found.source:.1f}°)"
    )
    if args.json:
        said = {"heads": args.heads, "backend": about, **vars(found)}
        write_json(
            args.json,
            {**said, "means": {f"{yaw:g}": pair for yaw, pair in found.means.items()}, "versions": versions()},
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
