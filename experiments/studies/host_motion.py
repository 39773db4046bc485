"""How true a host's motion and occlusion are: `python -m memcomp.experiments.studies.host_motion CHECKPOINT`.

Procedural heads know where every pixel of a driving frame stands in the source, and whether the source shows it. Both
are compared with what the host estimates, on the pairs of the study `evidence`, in the coordinates of its keypoints, in
which no motion is no motion (with `align_corners` false it samples up to half a place beside them).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.adapters.true_motion import Given
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.data.heads.raster import pixel_centres
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.hidden import spread_pairs
from memcomp.experiments.recipe.load import load_recipe

MOVES = 0.5  # pixels: a place that moves less is left out


@dataclass(frozen=True)
class Found:
    """What a host estimates, against the truth.

    Attributes:
        visible, hidden: mean occlusion map where the source shows a place, and where it does not; None: it has none.
        error: pixels between the place where the host looks and the true one, at visible places that move: mean and
            median.
        still: the same of no motion at all.
    """

    visible: float | None
    hidden: float | None
    error: tuple[float, float]
    still: tuple[float, float]


def compare(host: Host, pairs: Sequence[tuple[Tensor, Tensor]]) -> Found:
    """Compare a host in eval mode with pairs of pictures with their exact motion, (7, H, W) each.

    Raises:
        UserError: no pair has a visible place that moves, or the host moves a volume.
    """
    errors, still, shown, hidden = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for source, driving in tqdm(pairs, unit="pair", desc="motion"):
        size = source.shape[-1]
        given = Given.unpack(driving[None], 1)
        assert given.flow is not None and given.visibility is not None
        with torch.no_grad():
            output = host(source[None, :3], driving[None, :3])
        if output.deformation.shape[-1] != 2:
            raise UserError(f"host {host.name!r}: expected one that moves pictures, it moves a volume")
        seen = given.visibility[0, 0] > 0.5
        exact, here = (((grid + 1) * size - 1) / 2 for grid in (given.flow[0], pixel_centres(size)))  # in pixels
        grid = output.deformation.permute(0, 3, 1, 2).float()
        found = F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
        moving = seen & ((exact - here).norm(dim=-1) > MOVES)
        errors.append(((found + 1) / 2 * (size - 1) - exact).norm(dim=-1)[moving])
        still.append((here - exact).norm(dim=-1)[moving])
        if output.occlusion_map is not None:
            whole = F.interpolate(output.occlusion_map.float(), size=(size, size), mode="bilinear")[0, 0]
            shown.append(whole[seen])
            hidden.append(whole[~seen])
    off, unmoved = torch.cat(errors), torch.cat(still)
    if not len(off):
        raise UserError("no pair has a place that the source shows and that moves")
    return Found(
        visible=torch.cat(shown).mean().item() if shown else None,
        hidden=torch.cat(hidden).mean().item() if hidden else None,
        error=(off.mean().item(), off.median().item()),
        still=(unmoved.mean().item(), unmoved.median().item()),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print two lines."""
    parser = argparse.ArgumentParser(prog="host_motion", description="A host's motion and occlusion against the truth.")
    parser.add_argument("checkpoint", help="run, checkpoint or pretrained folder of a host of 64 px heads")
    parser.add_argument("--pairs", type=int, default=100, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.pairs < 1:
        raise UserError(f"--pairs: expected 1 or more, got {args.pairs}")
    host, recipe = load_host(args.checkpoint)
    pairs = spread_pairs(load_recipe("demo/true_motion", [f"size={recipe.size}"]), 0, args.pairs)
    found = compare(host.eval(), [(pair.source, pair.driving) for pair in pairs])
    if found.visible is not None and found.hidden is not None:
        print(
            f"occlusion map: {found.visible:.3f} where the source shows a place, {found.hidden:.3f} where it does not"
        )
    (mean, median), (still, still_median) = found.error, found.still
    print(f"motion off by {mean:.1f} px (median {median:.1f}); no motion by {still:.1f} ({still_median:.1f})")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
