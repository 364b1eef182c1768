"""The package: requirements, version, and the wheel, installed and run without the checkout."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import anacor_dials

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same module under this name
    import tomli as tomllib

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = [
    *(CHECKOUT / "anacor_dials").rglob("*.py"),
    *(CHECKOUT / "command_line").rglob("*.py"),
    *(CHECKOUT / "phil").rglob("*.py"),
]
with open(CHECKOUT / "pyproject.toml", "rb") as toml:
    PROJECT = tomllib.load(toml)["project"]

# the names of packages that are imported by another name
DISTRIBUTION = {
    "astra": "astra-toolbox",
    "cupy": "cupy-cuda12x",
    "nrrd": "pynrrd",
    "PIL": "pillow",
    "skimage": "scikit-image",
}
# what no registry of Python packages has: DIALS and what comes with it, Blender's own module,
# tomopy
ELSEWHERE = {
    "bpy", "cctbx", "dials", "dxtbx", "gemmi", "iotbx", "libtbx", "mathutils", "scitbx", "tomopy",
    "xia2",
}  # fmt: skip
# extras that whole wings need; elsewhere what is imported at the top of a module is a requirement
EXTRA_OF_WING = {"segmentation": "segment", "simulation": "segment", "jobs": "segment"}
EXTRA_OF_MODULE = {"small_sam2": "sam2"}  # imported only where SAM-2 is asked for


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements}


REQUIRED = requirement_names(PROJECT["dependencies"])
EXTRAS = {
    name: requirement_names(listed) for name, listed in PROJECT["optional-dependencies"].items()
}


def third_party(nodes: Iterator[ast.AST]) -> set[str]:
    """Distributions that import statements need."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        found.update(name.split(".")[0] for name in names)
    own = {"anacor_dials", *sys.stdlib_module_names, *ELSEWHERE}
    return {DISTRIBUTION.get(name, name).lower().replace("_", "-") for name in found - own}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_every_import_has_its_requirement(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    anywhere = REQUIRED.union(*EXTRAS.values())
    assert third_party(ast.walk(tree)) <= anywhere
    wing = path.relative_to(CHECKOUT).parts[1]
    at_top = REQUIRED | EXTRAS.get(EXTRA_OF_WING.get(wing, ""), set())
    at_top |= EXTRAS.get(EXTRA_OF_MODULE.get(path.stem, ""), set())
    assert third_party(iter(tree.body)) <= at_top


def test_an_import_without_requirement_is_found():
    tree = ast.parse("import os, yaml.nodes\nfrom skimage.io import imread\nimport dials")
    assert third_party(ast.walk(tree)) == {"yaml", "scikit-image"}


def test_the_version_is_written_once():
    version = anacor_dials.__version__
    assert PROJECT["dynamic"] == ["version"]
    written = subprocess.run(
        ["git", "grep", "-lF", version], cwd=CHECKOUT, capture_output=True, text=True
    )
    if written.returncode == 128:
        pytest.skip("This is no git checkout.")
    assert written.stdout.split() == ["anacor_dials/__init__.py"]


def test_the_changelog_has_what_was_released():
    text = (CHECKOUT / "CHANGELOG.rst").read_text(encoding="utf-8")
    released = re.findall(r"^anacor_dials (\d[\d.]*) \(\d{4}-\d\d-\d\d\)$", text, re.M)
    as_numbers = [tuple(map(int, version.split("."))) for version in released]
    assert as_numbers
    assert as_numbers == sorted(set(as_numbers), reverse=True)
    here = tuple(map(int, re.findall(r"\d+", anacor_dials.__version__)[:3]))
    assert here >= as_numbers[0]
    if "dev" in anacor_dials.__version__:
        assert here > as_numbers[0]


def test_fragments_have_a_type_that_is_known():
    with open(CHECKOUT / "pyproject.toml", "rb") as file:
        types = {t["directory"] for t in tomllib.load(file)["tool"]["towncrier"]["type"]}
    for path in (CHECKOUT / "newsfragments").iterdir():
        if path.name != "README.md":
            assert path.suffix.lstrip(".") in types, path.name
            assert path.read_text(encoding="utf-8").strip().endswith((".", ")")), path.name


# ---- the other forms of the package --------------------------------------------------------------

RECIPES = CHECKOUT / "packaging"


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    text = (RECIPES / "conda/meta.yaml").read_text(encoding="utf-8")
    requirements = text.partition("requirements:")[2].partition("\ntest:")[0]
    run = re.findall(r"^    - (.+)$", requirements.partition("  run:")[2], re.M)
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["tomo"]]
    assert {"dials >=3.13", f"python {PROJECT['requires-python']}"} <= set(run)
    of_package = {r for r in run if r.split()[0] not in ("dials", "python")}
    assert {r.replace(" ", "") for r in of_package} == set(wanted)
    assert f"license: {PROJECT['license']}\n" in text
    points = dict(re.findall(r"^    - (\S+) = (\S+)$", text, re.M))
    assert points == PROJECT["scripts"]
    with open(CHECKOUT / "pyproject.toml", "rb") as file:
        (setuptools,) = tomllib.load(file)["build-system"]["requires"]
    assert f"- {setuptools.replace('>=', ' >=')}\n" in text.partition("host:")[2]


@pytest.mark.parametrize("name", ["docker/Dockerfile", "apptainer/anacor_dials.def"])
def test_images_take_extras_that_there_are(name):
    text = (RECIPES / name).read_text(encoding="utf-8")
    named = re.findall(r"EXTRAS=(\w+(?:,\w+)*)", text)
    assert len(named) == 2  # the default, and that for a GPU
    for extras in named:
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert '"dials>=3.13"' in text
    commands = set(re.findall(r"\b(?:dials\.anacor|xia2\.anacor)\w*", text))
    assert commands
    assert commands <= set(PROJECT["scripts"])


