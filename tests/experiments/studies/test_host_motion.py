"""A host's motion and occlusion against the truth: one that is given the truth makes no error."""

from dataclasses import replace

import pytest
import torch

from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.true_motion import pack
from memcomp.experiments.data.heads.raster import pixel_centres
from memcomp.experiments.errors import UserError
from memcomp.experiments.studies.host_motion import compare, main

SIZE = 16


class Knows:
    """Moves every place by `shift` pixels to the right of where it should, and says `seen` of all places."""

    name = "knows"

    def __init__(self, flow, shift, seen):
        self.flow, self.shift, self.seen = flow, shift, seen

    def __call__(self, source, driving):
        assert source.shape[1] == driving.shape[1] == 3
        pixels = ((self.flow + 1) * SIZE - 1) / 2 + torch.tensor([self.shift, 0.0])
        keypoints = Keypoints(torch.zeros(1, 1, 2))
        return HostOutput(
            source, None, (pixels / (SIZE - 1) * 2 - 1)[None], self.seen, torch.ones(1, 1), None, keypoints, keypoints
        )


def pair(moved):
    picture, points = torch.rand(1, 3, SIZE, SIZE), torch.zeros(1, 10, 2)
    visible = torch.ones(1, 1, SIZE, SIZE)
    visible[..., :4] = 0
    flow = (pixel_centres(SIZE) + torch.tensor([moved * 2 / SIZE, 0.0]))[None]
    return flow[0], visible, (pack(picture, flow, visible, points)[0], pack(picture, flow, visible, points)[0])


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_error_is_in_pixels_and_of_visible_places_alone(shift):
    flow, visible, given = pair(moved=3.0)
    found = compare(Knows(flow, shift, visible * 0.75 + 0.125), [given])
    assert found.error == pytest.approx((shift, shift), abs=1e-4)
    assert found.still == pytest.approx((3.0, 3.0), abs=1e-4)
    assert (found.visible, found.hidden) == pytest.approx((0.875, 0.125))


def test_what_does_not_move_or_is_a_volume_is_refused():
    flow, _, given = pair(moved=0.0)
    with pytest.raises(UserError, match="no pair has a place"):
        compare(Knows(flow, 0.0, None), [given])
    flow, _, given = pair(moved=3.0)
    host = Knows(flow, 0.0, None)

    def volume(*pictures):
        return replace(host(*pictures), deformation=torch.zeros(1, 2, 4, 4, 3))

    volume.name = "volume"
    with pytest.raises(UserError, match="'volume': expected one that moves pictures"):
        compare(volume, [given])


def test_no_pairs_are_refused():
    with pytest.raises(UserError, match="--pairs: expected 1 or more"):
        main(["nowhere", "--pairs", "0"])
