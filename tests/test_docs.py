"""The manual: its command lines run, its options and messages exist, its links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the same module under this name
    import tomli as tomllib

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]
PICTURES_LIMIT = 3_000_000  # bytes
MODULES = {"dials.import": "dials_import"}  # where DIALS' module is not called as its command
OF_XIA2 = ("pipeline",)  # which need not be installed
FILES = tuple(".py .h5 .nxs .expt .refl .phil .cif .html .json .mtz .pdb .log".split())

pytest.importorskip("dials")


@pytest.fixture(scope="module")
def generated_pages() -> ModuleType:
    path = DOCS / "extensions" / "generated_pages.py"
    spec = importlib.util.spec_from_file_location("generated_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated_pages"] = module
    spec.loader.exec_module(module)
    return module


def installed_commands() -> dict[str, str]:
    """[project.scripts] of pyproject.toml: name -> file of command_line/."""
    with open(CHECKOUT / "pyproject.toml", "rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    return {name: target.partition(":")[0].rpartition(".")[2] for name, target in scripts.items()}


@cache
def parameters(command: str) -> frozenset[str]:
    """All parameters of one of our commands, or of one of DIALS' that the manual uses."""
    ours = installed_commands()
    name = (
        f"anacor_dials.command_line.{ours[command]}"
        if command in ours
        else f"dials.command_line.{MODULES.get(command, command.removeprefix('dials.'))}"
    )
    scope = importlib.import_module(name).phil_scope
    paths = frozenset(entry.path for entry in scope.all_definitions())
    assert paths, f"{command} has no parameters"
    return paths


@cache
def all_parameters() -> frozenset[str]:
    """Those of all our commands, and of dials.scale."""
    ours = [name for name, file in installed_commands().items() if has_file(file)]
    return frozenset().union(*(parameters(name) for name in [*ours, "dials.scale"]))


def has_file(module: str) -> bool:
    return (CHECKOUT / "command_line" / f"{module}.py").is_file()


def is_known(name: str, known: frozenset[str]) -> bool:
    """Whether PHIL would find a parameter or scope by this name, written in full or from its end."""
    # materials may have any name, and so may crystals in capitals (tomography.CRYSTAL, absorption.X1)
    name = re.sub(r"\bmaterials\.\w+\.", "materials.crystal.", name)
    name = re.sub(r"^(\w+)\.[A-Z]\w*$", r"\1", name)
    dotted = f".{name}"
    return any(f".{path}".endswith(dotted) or f".{path}.".find(f"{dotted}.") >= 0 for path in known)


def code_blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def command_lines(page: Path) -> list[str]:
    """What is typed in a page's console listings, continued lines joined."""
    lines = []
    for block in code_blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            typed = line.removeprefix("$ ").strip()
            if typed.startswith(("dials.", "xia2.")):
                lines.append(" ".join(typed.split()))
    return lines


def check_command_line(line: str) -> None:
    """Its options are among those of its command, where that is one of ours or of DIALS'."""
    command, *words = re.sub(r'"[^"]*"', "x", line).split()
    options = [word.partition("=")[0] for word in words if "=" in word]
    hidden = ("dials.split_experiments",)  # whose parameters cannot be had without running it
    ours = command in installed_commands()
    if ours or (options and command.startswith("dials.") and command not in hidden):
        for name in options:
            assert is_known(name, parameters(command)), f"{name} in: {line}"


# ---- commands and parameters -----------------------------------------------------------------------


def test_every_command_has_a_page_with_all_its_parameters(
    generated_pages: ModuleType, tmp_path: Path
) -> None:
    installed = {name: file for name, file in installed_commands().items() if has_file(file)}
    generated_pages.write_pages(tmp_path)
    overview = (tmp_path / "commands" / "index.md").read_text(encoding="utf-8")
    for name, module in installed.items():
        page = (tmp_path / "commands" / f"{module}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {name}\n")
        assert f"]({module}.md)" in overview
        described = set(re.findall(r"^```\{option\} (\S+) =", page, re.M))
        assert described == parameters(name)
    assert len(list((tmp_path / "commands").glob("*.md"))) == len(installed) + 1


