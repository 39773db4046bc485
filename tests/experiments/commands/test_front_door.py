"""The command's front door: what needs no network is said without importing anything third-party."""

import ast
import subprocess
import sys

import pytest

COUNT = "import sys; print({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))"
MAIN = "from memcomp.experiments import cli\ntry: cli.main({words})\nexcept SystemExit: pass"


def modules(code: str) -> set[str]:
    """Top-level modules outside the standard library that a new interpreter has after `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{COUNT}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    return set() if last == "set()" else ast.literal_eval(last)


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["recipes"], ["recipes", "fomm_mcnet"], ["animate", "--help"], ["trian"]]
)
def test_nothing_third_party_is_imported(words):
    assert modules(MAIN.format(words=words)) - modules("pass") == {"memcomp"}
