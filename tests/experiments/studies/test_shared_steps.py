"""The study of steps that processes share, in small: 1, 2 and 4 processes take the same step, of every host."""

import pytest
import torch

from memcomp.experiments.studies.shared_steps import (
    LIMITS,
    Case,
    cases,
    compare,
    largest_difference,
    page,
    too_different,
)

CHOSEN = [case for case in cases() if case.dtype == "float64" and case.recipe != "mraa_avd"]
CHOSEN.append(Case("fomm_mcnet", "float32"))


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    return compare(tmp_path_factory.mktemp("steps"), CHOSEN)  # one group of processes each for all cases


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_gradients_are_those_of_the_joint_batch(differences, case):
    found = differences[case.name]
    assert not too_different(case, found), found
    assert max(found[2], found[4]) <= LIMITS[case.dtype]
    assert f"| {case.name} " in page(differences)


def test_what_differs_is_seen():
    ours = {"a.b.weight": torch.ones(3), "a.c.weight": torch.zeros(2), "loss ": torch.tensor(2.0)}
    assert largest_difference(ours, ours) == 0
    assert largest_difference(ours, ours | {"loss ": torch.tensor(2.5)}) == 0.25
    assert largest_difference(ours, ours | {"a.b.weight": torch.tensor([1.0, 1.0, 1.1])}) == pytest.approx(0.1 / 3**0.5)
    assert largest_difference(ours, {"loss ": ours["loss "]}) == float("inf")
    assert {case.recipe.split("_")[0] for case in CHOSEN} == {"fomm", "tpsm", "dagan", "mcnet", "mraa", "facevid2vid"}
