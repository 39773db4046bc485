"""The package's front door: light, and everything is behind it."""

import ast
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import memcomp

ROOT = Path(memcomp.__file__).parent
MODULES = sorted({module.name for module in pkgutil.iter_modules([str(ROOT)])} | {"adapters", "experiments", "recipes"})


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(code: str) -> set[str]:
    """The third-party top-level modules that an interpreter with `code` has and one without it has not."""
    ours = "import sys; print({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    before, after = (ast.literal_eval(fresh(f"{line}\n{ours}") or "set()") for line in ("pass", code))
    return after - before - {"memcomp"}


@pytest.mark.parametrize(
    "code",
    [
        "import memcomp",
        "import memcomp; dir(memcomp); hasattr(memcomp, 'nonsense')",
        "from memcomp.config import CompensationConfig; CompensationConfig.release().to_dict()",
        "from memcomp import CompensationConfig",
        "import memcomp.experiments",
        "import memcomp; memcomp.recipes",
    ],
)
def test_nothing_third_party_is_imported(code):
    assert imported(code) == set()


def test_every_name_and_every_module_comes_when_it_is_used():
    """Names first, by themselves; then modules, those that no name has brought too."""
    fresh(f"import memcomp; assert all(getattr(memcomp, n).__name__ == n for n in {memcomp.__all__})")
    fresh(f"import memcomp; assert all(getattr(memcomp, n).__name__ == 'memcomp.' + n for n in {MODULES})")
    for name in memcomp.__all__:
        home = sys.modules[getattr(memcomp, name).__module__]
        assert getattr(home, name) is getattr(memcomp, name)


def test_names_that_moved_stay_where_they_were():
    from memcomp.taps import Handle, check_attachable, inject

    assert (Handle, inject) == (memcomp.Handle, memcomp.inject)
    assert check_attachable is memcomp.injection.check_attachable
    with pytest.raises(AttributeError, match=r"^module 'memcomp.taps' has no attribute 'nonsense'$"):
        _ = memcomp.taps.nonsense


def test_a_star_brings_the_names_and_nothing_else():
    code = "from memcomp import *; print(sorted(name for name in dir() if name[0] != '_'))"
    assert ast.literal_eval(fresh(code)) == sorted(memcomp.__all__)


def test_dir_tells_names_and_modules_without_importing_them():
    listed = ast.literal_eval(fresh("import memcomp; print(dir(memcomp))"))
    assert {*memcomp.__all__, *MODULES} <= set(listed) and listed == sorted(listed)


def test_what_there_is_not_is_missed_as_usual():
    assert not hasattr(memcomp, "nonsense")
    with pytest.raises(AttributeError, match=r"^module 'memcomp' has no attribute 'injct'$") as caught:
        _ = memcomp.injct
    assert (caught.value.name, caught.value.obj) == ("injct", memcomp)  # Python asks "Did you mean: 'inject'?"
    with pytest.raises(ImportError, match="cannot import name 'nonsense' from 'memcomp'"):
        exec("from memcomp import nonsense")


def test_tools_that_look_into_modules_find_their_way():
    members = dict(inspect.getmembers(memcomp))
    assert members["inject"] is memcomp.inject and members["taps"] is importlib.import_module("memcomp.taps")
    assert pickle.loads(pickle.dumps(memcomp.Tap("a"))) == memcomp.Tap("a")
    code = (
        "import doctest, importlib, memcomp; tap = memcomp.Tap\n"
        "assert doctest.testmod(memcomp).failed == 0\n"
        "importlib.reload(memcomp); assert memcomp.Tap is tap and memcomp.taps.Tap is tap\n"
        "import copy; copy.copy(memcomp.Tap('a'))"
    )
    fresh(code)
