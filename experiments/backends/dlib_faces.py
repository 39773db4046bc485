"""Landmarks and identity codes by dlib, offline: detector, shape predictor and recogniser come as packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from memcomp.experiments.backends.base import NotFound, OneByOne, Unavailable, load_package, package_file, versions_of
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame

LEAST = 256  # smaller pictures are enlarged to this at least: the detector looks for faces of 80 pixels
BATCH = 32  # faces coded together
LANDMARKS_FILE = "shape_predictor_68_face_landmarks.dat"
IDENTITY_FILE = "dlib_face_recognition_resnet_model_v1.dat"
PACKAGES = ("dlib-bin", "face_recognition_models")


class DlibFaces:
    """Finds the one face of a picture with dlib's frontal HOG detector and places 68 landmarks on it.

    Raises:
        Unavailable: dlib or face_recognition_models is not installed.
    """

    def __init__(self) -> None:
        self.dlib: Any = load_package("dlib", "faces")
        self.detector = self.dlib.get_frontal_face_detector()
        self.predictor = self.dlib.shape_predictor(str(model_file(LANDMARKS_FILE)))

    def find(self, picture: Frame) -> tuple[Frame, int, Any] | NotFound:
        """Find the face; returns the picture, enlarged by a whole factor if small, the factor, and dlib's landmarks."""
        large, factor, shapes = self.find_all(picture)
        return (large, factor, shapes[0]) if len(shapes) == 1 else NotFound.count(len(shapes))

    def find_all(self, picture: Frame) -> tuple[Frame, int, list[Any]]:
        """Find every face; returns the picture, enlarged by a whole factor if small, the factor, dlib's landmarks."""
        factor = -(-LEAST // min(picture.shape[:2]))
        large = np.ascontiguousarray(picture if factor == 1 else _enlarge(picture, factor))
        return large, factor, [self.predictor(large, face) for face in self.detector(large, 0)]


class DlibLandmarks(OneByOne):
    """Landmarks by dlib, 68 of them; a picture without a face, or with more than one, has none."""

    about = f"dlib frontal detector and 68-point predictor ({versions_of(*PACKAGES)})"

    def __init__(self) -> None:
        self._faces = DlibFaces()

    def read(self, picture: Frame) -> Label | NotFound:
        """Place landmarks in whole pixels of the picture (of the enlarged one, if it is small): dlib rounds."""
        found = self._faces.find(picture)
        if isinstance(found, NotFound):
            return found
        return _points(found[2], found[1])


class DlibHeads(OneByOne):
    """Boxes of heads by dlib, any number in a picture, each made of a face's 68 landmarks: see `head_box`."""

    about = f"dlib frontal detector, boxes of 68 points ({versions_of(*PACKAGES)})"

    def __init__(self) -> None:
        self._faces = DlibFaces()

    def read(self, picture: Frame) -> Label | NotFound:
        """Find heads → (N, 4); faces of 80 pixels and more, in pictures of 256 pixels and more, are found."""
        _, factor, shapes = self._faces.find_all(picture)
        boxes = [head_box(_points(shape, factor)) for shape in shapes]
        return np.stack(boxes) if boxes else NotFound.count(0)


class DlibIdentity:
    """Identity codes by dlib, 128-d, of aligned faces (150×150 chips); of length about 1.4, not unit."""

    about = f"dlib face recognition ResNet, 128-d ({versions_of(*PACKAGES)})"

    def __init__(self) -> None:
        self._faces = DlibFaces()
        self._network = self._faces.dlib.face_recognition_model_v1(str(model_file(IDENTITY_FILE)))

    def __call__(self, pictures: Sequence[Frame]) -> list[Label | NotFound]:
        """Find the faces one by one, and code them `BATCH` at a time."""
        labels: list[Label | NotFound] = []
        chips, places = [], []
        for place, picture in enumerate(pictures):
            found = self._faces.find(picture)
            if isinstance(found, NotFound):
                labels.append(found)
                continue
            labels.append(np.empty(0))
            chips.append(self._faces.dlib.get_face_chip(found[0], found[2], size=150, padding=0.25))
            places.append(place)
        for first in range(0, len(chips), BATCH):
            codes = self._network.compute_face_descriptor(chips[first : first + BATCH])
            for place, code in zip(places[first:], codes, strict=False):
                labels[place] = np.array(code, np.float64)
        return labels


def head_box(points: Label) -> Label:
    """The box around a head whose 68 landmarks (68, 2) are given: (4,) left, top, right, bottom, same units.

    The face ends at the hairline, half the height from chin to brows above these; hair, ears and neck add a quarter of
    the face's height above and at the sides and a fifth below. So a face fills its box as it fills VoxCeleb's.
    """
    (left, top), (right, bottom) = points.min(0), points.max(0)
    face = 1.5 * (bottom - top)
    return np.array([left - face / 4, bottom - 1.25 * face, right + face / 4, bottom + face / 5])


def model_file(name: str) -> Path:
    """Find a file of the package `face_recognition_models`, whose import would need pkg_resources.

    Raises:
        Unavailable: the package is not installed, or lacks the file.
    """
    file = package_file("face_recognition_models", f"models/{name}")
    if file is None:
        message = f"face_recognition_models with {name} is not installed: pip install 'memcomp[faces]'"
        raise Unavailable("memcomp[faces]", message)
    return file


def _points(shape: Any, factor: int) -> Label:
    """Landmarks (68, 2) in pixels of a picture that was enlarged by `factor`."""
    points = np.array([(part.x, part.y) for part in shape.parts()], np.float64)
    return (points + 0.5) / factor - 0.5


def _enlarge(picture: Frame, factor: int) -> Frame:
    """Enlarge bilinearly, pixel centres kept: x in the small picture is (x + 0.5) * factor - 0.5 in the large one."""
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    large = interpolate(planes, scale_factor=factor, mode="bilinear", align_corners=False)[0]
    return large.round().byte().permute(1, 2, 0).numpy()
