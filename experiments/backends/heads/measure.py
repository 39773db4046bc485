"""Errors of the regressor of procedural heads on people of the test split, whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from memcomp.experiments.backends.heads.reader import HeadsReader
from memcomp.experiments.backends.heads.samples import blurred
from memcomp.experiments.data.heads import Identity, Poses, landmarks, render
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import to_frame

SIZES = (64, 128)  # pixels
BINS = ((0, 15), (15, 30), (30, 45), (45, 60))  # |yaw| in degrees
BLUR = 1 / 50  # standard deviation, of the picture's width: 1.3 pixels of 64
EYES = (36, 45)  # their outer corners
ANGLES = ("yaw", "pitch", "roll")


def a_pose_of_each_bin(number: int, draw: torch.Generator) -> Poses:
    """Draw one frame with a yaw in each of `BINS`, to either side; everything else from some trajectory."""
    table = Poses.trajectory(number, 200)[torch.tensor([17, 60, 123, 180])].as_tensor()
    low, high = torch.tensor(BINS).float().unbind(1)
    sign = torch.randint(2, (len(BINS),), generator=draw) * 2 - 1
    table[:, 0] = sign * (low + (high - low) * torch.rand(len(BINS), generator=draw))
    return Poses.from_tensor(table)


def true_landmarks(who: Identity, poses: Poses, size: int) -> Label:
    """True landmarks (T, 68, 2) in pixels, (0, 0) the upper left pixel's centre."""
    return (landmarks(who, poses, size).points.double().numpy() + 1) * (size / 2) - 0.5


def eye_distance(who: Identity, poses: Poses, size: int) -> Label:
    """Distance (T,) in pixels of the outer corners of the eyes, were the head turned to the camera."""
    frontal = Poses.make(zoom=poses.zoom, shift_x=poses.shift_x, shift_y=poses.shift_y)
    left, right = np.moveaxis(true_landmarks(who, frontal, size)[:, EYES], 1, 0)
    return np.linalg.norm(left - right, axis=-1)


def measure(reader: HeadsReader, people: int) -> dict[str, Any]:
    """Measure errors at every size, on clean and on blurred pictures, four of each person.

    Returns:
        size → {"clean": …, "blurred": …} → see `errors`; blurred also "from_clean_px": the mean distance of its
        landmarks from those read off the clean pictures.
    """
    heads = HeadsSet("test", people, 1, SIZES[0])
    found: dict[str, Any] = {}
    for size in SIZES:
        truth: list[tuple[Label, Label, Label]] = []
        read: dict[str, list[tuple[Label, Label]]] = {"clean": [], "blurred": []}
        draw = torch.Generator().manual_seed(0)
        for i in tqdm(range(people), unit="head", desc=f"measuring at {size} px"):
            who, poses = heads.identity(i), a_pose_of_each_bin(i, draw)
            true = (true_landmarks(who, poses, size), poses.angles().double().numpy(), eye_distance(who, poses, size))
            truth += list(zip(*true, strict=True))
            images = render(who, poses, size).image
            soft = blurred(images, torch.full((len(images),), BLUR * size))
            for name, pictures in (("clean", images), ("blurred", soft)):
                read[name] += [reader.read(to_frame(picture)) for picture in pictures]
        found[str(size)] = {name: errors(labels, truth, people) for name, labels in read.items()}
        points = {name: np.array([points for points, _ in labels]) for name, labels in read.items()}
        moved = np.linalg.norm(points["blurred"] - points["clean"], axis=-1)
        found[str(size)]["blurred"]["from_clean_px"] = round(float(moved.mean()), 4)
    return found


def errors(
    read: Sequence[tuple[Label, Label]], truth: Sequence[tuple[Label, Label, Label]], people: int
) -> dict[str, Any]:
    """Sum up the errors of landmarks and angles, over all pictures and by |yaw|.

    Args:
        read: of each picture the landmarks (68, 2) in pixels and the angles (3,) in degrees.
        truth: of each picture the true ones and the distance of the eyes in pixels.
        people: how many are in the pictures.

    Returns:
        mean distance of landmarks in pixels and in percent of the eyes' distance; for each angle r and mean error.
    """
    points, angles = (np.array(values) for values in zip(*read, strict=True))
    true_points, true_angles, eyes = (np.array(values) for values in zip(*truth, strict=True))
    away = np.linalg.norm(points - true_points, axis=-1).mean(1)
    wrong = np.abs(angles - true_angles)
    yaw = np.abs(true_angles[:, 0])

    def mean(which: npt.NDArray[np.bool_]) -> dict[str, float]:
        means = {"landmarks_px": away[which].mean(), "landmarks_percent": 100 * (away / eyes)[which].mean()}
        means |= {name: wrong[which, k].mean() for k, name in enumerate(ANGLES)}
        return {name: round(float(value), 4) for name, value in means.items()}

    whole = mean(np.full(len(yaw), True))
    result: dict[str, Any] = {"pictures": len(yaw), "people": people}
    result |= {name: whole[name] for name in ("landmarks_px", "landmarks_percent")}
    for k, name in enumerate(ANGLES):
        r = float(np.corrcoef(angles[:, k], true_angles[:, k])[0, 1])
        result[name] = {"r": round(r, 4), "mean_error": whole[name]}
    bins = {f"{low}-{high}": (yaw >= low) & (yaw < high) for low, high in BINS}
    return result | {"by_yaw": {name: mean(which) for name, which in bins.items() if which.any()}}
