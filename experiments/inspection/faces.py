"""The faces that `memcomp inspect` looks at: given pictures, or procedural heads of which more is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.adapters import Host, HostOutput
from memcomp.experiments.checkpoints.trained import takes_depth
from memcomp.experiments.data.heads import Poses, disocclusion, landmarks
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.errors import UserError
from memcomp.experiments.inspection.attention_figures import Place
from memcomp.experiments.inspection.observe import ScaleView, observe
from memcomp.experiments.video import fit, read_picture

DRIVEN = {"yaw": (35.0, -35.0, 20.0), "mouth": (0.7, 0.2, 0.0), "smile": (0.0, 0.6, 0.3)}  # heads: driving poses


@dataclass(frozen=True)
class Seen:
    """A host with a memory, looked at while it moves N faces; the first one closest."""

    pictures: Tensor
    """(N, 3, H, W): the sources."""
    driving: Tensor
    """(3, H, W): the pose given to the first."""
    output: HostOutput
    views: list[ScaleView]
    """Every scale of the memory, for the N sources in one pose."""
    poses: list[list[ScaleView]]
    """Every scale for the first source in other poses; empty if there is one pose only."""
    hidden: Tensor | None
    """(H, W) bool: pixels of the first output that its source does not show; None = unknown."""
    places: list[Place]


def look(
    host: Host,
    size: int,
    sources: Sequence[Path] = (),
    driving: Path | None = None,
    *,
    identities: int = 6,
    seed: int = 0,
    pixels: Sequence[tuple[int, int]] = (),
) -> Seen:
    """Run a host with a memory on the sources.

    Args:
        host: in eval mode.
        size: height and width of its pictures.
        sources: pictures; none = procedural heads.
        driving: picture with the pose of all; None = each source's own.
        identities: how many heads.
        seed: which heads.
        pixels: places to look from, (x, y) of the output; none = eye, mouth and what the source hides.

    Raises:
        UserError: a picture or a place that cannot be used, or a host that wants depth besides given pictures.
    """
    places, hidden = named_places(pixels, size), None
    if sources:
        faces = torch.stack([fit(read_picture(path), size) for path in sources])
        drivings = [faces if driving is None else fit(read_picture(driving), size).expand_as(faces)]
        usual = usual_places()
    else:
        faces, drivings, hidden, usual = heads(size, identities, seed, depth=takes_depth(host.model))
    device = next(host.parameters()).device
    try:
        output, views = observe(host, faces.to(device), drivings[0].to(device))
        others = [observe(host, faces[:1].to(device), one[:1].to(device))[1] for one in drivings]
    except ValueError as error:
        raise UserError(f"{host.name}: {error}") from None
    if hidden is None and output.occlusion_map is not None:
        usual.append(most_hidden(output.occlusion_map[0, 0]))
    poses = others if len(others) > 1 else []
    return Seen(faces[:, :3], drivings[0][0, :3], output, views, poses, hidden, places or usual)


def heads(
    size: int, count: int, seed: int = 0, *, depth: bool = False
) -> tuple[Tensor, list[Tensor], Tensor, list[Place]]:
    """Frontal sources (N, 3 or 4, H, W), the same people in other poses, the first's hidden pixels, and its places."""
    front = Poses.make()
    shown = HeadsSet("test", count, 1, size, seed, depth=depth)
    people = [shown.identity(i) for i in range(count)]
    turned = Poses.make(**{name: torch.tensor(values) for name, values in DRIVEN.items()})
    frames = [shown.render(who, Poses.cat([front, turned])) for who in people]  # N of (1 + poses, 3 or 4, H, W)
    sources, *drivings = torch.stack(frames, dim=1)
    hidden = disocclusion(people[0], front, turned[0], size)[0, 0]  # (H, W)
    points = (landmarks(people[0], turned[0], size).points[0] + 1) / 2  # (68, 2), iBUG order
    eye, mouth = points[36:42].mean(0).tolist(), points[60:68].mean(0).tolist()
    places = [Place("eye", *eye), Place("mouth", *mouth)]
    if bool(hidden.any()):
        places.append(deepest(hidden, "hidden in the source"))
    return sources, drivings, hidden, [place for place in places if 0 <= place.x < 1 and 0 <= place.y < 1]


def deepest(mask: Tensor, name: str) -> Place:
    """The place with the most marked pixels around it, of a mask (H, W) that marks some."""
    window = max(3, mask.shape[1] // 12) | 1
    mask = mask.cpu()
    near = F.avg_pool2d(mask[None, None].double(), window, stride=1, padding=window // 2)[0, 0] * mask
    row, column = divmod(int(near.argmax()), mask.shape[1])
    return Place(name, (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])


def most_hidden(occlusion: Tensor) -> Place:
    """The place of an occlusion map (h, w) that the host takes for hidden most surely."""
    return deepest(occlusion <= occlusion.min(), "hidden, says the host")


def usual_places() -> list[Place]:
    """Where eye and mouth of a centred face are: of a given picture nothing better is known."""
    return [Place("where an eye may be", 0.62, 0.42), Place("where a mouth may be", 0.5, 0.72)]


def named_places(pixels: Sequence[tuple[int, int]], size: int) -> list[Place]:
    """The places of pixels (x, y) of the output.

    Raises:
        UserError: one is outside the picture.
    """
    for x, y in pixels:
        if max(x, y) >= size:
            raise UserError(
                f"--pixel {x},{y}: expected x,y with both in 0 … {size - 1}, the host's picture is {size}×{size}"
            )
    return [Place(f"pixel {x},{y}", (x + 0.5) / size, (y + 0.5) / size) for x, y in pixels]
