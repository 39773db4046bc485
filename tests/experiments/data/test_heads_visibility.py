"""Exact landmarks and the exact disocclusion mask."""

import dataclasses

import pytest
import torch

from memcomp.experiments.data.heads import Identity, Label, Poses, correspondence, disocclusion, landmarks, render
from memcomp.experiments.data.heads.mesh import build, mesh_detail, pose_mesh
from memcomp.experiments.data.heads.raster import gather, pixel_centres, vertex_table
from memcomp.experiments.data.heads.visibility import View, opened

SIZE = 96
PLAIN = dataclasses.replace(Identity.sample(6), glasses=0.0, hairstyle="short")


def test_landmarks_lie_on_the_surface_that_is_seen() -> None:
    """A visible landmark's own depth is the depth map's at its place."""
    poses = Poses.trajectory(3, 6)
    found = landmarks(PLAIN, poses, 256)
    mesh = build(PLAIN, mesh_detail(256))
    depth = View.of(mesh, pose_mesh(mesh, PLAIN, poses), 256).depth
    column, row = ((found.points + 1) * 128).floor().long().clamp(0, 255).unbind(-1)
    frame = torch.arange(6)[:, None].expand_as(row)
    inner = torch.arange(68) >= 17  # the outline (0 … 16) lies where the depth map jumps
    gap = (depth[frame, row, column] - found.depth)[:, inner][found.visible[:, inner]]
    assert len(gap) > 150
    assert gap.abs().median() < 0.003
    assert gap.abs().quantile(0.95) < 0.03


def test_landmarks_are_in_ibug_order() -> None:
    points = landmarks(PLAIN, Poses.make(), SIZE).points[0]
    x, y = points.unbind(-1)
    assert (x[:17].diff() > 0).all() and y[8] == y[:17].max()  # the jaw, left to right over the chin
    assert (x[17:27].diff() > 0).all() and (y[27:31].diff() > 0).all() and (x[31:36].diff() > 0).all()
    assert x[36] < x[39] < x[42] < x[45] and y[37] < y[41] and y[44] < y[46]
    assert x[48] < x[51] < x[54] and y[51] < y[62] <= y[66] < y[57]
    torch.testing.assert_close(x[17:27], -x[17:27].flip(0), atol=2e-3, rtol=0)  # a frontal face is symmetric


def test_landmarks_lie_on_what_they_name() -> None:
    frames = render(PLAIN, Poses.make(), 256)
    points = landmarks(PLAIN, Poses.make(), 256).points[0]
    at = pixel_centres(256)

    def box(label: Label) -> tuple[torch.Tensor, torch.Tensor]:
        where = at[frames.label[0, 0] == int(label)]
        return where.amin(0), where.amax(0)

    for label, numbers in ((Label.EYE, range(36, 48)), (Label.LIPS, range(48, 60))):
        low, high = box(label)
        torch.testing.assert_close(points[list(numbers)].amin(0), low, atol=0.025, rtol=0)
        torch.testing.assert_close(points[list(numbers)].amax(0), high, atol=0.025, rtol=0)


def test_far_landmarks_are_hidden_and_near_ones_seen() -> None:
    visible = landmarks(PLAIN, Poses.make(yaw=torch.tensor([-60.0, 60.0])), SIZE).visible
    assert visible[0, 42:48].sum() + visible[1, 36:42].sum() >= 8  # the near eyes
    assert not visible[0, :5].any() and not visible[1, 12:17].any()  # the far cheek's outline


def test_expressions_move_landmarks() -> None:
    poses = Poses.make(
        mouth=torch.tensor([0.0, 1, 0, 0]), blink=torch.tensor([0.0, 0, 1, 0]), brows=torch.tensor([0.0, 0, 0, 1])
    )
    y = landmarks(PLAIN, poses, SIZE).points[..., 1]
    assert y[1, 66] - y[1, 62] > 0.08 and (y[0, 66] - y[0, 62]).abs() < 0.01
    assert y[1, 8] > y[0, 8] + 0.03  # the chin goes down
    assert (y[2, 41] - y[2, 37]) < 0.35 * (y[0, 41] - y[0, 37])
    assert (y[3, 17:27] < y[0, 17:27]).all()


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_nothing_is_disoccluded_between_identical_frames(seed: int) -> None:
    poses = Poses.trajectory(seed, 3)
    assert disocclusion(Identity.sample(seed), poses, poses, 64).float().mean() < 1e-3


def test_turning_shows_the_far_side() -> None:
    """From the front, turned right: what becomes visible lies on the left of the head."""
    mask = disocclusion(PLAIN, Poses.make(), Poses.make(yaw=torch.tensor([-50.0, 50.0])), SIZE)
    x = pixel_centres(SIZE)[..., 0]
    for frame, sign in ((0, 1), (1, -1)):
        assert 0.02 < mask[frame].float().mean() < 0.3
        marked = x[mask[frame, 0]] * sign
        assert (marked > 0).float().mean() > 0.9


def test_turning_back_hides_nothing_new_of_the_cheek() -> None:
    """From the profile to the front the far cheek and eye are new, the near ones are not."""
    mask = disocclusion(PLAIN, Poses.make(yaw=60.0), Poses.make(), SIZE)[0, 0]
    label = render(PLAIN, Poses.make(), SIZE).label[0, 0]
    skin, x = label == int(Label.SKIN), pixel_centres(SIZE)[..., 0]
    face = skin & (pixel_centres(SIZE)[..., 1].abs() < 0.3)
    assert mask[face & (x > 0.35)].float().mean() > 0.8
    assert mask[face & (x < -0.1)].float().mean() < 0.05


