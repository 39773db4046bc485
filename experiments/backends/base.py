"""The contract of a backend, which reads one kind of label off pictures by code or weights of others."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Protocol

from memcomp.experiments.errors import UserError
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame


@dataclass(frozen=True)
class NotFound:
    """A picture that has no label, and why."""

    reason: str
    """Such as "no face" or "2 faces"."""

    @classmethod
    def count(cls, faces: int) -> NotFound:
        """Say how many faces a picture shows, not being one."""
        return cls(f"{faces} faces" if faces else "no face")


class Backend(Protocol):
    """Reads one kind of label off pictures, each by itself: the same picture gives the same label in any list.

    | kind | label (float64) |
    |---|---|
    | landmarks | (68, 2): x, y in pixels, iBUG order, (0, 0) the centre of the upper left pixel |
    | identity | (D,): a code of the person |
    | pose | (3,): yaw, pitch, roll in degrees, signs as in `memcomp.experiments.data.heads.Poses` |
    | heads | (N, 4): left, top, right, bottom of each head in pixels, the hair included |
    | action_units | (A,): activity in [0, 1], always in the same order |
    """

    @property
    def about(self) -> str:
        """Name and versions, for the line below a table."""

    def __call__(self, pictures: Sequence[Frame]) -> list[Label | NotFound]:
        """Read pictures, (H, W, 3) uint8 RGB each → a label, or why there is none."""


class OneByOne(ABC):
    """A backend that reads one picture after the other."""

    def __call__(self, pictures: Sequence[Frame]) -> list[Label | NotFound]:
        """Read pictures, (H, W, 3) uint8 RGB each → a label, or why there is none."""
        return [self.read(picture) for picture in pictures]

    @abstractmethod
    def read(self, picture: Frame) -> Label | NotFound:
        """Read one picture."""


class Unavailable(UserError):
    """A backend that cannot be used here: its package or its weights are missing.

    Attributes:
        needs: what is missing, in a few words for a table's cell, such as `memcomp[faces]` or `openface.pth`.
    """

    def __init__(self, needs: str, message: str) -> None:
        super().__init__(message)
        self.needs = needs


def load_package(module: str, extra: str) -> ModuleType:
    """Import a package that only an extra brings.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise Unavailable(f"memcomp[{extra}]", f"{module} needs {error.name}, which is not installed") from None
        message = f"{module} is not installed: pip install 'memcomp[{extra}]'"
        raise Unavailable(f"memcomp[{extra}]", message) from None


def package_file(package: str, path: str) -> Path | None:
    """Find a file of an installed package without importing it; None if there is no such package or file."""
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((file for folder in folders if (file := Path(folder) / path).is_file()), None)


def versions_of(*packages: str) -> str:
    """List packages as `name version`, joined by commas; one that is not installed by its name alone."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(package)
    return ", ".join(found)
