"""A panel of metrics: what is read for what, what is left out and why; three processes equal one."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from memcomp.experiments.backends.base import NotFound
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation import panel as panel_module
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import copy_source, score
from memcomp.experiments.evaluation.tables import results_json, score_table, write_pairs
from memcomp.experiments.metrics.aggregate import mean


@dataclass
class Pair:
    """Flat pictures: the backend below reads their grey values."""

    name: str
    source: torch.Tensor
    driving: torch.Tensor
    target: torch.Tensor
    disoccluded: None = None


def flat(value):
    return torch.full((3, 16, 16), value / 255)


class Grey:
    """Labels made of the grey value; 0 is nobody, 255 a crowd."""

    about = "grey 1.0"

    def __init__(self, shape):
        self.shape, self.read = shape, 0

    def __call__(self, pictures):
        self.read += len(pictures)
        grey = [int(picture[0, 0, 0]) for picture in pictures]
        missing = {0: NotFound("no face"), 255: NotFound("2 faces")}
        return [missing.get(value, np.full(self.shape, float(value))) for value in grey]


@pytest.fixture
def grey(monkeypatch):
    """Every backend replaced; returns those that were made."""
    made = {}
    shapes = {"landmarks": (68, 2), "identity": (4,), "pose": (3,), "action_units": (5,)}

    def create(kind, chosen, heads):
        made[kind] = Grey(shapes[kind])
        return made[kind]

    monkeypatch.setattr(panel_module, "create_backend", create)
    return made


PAIRS = [
    Pair("a", flat(10), flat(20), flat(30)),
    Pair("b", flat(10), flat(0), flat(30)),
    Pair("c", flat(10), flat(20), flat(255)),
]


def test_each_metric_compares_with_its_own_picture(grey):
    panel = Panel(["akd", "aed", "csim", "prmse", "aucon"])
    row = panel.rows(PAIRS[:1], {"m": [flat(33)]})["m"][0]
    assert not row.skipped
    assert row.values["paper.akd"] == pytest.approx(3) and row.values["standard.akd"] == pytest.approx(3 * 2**0.5)
    assert row.values["standard.aed"] == pytest.approx(2 * 3) and row.values["paper.aed"] == pytest.approx(4 * 9)
    assert row.values["standard.prmse"] == pytest.approx(13)  # with the driving frame
    assert row.values["standard.csim"] == pytest.approx(1) and row.values["paper.aucon"] == 1
    row = panel.rows(PAIRS[:1], {"m": [flat(33)]}, truth=False)["m"][0]
    assert "standard.akd" not in row.values  # two people: nothing to compare landmarks with
    assert row.values["standard.aed"] == pytest.approx(2 * 23)  # the source is the person
    assert row.values["standard.prmse"] == pytest.approx(13)
    assert panel.measures(truth=False) and not Panel(["l1", "akd"]).measures(truth=False)


def test_true_pictures_are_read_once_for_all_models(grey):
    panel = Panel(["akd", "prmse", "aed", "csim"])
    panel.rows(PAIRS, {"one": [flat(40)] * 3, "other": [flat(50)] * 3})
    assert [grey[kind].read for kind in ("landmarks", "identity", "pose")] == [9, 9, 9]


def test_pairs_without_a_face_are_named_counted_and_the_rest_reported(grey, tmp_path):
    panel = Panel(["l1", "akd", "prmse"])
    models = {
        "good": lambda source, driving: torch.stack([flat(33)] * len(source)),
        "blank": lambda source, driving: source * 0,
    }
    scores = score(models, PAIRS, panel, batch=2)
    assert scores["good"].column("paper.akd") == [pytest.approx(3), pytest.approx(3), None]
    assert scores["good"].skipped == [
        {},
        {"prmse": "no face in the reference"},
        {"akd": "2 faces in the reference"},
    ]
    assert [len(row) for row in scores["blank"].skipped] == [2, 2, 2]
    assert all(value is not None for value in scores["blank"].column("standard.l1"))
    table = score_table({"same identity": scores}, "standard")
    assert "same identity: good: AKD: left out 1 of 3: 2 faces in the reference (1)" in table
    assert "same identity: good: PRMSE: left out 1 of 3: no face in the reference (1)" in table
    blank = next(line for line in table.splitlines() if "blank" in line)
    assert blank.count("n/a (no face in the prediction") == 2
    found = results_json({"same identity": scores})["same identity"]["good"]
    assert found["standard.akd"]["left_out"] == 1
    assert found["standard.akd"]["skipped"] == {"2 faces in the reference": 1}
    assert "skipped" not in found["standard.l1"]
    write_pairs(tmp_path / "pairs.csv", {"same identity": scores})
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert lines[0].endswith(",skipped") and lines[3].endswith(",akd: 2 faces in the reference")


def test_what_is_missing_stands_in_the_cells_and_below_the_table(monkeypatch, tmp_path):
    for module in ("dlib", "feat"):
        monkeypatch.setitem(sys.modules, module, None)
    panel = Panel(["l1", "ms_ssim", "lpips_alex", "akd", "aucon"], [f"lpips_alex={tmp_path / 'alex.pth'}"])
    assert ["alex.pth" in line or "pip install" in line for line in panel.about] == [True] * 3
    scores = score({"copy": copy_source}, PAIRS, panel)
    header, _, cells, *rest = score_table({"same": scores}, "standard").splitlines()
    assert not rest
    found = dict(
        zip((h.strip(" ↑↓") for h in header.split("|")[3:-1]), map(str.strip, cells.split("|")[3:-1]), strict=True)
    )
    assert found.pop("L1") == "0.3725"
    assert found == {
        "MS-SSIM": "n/a (needs 176 px)",
        "LPIPS alex": "n/a (needs alex.pth)",
        "AKD": "n/a (needs memcomp[faces])",
        "AUCON": "n/a (needs memcomp[feat])",
    }


def test_lpips_from_files_and_files_that_do_not_fit(tmp_path):
    from memcomp.experiments.backends.perceptual import empty_features
    from memcomp.experiments.metrics.lpips import LAYERS

    generator = torch.Generator().manual_seed(0)
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate(LAYERS["alex"].values())
    }
    backbone = {
        f"features.{key}": torch.randn(value.shape, generator=generator) * 0.05
        for key, value in empty_features("alex").state_dict().items()
    }
    torch.save(heads, tmp_path / "alex.pth")
    torch.save(backbone | {"classifier.1.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    words = [f"lpips_alex={tmp_path / 'alex.pth'}", f"alexnet={tmp_path / 'alexnet.pth'}"]
    panel = Panel(["lpips_alex"], words)
    assert panel.about == ["LPIPS v0.1 alex (heads alex.pth, alexnet alexnet.pth)"]
    noise = torch.rand(3, 64, 64, generator=generator)
    pair = Pair("a", noise, noise, noise)
    row, same = panel.rows([pair, pair], {"m": [noise.flip(1), noise]})["m"]
    assert row.values["standard.lpips_alex"] > 0.001 and row.values["paper.lpips_alex"] > 0.001
    assert same.values["standard.lpips_alex"] == 0
    torch.save(heads | {"lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"lin2.model.1.weight has shape \(1, 5, 1, 1\), expected \(1, 384, 1, 1\)"):
        Panel(["lpips_alex"], words)


def test_names_that_do_not_exist_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean ms_ssim"):
        Panel(["msssim"])
    assert Panel(["ssim", "l1"]).metrics == ["l1", "ssim"]


SHARED = """
import json, sys, torch
import torch.distributed as dist
torch.set_num_threads(1)
from memcomp.experiments.metrics.aggregate import mean
from memcomp.experiments.evaluation.scores import copy_source, score

