"""What may import what: the ground knows nothing above it, and most of the house stands without
DIALS.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "anacor_dials"
FOLDERS = {
    "anacor_dials": PACKAGE,
    "anacor_dials.command_line": CHECKOUT / "command_line",
    "anacor_dials.phil": CHECKOUT / "phil",
}

DIALS = {"dials", "dxtbx", "cctbx", "libtbx", "iotbx", "scitbx", "rstbx", "mmtbx", "xia2"}
# only these import DIALS; the PHIL files are read by the commands alone
WITH_DIALS = (
    "anacor_dials.diffraction.",
    "anacor_dials.jobs.compare",
    "anacor_dials.jobs.correct",
    "anacor_dials.jobs.crystal_faces",
    "anacor_dials.jobs.labels_by_faces",
    "anacor_dials.jobs.pipeline.contributions",
    "anacor_dials.jobs.pipeline.crystals",
    "anacor_dials.jobs.pipeline.merged_data",
    "anacor_dials.jobs.pipeline.settings",
    "anacor_dials.jobs.pipeline.stages",
    "anacor_dials.jobs.pipeline.watching",
    "anacor_dials.jobs.pipeline.wavelengths",
    "anacor_dials.simulation.diffraction_data",
    "anacor_dials.simulation.diffraction_images",
    "anacor_dials.simulation.i23",
    "anacor_dials.command_line.",
    "anacor_dials.phil",
)

# what each wing may import besides itself; the commands, above them all, may import everything
MAY_IMPORT = {
    "sample": set(),
    "tomography": {"sample"},
    "segmentation": {"sample"},
    "absorption": {"sample"},
    "simulation": {"sample"},
    "diffraction": {"sample", "absorption"},
    "jobs": {
        "sample", "tomography", "segmentation", "absorption", "simulation", "diffraction",
    },
    "report": {
        "sample", "tomography", "segmentation", "absorption", "simulation", "diffraction", "jobs",
    },
    "phil": {"sample", "tomography", "segmentation", "absorption", "diffraction", "jobs"},
    "command_line": {
        "sample", "tomography", "segmentation", "absorption", "simulation", "diffraction",
        "jobs", "report", "phil",
    },
}  # fmt: skip


def find_modules() -> dict[str, Path]:
    """Every module of the program, by its dotted name."""
    modules = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join((package, *parts))] = path
    return modules


MODULES = find_modules()
WITHOUT_DIALS = [name for name in MODULES if not f"{name}.".startswith(WITH_DIALS)]


def imported_by(name: str, path: Path) -> Iterator[str]:
    """Dotted names of everything that a module imports, at its top or in functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def wing(name: str) -> str:
    """The part of the house that a module belongs to; "" for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else ""


def test_the_modules_are_found():
    assert {wing(name) for name in MODULES} >= {"sample", "absorption", "tomography", "diffraction"}
    assert "anacor_dials.command_line.anacor_absorption" in MODULES
    assert "anacor_dials.sample.frames" in WITHOUT_DIALS
    assert "anacor_dials.simulation.meshes" in WITHOUT_DIALS
    assert "anacor_dials.simulation.diffraction_data" not in WITHOUT_DIALS


def test_imports_are_found_wherever_they_are(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "import a.b as c\nfrom .near import x\nfrom .. import report\n"
        "def f():\n    from dials.util import Sorry\n"
    )
    assert set(imported_by("anacor_dials.sample.module", module)) == {
        "a.b", "anacor_dials.sample.near", "anacor_dials.sample.near.x", "anacor_dials",
        "anacor_dials.report", "dials.util", "dials.util.Sorry",
    }  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_nothing_points_back_up(name):
    here = wing(name)
    allowed = {"", here} | MAY_IMPORT.get(here, set())
    first_party = [i for i in imported_by(name, MODULES[name]) if i.split(".")[0] == "anacor_dials"]
    assert not sorted({i for i in first_party if wing(i) not in allowed})


@pytest.mark.parametrize("name", WITHOUT_DIALS)
def test_dials_is_imported_only_where_it_is_meant_to_be(name):
    assert not sorted({i for i in imported_by(name, MODULES[name]) if i.split(".")[0] in DIALS})


def test_no_command_imports_a_command():
    for name, path in MODULES.items():
        if wing(name) == "command_line":
            commands = {f"{i}." for i in imported_by(name, path)} - {"anacor_dials.command_line."}
            allowed = "anacor_dials.command_line.begin_log."
            inside = {i for i in commands if i.startswith("anacor_dials.command_line.")}
            assert inside <= {allowed}, name


def test_sam2_is_imported_where_it_is_meant_to_be():
    importing = [
        name
        for name, path in MODULES.items()
        if any(i.split(".")[0] == "sam2" for i in imported_by(name, path))
    ]
    assert set(importing) == {
        "anacor_dials.segmentation.sam2_predictor",
        "anacor_dials.segmentation.small_sam2",
    }


def test_every_module_has_a_subject():
    assert not [name for name in MODULES if name.split(".")[-1] in ("util", "utils", "helpers")]


# ---- sizes ---------------------------------------------------------------------------------------

MOST_LINES_OF_A_MODULE = 600
MOST_LINES_OF_A_FUNCTION = 80  # without its docstring
MOST_PARAMETERS = 8  # of a public function
# What is larger still. Nothing may be added here; what has become smaller must be taken out.
LONG_MODULES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
MANY_PARAMETERS: set[str] = set()


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method of the program, by its dotted name (without its class)."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from "def" on, without its docstring."""
    first = function.body[0]
    n = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        n -= (first.end_lineno or 0) - first.lineno + 1
    return n


