"""The walls of the house: who may import whom, what loads when, and what library code never does."""

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import unfooled

SRC = Path(unfooled.__file__).resolve().parent
FILES = sorted(SRC.rglob("*.py"))

# A file imports only from lower floors or its own room; `errors` lies under them all.
FLOORS = {
    -1: ("errors",),
    0: ("_rows", "_noise", "_numbers"),
    1: ("norms", "losses", "stats", "parametrise"),
    2: ("core",),
    3: ("attacks", "harden", "certify", "explain", "fooling"),
    4: ("domains", "targets"),
    5: ("evaluate",),
    6: ("scale", "report"),
    7: ("reproduce", "app"),
    8: ("cli", "testing"),
    9: ("__main__",),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
HEAVY = {"torch", "numpy", "scipy", "sklearn", "PIL", "altair", "vl_convert", "duckdb", "rich", "jinja2", "timm"}
HEAVY |= {"matplotlib", "captum", "ribs", "pandas"}
LEAN = {"torch", "numpy", "scipy", "safetensors"}  # all that floors 0 to 3 may import at module level


def room_of(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def name_of(file: Path) -> str:
    parts = file.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, absolute, with its line; `from unfooled import x` counts as unfooled.x."""
    package = name_of(file) if file.name == "__init__.py" else name_of(file).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base == "unfooled":
                for alias in node.names:
                    yield f"unfooled.{alias.name}", node.lineno
            else:
                yield base, node.lineno


def trespasses(file: Path, source: str) -> list[str]:
    """The imports of one file that go up, or across to another room of the same floor."""
    room = room_of(file)
    found = []
    for module, line in imports(ast.parse(source), file):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if top != "unfooled" or other in ("", room, "__version__"):
            continue
        if FLOOR_OF.get(other, 99) >= FLOOR_OF[room]:
            found.append(f"{file.relative_to(SRC)}:{line} imports {module}")
    return found


def loaded_on_import(file: Path) -> set[str]:
    """The packages that importing a file loads: function bodies and `if TYPE_CHECKING` left out."""
    todo: list[ast.AST] = [ast.parse(file.read_text())]
    found = set()
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {module.split(".")[0] for module, _ in imports(node, file)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.expr)):
            todo += ast.iter_child_nodes(node)
    return found


def each(files: Iterable[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", list(files), ids=lambda f: str(f.relative_to(SRC)))


def test_every_room_has_a_floor() -> None:
    assert {room_of(f) for f in FILES} - {"__init__"} <= set(FLOOR_OF)


@each(FILES)
def test_a_file_imports_only_from_below_or_its_own_room(file: Path) -> None:
    if room_of(file) != "__init__":  # the front door names everything and loads nothing
        assert trespasses(file, file.read_text()) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("core/engine.py", "from unfooled.attacks import pgd"),
        ("core/engine.py", "def f():\n    from ..attacks.registry import RECIPES"),
        ("harden/recipes.py", "import unfooled.attacks.gradient"),
        ("norms.py", "from .losses import margin"),
        ("report/page.py", "from unfooled import scale"),
        ("attacks/search.py", "from unfooled import evaluate"),
    ],
)
def test_the_law_of_floors_sees_a_trespass(where: str, source: str) -> None:
    assert len(trespasses(SRC / where, source)) == 1


@each(f for f in FILES if FLOOR_OF.get(room_of(f), 99) <= 3)
def test_the_lower_floors_need_torch_numpy_scipy_and_safetensors_alone(file: Path) -> None:
    allowed = LEAN | {"unfooled"} | set(sys.stdlib_module_names)
    assert loaded_on_import(file) <= allowed


@each(f for f in FILES if room_of(f) == "cli")
def test_the_command_line_imports_heavy_packages_inside_functions(file: Path) -> None:
    assert not loaded_on_import(file) & HEAVY


@each(FILES)
def test_the_library_neither_prints_nor_runs_what_it_reads(file: Path) -> None:
    tree = ast.parse(file.read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}
    assert "print" not in called
    loaded = {module.split(".")[0] for module, _ in imports(tree, file)}
    assert not loaded & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            safe = node.arg == "weights_only"
            assert isinstance(node.value, ast.Constant) and node.value.value is safe, f"line {node.value.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" for k in node.keywords), f"line {node.lineno}"


def test_public_names_are_exactly_the_listed_ones() -> None:
    assert dir(unfooled) == sorted(unfooled.__all__)
    for name in unfooled.__all__:
        assert getattr(unfooled, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = unfooled.evalute


def test_evaluate_is_the_function_whatever_was_imported_before() -> None:
    before = "import unfooled.evaluate; from unfooled.evaluate import evaluate as room_s; import unfooled as uf"
    check = "from unfooled import evaluate; assert uf.evaluate is evaluate is room_s; assert callable(evaluate)"
    subprocess.run([sys.executable, "-c", f"{before}; {check}"], check=True)


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=SRC.parents[1], timeout=120)
    (wheel,) = tmp_path.glob("unfooled-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"unfooled-{unfooled.__version__}.dist-info/METADATA").decode()
    tracked = subprocess.run(["git", "ls-files", "src"], capture_output=True, text=True, cwd=SRC.parents[1])
    if tracked.returncode == 0 and tracked.stdout:
        assert {name.removeprefix("src/") for name in tracked.stdout.splitlines()} <= held
    assert {f"unfooled/{p.relative_to(SRC)}" for p in SRC.rglob("*") if p.suffix in (".j2", ".safetensors")} <= held
    assert "unfooled/py.typed" in held
    assert all(name.startswith("unfooled/") and not name.endswith((".npz", ".pth", ".parquet")) for name in held)
    assert "Requires-Dist: torch<3,>=2.11" in metadata  # a range, no exact pin and no index


def _loaded_by(code: str) -> set[str]:
    told = f"import json, sys; {code}; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return {module.split(".")[0] for module in json.loads(done.stderr)}


def test_importing_the_package_loads_the_standard_library_only() -> None:
    bare = _loaded_by("pass")  # what the interpreter's start-up files bring is not ours
    added = _loaded_by("import unfooled") - bare
    assert {name for name in added if not name.startswith("_")} <= {"unfooled"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["evaluate", "--help"], ["eps", "8/255"]])
def test_quick_answers_load_no_heavy_package(words: list[str]) -> None:
    loaded = _loaded_by(f"from unfooled.cli._app import call; assert call({words!r}) == 0")
    assert not loaded & (HEAVY - {"rich"})  # help is drawn with rich