def test_an_opening_mouth_is_disoccluded() -> None:
    opened = Poses.make(mouth=1.0)
    mask = disocclusion(PLAIN, Poses.make(), opened, SIZE)[0, 0]
    inside = render(PLAIN, opened, SIZE).label[0, 0] == int(Label.MOUTH)
    assert inside.sum() > 30
    assert mask[inside].float().mean() > 0.85
    assert not disocclusion(PLAIN, opened, opened, SIZE)[0, 0][inside].any()
    assert not disocclusion(PLAIN, opened, Poses.make(mouth=0.6), SIZE).any()


def test_a_wider_mouth_shows_only_what_is_new() -> None:
    wide = Poses.make(mouth=1.0)
    whole, part = (disocclusion(PLAIN, Poses.make(mouth=m), wide, SIZE).sum() for m in (0.0, 0.5))
    assert 0 < part < 0.8 * whole


def test_the_jaw_carries_its_skin_along() -> None:
    """A chin that moves down is the same skin: nothing of it is marked."""
    opened = Poses.make(mouth=1.0)
    mask = disocclusion(PLAIN, Poses.make(), opened, SIZE)[0, 0]
    label = render(PLAIN, opened, SIZE).label[0, 0]
    chin = landmarks(PLAIN, opened, SIZE).points[0, 8, 1]
    at = pixel_centres(SIZE)
    jaw = (
        (label == int(Label.SKIN)) & (at[..., 0].abs() < 0.2) & (at[..., 1] > chin - 0.15) & (at[..., 1] < chin - 0.03)
    )
    assert jaw.sum() > 20
    assert mask[jaw].float().mean() < 0.02


def test_opening_eyes_are_disoccluded() -> None:
    mask = disocclusion(PLAIN, Poses.make(blink=1.0), Poses.make(), 160)[0, 0]
    eyes = render(PLAIN, Poses.make(), 160).label[0, 0] == int(Label.EYE)
    assert eyes.sum() > 30 and mask[eyes].float().mean() > 0.8
    assert mask[~eyes].float().mean() < 2e-3


@pytest.mark.parametrize("seed", [0, 3, 10])
def test_masks_have_no_contours_one_pixel_wide(seed: int) -> None:
    """Every marked pixel is part of a marked 2 × 2 block."""
    poses = Poses.trajectory(seed, 6, rate=1.0)
    mask = disocclusion(Identity.sample(seed), poses[0], poses, 64)
    assert mask.any()
    assert torch.equal(opened(mask), mask)


def test_opening_removes_lines_and_keeps_blocks() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 1, :] = 1  # a line
    mask[..., 4:7, 2:5] = 1  # a block
    mask[..., 7, 7] = 1  # a lone pixel
    kept = opened(mask)
    assert kept.sum() == 9 and kept[..., 4:7, 2:5].all()


def test_disocclusion_names_a_wrong_number_of_source_frames() -> None:
    with pytest.raises(ValueError, match="source has 2 frames, expected 1 or the driving's 3"):
        disocclusion(PLAIN, Poses.trajectory(0, 2), Poses.trajectory(0, 3), 32)


@pytest.mark.parametrize("seed", [1, 5])
def test_the_flow_fetches_the_source_where_it_shows_the_same_point(seed: int) -> None:
    """Every material point has a colour of its own, so the warped source equals the driving frame there."""
    who = dataclasses.replace(Identity.sample(seed), glasses=0.0)
    source, driving = Poses.make(yaw=-20, mouth=0.4), Poses.make(yaw=25, pitch=8, roll=6, smile=0.5)
    found = correspondence(who, source, driving, SIZE)
    mesh = build(who, mesh_detail(SIZE))
    rest = []  # the place at rest of every pixel: (H, W, 3)
    for poses in (source, driving):
        posed = pose_mesh(mesh, who, poses)
        seen = View.of(mesh, posed, SIZE).triangle
        frame, row, column = (seen < len(mesh.triangles)).nonzero(as_tuple=True)
        table = vertex_table(posed.screen, 1 / posed.depth, mesh.rest[None])
        picture = torch.full((SIZE, SIZE, 3), 9.0)
        picture[row, column] = gather(
            table, mesh.triangles, frame, seen[frame, row, column], pixel_centres(SIZE)[row, column]
        )
        rest.append(picture)
    warped = torch.nn.functional.grid_sample(
        rest[0].permute(2, 0, 1)[None], found.flow, mode="nearest", align_corners=False
    )[0].permute(1, 2, 0)
    shown = found.visibility[0, 0].bool() & (rest[1][..., 0] < 9)
    away = (warped - rest[1]).norm(dim=-1)[shown]
    assert len(away) > 2000
    assert away.median() < 0.02 and away.quantile(0.9) < 0.1  # half a pixel: 0.015, more where the surface slopes


def test_hidden_and_revealed_do_not_overlap_and_the_background_stands_still() -> None:
    source, driving = Poses.make(yaw=-30), Poses.make(yaw=30)
    found = correspondence(PLAIN, source, driving, SIZE)
    assert not (found.hidden & found.revealed).any() and found.hidden.any() and found.revealed.any()
    still = found.flow[0] == pixel_centres(SIZE)
    assert still.all(-1)[found.revealed[0, 0]].all()
    same = correspondence(PLAIN, source, source, SIZE)
    torch.testing.assert_close(same.flow[0], pixel_centres(SIZE), atol=1e-4, rtol=0)
    assert not same.revealed.any() and same.hidden.float().mean() < 0.01
    torch.testing.assert_close(disocclusion(PLAIN, source, driving, SIZE), opened(found.hidden))
