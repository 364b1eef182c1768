"""Public functions list their parameters as numpydoc does, and nothing else."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "anacor_dials"
CHECKED = sorted(PACKAGE.rglob("*.py"))
MOST_IN_A_SENTENCE = 2  # parameters that a sentence may name without a list
Function = ast.FunctionDef | ast.AsyncFunctionDef


def listed(docstring: str, *sections: str) -> list[str]:
    """The names in sections such as Parameters: lines without indentation, "a, b : type"."""
    names: list[str] = []
    parts = re.split(r"^(\w+)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.M)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        if title in sections:
            for line in text.splitlines():
                if line[:1] not in ("", " "):
                    names += re.findall(r"\*{0,2}\w+", line.partition(" :")[0])
    return names


def is_compiled(function: Function) -> bool:
    return any("njit" in ast.unparse(decorator) for decorator in function.decorator_list)


def parameters(function: Function) -> list[str]:
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    names += [a.kwarg.arg] if a.kwarg else []
    return [name for name in names if name not in ("self", "cls")]


def public(body: list[ast.stmt]) -> Iterator[tuple[str, str, list[str]]]:
    """(name, docstring, parameters) of public functions, methods and dataclasses."""
    for node in body:
        if isinstance(node, Function) and not node.name.startswith("_") and not is_compiled(node):
            yield node.name, ast.get_docstring(node) or "", parameters(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            fields = [
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            ]
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield node.name, ast.get_docstring(node) or "", fields
            yield from public(node.body)


@pytest.mark.parametrize("path", CHECKED, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_parameters_are_listed(path):
    wrong = {}
    for name, docstring, names in public(ast.parse(path.read_text(encoding="utf-8")).body):
        found = listed(docstring, "Parameters", "Attributes")
        if docstring.startswith("See :"):  # of the protocol that the method belongs to
            continue
        if not docstring:
            wrong[name] = "no docstring"
        elif len(names) > MOST_IN_A_SENTENCE and not found:
            wrong[name] = "no list of parameters"
        elif found and sorted(found) != sorted(names):
            wrong[name] = f"lists {found}, has {names}"
    assert wrong == {}


def test_lists_are_read():
    text = """The sum.

    Parameters
    ----------
    a, b : float
        Two: numbers.
    **more
        The rest.

    Returns
    -------
    c : float
    """
    assert listed(text, "Parameters") == ["a", "b", "**more"]
    assert listed(text, "Returns", "Raises") == ["c"]
    assert listed("The sum of a and b.", "Parameters") == []
