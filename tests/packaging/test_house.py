"""What holds the house together: imports go downwards only and never in a circle; functions and rooms stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Rooms and files of experiments/ from the top down: each imports from lower lines only, and not from its own line.
FLOORS = [
    {"cli"},
    {"commands"},
    {"report"},
    {"benchmark", "demo", "studies", "speed"},
    {"evaluation"},
    {"backends"},
    {"training", "inspection", "animation"},
    {"data", "output"},
    {"checkpoints", "cost"},
    {"video"},
    {"recipe", "processes", "files"},
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


def imported(file: Path) -> Iterator[str]:
    """Our modules that a file imports, inside functions too; not those for type checkers only."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    for node in walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [full if full in FILES else node.module for full in inner]
        else:
            continue
        yield from (name for name in names if name in FILES)


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
