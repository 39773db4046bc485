"""The command's front door: what needs nothing but Python imports nothing else."""

import ast
import subprocess
import sys

import pytest

MODULES = "print({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names, file=sys.stderr)"


def imported(code: str) -> set[str]:
    """Top-level modules from elsewhere that an interpreter has after `code`."""
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}\n{MODULES}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(ast.literal_eval(done.stderr.splitlines()[-1].replace("set()", "()")))


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["recipes"], ["recipes", "--help"], ["recipes", "demo/fomm"]], ids=" ".join
)
def test_light_commands_import_nothing_third_party(words):
    lines = [
        "from memcomp.experiments.cli import main",
        f"try: assert main({words!r}) == 0",
        "except SystemExit as end: assert not end.code",
    ]
    assert imported("\n".join(lines)) - imported("pass") == {"memcomp"}
