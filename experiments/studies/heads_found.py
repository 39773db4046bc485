"""How often an ordinary face detector finds the heads, and how far its landmarks are from the exact ones.

`python -m memcomp.experiments.studies.heads_found [PEOPLE]`; needs the extra `faces` (dlib).
"""

import sys

import numpy as np
import torch

from memcomp.experiments.backends.base import NotFound
from memcomp.experiments.backends.dlib_faces import DlibLandmarks
from memcomp.experiments.data.heads import Identity, Poses, landmarks, render

SIZE = 256  # pixels
BINS = ((0.0, 20.0), (20.0, 40.0))  # |yaw| in degrees
GROUPS = {"jaw": (0, 17), "brows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68)}


def measure(people: int) -> tuple[list[float], dict[str, float]]:
    """One random pose and expression a person and bin of yaw.

    Returns:
        The share of pictures in which one face is found, for each of `BINS`; the median landmark error by `GROUPS`, in
        pixels of 256.
    """
    backend = DlibLandmarks()
    generator = torch.Generator().manual_seed(1)
    found: list[list[bool]] = [[] for _ in BINS]
    errors = []
    for person in range(people):
        who = Identity.sample(5000 + person)
        low, high = torch.tensor(BINS).unbind(1)
        draw = torch.rand(len(BINS), generator=generator) * 2 - 1
        table = Poses.trajectory(9000 + person, 200)[torch.tensor([17, 123])].as_tensor()
        table[:, 0] = draw.sign() * (low + (high - low) * draw.abs())  # yaw; the rest stays as it was drawn
        poses = Poses.from_tensor(table)
        pictures = (render(who, poses, SIZE).image * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        exact = ((landmarks(who, poses).points + 1) * SIZE / 2 - 0.5).numpy()
        for seen, points, hits in zip(backend(list(pictures)), exact, found, strict=True):
            hits.append(not isinstance(seen, NotFound))
            if not isinstance(seen, NotFound):
                errors.append(np.linalg.norm(seen - points, axis=1))
    distances = np.array(errors)
    median = {name: float(np.median(distances[:, a:b])) for name, (a, b) in GROUPS.items()} if errors else {}
    return [float(np.mean(hits)) for hits in found], median


if __name__ == "__main__":
    people = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    shares, median = measure(people)
    for (low, high), share in zip(BINS, shares, strict=True):
        print(f"|yaw| {low:.0f}-{high:.0f} degrees: {share:.1%} of {people} faces found")
    print("median landmark error, pixels of 256: " + ", ".join(f"{name} {value:.1f}" for name, value in median.items()))
