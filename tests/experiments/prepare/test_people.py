"""People: told apart by codes, split by seed, and refused where one is on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memcomp.experiments.data.sources import people_on_both_sides, training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.prepare.people import clusters, split
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.video import write_video

NAMES = [f"p{number}" for number in range(40)]


def test_codes_near_each_other_are_of_one_person():
    centres = np.random.default_rng(0).normal(size=(4, 128))
    owners = [2, 0, 0, 3, 2, 1, 3, 3]
    codes = [(centres[owner] + 0.01 * place).tolist() for place, owner in enumerate(owners)]
    assert clusters(codes, 2.0) == [1, 2, 2, 3, 1, 4, 3, 3]
    assert clusters(codes[:1], 2.0) == [1] and clusters([], 2.0) == []


def test_the_split_is_the_seed_s():
    sides = split(NAMES, {}, 0.1, 0)
    assert list(sides.values()).count("test") == 4
    assert split(reversed(NAMES), {}, 0.1, 0) == sides != split(NAMES, {}, 0.1, 1)
    assert list(split(NAMES[:3], {}, 0.1, 0).values()).count("test") == 1
    assert set(split(NAMES, {}, 0.0, 0).values()) == set(split(NAMES[:1], {}, 0.4, 0).values()) == {"train"}


def test_what_the_input_says_of_a_side_is_followed():
    said = {"p0": "test", "p1": "train"}
    sides = split(NAMES, said, 0.1, 0)
    assert {name: sides[name] for name in said} == said
    assert list(sides.values()).count("test") == 1 + 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place in ("train/anna/one.mp4", "train/bert/one.mp4", "test/cleo/one.mp4"):
        (tmp_path / place).parent.mkdir(parents=True)
        with write_video(tmp_path / place, 25) as append:
            for value in (0, 100, 200):
                append(np.full((32, 32, 3), value, np.uint8))
    return tmp_path


def test_training_refuses_a_person_on_both_sides(root: Path):
    words = [f"data.root={root}", "size=32", f"data.cache={root / 'cache'}"]
    assert not people_on_both_sides(root)
    assert training_pairs(load_recipe("demo/clips_fomm", words)).epoch_length == 2
    (root / "test" / "cleo").rename(root / "test" / "bert")
    assert people_on_both_sides(root) == ["bert"]
    with pytest.raises(UserError, match=r"nobody in train/ and in test/, 1 are in both .*: bert"):
        training_pairs(load_recipe("demo/clips_fomm", words))
    assert training_pairs(load_recipe("demo/clips_fomm", [*words, "data.shared_people=true"]))
