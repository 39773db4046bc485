"""Procedural heads: identities, poses and pictures."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memcomp.experiments.data.heads import Identity, Label, Poses, render
from memcomp.experiments.data.heads.identity import HAIRSTYLES
from memcomp.experiments.data.heads.mesh import build, pose_mesh
from memcomp.experiments.data.heads.pose import rotation
from memcomp.experiments.data.heads.raster import pixel_centres, rasterise

SIZE = 48


def angles(most: float) -> st.SearchStrategy[float]:
    """Degrees; without subnormal numbers, which some builds of torch flush to zero."""
    return st.floats(-most, most, allow_subnormal=False)


def label_x(label: torch.Tensor, kinds: tuple[Label, ...]) -> float:
    """Mean x in [-1, 1] of the pixels (1, H, W) with these labels."""
    mask = torch.stack([label[0] == int(k) for k in kinds]).any(0)
    return float(pixel_centres(label.shape[-1])[mask][:, 0].mean())


def test_a_seed_is_a_person() -> None:
    assert Identity.sample(3) == Identity.sample(3)
    assert Identity.sample(3) != Identity.sample(4)
    assert hash(Identity.sample(3)) == hash(Identity.sample(3))


def test_pictures_are_deterministic_and_in_range() -> None:
    who, poses = Identity.sample(5), Poses.trajectory(5, 3)
    first, again = render(who, poses, SIZE), render(who, poses, SIZE)
    assert first.image.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(first.image, again.image)
    assert first.image.min() >= 0 and first.image.max() <= 1
    assert first.image.std() > 0.05


def test_a_frame_does_not_depend_on_its_batch() -> None:
    who, poses = Identity.sample(8), Poses.trajectory(2, 4)
    together = render(who, poses, SIZE).image
    alone = torch.cat([render(who, poses[t], SIZE).image for t in range(4)])
    # float rounding may move an edge by a sub-pixel, never more
    assert (together - alone).abs().mean() < 1e-4


def test_labels_and_depth_agree() -> None:
    frames = render(Identity.sample(1), Poses.trajectory(1, 4), SIZE)
    assert frames.label.dtype == torch.uint8
    assert torch.equal(frames.label == int(Label.BACKGROUND), frames.depth.isinf())
    seen = set(frames.label.unique().tolist())
    assert {int(v) for v in (Label.SKIN, Label.HAIR, Label.LIPS, Label.CLOTH, Label.EYE)} <= seen


@pytest.mark.parametrize("seed", [0, 6])
def test_positive_yaw_turns_the_nose_to_the_right_edge(seed: int) -> None:
    who = Identity.sample(seed)
    left, right = render(who, Poses.make(yaw=torch.tensor([-40.0, 40.0])), SIZE).label
    face = (Label.LIPS, Label.EYE)
    assert label_x(left, face) < -0.1 < 0.1 < label_x(right, face)


def test_positive_pitch_looks_up_and_positive_roll_tips_to_the_left() -> None:
    who = Identity.sample(6)
    up, down, tipped = render(
        who, Poses.make(pitch=torch.tensor([20.0, -20, 0]), roll=torch.tensor([0.0, 0, 20])), 64
    ).label
    at = pixel_centres(64)

    def lips(label: torch.Tensor, axis: int) -> float:
        return float(at[label[0] == int(Label.LIPS)][:, axis].mean())

    assert lips(up, 1) < lips(down, 1)  # y points down
    assert lips(tipped, 0) > 0.05  # the head turns about its middle: the mouth goes right when the crown goes left


def test_perspective_enlarges_what_is_near() -> None:
    """What is nearer than the head's middle is drawn larger than life, what is farther smaller."""
    who = Identity.sample(6)
    posed = pose_mesh(build(who), who, Poses.make())
    larger = posed.screen[0, :, 0].abs() / posed.points[0, :, 0].abs().clamp(min=1e-6)
    aside, z = posed.points[0, :, 0].abs() > 0.05, posed.points[0, :, 2]
    assert (larger[aside & (z > 0.01)] > 1).all() and (larger[aside & (z < -0.01)] < 1).all()
    assert 1.05 < larger[aside].max() < 1.3  # mild


