"""Training steps on a CUDA device that is only faked: two small ones, and what is told of them."""

import shutil

import pytest

from memcomp.experiments.studies import faked_device
from memcomp.experiments.studies.faked_device import LARGE, WAYS, main, measured, obstacle, page

SMALL = ["init=null", "data.root=null", "loss.perceptual=null", "optim.batch_size=8"]
GAN = "host.model.discriminator_params={scales: [1], block_expansion: 4, max_features: 8, num_blocks: 2, sn: true}"


@pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
def test_two_recipes_take_their_steps_and_nobody_waits():
    ways = [("tf32", 1), ("bf16", 1)]
    gan = [GAN, "loss.generator_gan=1", "loss.feature_matching=10", "optim.ema=0.9", "optim.clip=1", *SMALL]
    wrong = ("demo/fomm", [*SMALL, "size=30"], ways, LARGE)
    jobs = [("demo/fomm_mcnet", gan, ways, 0), ("demo/tpsm_mcnet", SMALL, ways[1:], LARGE), wrong]
    fomm, tpsm, failed = measured(jobs)
    assert failed["recipe"] == "demo/fomm" and "15×15" in failed["failed"] and "ways" not in failed
    assert [(way["precision"], way["accumulate"]) for way in fomm["ways"]] == [*ways, ("tf32", 2)]
    assert [(way["precision"], way["accumulate"]) for way in tpsm["ways"]] == ways[1:]
    assert all(way["waits"] == {} and way["kept"] < way["peak"] for row in (fomm, tpsm) for way in row["ways"])
    float32, bf16, parted = (way["peak"] - way["kept"] for way in fomm["ways"])
    assert bf16 < float32 and 0.4 < parted / float32 < 0.7


def row(name, peak, waits, **more):
    ways = [{"precision": p, "accumulate": a, "peak": peak, "kept": 2**30, "waits": waits} for p, a in WAYS.values()]
    return {"recipe": name, "batch": 40, "size": 256, **(more or {"ways": ways})}


def test_the_page_says_what_was_found():
    text = page([row("a", 5 * 2**30, {}), row("b", 2**30, {"nonzero": 3}), row("c", 0, {}, failed="two devices")])
    assert "3 recipes: 1 ended on a tensor or operation that a device refuses (c); in 1 the host waits (b)." in text
    lines = [line for line in text.splitlines() if line.startswith(("| a", "| b", "| c"))]
    assert "5.0" in lines[0] and lines[1].endswith("3 nonzero |") and lines[2].endswith("two devices |")
    assert "[a real device](real_device.md)" in text
    assert "goes on with them: dagan, " in text and "demo/" not in text


def test_a_machine_without_compiler_is_told_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.argv", ["faked_device", "fomm", "--output", str(tmp_path / "out")])
    assert faked_device.compiler() is None and main() == 2
    assert "needs a C compiler" in capsys.readouterr().err and not (tmp_path / "out").exists()
