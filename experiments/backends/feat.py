"""Action units and head pose by the package `py-feat`; an early version of it made the published AUCON and PRMSE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from memcomp.experiments.backends.base import NotFound, OneByOne, Unavailable, load_package, versions_of
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame


class PyFeat(OneByOne):
    """The first-generation detector of py-feat; its networks come from a hub at the first use, with terms of their own.

    Args:
        kind: "action_units" for their probabilities, or "pose".

    Raises:
        Unavailable: the package is not installed or older than version 2, or its networks cannot be fetched.
    """

    about = f"py-feat ({versions_of('py-feat')})"

    def __init__(self, kind: str, device: str = "cpu") -> None:
        self._kind = kind
        package: Any = load_package("feat", "feat")
        if not hasattr(package, "Detectorv1"):
            raise Unavailable("py-feat>=2", f"{self.about}: expected version 2 or later")
        try:
            self._detector = package.Detectorv1(device=device)
        except Exception as error:  # every hub client reports a missing network in its own way
            message = f"py-feat could not load its networks ({type(error).__name__}: {error})"
            raise Unavailable("networks of py-feat", message) from None

    def read(self, picture: Frame) -> Label | NotFound:
        """Read action units or pose off a picture."""
        tensor = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
        faces = self._detector.detect(tensor, data_type="tensor", progress_bar=False)
        if self._kind == "action_units":
            values = np.asarray(faces.aus, np.float64)
        else:  # it tells angles in radians since version 2
            values = np.degrees(np.asarray(faces.poses[["Yaw", "Pitch", "Roll"]], np.float64))
        values = values[np.isfinite(values).all(axis=1)]  # a picture without a face is a row of NaN
        return values[0] if len(values) == 1 else NotFound.count(len(values))
