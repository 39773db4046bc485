"""What holds the house together: imports go downwards only and never in a circle; functions and rooms stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Rooms and files of experiments/ from the top down: each imports from lower lines only, and not from its own line.
FLOORS = [
    {"cli"},
    {"commands"},
    {"report", "ui"},
    {"benchmark", "demo", "studies", "speed"},
    {"evaluation", "prepare"},
    {"animation"},
    {"backends"},
    {"training"},
    {"inspection"},
    {"data", "output"},
    {"checkpoints", "cost"},
    {"video"},
    {"recipe", "processes", "files", "interruption"},
    {"metrics", "errors"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LONGEST = 90  # lines of a function
MOST = 12  # files directly in experiments/


def name_of(file: Path) -> str:
    """The name under which a file of the checkout is imported."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "memcomp" else ["memcomp", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for room in ("memcomp", "adapters", "experiments") for file in (ROOT / room).rglob("*.py")}


def lazy_names(file: Path) -> dict[str, str]:
    """Name → home of what a package gives lazily, read off the imports that it shows to type checkers."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for one in node.body:
                if isinstance(one, ast.ImportFrom):
                    found |= {alias.asname or alias.name: f"{one.module}.{alias.name}" for alias in one.names}
    return found


LAZY = {
    f"{package}.{name}": home
    for package in ("memcomp", "memcomp.taps", "memcomp.adapters")
    for name, home in lazy_names(FILES[package]).items()
}


def module_of(full: str) -> str | None:
    """Our module that an imported dotted name comes from, a lazy one from its home; None = not ours."""
    if full in FILES:
        return full
    if full in LAZY:
        return module_of(LAZY[full])
    above = full.rpartition(".")[0]
    return above if above in FILES else None


def imported(file: Path) -> Iterator[str]:
    """Our modules that a file imports, inside functions and by name too; not those for type checkers only."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from walk(other)
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    names: list[str] = []
    for node in walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    yield from (module for name in names if (module := module_of(name)))


def test_what_the_test_sees(tmp_path: Path) -> None:
    """Each way to import something is found; what is for type checkers alone is not."""
    file = tmp_path / "some.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from memcomp.experiments import cli\n"
        "else:\n    from memcomp.experiments.report import page\n"
        "from memcomp import inject\nfrom memcomp.adapters import attach\n"
        "def f():\n    import memcomp.mcm\n    import_module('memcomp.experiments.errors')\n"
    )
    assert set(imported(file)) == {
        "memcomp.experiments.report.page",
        "memcomp.injection",
        "memcomp.adapters.attachment.attach",
        "memcomp.mcm",
        "memcomp.experiments.errors",
    }


GRAPH = {name: set(imported(file)) - {name} for name, file in FILES.items()}


def room(name: str) -> str:
    """The part of the house: "memcomp", "adapters", or a room or file of experiments/."""
    _, first, second, *_ = [*name.split("."), "", ""]
    if first == "experiments":
        return second or "experiments"
    return first if first == "adapters" else "memcomp"


def test_the_floors_name_every_room() -> None:
    rooms = {room(name) for name in FILES} - {"memcomp", "adapters", "experiments", "results", "weights"}
    assert rooms == set(LEVEL)


def test_imports_go_downwards() -> None:
    wrong = []
    for name, others in GRAPH.items():
        for other in others:
            above, below = room(name), room(other)
            if above == below or below == "memcomp" or (below == "adapters" and above != "memcomp"):
                continue
            if above in LEVEL and (below == "experiments" or LEVEL.get(below, -1) > LEVEL[above]):
                continue
            wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle_of_imports() -> None:
    left = dict(GRAPH)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    while ends := [name for name in left if not any(name in others for others in left.values())]:
        for name in ends:  # what only leads into a circle
            del left[name]
    circle = "\n".join(f"{name} → {', '.join(sorted(others & left.keys()))}" for name, others in sorted(left.items()))
    assert not left, circle


def test_no_function_is_long() -> None:
    long = [
        f"{name}.{node.name}: {lines} lines"
        for name, file in FILES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST
    ]
    assert not long, "\n".join(long)


def test_experiments_is_no_crowd() -> None:
    files = sorted(file.name for file in (ROOT / "experiments").iterdir() if file.is_file())
    assert len(files) <= MOST, files