def test_defaults_and_types_are_those_of_phil(generated_pages: ModuleType) -> None:
    from libtbx import phil

    scope = phil.parse("""
        size = 1 2
          .type = floats(size=2, value_min=0)
          .help = "Lengths; see file=a.h5, axis=1,0,0, tomo.h5."
        inner {
          mode = one *two three
            .type = choice
          names = *a *b c
            .type = choice(multi=True)
          cores = Auto
            .type = int(value_min=1)
        }
    """)
    text = "\n".join(generated_pages.parameters_as_markdown(scope))
    assert "{option} size = 1 2" in text
    assert "*2 numbers ≥ 0*" in text
    assert "Lengths; see `file=a.h5`, `axis=1,0,0`, `tomo.h5`." in text
    assert "### inner" in text
    assert "{option} inner.mode = two" in text
    assert "*one of `one`, `two`, `three`*" in text
    assert "{option} inner.names = a+b" in text
    assert "*whole number ≥ 1, or `Auto`*" in text


def test_docstrings_become_markdown(generated_pages: ModuleType) -> None:
    text = generated_pages.docstring_as_markdown("""
Does it by dials.scale and tomo.h5.

Examples::

  dials.one a.expt

  dials.two b.expt \\
    x=1

See labels.file=.
""")
    assert text == (
        "Does it by `dials.scale` and `tomo.h5`.\n\nExamples:\n\n"
        "```console\ndials.one a.expt\n\ndials.two b.expt \\\n  x=1\n```\n\n"
        "See `labels.file=`.\n\n"
    )


def test_links_of_results_are_seen_from_the_manual(
    generated_pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated_pages, "CHECKOUT", tmp_path)
    page = tmp_path / "benchmarks" / "RESULTS.md"
    page.parent.mkdir()
    page.write_text("# Title\n\n![p](a.png) [x](RESULTS-b.md) [y](../README.md) [z](https://a.b)\n")
    text = generated_pages.results_page(page, tmp_path / "docs" / "generated")
    assert "![p](../../benchmarks/a.png)" in text
    assert "[x](RESULTS-b.md) [y](../../README.md) [z](https://a.b)" in text


def test_pages_of_what_is_gone_are_removed(generated_pages: ModuleType, tmp_path: Path) -> None:
    stale = tmp_path / "commands" / "anacor_gone.md"
    stale.parent.mkdir()
    stale.write_text("# dials.anacor_gone\n")
    generated_pages.write_pages(tmp_path)
    assert not stale.exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_command_lines_exist(page: Path) -> None:
    for line in command_lines(page):
        check_command_line(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    """`name=value`, and `scope.name` where such a scope exists, in code marks."""
    scopes = {path.partition(".")[0] for path in all_parameters() if "." in path}
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", text):
        words = code.split()
        if words and words[0].startswith(("dials.", "xia2.")):
            check_command_line(" ".join(words))
            continue
        for word in words:
            name, equals, _ = word.partition("=")
            if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
                continue
            if name.endswith(FILES) or name in OF_XIA2:
                continue
            first, _, rest = name.partition(".")
            if (equals and not first.isupper()) or (rest and first in scopes):
                assert is_known(name, all_parameters()), f"{page.name}: {code}"


def test_unknown_options_are_noticed() -> None:
    known = parameters("dials.anacor_absorption")
    assert is_known("absorption.tolerance", known)
    assert is_known("tolerance", known)
    assert is_known("materials.oil.mu", known)
    assert not is_known("absorption.tolerances", known)
    assert not is_known("olerance", known)


# ---- messages and files ----------------------------------------------------------------------------


def sentences_in_the_program() -> list[str]:
    """Every text in the source files, "\\0" where something is put in."""
    texts = []
    for folder in ("anacor_dials", "command_line"):
        for path in (CHECKOUT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else "\0"
                        for part in node.values
                    ]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_quoted_messages_are_those_of_the_program() -> None:
    """Block quotes in troubleshooting.md, parts between … apart."""
    sentences = [" ".join(text.split()) for text in sentences_in_the_program()]
    quotes = re.findall(r"^> (.*)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
    assert len(quotes) > 20
    for quote in quotes:
        parts = [part.strip() for part in quote.split("…") if len(part.strip()) > 9]
        assert parts, quote
        for part in parts:
            assert any(part in sentence for sentence in sentences), f"{part!r} of: {quote}"


def test_file_format_page_names_what_is_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anacor_dials.sample import previews
    from anacor_dials.sample.hand_made import EditingSession, HandMadeLabels
    from anacor_dials.sample.tomogram_files import SampleFile, write_sample
    from anacor_dials.sample.volumes import DEFAULT_NAMES, LabelVolume, Tomogram

    labels = np.full((3, 4, 5), 3, dtype=np.uint8)
    who = (EditingSession("anna", "2026-01-01T10:00:00+00:00"),)
    session = np.ones((3, 4, 5), dtype=np.uint8)
    path = tmp_path / "tomo.h5"
    sample = SampleFile(
        path,
        tomogram=Tomogram(labels.astype(np.float32), 1.0),
        labels=LabelVolume(labels, 1.0),
        probabilities=np.zeros((4, 3, 4, 5), dtype=np.uint8),
        hand_made=HandMadeLabels(labels, session, DEFAULT_NAMES, who),
        unseen_borders=((1, 2, 3),),
    )
    monkeypatch.setattr(previews, "LARGEST_WITHOUT", 10)  # as of a large volume
    write_sample(path, sample)
    paths = set()
    with h5py.File(tmp_path / "tomo.h5") as file:
        file.visititems(
            lambda name, item: paths.add(f"/{name}") if isinstance(item, h5py.Dataset) else None
        )
    page = (DOCS / "file-format.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(/entry/[\w/]+)`", page)) == paths


def test_file_written_as_the_file_format_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anacor_dials.sample.tomogram_files import read_sample_file

    (code,) = code_blocks(DOCS / "file-format.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "file-format.md", "exec"), {})
    sample = read_sample_file("tomo.h5")
    assert sample.labels is not None
    assert sample.labels.counts().tolist() == [100 * 80 * 80 - 96000, 96000 - 8000, 0, 8000]
    assert sample.mu_per_um is not None
    assert sample.mu_per_um[3] == 0.0187
    assert sample.energy_keV == 3.0


# ---- the built manual ------------------------------------------------------------------------------


class Links(HTMLParser):
    """What an HTML page links to and loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: dict[str, Any] = dict(attrs)
        if values.get("id"):
            self.anchors.add(values["id"])
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(values["href"])
        elif tag in ("script", "img") and values.get("src"):
            self.loaded.append(values["src"])


def test_manual_builds_without_warnings_and_stands_alone(tmp_path: Path) -> None:
    """-W makes warnings errors; then every link within it leads somewhere, and it loads nothing else."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    built = tmp_path / "html"
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "-b", "html",
         "-d", tmp_path / "doctrees", DOCS, built],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in built.rglob("*.html")}
    assert (built / "tutorial.html") in pages
    for path, page in pages.items():
        for target in [*page.targets, *page.loaded]:
            if re.match(r"https?:|mailto:", target):
                assert target not in page.loaded, f"{path.name} loads {target}"
                continue
            file, _, anchor = target.partition("#")
            goal = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert goal.is_file(), f"{path.name}: {target}"
            if anchor and goal in pages:
                assert anchor in pages[goal].anchors, f"{path.name}: {target}"