def n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a caller may give, **options counted as one."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    n = len(named) + len(arguments.kwonlyargs) + (arguments.kwarg is not None)
    return n - (bool(named) and named[0].arg in ("self", "cls"))


def test_modules_are_no_longer_than_they_may_be():
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name for name, n in lines.items() if n > MOST_LINES_OF_A_MODULE} == LONG_MODULES


def test_functions_are_no_longer_than_they_may_be():
    long = {name for name, node in functions() if code_lines(node) > MOST_LINES_OF_A_FUNCTION}
    assert long == LONG_FUNCTIONS


def test_public_functions_have_no_more_parameters_than_they_may_have():
    many = {
        name
        for name, node in functions()
        if not node.name.startswith("_") and n_parameters(node) > MOST_PARAMETERS
    }
    assert many == MANY_PARAMETERS


def test_sizes_are_counted():
    (function,) = ast.parse(
        'def f(self, a, /, b, *, c=1, **d):\n    """Of\n    two."""\n    x\n'
    ).body
    assert isinstance(function, ast.FunctionDef)
    assert (code_lines(function), n_parameters(function)) == (2, 4)


# ---- in a process of its own, where some packages cannot be imported -----------------------------

IMPORT_ALL = """
import importlib, json, sys

blocked, modules = json.loads(sys.argv[1])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
outcome = {}
for name in modules:
    try:
        importlib.import_module(name)
        outcome[name] = None
    except Exception as error:
        outcome[name] = [type(error).__name__, str(error), getattr(error, "name", None)]
print("outcome:" + json.dumps(outcome))
"""


def import_without(blocked: set[str], modules: list[str]) -> dict[str, list[str] | None]:
    """For each module None, or the error of importing it without some packages."""
    arguments = json.dumps([sorted(blocked), modules])
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=CHECKOUT,
    )
    return json.loads(result.stdout.partition("outcome:")[2])


@pytest.fixture(scope="module")
def without_dials():
    return import_without(DIALS, WITHOUT_DIALS)


@pytest.mark.parametrize("name", WITHOUT_DIALS)
def test_imports_without_dials(name, without_dials):
    error = without_dials[name]
    if error is not None:
        kind, message, missing = error
        package = (missing or "").split(".")[0]
        if kind == "ModuleNotFoundError" and package not in {"", "anacor_dials", *DIALS}:
            pytest.skip(f"{name} needs {package}, which is not installed.")
        pytest.fail(f"{kind}: {message}")


def test_the_blocker_blocks():
    pytest.importorskip("dials", reason="dials is not installed: there is nothing to block")
    name = "anacor_dials.diffraction.scaling"
    assert import_without(DIALS, [name])[name][0] == "ModuleNotFoundError"


def test_what_needs_no_torch_and_no_gpu():
    modules = [
        name for name in WITHOUT_DIALS
        if wing(name) in ("", "sample", "absorption", "tomography", "jobs", "report")
        and not name.startswith("anacor_dials.jobs.train")
        and name not in ("anacor_dials.jobs.simulate", "anacor_dials.jobs.likeness")
    ]  # fmt: skip
    outcome = import_without({"torch", "torchvision", "cupy", "sam2"} | DIALS, modules)
    assert {name: error for name, error in outcome.items() if error is not None} == {}