# ---- wheel and sdist -----------------------------------------------------------------------------


def run(*command: str | os.PathLike[str], **options) -> str:
    """What a command prints. Fails with it where the command fails."""
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def built(hook: str, source: Path, folder: Path) -> Path:
    """The wheel or sdist that setuptools makes of a source tree, in a process of its own."""
    script = f"import setuptools.build_meta as b; print('made:' + b.{hook}({str(folder)!r}))"
    made = run(sys.executable, "-c", script, cwd=source)
    return folder / made.partition("made:")[2].strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """What a clean clone has: the tracked files and those that are new, nothing that was built."""
    copy = tmp_path_factory.mktemp("source") / "anacor_dials"
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=CHECKOUT
    )
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return built("build_wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory) -> Path:
    return built("build_sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.mark.slow
def test_the_wheel_holds_every_source_file(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("anacor_dials", "command_line", "phil"):
        for path in (source / folder).rglob("*"):
            if path.is_file():
                inside = path.relative_to(source)
                if folder != "anacor_dials":
                    inside = Path("anacor_dials") / inside
                assert str(inside) in names
    assert not [name for name in names if not name.startswith("anacor_dials")]
    assert wheel.name.startswith(f"anacor_dials-{anacor_dials.__version__}-py3-none-any")


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    for name in ("tests/conftest.py", "docs/index.md", "tools/dials-env", "CHANGELOG.rst"):
        assert (root / name).is_file()
    again = built("build_wheel", root, tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of the programs of a new environment with the wheel, without the checkout.

    It sees the packages of the environment below (DIALS and the requirements), but not the
    checkout's own environment.
    """
    folder = tmp_path_factory.mktemp("environment")
    below = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    run(below, "-m", "venv", "--system-site-packages", folder)
    pip = [folder / "bin/python", "-m", "pip", "install", "--no-index", "--no-deps"]
    run(*pip, wheel, cwd=folder, env=clean())
    return folder / "bin"


def clean() -> dict[str, str]:
    """Environment variables without those that lead to the checkout."""
    without = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    path = [p for p in os.environ["PATH"].split(os.pathsep) if str(CHECKOUT) not in p]
    return {k: v for k, v in os.environ.items() if k not in without} | {
        "PATH": os.pathsep.join(path)
    }


def without_network() -> list[str]:
    """What stands before a command to cut the network off, or nothing where that is not allowed."""
    unshare = ["unshare", "--net", "--map-root-user"]
    for prefix in (unshare[:2], unshare):
        if shutil.which("unshare") and not subprocess.run([*prefix, "true"]).returncode:
            return prefix
    return []


@pytest.mark.slow
def test_the_wheel_is_what_is_imported(installed, tmp_path):
    found = run(
        installed / "python",
        "-c",
        "import anacor_dials.sample.frames as f, anacor_dials as a, importlib.metadata as m;"
        "print(f.__file__, a.__version__, m.version('anacor_dials'))",
        cwd=tmp_path,
        env=clean(),
    ).split()
    assert found[0].startswith(str(installed.parent))
    assert found[1:] == [anacor_dials.__version__] * 2


@pytest.mark.slow
def test_the_requirements_of_the_wheel_are_met(installed, tmp_path):
    """By what the environment below has: else the run below would prove nothing about them."""
    module = {distribution: name for name, distribution in DISTRIBUTION.items()}
    listed = "import importlib.metadata as m; print(*m.requires('anacor_dials'), sep='\\n')"
    requires = run(installed / "python", "-c", listed, cwd=tmp_path, env=clean()).splitlines()
    core = requirement_names([r for r in requires if "extra ==" not in r])
    assert core == REQUIRED
    imports = "; ".join(f"import {module.get(name, name).replace('-', '_')}" for name in core)
    run(installed / "python", "-c", imports, cwd=tmp_path, env=clean())


class Addresses(HTMLParser):
    """Everything that a browser would load or follow from a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attributes
            if name in ("src", "srcset", "href", "data", "action", "poster")
        ]  # fmt: skip


def find_browser() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "firefox"):
        if shutil.which(name):
            return name
    return None


@pytest.mark.slow
def test_a_report_of_the_wheel_without_a_network(installed, tmp_path):
    """The wheel's commands run with the network cut; their report loads nothing from it."""
    pytest.importorskip("dials", reason="DIALS is not installed")
    pytest.importorskip("torch", reason="virtual scans need torch")
    cut = without_network()
    for command in (
        ["dials.anacor_simulate", "sample.crystal_size=30,40", "scan.n_projections=24",
         "scan.image_size=72,72", "scan.pixel_size=2.5", "seed=1"],
        ["dials.anacor_reconstruct", "virtual_0001.nxs"],
    ):  # fmt: skip
        program, *arguments = command
        run(*cut, installed / program, *arguments, cwd=tmp_path, env=clean())
    text = (tmp_path / "anacor_reconstruct.html").read_text(encoding="utf-8")
    addresses = Addresses()
    addresses.feed(text)
    assert not [a for a in addresses.found if not a.startswith(("#", "data:"))]
    assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//", text)
    assert re.search(r"plotly\.js v\d", text)  # plotly itself
    browser = find_browser()
    if browser in (None, "firefox"):
        return
    page = run(
        *cut, browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
        "--dump-dom", (tmp_path / "anacor_reconstruct.html").as_uri(),
    )  # fmt: skip
    assert "main-svg" in page  # plotly drew its figures
