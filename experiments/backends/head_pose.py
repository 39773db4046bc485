"""Head pose from 68 landmarks: the rotation under which a generic face projects onto them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.backends.face_points import FACE_POINTS
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame

DISTANCE = 8.0  # of the camera in units of the face points (an adult's is about 11 cm): 0.9 m
ROUNDS = 20  # converges in 5 to 15
MODEL = np.array(FACE_POINTS, np.float64)
# The jaw's landmarks slide along the contour when the head turns, the mouth's and brows' move with the expression.
WEIGHT = np.concatenate([np.zeros(17), np.full(10, 0.3), np.ones(9), np.ones(12), np.zeros(20)])
WEIGHT /= WEIGHT.sum()


class LandmarkPose:
    """Yaw, pitch and roll solved from another backend's landmarks (nose, eyes and, less, brows)."""

    def __init__(self, landmarks: Backend) -> None:
        self._landmarks = landmarks

    @property
    def about(self) -> str:
        """Name of the method and of the landmarks' backend."""
        return f"least-squares pose of a generic face on landmarks by {self._landmarks.about}"

    def __call__(self, pictures: Sequence[Frame]) -> list[Label | NotFound]:
        """Solve (3,) degrees for each picture whose landmarks were found."""
        found = self._landmarks(pictures)
        return [points if isinstance(points, NotFound) else head_pose(points) for points in found]


def head_pose(points: Label) -> Label:
    """Solve for the least-squares pose of the generic face, seen by a camera `DISTANCE` in front of it.

    Gauss-Newton over the rotation, from the best affine map. The camera is taken to look at the head's centre, so the
    place in the picture does not matter. The generic face is no one's: expect a few degrees of constant error for a
    person, most in pitch.

    Args:
        points: (68, 2) landmarks, x right, y down, in any unit.

    Returns:
        (3,) yaw, pitch, roll in degrees; positive yaw turns the nose towards the right edge of the picture, positive
        pitch looks up, positive roll tips the top of the head towards the left edge.

    Raises:
        ValueError: not (68, 2), not finite, or all in one place.
    """
    seen = np.asarray(points, np.float64)
    if seen.shape != (len(MODEL), 2) or not np.isfinite(seen).all():
        raise ValueError(f"a head pose needs 68 finite landmarks (68, 2), got {seen.shape}")
    seen = _centred(seen * (1, -1))
    if not (WEIGHT @ seen**2).any():
        raise ValueError("a head pose needs landmarks in different places")
    rotation = _first_guess(seen)
    for _ in range(ROUNDS):
        step = _step(MODEL @ rotation.T, seen)
        rotation = _turn(step) @ rotation
        if np.linalg.norm(step) < 1e-9:
            break
    return _angles(rotation)


def _centred(values: Label) -> Label:
    """Subtract the weighted mean from values (68, …), as the place in the picture is free."""
    return values - np.tensordot(WEIGHT, values, 1)


def _first_guess(seen: Label) -> Label:
    """The rotation nearest to the best affine map."""
    root = np.sqrt(WEIGHT)[:, None]
    affine = np.linalg.lstsq(_centred(MODEL) * root, seen * root, rcond=None)[0].T
    left, _, right = np.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    return np.vstack([rows, np.cross(rows[0], rows[1])])


def _step(turned: Label, seen: Label) -> Label:
    """The small rotation, axis times radians (3,), that brings the projection nearest to `seen`, linearised.

    Scale and place of the projection follow the rotation in closed form; their share is taken out of the slopes.
    """
    x, y, z = turned.T
    zero, near = np.zeros_like(x), 1 / (1 - z / DISTANCE)  # the perspective's enlargement
    turn_x, turn_y, turn_z = np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1), np.stack([y, -x, zero], 1)
    flat = _centred(turned[:, :2] * near[:, None])
    closer = turned[:, :2, None] * (turn_z * (near**2 / DISTANCE)[:, None])[:, None]
    slopes = _centred(np.stack([turn_x, turn_y], 1) * near[:, None, None] + closer)  # (68, 2, 3)
    length = WEIGHT @ (flat**2).sum(1)
    scale = WEIGHT @ (flat * seen).sum(1) / length
    share = np.einsum("n,ni,nij->j", WEIGHT, flat, slopes) / length
    slopes = scale * (slopes - flat[:, :, None] * share)
    weighted = slopes * WEIGHT[:, None, None]
    normal = np.einsum("nij,nik->jk", weighted, slopes) + 1e-12 * scale**2 * np.eye(3)
    return np.linalg.solve(normal, np.einsum("nij,ni->j", weighted, seen - scale * flat))


def _turn(axis_angle: Label) -> Label:
    """Rotate by Rodrigues' formula: axis times radians (3,) → (3, 3)."""
    angle = float(np.linalg.norm(axis_angle))
    if angle == 0:
        return np.eye(3)
    x, y, z = axis_angle / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _angles(rotation: Label) -> Label:
    """Read yaw, pitch and roll off roll · pitch · yaw, the order of `memcomp.experiments.data.heads.pose.rotation`."""
    yaw = np.arctan2(-rotation[2, 0], rotation[2, 2])
    pitch = np.arcsin(np.clip(-rotation[2, 1], -1, 1))
    roll = np.arctan2(-rotation[0, 1], rotation[1, 1])
    return np.degrees(np.array([yaw, pitch, roll]))