def test_expressions_show() -> None:
    who = Identity.sample(6)
    neutral, mouth, blink = render(
        who, Poses.make(mouth=torch.tensor([0.0, 1, 0]), blink=torch.tensor([0.0, 0, 1])), 64
    ).label

    def count(label: torch.Tensor, kind: Label) -> int:
        return int((label == int(kind)).sum())

    assert count(neutral, Label.MOUTH) == 0 < 20 < count(mouth, Label.MOUTH)
    assert count(blink, Label.EYE) == 0 < count(neutral, Label.EYE)


@pytest.mark.parametrize("style", HAIRSTYLES)
def test_every_hairstyle_is_drawn(style: str) -> None:
    who = dataclasses.replace(Identity.sample(6), hairstyle=style)
    label = render(who, Poses.make(yaw=torch.tensor([25.0])), SIZE).label
    hair = int((label == int(Label.HAIR)).sum())
    assert (hair == 0) == (style == "bald")


@settings(max_examples=8, deadline=None)
@given(yaw=angles(60), pitch=angles(25), roll=angles(25), seed=st.integers(0, 10**6))
def test_a_mirrored_pose_mirrors_the_silhouette(yaw: float, pitch: float, roll: float, seed: int) -> None:
    """The body is symmetric apart from the parting and the ragged edge of the hair: labels differ in few pixels."""
    who = dataclasses.replace(Identity.sample(seed), hairstyle="bald", glasses=0.0)
    there = Poses.make(yaw=yaw, pitch=pitch, roll=roll)
    back = Poses.make(yaw=-yaw, pitch=pitch, roll=-roll)
    label, mirrored = render(who, there, SIZE).label, render(who, back, SIZE).label.flip(-1)
    assert (label != mirrored).float().mean() < 0.01


@settings(max_examples=20, deadline=None)
@given(yaw=angles(60), pitch=angles(25), roll=angles(25))
def test_rotations_are_rotations(yaw: float, pitch: float, roll: float) -> None:
    turn = rotation(*(torch.tensor([v]) for v in (yaw, pitch, roll)))[0].double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.det(turn) > 0


def test_trajectories_are_smooth_and_within_range() -> None:
    poses = Poses.trajectory(11, 200)
    table = poses.as_tensor()
    assert table.shape == (200, 12)
    assert poses.yaw.abs().max() <= 60 and poses.pitch.abs().max() <= 25 and poses.roll.abs().max() <= 25
    assert poses.angles().diff(dim=0).abs().max() < 12  # degrees per frame
    assert torch.equal(Poses.from_tensor(table).as_tensor(), table)
    assert torch.equal(Poses.trajectory(11, 200).as_tensor(), table)


def test_poses_reject_unknown_fields() -> None:
    with pytest.raises(ValueError, match=r"nod.*yaw"):
        Poses.make(nod=1.0)


def test_style_follows_sex_and_hair_colour() -> None:
    people = [Identity.sample(s) for s in range(400)]
    assert not any(p.beard for p in people if p.femininity > 0.5)
    bearded = [p for p in people if p.beard_length]
    assert len(bearded) > 40
    assert sum(p.hairstyle == "long" for p in bearded) < 0.15 * len(bearded)
    for p in bearded:
        assert max(abs(a - b) for a, b in zip(p.hair, p.beard_colour, strict=True)) < 0.12
    assert {p.hairstyle for p in people} == set(HAIRSTYLES)


def test_rasterise_takes_the_nearest_triangle() -> None:
    """Two squares, the nearer one smaller; a third, seen from behind, is not drawn unless it has two sides."""
    square = torch.tensor([[-1.0, 1], [1, 1], [1, -1], [-1, -1]])  # counter-clockwise with y up, from the lower left
    screen = torch.cat([square * 0.9, square * 0.5, square[[3, 2, 1, 0]] * 0.2])[None]
    closeness = torch.cat([torch.full((4,), v) for v in (0.2, 0.25, 0.5)])[None]
    triangles = torch.cat([torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * k for k in range(3)])
    one_sided = torch.zeros(6, dtype=torch.bool)
    seen, close = rasterise(screen, closeness, triangles, one_sided, 20)
    assert seen[0, 0, 0] == 6 and close[0, 0, 0] == 0  # nothing in the corner
    assert seen[0, 10, 2] in (0, 1) and seen[0, 10, 10] in (2, 3)
    assert close[0, 10, 10] == 0.25
    both, _ = rasterise(screen, closeness, triangles, ~one_sided, 20)
    assert both[0, 10, 10] in (4, 5)
