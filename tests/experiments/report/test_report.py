"""`report.html`: one file that says what was measured, and works from disk in a browser without network."""

import csv
import dataclasses
import gzip
import json
import re
import shutil
from html.parser import HTMLParser
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.cli import main
from memcomp.experiments.evaluation.options import CROSS, SAME, PairOptions
from memcomp.experiments.evaluation.pairs import evaluation_pairs
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.report.charts import axis, interval, scatter
from memcomp.experiments.report.clips import clip_of, window
from memcomp.experiments.report.curves import loss_curves
from memcomp.experiments.report.memory import memory_shown
from memcomp.experiments.report.page import write_page

LOG = "step,lr,loss,held_out\n0,,,2.0\n10,0.1,1.5,\n20,0.1,1.25,\n30,0.1,1.0,1.5\n"


@pytest.fixture(scope="module")
def finished(small_run, small_recipe, tmp_path_factory):
    """Benchmark of a host that was logged and of one with a memory that was not."""
    root = tmp_path_factory.mktemp("report")
    loss = dataclasses.replace(small_recipe.loss, consistency=0.0)
    recipe = dataclasses.replace(small_recipe, memory=None, loss=loss)
    save_run(root / "host" / "model.safetensors", recipe, build_host(recipe), 7)
    (root / "host" / "log.csv").write_text(LOG)
    words = [
        "benchmark",
        str(root / "host"),
        f"fomm + memory={small_run}",
        "--pairs",
        "4",
        "--repeats",
        "0",
        "--published",
    ]
    assert main([*words, "--output", str(root / "out")]) == 0
    return root / "out"


