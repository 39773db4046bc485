"""Steps on this machine's device; on a CPU: the command runs, goes on and tells failures."""

import json

from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.studies import real_device

SMALL = ("size=64", "optim.batch_size=2", "precision=float32", "optim.steps=60")


def test_steps_are_taken_and_counted():
    found = real_device.measure(load_recipe("demo/fomm_mcnet", [*SMALL, "init=null"]), steps=2)
    assert found["seconds"] > 0
    assert (found["waits"], found["undone"]) == (0, 0)


def test_the_command_goes_on_and_names_what_failed(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(recipe, steps):
        calls.append(recipe.precision)
        if recipe.precision == "bf16":
            raise RuntimeError("no room")
        return {"seconds": 0.5, "peak": 2**31, "waits": 0, "undone": 0}

    monkeypatch.setattr(real_device, "measure", measure)
    monkeypatch.setattr("sys.argv", ["real_device", "fomm_mcnet", "--output", str(tmp_path)])
    assert real_device.main() == 1
    assert real_device.main() == 1
    assert calls == ["tf32", "bf16", "bf16"]  # what is there is not measured again, what failed is
    rows = json.loads((tmp_path / "real_device.json").read_text())["rows"]
    assert rows[1]["failed"] == "RuntimeError: no room"
    text = (tmp_path / "steps.md").read_text()
    cells = [cell.strip() for cell in next(line for line in text.splitlines() if "tf32" in line).split("|")]
    assert cells[2:] == ["fomm_mcnet", "40", "tf32", "0.500", "80.0", "2.0", "28.2", "0", "0", ""]


def test_steps_of_what_only_the_loss_reads_are_taken_too():
    words = ["optim.batch_size=2", "precision=float32", "optim.steps=60"]
    assert real_device.measure(load_recipe("demo/fomm_visible", words), steps=1)["undone"] == 0


def test_an_unknown_recipe_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["real_device", "fommm", "--output", str(tmp_path)])
    assert real_device.main() == 2
    assert "fommm" in capsys.readouterr().err
