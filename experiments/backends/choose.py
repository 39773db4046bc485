"""The choice of a backend by what a user writes, such as `identity=openface:FILE`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module

from memcomp.experiments.backends.base import Backend
from memcomp.experiments.errors import UserError

# what can be chosen → its default, and the choices as the help shows them
CHOICES: Mapping[str, tuple[str, str]] = {
    "landmarks": ("dlib", "dlib | face-alignment | heads (procedural heads only)"),
    "identity": ("dlib", "dlib | openface:FILE | arcface:FILE"),
    "pose": ("landmarks", "landmarks | py-feat | heads (procedural heads only)"),
    "action_units": ("py-feat", "py-feat"),
    "heads": ("dlib", "dlib"),
    "lpips_alex": ("package", "FILE with the linear heads (alex.pth) | package: that of an installed lpips"),
    "lpips_vgg": ("package", "FILE with the linear heads (vgg.pth) | package"),
    "alexnet": ("hub", "FILE in torchvision's format | hub"),
    "vgg16": ("hub", "FILE in torchvision's format | hub"),
}

# the defaults of procedural heads, where they are others
ON_HEADS: Mapping[str, str] = {"landmarks": "heads", "pose": "heads"}

# kind → name → module and class, imported when it is chosen
CLASSES: Mapping[str, Mapping[str, str]] = {
    "landmarks": {
        "dlib": "dlib_faces.DlibLandmarks",
        "face-alignment": "alignment.FaceAlignment",
        "heads": "heads.reader.HeadsLandmarks",
    },
    "identity": {
        "dlib": "dlib_faces.DlibIdentity",
        "openface": "openface.OpenFace",
        "arcface": "arcface.ArcFace",
    },
    "pose": {"landmarks": "head_pose.LandmarkPose", "py-feat": "feat.PyFeat", "heads": "heads.reader.HeadsPose"},
    "action_units": {"py-feat": "feat.PyFeat"},
    "heads": {"dlib": "dlib_faces.DlibHeads"},
}
NEED_A_FILE = ("openface", "arcface")


def read_choices(words: Sequence[str], heads: int | None = None) -> dict[str, str]:
    """Read choices such as `["identity=arcface:FILE", …]` and fill in the defaults.

    Args:
        words: what a user wrote.
        heads: size of the pictures if they show procedural heads, which have defaults of their own; None = faces.

    Raises:
        UserError: a word is no `key=value`, or its key is unknown.
    """
    chosen = {key: default for key, (default, _) in CHOICES.items()} | dict(ON_HEADS if heads else {})
    for word in words:
        key, equals, value = word.partition("=")
        if key not in CHOICES:
            near = difflib.get_close_matches(key, CHOICES, 1) or [", ".join(CHOICES)]
            raise UserError(f"--backend {word}: unknown; did you mean {near[0]}?")
        if not equals or not value:
            raise UserError(f"--backend {word}: expected {key}=VALUE, VALUE one of {CHOICES[key][1]}")
        chosen[key] = value
    return chosen


def create_backend(kind: str, chosen: Mapping[str, str], heads: int | None = None) -> Backend:
    """Make the backend that reads labels of one kind: landmarks, identity, pose, action_units or heads.

    Args:
        kind: what it reads.
        chosen: see `read_choices`.
        heads: size of the pictures if they show procedural heads; None = faces.

    Raises:
        Unavailable: its package or its weights are missing.
        UserError: there is no backend of that name for this kind, or it reads procedural heads and these are faces.
    """
    name, _, file = chosen[kind].partition(":")
    if name not in CLASSES[kind] or (name in NEED_A_FILE) != bool(file):
        raise UserError(f"--backend {kind}={chosen[kind]}: expected {CHOICES[kind][1]}")
    module, _, backend = CLASSES[kind][name].rpartition(".")
    make = getattr(import_module(f"memcomp.experiments.backends.{module}"), backend)
    if file:
        return make(file)
    if name == "heads":
        if heads is None:
            raise UserError(f"--backend {kind}=heads: reads procedural heads only; these pictures are of clips")
        return make(heads)
    if name == "landmarks":
        return make(create_backend("landmarks", chosen, heads))
    return make(kind) if name == "py-feat" else make()
