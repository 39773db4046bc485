"""The `memcomp` command itself, and the files that commands write."""

import importlib
import os
import re
import signal
import subprocess
import sys
import types
from importlib.metadata import version

import pytest

from memcomp.experiments import cli
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file, writable_folder

TRAIN = ["train", "demo/fomm", "device=cpu"]


def exit_code(arguments):
    try:
        return cli.main(arguments)
    except SystemExit as stopped:  # argparse's way
        return stopped.code


def test_help_lists_every_command_with_one_line(capsys):
    assert exit_code(["--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, line in cli.COMMANDS.items():
        assert f"{name} {line}" in text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert exit_code([command, "--help"]) == 0
    assert f"usage: memcomp {command}" in capsys.readouterr().out


def test_version(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"memcomp {version('memcomp')}\n"


def test_recipes_are_listed_and_printed(capsys):
    assert exit_code(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed} >= {"fomm", "fomm_mcnet", "demo/fomm", "demo/fomm_mcnet"}
    assert exit_code(["recipes", "demo/fomm"]) == 0
    assert "single_jacobian_map: true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "invalid choice: 'trian'"),
        ([], "the following arguments are required: COMMAND"),
        (["train"], "the following arguments are required: recipe"),
        (["train", "demo/fom"], "did you mean 'demo/fomm'"),
        ([*TRAIN, "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ([*TRAIN, "word"], "'word': expected key=value"),
        ([*TRAIN, "--output", "{tmp}/file/run"], "file/run: expected a folder that can be written"),
        ([*TRAIN, "--output", "{tmp}/run", "--resume"], "nothing to resume"),
        (
            [*TRAIN, "--output", "{tmp}/run", "data.kind=clips", "data.root={tmp}/empty"],
            "train: expected a folder of clips",
        ),
        ([*TRAIN, "--output", "{tmp}/run", "init={tmp}/file"], "file: expected a checkpoint, found a text file"),
        (["recipes", "nothing"], "nothing: expected a recipe file or one of"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, said, tmp_path, capsys, head_cache):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if "train" in arguments and len(arguments) > 2:
        arguments += ["size=32", "data.identities=2", "data.frames=6", "data.rate=3", f"data.cache={head_cache}"]
    assert exit_code(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert said in errors[0]
    assert {path.name for path in tmp_path.iterdir()} == {"file", "empty"}


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", absent)
    for missing, extra in (("imageio.v3", "train"), ("yaml", "train"), ("dlib", "faces")):
        assert cli.main(["train", "demo/fomm"]) == 2
        needed = f"`memcomp train` needs {missing}: pip install 'memcomp[{extra}]'"
        assert capsys.readouterr().err == f"memcomp: error: {needed}\n"
    missing = "memcomp.experiments.trian"  # a mistake of ours is not an extra
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train", "demo/fomm"])


def test_nothing_of_an_extra_is_imported_before_a_command_is_chosen():
    code = "import sys, memcomp; a = set(sys.modules); import memcomp.experiments.cli; print(*set(sys.modules) - a)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) == {"memcomp"}


@pytest.mark.parametrize("command", ["evaluate", "benchmark", "compare", "report", "demo", "speed"])
def test_a_command_explains_itself_without_importing_its_work(command):
    code = (
        "import sys; start = set(sys.modules)\n"
        "from memcomp.experiments import cli\n"
        f"try: cli.main([{command!r}, '--help'])\n"
        "except SystemExit: print(*set(sys.modules) - start, file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) == {"memcomp"}


def test_interruption_is_exit_code_130(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    module = types.SimpleNamespace(add_arguments=lambda parser: None, run=stop)
    monkeypatch.setattr(importlib, "import_module", lambda name: module)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "memcomp: interrupted\n"


def test_an_interrupted_training_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    from memcomp.experiments.training import loop as training

    stopped = training.TrainingResult(tmp_path, 7, False, 1.0, 0.5)
    monkeypatch.setattr(training, "train", lambda recipe, folder, **_: stopped)
    assert cli.main(["train", "demo/fomm", "optim.lr=0.01", "loss={ssim: 1}", "--output", str(tmp_path)]) == 130
    said = capsys.readouterr().out
    assert said == (
        "stopped after step 7; go on with: memcomp train demo/fomm optim.lr=0.01 'loss={ssim: 1}' "
        f"--output {tmp_path} --resume\n"
    )


def test_atomic_write_replaces_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "one"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of tw")
        raise RuntimeError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["table.csv"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_process_killed_while_writing_leaves_the_previous_file(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_text("previous")
    code = (
        "import sys, time\n"
        "from memcomp.experiments.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert path.read_text() == "previous"


def test_what_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "file").write_text("text")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        with pytest.raises(UserError, match=rf"{folder}: expected a folder that can be written"):
            writable_folder(folder)
    with pytest.raises(UserError, match=r"none: expected a checkpoint, found nothing"):
        existing_file(tmp_path / "none", "checkpoint")
    with pytest.raises(UserError, match=r"expected a checkpoint, found a folder"):
        existing_file(tmp_path, "checkpoint")
    assert writable_folder(tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path / "a" / "b") == []
