"""Where the faces of a picture are, offline: dlib's frontal detector and its 68 landmarks."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from memcomp.experiments.backends.dlib_faces import DlibFaces
from memcomp.experiments.video import Frame

WIDEST = 1600  # pixels of the longer side that are looked at
LEAST = 256  # of the shorter side: the detector looks for faces of 80 pixels
TURNS = (0, 25, -25, 50, -50, 90, -90)  # degrees by which the picture is turned: the detector looks for upright faces
SURE = 0.5  # score from which on a face is looked for no further: a head that is turned is found, but badly, upright
DOUBT = 0.25  # share of the best detection's score below which another is none: folds of cloth look like faces too

Points = npt.NDArray[np.float64]


def find_faces(picture: Frame) -> list[Points]:
    """Landmarks of all faces of a picture, from left to right.

    Args:
        picture: (H, W, 3) uint8.

    Returns:
        (68, 2) each, iBUG order, x and y in pixels from the upper left corner of the picture.

    Raises:
        Unavailable: dlib or face_recognition_models is not installed.
    """
    faces = _dlib()
    sides = picture.shape[:2]
    factor = min(WIDEST / max(sides), max(1.0, LEAST / min(sides)))
    image = Image.fromarray(picture)
    if factor != 1:
        image = image.resize((round(sides[1] * factor), round(sides[0] * factor)), Image.Resampling.BILINEAR)
    best: tuple[float, list[Points]] = (0.0, [])
    for turn in TURNS:
        turned = image.rotate(turn, Image.Resampling.BILINEAR, expand=True) if turn else image
        seen = np.ascontiguousarray(np.asarray(turned))
        boxes, scores, _ = faces.detector.run(seen, 0)
        if len(scores) and max(scores) > best[0]:
            kept = [box for box, score in zip(boxes, scores, strict=True) if score >= DOUBT * max(scores)]
            points = [np.array([(part.x, part.y) for part in faces.predictor(seen, box).parts()]) + 0.5 for box in kept]
            best = max(scores), [_turned_back(each, turn, turned, image) for each in points]
        if best[0] >= SURE:
            break
    scale = np.array([sides[1] / image.width, sides[0] / image.height])
    return sorted((face * scale for face in best[1]), key=lambda face: float(face[:, 0].mean()))


_dlib = cache(DlibFaces)  # the file of landmarks has 100 MB


def _turned_back(points: Points, turn: float, turned: Image.Image, image: Image.Image) -> Points:
    """Places of a picture turned anticlockwise by `turn` degrees about its centre, in the picture as it was."""
    angle = np.deg2rad(turn)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    offset = points - np.array([turned.width, turned.height]) / 2
    return offset @ matrix.T + np.array([image.width, image.height]) / 2
