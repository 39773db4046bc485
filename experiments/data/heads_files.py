"""Procedural heads as files: a contact sheet, or clips as ordinary videos with tables of the truth."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import imageio.v3 as imageio
import torch
from torch import Tensor
from tqdm import tqdm

from memcomp.experiments.data.heads import Poses, landmarks, render
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.errors import UserError, counted
from memcomp.experiments.files import atomic_write, writable_folder


def write_clips(folder: str | os.PathLike[str], heads: HeadsSet, indices: Iterable[int] | None = None) -> list[Path]:
    """Write clips as `folder/<split>/<identity>.mp4` and a CSV of pose and landmarks beside each; returns the videos.

    Raises:
        UserError: the size is odd, or the folder cannot be written.
    """
    if heads.size % 2:
        raise UserError(f"heads: size = {heads.size}, expected an even number of pixels for clips")
    target = writable_folder(Path(folder) / heads.split)
    videos = []
    for i in tqdm(list(range(len(heads)) if indices is None else indices), unit="clip", desc=f"writing {target}"):
        video = target / heads.clip_name(i)
        frames = heads.frames(i)[:, :3].permute(0, 2, 3, 1).numpy()
        with atomic_write(video) as temporary:
            imageio.imwrite(temporary, frames, plugin="pyav", codec="libx264", fps=heads.rate)
        with atomic_write(video.with_suffix(".csv")) as temporary:
            temporary.write_text(_table(heads, i))
        videos.append(video)
    return videos


def _table(heads: HeadsSet, i: int) -> str:
    """The truth of a clip as CSV: a row per frame; pose as `Poses`, then x, y in [-1, 1], visible of 68 landmarks."""
    poses = heads.poses(i)
    found = landmarks(heads.identity(i), poses)
    head = ["frame", *(f.name for f in fields(Poses)), *(f"{c}{k}" for k in range(68) for c in ("x", "y", "visible"))]
    lines = [",".join(head)]
    points = torch.cat([found.points, found.visible[..., None].float()], -1).flatten(1)
    for t, row in enumerate(torch.cat([poses.as_tensor(), points], 1).tolist()):
        lines.append(",".join([str(t), *(f"{v:.5g}" for v in row)]))
    return "\n".join(lines) + "\n"


def contact_sheet(heads: HeadsSet) -> Tensor:
    """Draw (3, identities * size, 8 * size): every row one person in eight poses, RGB in [0, 1]."""
    poses = Poses.make(
        yaw=torch.tensor([0.0, 30, -60, 60, -35, 0, 10, -15]),
        pitch=torch.tensor([0.0, 0, 0, 5, 10, 25, -25, 5]),
        roll=torch.tensor([0.0, 5, 0, 0, 10, 0, 0, -20]),
        mouth=torch.tensor([0.0, 0, 0.2, 0.5, 0, 0, 0, 1]),
        smile=torch.tensor([0.0, 0.8, 0, 0, -0.3, 0.5, 0, 0.4]),
        blink=torch.tensor([0.0, 0, 0, 0, 0, 0, 0.3, 1]),
        brows=torch.tensor([0.0, 0, 0, 1, -1, 0, 0, 0.5]),
        gaze_x=torch.tensor([0.0, 0.5, -0.5, 0, 0.4, 0, 0, 0]),
    )
    rows = [torch.cat(list(render(heads.identity(i), poses, heads.size).image), 2) for i in range(len(heads))]
    return torch.cat(rows, 1)


def write_heads(output: Path, heads: HeadsSet) -> str:
    """Write a contact sheet if `output` ends in .png, else clips into the folder `output`; returns what was written.

    Raises:
        UserError: as `write_clips`, or `output` has another suffix.
    """
    if output.suffix.lower() == ".png":
        with atomic_write(output) as temporary:
            imageio.imwrite(temporary, (contact_sheet(heads) * 255).round().byte().permute(1, 2, 0).numpy())
        return f"{counted(len(heads), 'person', 'people')} in 8 poses"
    if output.suffix:
        raise UserError(f"--output {output}: expected a .png file for a contact sheet or a folder for clips")
    with tempfile.TemporaryDirectory() as scratch:  # clips are written once: no need to keep their frames in the cache
        heads.folder = Path(scratch)
        videos = write_clips(output, heads)
    return f"{counted(len(videos), 'clip')} of {counted(heads.length, 'frame')}"