def test_pictures_are_small() -> None:
    pictures = [p for p in DOCS.rglob("*") if p.suffix in (".png", ".svg", ".jpg")]
    assert sum(p.stat().st_size for p in pictures) < PICTURES_LIMIT


def test_relative_links_of_the_sources_exist() -> None:
    """For those who read the pages as Markdown; generated pages excepted."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target or target.startswith(("#", "generated/")):
                continue
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


# ---- the tutorial ----------------------------------------------------------------------------------


def tutorial_commands() -> list[str]:
    """Every command of the tutorial, in order: the lines after "$ ", continued lines joined."""
    text = "\n".join(code_blocks(DOCS / "tutorial.md", "console")).replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


def test_tutorial_covers_the_way_from_scan_to_mtz() -> None:
    programs = [line.split()[0] for line in tutorial_commands()]
    for name in (
        "dials.anacor_simulate",
        "dials.anacor_reconstruct",
        "dials.anacor_segment",
        "dials.anacor_absorption",
        "dials.anacor_compare",
        "dials.scale",
        "dials.merge",
        "dials.export",
    ):
        assert name in programs


@pytest.mark.slow
def test_tutorial_runs(tmp_path: Path) -> None:
    lines = tutorial_commands()
    missing = [line.split()[0] for line in lines if shutil.which(line.split()[0]) is None]
    if missing:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    for line in lines:
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "MPLBACKEND": "Agg"},
        )
        assert result.returncode == 0, f"$ {line}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    assert (tmp_path / "merged.mtz").is_file()
    assert (tmp_path / "unmerged.mtz").is_file()
    compared = json.loads((tmp_path / "anacor_compare.json").read_text())["strategies"]
    r_meas = {one["strategy"]: one["table_1"]["Rmeas(I)"][0] for one in compared}
    assert r_meas["analytical"] < 0.7 * r_meas["none"]
    found = json.loads((tmp_path / "anacor_absorption.json").read_text())["faces"]["crystals"]
    indices = [face["hkl"] for face in found[0]["faces"] if face["lattice_plane"]]
    assert len(indices) == 8
    assert all(sorted(map(abs, hkl)) == [0, 1, 1] and abs(hkl[2]) == 1 for hkl in indices)
