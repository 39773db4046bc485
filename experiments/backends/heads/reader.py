"""Landmarks and head pose of procedural heads, by a small regressor that comes with the package.

It has seen nothing but rendered heads and must not read real faces. Its error against truth, on people that it was not
trained on, stands in `experiments/weights/heads_reader.json` and below every table that it helped to make.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memcomp.experiments.backends.base import OneByOne, Unavailable
from memcomp.experiments.backends.files import load_weights
from memcomp.experiments.backends.heads.network import HeadsNetwork, seen
from memcomp.experiments.checkpoints.shipped import shipped
from memcomp.experiments.errors import UserError
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame

NAME = "heads_reader"


class HeadsReader:
    """The regressor with its weights; half precision in the file, computing in float32, one picture after the other.

    Args:
        file: weights; None = the package's, compared with their sha256.

    Raises:
        Unavailable: the package's weights are missing, or not those that their description is of.
        UserError: a file of one's own does not fit.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.facts: Mapping[str, Any] = {}
        if file is None:
            try:
                file, self.facts = shipped(NAME, "regressor of procedural heads")
            except UserError as error:
                raise Unavailable(f"{NAME}.safetensors", str(error)) from None
        elif file.with_suffix(".json").is_file():
            self.facts = json.loads(file.with_suffix(".json").read_text("utf-8"))
        self._network = HeadsNetwork()
        load_weights(self._network, file)
        self._network.eval()

    @torch.inference_mode()
    def read(self, picture: Frame) -> tuple[Label, Label]:
        """Read (H, H, 3) uint8 RGB → landmarks (68, 2), pixels, (0, 0) the upper left pixel's centre; angles (3,) in °.

        Raises:
            ValueError: the picture is not square.
        """
        points, angles = self._network(seen(picture))
        return (points[0].double().numpy() + 1) * (len(picture) / 2) - 0.5, angles[0].double().numpy()

    def about_landmarks(self, size: int) -> str:
        """Name, and the error of landmarks at the measured size that is nearest to `size` pixels."""
        side, clean, blurred = self._errors(size)
        return (
            f"{self._name(side, clean)} {clean['landmarks_px']:.2f} px ({clean['landmarks_percent']:.1f} % of the "
            f"distance of the eyes), blurred {blurred['landmarks_px']:.2f} px"
        )

    def about_pose(self, size: int) -> str:
        """Name, and the error of angles at the measured size that is nearest to `size` pixels."""
        side, clean, blurred = self._errors(size)
        text = [
            ", ".join(f"{key} {at[key]['mean_error']:.1f}°" for key in ("yaw", "pitch", "roll"))
            for at in (clean, blurred)
        ]
        return f"{self._name(side, clean)} {text[0]} (r of yaw {clean['yaw']['r']:.3f}), blurred {text[1]}"

    def _errors(self, size: int) -> tuple[int, Mapping[str, Any], Mapping[str, Any]]:
        measured = {int(side): errors for side, errors in self.facts["errors"].items()}
        side = min(measured, key=lambda side: abs(np.log(side / size)))
        return side, measured[side]["clean"], measured[side]["blurred"]

    def _name(self, side: int, errors: Mapping[str, Any]) -> str:
        return (
            f"the package's regressor of procedural heads ({self.facts['sha256'][:8]}); its mean error on "
            f"{errors['pictures']} pictures of {errors['people']} unseen people at {side} px:"
        )


class HeadsLandmarks(OneByOne):
    """The backend of landmarks of a procedural head; it always finds them.

    Args:
        size: of the pictures, pixels: whose error `about` tells.

    Raises:
        Unavailable: the package's weights are missing or damaged.
    """

    def __init__(self, size: int) -> None:
        self._reader = HeadsReader()
        self.about = self._reader.about_landmarks(size)

    def read(self, picture: Frame) -> Label:
        """Place landmarks (68, 2); those that the picture does not show are guessed."""
        return self._reader.read(picture)[0]


class HeadsPose(OneByOne):
    """The backend of yaw, pitch and roll of a procedural head; it always finds them.

    Args:
        size: of the pictures, pixels: whose error `about` tells.

    Raises:
        Unavailable: the package's weights are missing or damaged.
    """

    def __init__(self, size: int) -> None:
        self._reader = HeadsReader()
        self.about = self._reader.about_pose(size)

    def read(self, picture: Frame) -> Label:
        """Read the angles (3,) in degrees."""
        return self._reader.read(picture)[1]
