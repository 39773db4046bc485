"""`memcomp evaluate`: the numbers it prints are those of the pairs it names."""

import csv
import json
import re
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from memcomp.experiments.cli import main
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.cells import Cell, cell_of
from memcomp.experiments.evaluation.clip_pairs import draw_pairs, is_cross
from memcomp.experiments.evaluation.options import CROSS, SAME, PairOptions
from memcomp.experiments.evaluation.pairs import at_root, evaluation_pairs
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Model, Scores, copy_source, host_predictor, measure, score
from memcomp.experiments.evaluation.tables import difference_table, differences, score_table
from memcomp.experiments.output.tables import markdown
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.video import Frames


@pytest.fixture(scope="module")
def evaluation(small_run, tmp_path_factory):
    """A finished evaluation on heads: folder, metrics.json, pairs.csv."""
    folder = tmp_path_factory.mktemp("evaluation")
    assert main(["evaluate", str(small_run), "--pairs", "5", "--output", str(folder), "--batch", "2"]) == 0
    with (folder / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(folder=folder, metrics=json.loads((folder / "metrics.json").read_text()), rows=rows)


def test_the_csv_holds_what_the_host_predicts_for_the_named_pairs(evaluation, small_recipe, small_host):
    for kind, pairs in evaluation_pairs(small_recipe, [SAME, CROSS], PairOptions(5)).items():
        rows = [row for row in evaluation.rows if row["kind"] == kind and row["model"] == "fomm + memory"]
        assert [row["pair"] for row in rows] == [pair.name for pair in pairs]
        for row, pair in zip(rows, pairs, strict=True):
            with torch.no_grad():
                prediction = small_host(pair.source[None], pair.driving[None]).prediction[0]
            error = (prediction - pair.target).abs().double()
            assert float(row["standard.l1"]) == pytest.approx(error.mean().item(), abs=1e-6)
            if row["standard.l1.disoccluded"]:
                masked = error[:, pair.disoccluded[0]].mean().item()
                assert float(row["standard.l1.disoccluded"]) == pytest.approx(masked, abs=1e-6)
    copies = [row for row in evaluation.rows if row["model"] == "copy of the source"]
    pair = evaluation_pairs(small_recipe, [SAME], PairOptions(5))[SAME][3]
    assert float(copies[3]["standard.l1"]) == pytest.approx((pair.source - pair.target).abs().mean().item(), abs=1e-6)


def test_the_means_are_those_of_the_csv_and_left_out_pairs_are_counted(evaluation):
    checked = Counter()
    for kind, models in evaluation.metrics["results"].items():
        for model, columns in models.items():
            rows = [row for row in evaluation.rows if row["kind"] == kind and row["model"] == model]
            for column, stated in columns.items():
                values = [float(row[column]) for row in rows if row[column] not in ("", "inf")]
                assert stated["pairs"] == len(values) and stated["left_out"] == len(rows) - len(values)
                assert stated["value"] == (pytest.approx(sum(values) / len(values)) if values else None)
                checked[kind] += 1
    assert checked == {SAME: 28, CROSS: 28}  # two models, seven columns, on all and on disoccluded pixels


def test_what_the_numbers_rest_on_is_written_down(evaluation):
    metrics = evaluation.metrics
    assert (metrics["step"], metrics["size"], metrics["motion"]) == (7, 32, "absolute")
    assert metrics["pairs"] == {SAME: 5, CROSS: 5}
    assert {"torch", "scikit-image", "memcomp"} <= metrics["versions"].keys()
    assert metrics["recipe"]["memory"]["memory_channels"] == 8
    picture = iio.imread(evaluation.folder / "pairs.png")
    assert picture.shape[0] > 600 and picture[..., :3].std() > 20
    assert not [path for path in evaluation.folder.iterdir() if path.name.startswith(".")]


def test_the_same_command_gives_the_same_bytes_whatever_the_batch(evaluation, small_run, tmp_path, capsys):
    command = ["evaluate", str(small_run), "--same", "--pairs", "5", "--output", str(tmp_path)]
    main([*command, "--batch", "2"])
    first = (tmp_path / "pairs.csv").read_bytes()
    said = capsys.readouterr().out
    assert SAME in said and "scikit-image " in said  # the versions that the numbers rest on
    main([*command, "--batch", "2"])
    assert (tmp_path / "pairs.csv").read_bytes() == first
    main([*command, "--batch", "5"])
    with (tmp_path / "pairs.csv").open() as file:
        other = list(csv.DictReader(file))
    assert {row["kind"] for row in other} == {SAME}
    for row, expected in zip(other, evaluation.rows, strict=False):
        assert float(row["standard.ssim"]) == pytest.approx(float(expected["standard.ssim"]), abs=1e-5)


def test_real_clips_measure_one_person_and_film_two(small_run, clips_root, tmp_path, capsys):
    command = [
        "evaluate",
        str(small_run),
        "--pairs",
        "3",
        "--videos",
        "2",
        "--video-frames",
        "4",
        "--output",
        str(tmp_path),
    ]
    assert main([*command, "--output", str(tmp_path), "data.kind=clips", f"data.root={clips_root}"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["results"]) == [SAME] and metrics["pairs"] == {SAME: 3, CROSS: 3}
    assert not any("disoccluded" in column for column in metrics["results"][SAME]["fomm + memory"])
    assert len(metrics["videos"]) == 2
    for name in metrics["videos"]:
        assert iio.imread(tmp_path / "videos" / name, plugin="pyav").shape == (4, 32, 96, 3)
        assert Frames(tmp_path / "videos" / name).times() == [Fraction(i, 10) for i in range(4)]  # as the clip's
    said = capsys.readouterr().out
    assert "cross identity: not measured, pairs of two real people have no truth: name metrics" in said
    assert said.count("cross") == 1


def test_named_metrics_measure_two_people_too_and_count_pairs_without_a_face(small_run, clips_root, tmp_path, capsys):
    pytest.importorskip("dlib")
    command = ["evaluate", str(small_run), "--pairs", "3", "--videos", "0", "--output", str(tmp_path)]
    command += ["--metrics", "l1, prmse", "--clips", "2", "data.kind=clips", f"data.root={clips_root}"]
    assert main(command) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["metrics"] == ["l1", "prmse"] and "dlib-bin" in metrics["backends"][0]
    cross = metrics["results"][CROSS]["fomm + memory"]
    assert cross == {
        f"{protocol}.prmse": {"value": None, "pairs": 0, "left_out": 3, "skipped": {"no face in the reference": 3}}
        for protocol in ("standard", "paper")
    }
    assert metrics["results"][SAME]["fomm + memory"]["standard.l1"]["pairs"] == 3
    whole = metrics["clips"]["scores"]["fomm + memory"]
    assert [score["clip"] for score in whole] == ["a_1", "b_1"]
    assert [(score["jitter"], score["without_face"], score["frames"]) for score in whole] == [(None, 9, 9)] * 2
    assert all(score["flicker"] > 0 for score in whole)
    assert "n/a (no face in the reference)" in capsys.readouterr().out
    assert main([*command, "--metrics", "l1,akdd"]) == 2
    assert "did you mean akd" in capsys.readouterr().err


def test_pairs_of_a_file_are_taken_in_order_and_sorted_by_kind(small_recipe, clips_root, tmp_path):
    file = tmp_path / "pairs.csv"
    lines = ["source,driving,best_frame", "test/a_1.mp4#2,test/a_1.mp4#5,test/a_1.mp4#2"]
    lines += ["test/b_1.mp4#0,test/c_1.mp4#3,test/c_1.mp4#1", "test/a_1.mp4#0,test/a_2.mp4#8,"]
    file.write_text("\n".join(lines) + "\n")
    recipe = at_root(small_recipe, clips_root)
    found = evaluation_pairs(recipe, [SAME, CROSS], PairOptions(files=(file,)))
    assert {kind: [pair.name for pair in pairs] for kind, pairs in found.items()} == {
        SAME: ["a_1#2_a_1#5", "a_1#0_a_2#8"],
        CROSS: ["b_1#0_c_1#3"],
    }
    assert [pair.start for pair in [*found[SAME], *found[CROSS]]] == [2, 0, 1]
    cross = found[CROSS][0]
    frames, times = cross.driving_clip(100)
    assert len(frames) == 8 and torch.equal(frames[2], cross.driving)
    assert times == [Fraction(i, 10) for i in range(8)]  # the clip has ten frames a second
    clips = Clips(clips_root / "test", recipe.size)
    assert torch.equal(found[SAME][0].driving, clips.read(0, [5])[0] / 255)
    assert len(evaluation_pairs(recipe, [SAME], PairOptions(1, files=(file,)))[SAME]) == 1
    file.write_text("\n".join([lines[0], lines[2]]))
    with pytest.raises(UserError, match="expected pairs of same identity, found 0 of same identity, 1 of cross"):
        evaluation_pairs(recipe, [SAME], PairOptions(files=(file,)))


def test_drawn_pairs_are_seeded_and_people_weigh_the_same(clips_root):
    clips = Clips(clips_root / "test", 32)
    same, cross = (draw_pairs(clips, 300, 0, cross=cross) for cross in (False, True))
    assert all(p.source_at[0] == p.driving_at[0] and p.source_at[1] != p.driving_at[1] for p in same)
    assert not any(map(is_cross, same)) and all(map(is_cross, cross))
    people = Counter(pair.name[0] for pair in same)
    assert set(people) == {"a", "b", "c"} and min(people.values()) > 70
    assert [p.name for p in draw_pairs(clips, 5, 0, cross=True)] == [p.name for p in cross[:5]]
    assert [p.name for p in draw_pairs(clips, 5, 1, cross=True)] != [p.name for p in cross[:5]]


def test_a_model_that_predicts_nan_is_named(small_recipe):
    pairs = evaluation_pairs(small_recipe, [SAME], PairOptions(2))[SAME]
    with pytest.raises(UserError, match=f"pair {pairs[0].name}: broken predicts values that are not finite"):
        score({"copy": copy_source, "broken": lambda source, driving: source / 0}, pairs)


def test_an_exact_copy_is_left_out_of_the_psnr_and_counted(small_recipe):
    pairs = list(evaluation_pairs(small_recipe, [SAME], PairOptions(3))[SAME])
    scores = score({"truth": lambda source, driving: driving}, pairs)["truth"]
    psnr, l1, ssim = (cell_of(f"standard.{name}", [scores]) for name in ("psnr", "l1", "ssim"))
    assert (psnr.value, psnr.left_out, l1.value, ssim.value) == (None, 3, 0, pytest.approx(1))


def test_predictions_come_from_the_host_as_it_is(small_host, small_recipe):
    pair = evaluation_pairs(small_recipe, [CROSS], PairOptions(1, 3))[CROSS][0]
    scores = score({"host": host_predictor(small_host, same=False)}, [pair])["host"]
    with torch.no_grad():
        expected = small_host(pair.source[None], pair.driving[None]).prediction[0]
    assert np.abs(scores.predictions[0] / 255 - expected.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


class Told(torch.nn.Module):
    """A host that says by its grey value how it was asked."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.channels = []

    def answer(self, source, value):
        self.channels.append(source.shape[1])
        return SimpleNamespace(prediction=torch.full_like(source[:, :3], value))

    def forward(self, source, driving):
        return self.answer(source, 0.2)

    def reconstruct(self, source, driving):
        return self.answer(source, 0.6)


def test_the_background_moves_in_pairs_of_one_person_and_a_host_gets_its_channels(small_recipe):
    pairs = evaluation_pairs(with_overrides(small_recipe, ["data.depth=true"], "test"), [SAME, CROSS], PairOptions(3))
    models = {"copy": Model(), "three": Model(Told()), "four": Model(Told(), channels=4)}
    done = []
    results = measure(models, pairs, Panel(), lambda kind: True, batch=2, tick=done.append)
    assert list(results) == [SAME, CROSS] and list(results[SAME]) == list(models) and done == [2, 1, 2, 1]
    for name, channels in (("three", 3), ("four", 4)):
        grey = {
            kind: {int(value) for picture in results[kind][name].predictions for value in picture.flat}
            for kind in results
        }
        assert grey == {SAME: {153}, CROSS: {51}} and set(models[name].host.channels) == {channels}
    without = measure(models, pairs, Panel(), lambda kind: kind == SAME, tick=done.append)
    assert list(without) == [SAME]  # nothing can be said of pairs without a truth


def scores(l1, ssim, masked):
    keys = ("standard.l1", "standard.ssim", "standard.l1.disoccluded")
    rows = [dict(zip(keys, values, strict=True)) for values in zip(l1, ssim, masked, strict=True)]
    return Scores([str(i) for i in range(len(rows))], rows, [])


def test_a_cell_is_a_mean_over_seeds_and_its_difference_to_the_baseline():
    seeds = [scores([0.1, 0.2, 0.3], [0.5] * 3, [None] * 3), scores([0.2, 0.3, None], [0.5] * 3, [0.1] * 3)]
    base = [scores([0.3, 0.5, 0.9], [0.5] * 3, [0.1] * 3)] * 2
    cell = cell_of("standard.l1", seeds, base)
    assert (cell.value, cell.pairs, cell.left_out, cell.verdict) == (pytest.approx(0.225), 2, 1, "better")
    assert cell.text() == "0.2250 ± 0.0354 (n 2)"
    assert re.fullmatch(r"-0\.\d{4} \[-0\.\d{4}, -0\.\d{4}\] \(n 2\) \*\*better\*\*", cell.difference_text())
    found = json.loads(json.dumps([cell.to_json(), vars(cell.difference)]))
    assert Cell.from_json("standard.l1", *found) == cell
    masked = cell_of("standard.l1.disoccluded", seeds)  # one seed has no value at all
    assert (masked.value, masked.text(), masked.difference_text(), masked.verdict) == (None, "", "", "unclear")
    assert Cell("standard.l1", skipped={"no face": 3}).text() == "n/a (no face)"


def test_tables():
    first = scores([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [None, 0.4, 0.5])
    second = scores([0.2, 0.3, 0.4], [0.5, 0.4, 0.6], [0.1, 0.4, 0.5])
    results = {"same identity": {"a": first, "b": second}}
    *lines, _, legend = score_table(results, "standard").splitlines()
    assert "L1 (d) ↓" in lines[0] and legend.startswith("(d): on disoccluded pixels")
    assert [cell.strip() for cell in lines[0].split("|")[1:4]] == ["standard protocol", "pairs", "L1 ↓"]
    assert [cell.strip() for cell in lines[2].split("|")[1:6]] == [
        "same identity: a",
        "3",
        "0.2000",
        "0.5000",
        "0.4500 (n 2)",
    ]
    assert "PSNR" not in lines[0] and len({len(line) for line in lines}) == 1
    deltas = differences(results, "a", "b")["same identity"]
    assert deltas["standard.l1"].value == pytest.approx(-0.1) and deltas["standard.l1.disoccluded"].pairs == 2
    text = difference_table({"same identity": deltas}, "a minus b")
    verdicts = [line.split("|")[-2].strip() for line in text.splitlines()[2:]]
    assert verdicts == ["better", "no clear difference", "no clear difference"]
    assert markdown(["a"], []).splitlines()[0] == "| a |"