class Pair:
    disoccluded = None
    def __init__(self, i):
        self.name = str(i)
        generator = torch.Generator().manual_seed(i)
        self.source, self.driving, self.target = torch.rand(3, 3, 20, 20, generator=generator)

dist.init_process_group("gloo")
seen = []
scores = score({"copy": copy_source}, [Pair(i) for i in range(10)], batch=2, tick=seen.append)["copy"]
if dist.get_rank() == 2:
    values = {c: [v.hex() for v in scores.column(c)] for c in scores.columns}
    means = {c: mean(scores.column(c)).value.hex() for c in scores.columns}
    print(json.dumps([scores.names, values, means, sum(seen)]))
dist.destroy_process_group()
"""


def test_three_processes_equal_one_to_the_last_bit():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED],
            env=os.environ | common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    names, values, means, done = json.loads(outputs[2].splitlines()[-1])

    pairs = []
    for i in range(10):
        images = torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(i))
        pairs.append(Pair(str(i), *images))
    alone = score({"copy": copy_source}, pairs, batch=4)["copy"]
    assert names == alone.names and done == 3  # ten pairs: 4, 3 and 3
    for column in alone.columns:
        assert [float.fromhex(value) for value in values[column]] == alone.column(column)
        assert float.fromhex(means[column]) == mean(alone.column(column)).value
    assert len(values) == 7


def test_whole_clips_jitter_over_runs_with_both_faces_and_flicker():
    from memcomp.experiments.evaluation.whole_clips import clip_table, measure_clips

    true = torch.stack([flat(v) for v in (10, 11, 12, 13, 0, 14, 15, 16, 17, 0, 18)])
    models = {
        "true": lambda source, driving: driving,
        "frozen": lambda source, driving: source,
        "shaky": lambda source, driving: driving + torch.tensor([1, 0] * 6)[: len(driving), None, None, None] / 255,
    }
    scores = measure_clips(models, iter([("a", true)]), Grey((68, 2)), batch=12)
    assert (scores["true"][0].flicker, scores["true"][0].jitter, scores["true"][0].without_face) == (0, 0, 2)
    assert scores["frozen"][0].jitter == pytest.approx(0)  # the true landmarks move evenly within each run
    steps = np.abs(np.diff([10, 11, 12, 13, 0, 14, 15, 16, 17, 0, 18])).mean() / 255
    assert scores["frozen"][0].flicker == pytest.approx(steps, rel=1e-5)
    assert scores["shaky"][0].flicker == pytest.approx(1 / 255, rel=1e-5)
    assert scores["shaky"][0].jitter == pytest.approx(2 * 2**0.5)  # second differences of 1, 0, 1: two pixels each way
    table = clip_table(scores)
    assert " 2 of 11 |" in table and "0.0039" in table
    without = measure_clips(models, iter([("a", true)]), None)
    assert without["shaky"][0].jitter is None and "n/a" in clip_table(without)
