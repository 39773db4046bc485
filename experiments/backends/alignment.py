"""Landmarks by the package `face-alignment` (Bulat & Tzimiropoulos 2017), with which published AKD values were made."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from memcomp.experiments.backends.base import NotFound, OneByOne, Unavailable, load_package, versions_of
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame


class FaceAlignment(OneByOne):
    """68 landmarks in the plane of the picture; its networks come from its authors' server at the first use.

    Raises:
        Unavailable: the package is not installed, or its networks cannot be fetched.
    """

    about = f"face-alignment, 2-D ({versions_of('face-alignment')})"

    def __init__(self, device: str = "cpu") -> None:
        package: Any = load_package("face_alignment", "alignment")
        kinds = package.LandmarksType
        kind = kinds.TWO_D if hasattr(kinds, "TWO_D") else kinds._2D  # the older name
        try:
            self._network = package.FaceAlignment(kind, flip_input=False, device=device)
        except OSError as error:  # no network: urllib's errors are of this kind
            message = f"face-alignment could not fetch its networks ({error}); they are kept in torch's hub folder"
            raise Unavailable("networks of face-alignment", message) from None

    def read(self, picture: Frame) -> Label | NotFound:
        """Place landmarks on a picture."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of every picture without a face
            faces = self._network.get_landmarks_from_image(picture) or []
        return np.asarray(faces[0], np.float64) if len(faces) == 1 else NotFound.count(len(faces))
