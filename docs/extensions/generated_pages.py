"""Pages that are made anew in every build, in docs/generated: nothing in them can go stale.

* ``commands/NAME.md``: one page for every file of command_line/ that names a command, of its
docstring
  (the text of ``-h``), its usage line, and its PHIL parameters with types, defaults and helps;
* ``RESULTS*.md``: the measured figures in benchmarks/, links and pictures put right.

In index.md OTHER_PAGES stands for all pages of docs/ that it does not name.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
LISTING_END = "\n```\n\n"
# names that a reader may type: scope.name, scope.name=value, name=value, file.h5
VALUE = r"""=(?:"[^"]*"|'[^']*'|[^\s;,()"]*(?:,[-.\d]+)*)"""
TYPED = re.compile(rf"(?<![\w`/.*])([A-Za-z_]\w*(?:\.\w+)+(?:{VALUE}|:/[\w/]*)?|[a-z_]\w+{VALUE})")


@dataclass(frozen=True)
class Command:
    """A command: its name, such as dials.anacor_compare, and the file that it is in."""

    name: str
    path: Path

    @property
    def module(self) -> Any:
        return importlib.import_module(f"anacor_dials.command_line.{self.path.stem}")

    @property
    def usage(self) -> str:
        """The usage line that the command's parser was given."""
        for node in ast.walk(ast.parse(self.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "usage":
                return str(ast.literal_eval(node.value))
        return f"{self.name} [options]"


def commands() -> list[Command]:
    """All commands: the files of command_line/ that say which name they are called by."""
    found = []
    for path in sorted((CHECKOUT / "command_line").glob("*.py")):
        name = re.search(
            r"^# LIBTBX_SET_DISPATCHER_NAME (\S+)", path.read_text(encoding="utf-8"), re.M
        )
        if name:
            found.append(Command(name[1], path))
    return found


# ---- a command's page ----------------------------------------------------------------------------


def as_code(text: str) -> str:
    """Text with parameters and file names in code marks, a final full stop left outside."""

    def marked(match: re.Match[str]) -> str:
        word = match[1].rstrip(".:")
        return f"`{word}`{match[1][len(word) :]}"

    return TYPED.sub(marked, text.replace("<", "\\<").replace("*", "\\*"))


def docstring_as_markdown(text: str) -> str:
    """A module's docstring: paragraphs, and what is indented (the examples) as listings."""
    result = ""
    for block in re.split(r"\n\s*\n", text.strip()):
        if not block.startswith(" "):
            result += as_code(block.replace("::", ":")) + "\n\n"
        elif result.endswith(LISTING_END):
            result = result.removesuffix(LISTING_END) + f"\n\n{dedent(block)}{LISTING_END}"
        else:
            result += f"```console\n{dedent(block)}{LISTING_END}"
    return result


def _range(kind: Any) -> str:
    low, high = getattr(kind, "value_min", None), getattr(kind, "value_max", None)
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" ≥ {low:g}"
    return f" ≤ {high:g}" if high is not None else ""


def type_in_words(definition: Any) -> str:
    """What a PHIL definition takes."""
    kind = definition.type
    name = getattr(kind, "phil_type", "text")
    if name in ("float", "int"):
        words = ("number" if name == "float" else "whole number") + _range(kind)
    elif name in ("floats", "ints"):
        noun = "numbers" if name == "floats" else "whole numbers"
        low, high = kind.size_min, kind.size_max
        if low is not None and low == high:
            noun = f"{low} {noun}"
        elif low is not None and high is not None:
            noun = f"{low} to {high} {noun}"
        words = noun + _range(kind)
    elif name == "choice":
        values = ", ".join(f"`{word.value.lstrip('*')}`" for word in definition.words)
        words = f"some of {values}, joined by +" if kind.multi else f"one of {values}"
    else:
        words = {"bool": "`True` or `False`", "path": "path", "strings": "words"}.get(name, "text")
    if [word.value for word in definition.words] == ["Auto"]:
        words += ", or `Auto`"
    if definition.multiple:
        words += "; may be given several times"
    if definition.expert_level:
        words += f"; expert level {definition.expert_level}"
    return words


def default_value(definition: Any) -> str:
    """The default of a PHIL definition as it is typed."""
    values = [word.value for word in definition.words]
    if definition.type is not None and getattr(definition.type, "phil_type", "") == "choice":
        values = [value[1:] for value in values if value.startswith("*")] or ["None"]
        return "+".join(values)
    return " ".join(values)


def parameters_as_markdown(scope: Any, depth: int = 3) -> Iterator[str]:
    """Lines of a PHIL scope: its own definitions, then one heading for each scope in it."""
    for definition in scope.objects:
        if definition.is_definition:
            yield f"```{{option}} {definition.full_path()} = {default_value(definition)}\n"
            yield f"*{type_in_words(definition)}*"
            if definition.help:
                yield "\n" + as_code(definition.help)
            yield "```\n"
    for inner in scope.objects:
        if inner.is_scope:
            yield f"{'#' * min(depth, 5)} {inner.full_path()}\n"
            if inner.help:
                yield as_code(inner.help) + "\n"
            yield from parameters_as_markdown(inner, depth + 1)


def command_page(command: Command) -> str:
    """A command's page in MyST Markdown."""
    return "\n".join(
        [
            f"# {command.name}\n",
            docstring_as_markdown(command.module.__doc__),
            "\n## Usage\n",
            f"```console\n{command.usage}\n```\n",
            "## Parameters\n",
            "Given as `name=value`. A name may be shortened as long as it stays unambiguous, and "
            "parameters may stand in a file (`name.phil`). Options that all commands share are on the "
            "[overview](index.md).\n",
            f"```{{program}} {command.name}\n```\n",
            *parameters_as_markdown(command.module.phil_scope),
        ]
    )


COMMON = """
## What they have in common

Parameters are PHIL, as in all of DIALS. What every command takes besides its own:

`-h`, `--help`
: what it does, with examples.

`-c`
: its parameters and their defaults; `-a2` with help, `-e1` and more with those for experts.

`-v`, `-vv`
: say more on the screen and in the log.

Every command writes a log (`output.log`), most an HTML report that needs no network (`output.html`) and its
figures as JSON (`output.json`). `None` instead of a name leaves a file out. Files are written under
temporary names and get their own at the end, all together: a command that fails leaves what was there.
Bad input ends with one sentence that says what is wrong, and an exit status that is not zero.

All parameters of all commands by name: {ref}`genindex`.
"""


def overview_page(listed: list[Command]) -> str:
    """The page that lists the commands."""
    rows = []
    for command in listed:
        first = command.module.__doc__.strip().split("\n\n")[0].replace("\n", " ")
        rows.append(f"| [{command.name}]({command.path.stem}.md) | {as_code(first)} |")
    names = "\n".join(command.path.stem for command in listed)
    return (
        "# Commands\n\n| command | does |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n{COMMON}\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


# ---- measured figures ----------------------------------------------------------------------------


def results_page(path: Path, folder: Path) -> str:
    """A file of benchmarks/ with its relative links seen from folder; links among results stay."""

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith(("#", "RESULTS")):
            return match[0]
        return f"{match[1]}({os.path.relpath(path.parent / target, folder)})"

    text = re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", moved, path.read_text(encoding="utf-8"))
    title, _, rest = text.partition("\n")
    return f"{title}\n\n*From `{path.relative_to(CHECKOUT)}`.*\n{rest}"


def write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages(folder: Path) -> None:
    """Writes all generated pages into a folder; pages of what is no more are removed."""
    listed = commands()
    pages = {f"commands/{command.path.stem}.md": command_page(command) for command in listed}
    pages["commands/index.md"] = overview_page(listed)
    for path in sorted((CHECKOUT / "benchmarks").glob("RESULTS*.md")):
        pages[path.name] = results_page(path, folder)
    (folder / "commands").mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*.md"):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
    for name, text in pages.items():
        write_if_changed(folder / name, text)


def list_other_pages(app: Any, page: str, content: list[str]) -> None:
    """Puts the pages that index.md does not name into its last table of contents."""
    if page == "index":
        named = content[0].split()
        others = [p.stem for p in sorted(Path(app.srcdir).glob("*.md")) if p.stem not in named]
        others.remove("index")
        content[0] = content[0].replace("OTHER_PAGES", "\n".join(others))


def setup(app: Any) -> dict[str, Any]:
    # in setup, as Sphinx looks for the pages soon after
    write_pages(Path(app.srcdir) / "generated")
    app.connect("source-read", list_other_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