class Page(HTMLParser):
    """What a page asks for, the numbers in its tables, and its text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.text = [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "poster", "srcset", "action", "data")]
        self.links += re.findall(r"url\(([^)]*)\)", dict(attrs).get("style") or "")

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_and_says_the_tables_numbers(finished):
    page = Page(finished / "report.html")
    outside = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert not outside and sum(link.startswith("data:video/webm") for link in page.links) >= 6 * 3
    style = (finished / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "@import" not in style and "url(" not in style
    text = " ".join("".join(page.text).split())
    content = json.loads((finished / "benchmark.json").read_text())
    for kind in (SAME, CROSS):
        deltas = content["differences"][kind]["fomm + memory"]
        for column, digits in (("standard.l1", 4), ("standard.psnr", 2), ("paper.ssim", 4)):
            for row in ("fomm", "fomm + memory"):
                assert f"{content['results'][kind][row][column]['value']:.{digits}f}" in text
            low, value, high = (deltas[column][end] for end in ("low", "value", "high"))
            assert f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" in text
    assert "MCNet, VoxCeleb1 (published, not measured here)" in text and "31.94" in text
    assert "No log beside the checkpoint: fomm + memory." in text
    assert "The memory of fomm + memory" in text and "held out" in text


def test_the_clips_are_of_the_worst_median_and_best_pair(finished):
    shown = json.loads((finished / "shown" / "shown.json").read_text())
    assert [(v["kind"], v["which"]) for v in shown["videos"]] == [
        (kind, which) for kind in (SAME, CROSS) for which in ("worst", "median", "best")
    ]
    with (finished / "pairs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"].startswith("fomm + memory")]
    for kind in (SAME, CROSS):
        ranking = sorted((row for row in rows if row["kind"] == kind), key=lambda row: -float(row["standard.l1"]))
        expected = [ranking[0]["pair"], ranking[2]["pair"], ranking[-1]["pair"]]
        assert [v["pair"] for v in shown["videos"] if v["kind"] == kind] == expected
    titles = [[column["title"] for column in v["columns"]] for v in shown["videos"]]
    errors = ["fomm", "fomm + memory", "error of fomm", "error of fomm + memory"]
    assert titles[0] == ["source", "driving", *errors] and titles[3] == ["source", "driving", "truth", *errors]


def test_one_frame_of_a_clip_is_the_pair(small_recipe, clips_root):
    heads = with_overrides(small_recipe, ["data.depth=true"], "test")
    clips = with_overrides(small_recipe, ["data.kind=clips", f"data.root={clips_root}"], "test")
    for recipe, kinds in ((heads, [SAME, CROSS]), (clips, [SAME])):
        for kind, pairs in evaluation_pairs(recipe, kinds, PairOptions(2)).items():
            for i, pair in enumerate(pairs):
                clip = clip_of(pairs, i, kind)
                assert 8 <= len(clip.driving) <= 32 and clip.target.shape == clip.driving[:, :3].shape
                assert torch.allclose(clip.source, pair.source, atol=1e-5)
                assert torch.allclose(clip.driving[clip.at], pair.driving, atol=1e-5)
                assert torch.allclose(clip.target[clip.at], pair.target, atol=1e-5)


def test_the_page_is_made_anew_from_the_files_alone(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0 and "report.html" in capsys.readouterr().out
    assert (copy / "report.html").read_text() == (finished / "report.html").read_text()
    shutil.rmtree(copy / "shown")
    write_page(copy)
    text = (copy / "report.html").read_text()
    assert "<video" not in text and "was run without them" in text


def test_the_page_of_an_earlier_benchmark(tmp_path):
    kept = resources.files("memcomp.experiments.results")
    (tmp_path / "benchmark.json").write_bytes(kept.joinpath("first_table_fomm.json").read_bytes())
    (tmp_path / "pairs.csv").write_bytes(gzip.decompress(kept.joinpath("first_table_fomm_pairs.csv.gz").read_bytes()))
    text = " ".join("".join(Page(write_page(tmp_path)).text).split())
    content = json.loads((tmp_path / "benchmark.json").read_text())
    row, delta = (content[part][SAME]["fomm + MCM"]["standard.l1"] for part in ("results", "differences"))
    assert f"{row['value']:.4f} ± {row['deviation_of_seeds']:.4f}" in text
    assert f"{delta['value']:+.4f} [{delta['low']:+.4f}, {delta['high']:+.4f}]" in text


def test_folders_that_are_no_benchmark(finished, tmp_path, capsys):
    def broken(name, change):
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        change(folder)
        assert main(["report", str(folder)]) == 2
        return capsys.readouterr().err.strip().splitlines()

    def shorten(folder):
        lines = (folder / "pairs.csv").read_text().splitlines()
        (folder / "pairs.csv").write_text("\n".join(lines[:3]))

    cases = {
        "none": (lambda f: (f / "benchmark.json").unlink(), "benchmark.json: expected a file of `memcomp benchmark`"),
        "damaged": (lambda f: (f / "benchmark.json").write_text("{"), "of the format memcomp-benchmark-1"),
        "another": (lambda f: (f / "benchmark.json").write_text("{}"), "of the format memcomp-benchmark-1"),
        "values": (lambda f: (f / "pairs.csv").unlink(), "pairs.csv: expected a table of values"),
        "binary": (lambda f: (f / "pairs.csv").write_bytes(b"\xff\xfe"), "pairs.csv: expected the values"),
        "fewer": (shorten, "expected the files of one benchmark"),
        "shown": (lambda f: (f / "shown" / "shown.json").write_text("[]"), "of the format memcomp-shown-1"),
        "clip": (lambda f: next((f / "shown").glob("*.webm")).unlink(), "expected the files of one benchmark"),
    }
    for name, (change, message) in cases.items():
        lines = broken(name, change)
        assert len(lines) == 1 and message in lines[0], (name, lines)


def test_clips_without_truth_one_pair_and_a_row_without_memory(small_run, small_recipe, clips_root, tmp_path, capsys):
    words = ["benchmark", f"fomm + memory={small_run}", "--repeats", "0", "--pairs", "1", "--metrics", "l1,aucon"]
    words += ["--set", "data.kind=clips", "--set", f"data.root={clips_root}"]
    assert main([*words, "--output", str(tmp_path / "clips")]) == 0
    shown = json.loads((tmp_path / "clips" / "shown" / "shown.json").read_text())
    by_kind = {v["kind"]: [column["title"] for column in v["columns"]] for v in shown["videos"]}
    assert by_kind[SAME] == ["source", "driving", "fomm + memory", "error of fomm + memory"]
    assert by_kind[CROSS] == ["source", "driving", "fomm + memory"]  # nobody knows what it should be
    assert shown["videos"][0]["rate"] == 10 and 0 <= shown["videos"][0]["frame"] < 9
    assert "1 pair of same identity" in " ".join((tmp_path / "clips" / "report.html").read_text().split())
    recipe = dataclasses.replace(
        small_recipe, memory=None, loss=dataclasses.replace(small_recipe.loss, consistency=0.0)
    )
    save_run(tmp_path / "host" / "model.safetensors", recipe, build_host(recipe), 7)
    words = ["benchmark", str(tmp_path / "host"), f"fomm + memory={small_run}", "--pairs", "2", "--repeats", "0"]
    assert main([*words, "--output", str(tmp_path / "out"), "--show", "fomm"]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Ranked for <strong>fomm</strong>" in text and 'id="memory"' not in text
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "no"), "--show", "x"]) == 2
    assert "--show x: expected one of 'fomm', 'fomm + memory'" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "no"), "--no-report"]) == 0
    assert not (tmp_path / "no" / "report.html").exists() and (tmp_path / "no" / "report.md").exists()


def test_a_memory_that_knows_no_identities_is_the_same_for_all(small_recipe, tmp_path):
    recipe = with_overrides(small_recipe, ["memory.identity_conditioning=false"], "test")
    shown = memory_shown(tmp_path, build_host(recipe).eval(), recipe, {})
    assert len(shown["sources"]) == 5 and shown["scales"]
    for scale in shown["scales"]:
        assert scale["spread_between_sources"] == pytest.approx(0, abs=1e-6)
        assert len({(tmp_path / name).read_bytes() for name in scale["memories"]}) == 1


def test_where_things_are_drawn():
    assert vars(interval(-1, 1, 2, 2, higher_is_better=True)) == {"low": 27.0, "value": 73.0, "high": 96.0}
    assert vars(interval(-1, 1, 2, 2, higher_is_better=False)) == {"low": 4.0, "value": 27.0, "high": 73.0}
    assert interval(0, 0, 0, 0.0, higher_is_better=True).value == 50
    assert axis(0, 10, 0, 100, count=5).ticks == [(0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8"), (100, "10")]
    assert [text for _, text in axis(0, 60_000, 0, 1, count=3).ticks] == ["0", "20k", "40k", "60k"]
    for low, high in np.random.default_rng(0).normal(size=(50, 2)):
        assert 2 <= len(axis(min(low, high), max(low, high), 0, 1).ticks) <= 8
    assert axis(3, 3, 0, 100).ticks
    found = scatter([1, 2, None, 4], [2, 1, 3, float("inf")], list("abcd"), digits=1, higher_is_better=False)
    assert [(text, better) for _, _, text, better in found.points] == [("a: 1.0, 2.0", False), ("b: 2.0, 1.0", True)]
    assert found.better == 1 and found.left_out == 2
    assert scatter([1, None], [1, 2], list("ab"), digits=1, higher_is_better=True) is None
    assert [window(m, 4, 9) for m in (0, 4, 8)] == [(0, 4), (2, 6), (5, 9)] and window(1, 4, 3) == (0, 3)


def test_curves_of_a_log(tmp_path):
    (tmp_path / "log.csv").write_text(LOG + "31,0.1,0.5,1.25\n32,0.1,9.0,\n")
    assert loss_curves(tmp_path / "log.csv") == {
        "loss": [[10, 1.5], [20, 1.25], [30, 1.0], [32, 9.0]],
        "held_out": [[0, 2.0], [30, 1.5], [31, 1.25]],
    }


@pytest.fixture
def opened(browser, finished):
    """Open the page from disk without network in a window; what it says in its console, and asks for, is kept."""
    contexts = []

    def open_page(**window):
        contexts.append(browser.new_context(offline=True, **window))
        page, complaints = contexts[-1].new_page(), []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "http" in request.url[:5] else None)
        page.goto((finished / "report.html").as_uri())
        page.wait_for_load_state("load")
        return SimpleNamespace(page=page, complaints=complaints)

    yield open_page
    for context in contexts:
        context.close()


def test_a_browser_shows_the_numbers_and_a_picked_place(opened, finished):
    one = opened(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page = one.page
    content = json.loads((finished / "benchmark.json").read_text())
    value = content["results"][SAME]["fomm + memory"]["standard.l1"]["value"]
    cell = page.locator("table.numbers").first.locator("tbody tr", has_text="fomm + memory").locator("td").first
    assert cell.is_visible() and cell.inner_text().split()[0] == f"{value:.4f}"
    interval = page.locator("svg.interval").first
    assert interval.is_visible() and interval.get_attribute("aria-label").endswith(("better", "worse", "unclear"))
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")

    picture, map_ = page.locator(".pick"), page.locator(".map").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()

    def pick(x, y):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return map_.screenshot(), page.locator(".attention .entropy").first.inner_text()

    corner, centre = pick(0.03, 0.03), pick(0.5, 0.6)
    scale = json.loads((finished / "shown" / "shown.json").read_text())["memory"]["scales"][0]
    assert corner[0] != centre[0] and float(corner[1]) == scale["entropies"][0]
    assert float(centre[1]) == scale["entropies"][9 * 16 + 8]
    picture.focus()
    page.keyboard.press("ArrowLeft")
    assert "column 8, line 10 of 16" in page.locator(".attention output").inner_text()
    assert not one.complaints


def test_a_browser_plays_the_clips_of_a_pair_together(opened, plays):
    page = opened(viewport={"width": 1280, "height": 900}).page
    plays(page)
    clip = page.locator(".clip").nth(1)
    clip.scroll_into_view_if_needed()
    times = "(clip) => [...clip.querySelectorAll('video')].map((v) => v.currentTime)"
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.readyState > 1 && !v.seeking)")
    rate, frame = float(clip.get_attribute("data-rate")), int(clip.get_attribute("data-frame"))
    start = clip.evaluate(times)
    assert len(start) == 5 and all(int(time * rate) == frame for time in start)  # where the pair was measured
    clip.evaluate("(clip) => { for (const v of clip.querySelectorAll('video')) v.currentTime = 0; }")
    clip.locator(".play").click()
    playing = "(clip) => [...clip.querySelectorAll('video')].every((v) => v.currentTime > 0.2)"
    page.wait_for_function(f"({playing})(document.querySelectorAll('.clip')[1])", timeout=15_000)
    clip.locator(".play").click()
    page.wait_for_function("![...document.querySelectorAll('video')].some((v) => v.seeking)")
    stopped = clip.evaluate(times)
    assert max(stopped) - min(stopped) < 0.5 / rate  # the same frame of all
    clip.locator(".measured").click()
    assert all(int(time * rate) == frame for time in clip.evaluate(times))
    others = page.locator(".clip").first.evaluate(times)
    assert len({round(time, 3) for time in others}) == 1
    assert page.locator(".unplayable").first.is_hidden()


def test_a_phone_need_not_scroll_sideways(opened):
    one = opened(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    one.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert one.page.evaluate("document.documentElement.scrollWidth") == 390
    assert not one.complaints
