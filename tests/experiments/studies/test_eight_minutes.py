"""The study for a GPU, in small: it trains, stops by itself, and says what the logs say."""

import pytest

from memcomp.experiments.output.figures import read_log
from memcomp.experiments.studies.eight_minutes import main, row
from memcomp.experiments.studies.shared_steps import MEMORY, NARROW, RUN


def test_trains_stops_and_tells(tmp_path, capsys):
    narrow = [*(word for word in RUN if "data=" not in word), *NARROW["fomm"], *MEMORY, "optim.steps=100000"]
    few = ["data.identities=4", "data.frames=4", "data.rate=3", "data.repeats=1", f"data.cache={tmp_path / 'cache'}"]
    losses = ["loss.perceptual=null", "loss.pyramid_l1=10", "log.every=1", "data.workers=0"]
    options = ["--output", str(tmp_path / "out"), "--minutes", "0.01", "--recipes", "fomm_mcnet"]
    main([*narrow, *few, *losses, *options])
    said = capsys.readouterr().out
    log = tmp_path / "out/fomm_mcnet_heads/log.csv"
    steps = int(read_log(log)["step"][-1])
    assert 1 <= steps < 100000
    assert (tmp_path / "out/fomm_mcnet_heads/checkpoints/last.safetensors").is_file()
    page = (tmp_path / "out/eight_minutes.md").read_text(encoding="utf-8")
    assert "0.01 minutes each on a CPU, with " in page
    assert f"| fomm_mcnet, heads | {steps:>5} |" in page
    assert said.strip() in page
    assert (tmp_path / "out/eight_minutes.png").is_file()


def test_tells_what_the_log_says(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(
        "step,loss,held_out,images_per_second,waiting,peak_gib\n"
        "0,,3,,,\n1,2,,1,0.5,1\n2,2,,10,0.25,7.25\n3,2,1.5,30,0,7.5\n",
        encoding="utf-8",
    )
    assert row("one", log) == ["one", "3", "10.0", "25%", "7.5", "3", "1.5"]
    log.write_text("step,held_out,images_per_second,waiting\n0,3,,\n1,,1,0.5\n", encoding="utf-8")
    assert row("one", log) == ["one", "1", "1.0", "50%", "", "3", ""]


def test_bad_input(tmp_path):
    with pytest.raises(SystemExit):
        main(["--minutes", "1"])
