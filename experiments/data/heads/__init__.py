"""Procedural talking heads: seeded identities, smooth clips, exact landmarks, depth, labels and disocclusion."""

from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.pose import Poses
from memcomp.experiments.data.heads.render import FAR, NEAR, RENDERER_VERSION, Frames, render
from memcomp.experiments.data.heads.shading import Label
from memcomp.experiments.data.heads.visibility import Correspondence, Landmarks, correspondence, disocclusion, landmarks

__all__ = [
    "FAR",
    "NEAR",
    "RENDERER_VERSION",
    "Correspondence",
    "Frames",
    "Identity",
    "Label",
    "Landmarks",
    "Poses",
    "correspondence",
    "disocclusion",
    "landmarks",
    "render",
]
