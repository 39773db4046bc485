"""Three of the trainings that are killed in the study, and one whose whole group gets a signal."""

import pytest

from memcomp.experiments.studies.killed_training import Case, Laboratory
from memcomp.experiments.studies.kills import MODES, POINTS, cases, page


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    return Laboratory(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 2, "loading", 5),
        Case(2, 0, "checkpoint: half written", 4),
        Case(1, 0, "drawing", 6),
        Case(1, 2, "step", 3, 0.0, "SIGTERM"),
    ],
    ids=lambda case: case.name,
)
def test_nothing_is_lost(laboratory, case):
    seen = laboratory.try_out(case)
    assert not seen.lost, seen
    if case.sent == "SIGTERM":
        assert seen.status == (130,) and seen.checkpoint >= case.step
    else:
        assert set(seen.status) == {-9}
        last_point, last_step = seen.last  # with two readers a slower one may still tell of an earlier step
        assert last_point == case.point and (last_step == case.step or (case.workers and last_step < case.step))
        before = {"loading": (None, 2), "checkpoint: half written": (2,), "drawing": (6,)}  # readers are ahead
        assert seen.checkpoint in before[case.point]
        half = case.point == "checkpoint: half written"
        assert seen.left[0] == half or case.point == "loading"  # readers are ahead: a checkpoint may be under way
    assert "in 0 of 1 anything was lost" in page([(case, seen)])


def test_there_are_forty_kills_and_no_case_twice():
    all_cases = cases()
    killed = [case for case in all_cases if case.sent == "SIGKILL"]
    assert len(killed) == 40 and len({case.name for case in all_cases}) == len(all_cases)
    assert {(case.point, case.processes, case.workers) for case in killed} == {
        (point, *mode) for point in POINTS for mode in MODES
    }
