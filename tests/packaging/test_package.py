"""The house as a user gets it: declared packages, what a wheel holds, what an import brings along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
ROOMS = {"memcomp": "memcomp"} | {room: f"memcomp.{room}" for room in ("adapters", "experiments", "recipes")}
RECIPES = ("fomm.yaml", "fomm_mcnet.yaml", "demo/fomm.yaml", "demo/fomm_mcnet.yaml")


def folders_with_code() -> dict[str, Path]:
    found = {}
    for room, name in ROOMS.items():
        for init in sorted((ROOT / room).rglob("__init__.py")):
            inner = init.parent.relative_to(ROOT / room).parts
            found[".".join((name, *inner))] = init.parent
    return found


def modules() -> list[str]:
    names = []
    for package, folder in folders_with_code().items():
        names += [package if f.stem == "__init__" else f"{package}.{f.stem}" for f in sorted(folder.glob("*.py"))]
    return [n for n in names if not n.endswith("__main__")]


def test_every_folder_with_code_is_a_declared_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(declared) == sorted(folders_with_code())
    for room in ROOMS:
        for script in (ROOT / room).rglob("*.py"):
            assert (script.parent / "__init__.py").exists(), f"{script.parent} has code but no __init__.py"


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.fixture(scope="module")
def wheel_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist → wheel → installed elsewhere, without the checkout on the path."""
    out, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    run = lambda *a: subprocess.run([sys.executable, *a], check=True, capture_output=True, text=True, cwd=out)  # noqa: E731
    run("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (wheel,) = out.glob("*.whl")
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    return site


def isolated(site: Path, code: str, empty: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_from_a_wheel(wheel_site: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, pathlib, memcomp\n"
        f"assert pathlib.Path(memcomp.__file__).is_relative_to({str(wheel_site)!r}), memcomp.__file__\n"
        f"for name in {modules()!r}: importlib.import_module(name)\n"
    )
    isolated(wheel_site, code, tmp_path)


def test_wheel_ships_recipes_weights_and_types(wheel_site: Path) -> None:
    for wanted in ("py.typed", *(f"recipes/{recipe}" for recipe in RECIPES)):
        assert (wheel_site / "memcomp" / wanted).is_file(), wanted
    weights = ROOT / "experiments" / "weights"
    for file in (*weights.glob("*.safetensors"), *weights.glob("*.json")):
        assert (wheel_site / "memcomp" / "experiments" / "weights" / file.name).is_file(), file.name
    assert (wheel_site / "memcomp" / "experiments" / "metrics" / "README.md").is_file()  # tables name it


def test_core_import_brings_torch_only(wheel_site: Path, tmp_path: Path) -> None:
    heavy = ["timm", "torchvision", "skimage", "imageio", "yaml", "safetensors", "tqdm", "matplotlib", "PIL"]
    code = (
        "import torch, sys; before = set(sys.modules)\n"
        "import memcomp; from memcomp import MemoryCompensation\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        f"print(sorted(new & set({heavy!r})))\n"
    )
    assert isolated(wheel_site, code, tmp_path).strip() == "[]"


@pytest.mark.parametrize("room", ["adapters", "experiments"])
def test_rooms_refuse_a_top_level_name(room: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and f"import memcomp.{room}" in done.stderr
