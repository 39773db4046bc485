"""Batches under way fit into shared memory, and what did not is said with the way out."""

import re

import pytest

from memcomp.experiments.data import batching
from memcomp.experiments.data.batching import loading
from memcomp.experiments.errors import warn
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.training.loop import train

BATCH = 15_728_640  # 40 pairs at 256 px


@pytest.mark.parametrize(
    ("megabytes", "workers", "processes", "expected"),  # (workers, batches ahead of each)
    [
        (24_000, 8, 1, (8, 2)),
        (24_000, 0, 1, (0, None)),
        (300, 8, 1, (8, 2)),
        (280, 8, 1, (8, 1)),
        (64, 8, 1, (2, 1)),  # docker's
        (64, 1, 1, (1, 2)),
        (64, 8, 2, (0, None)),
        (20, 8, 1, (0, None)),
    ],
)
def test_batches_under_way_are_limited_to_what_there_is(megabytes, workers, processes, expected, capsys):
    warn.cache_clear()
    found = loading(workers, BATCH, processes, megabytes * 1_000_000)
    assert (found["num_workers"], found.get("prefetch_factor")) == expected
    count, ahead = expected
    under_way = (count * ahead + batching.BESIDE) * BATCH * processes if count else 0
    assert under_way <= megabytes * 1_000_000
    said = capsys.readouterr().err.splitlines()
    if expected in ((workers, 2), (0, None)) and (workers == 0 or count):
        assert said == []
    else:
        (line,) = said
        assert "--shm-size" in line and f"{megabytes} MB" in line and "15.7" in line


def test_where_there_is_no_shared_folder_nothing_is_limited(monkeypatch):
    monkeypatch.setattr(batching, "SHARED_MEMORY", "/no/such/place")
    assert loading(6, BATCH) == {"num_workers": 6}


def test_a_training_in_a_small_container_goes_on_with_what_fits(small_recipe, tmp_path, monkeypatch, capsys):
    warn.cache_clear()
    changes = ["data.workers=2", "optim.steps=2", "optim.batch_size=2", "data.identities=2", "log.held_out_pairs=2"]
    recipe = with_overrides(small_recipe, changes, "test")
    batch = 2 * 2 * 3 * 32 * 32
    monkeypatch.setattr(batching, "free_shared_memory", lambda: 3 * batch)
    assert train(recipe, tmp_path / "run", progress=False).finished
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "shm-size" in line]
    assert re.search(r"1 workers?, 1 ahead", line)
