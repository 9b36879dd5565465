"""Docstrings of the public API: complete, and with examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rnnkit
import rnnkit.errors
import rnnkit.io
import rnnkit.parity
import rnnkit.testing
from tests.api.docstrings import documented, entries, faults, sections

PACKAGE = Path(rnnkit.__file__).parent

# Public names outside the packages' __all__: result types, and functions that users call or register.
OTHER_NAMES = (
    ("rnnkit.explain", "Explanation"),
    ("rnnkit.summary", "Row"),
    ("rnnkit.summary", "Summary"),
    ("rnnkit.summary", "output_shape"),
    ("rnnkit.nn.module", "LoadedKeys"),
    ("rnnkit.parity.pytest_plugin", "assert_parity"),
)


def public_names() -> dict[str, Any]:
    """Name -> class or function of the public API."""
    names = {name: getattr(rnnkit, name) for name in rnnkit.__all__}
    names |= {f"io.{name}": getattr(rnnkit.io, name) for name in rnnkit.io.__all__}
    names |= {f"parity.{name}": getattr(rnnkit.parity, name) for name in rnnkit.parity.__all__}
    for name, value in vars(rnnkit.errors).items():
        if getattr(value, "__module__", None) == "rnnkit.errors" and not name.startswith("_"):
            names[f"errors.{name}"] = value
    tables = ("CASES", "LARGE_CASES", "OPTION_CASES")
    names |= {f"testing.{name}": getattr(rnnkit.testing, name) for name in rnnkit.testing.__all__ if name not in tables}
    for module_name, name in OTHER_NAMES:
        names[f"{module_name}.{name}"] = getattr(importlib.import_module(module_name), name)
    return names


DOCUMENTED = documented(public_names())


def modules_with_examples() -> list[str]:
    """Names of the modules of rnnkit that contain a doctest. Those of rnnkit.torch run in tests/torch."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("kernels", "torch") and ">>> " in path.read_text(encoding="utf-8"):
            found.append(".".join(("rnnkit", *parts)).removesuffix(".__init__"))
    return found


def test_the_public_api_is_found() -> None:
    for name in (
        "rnnkit.nn.rnn.LSTM",
        "rnnkit.nn.rnn_base.Recurrent.__call__",
        "rnnkit.nn.module.Module.load_state_dict",
        "rnnkit.nn.calls.SavesCalls.last_call",
        "rnnkit.optim.base.Optimizer.step",
        "rnnkit.nn.losses.cross_entropy",
        "rnnkit.io.keras.from_keras",
        "rnnkit.errors.DeviceError",
        "rnnkit.testing.cases.Case",
        "rnnkit.parity.checks.plan",
    ):
        assert name in DOCUMENTED


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_has_a_complete_docstring(name: str) -> None:
    assert faults(name, DOCUMENTED[name]) == []


# Arguments whose meaning differs between the classes, or whose description refers to another class.
OWN_WORDS = {"hidden_size", "dtype", "backend", "reset_after", "zoneout", "activations", "layer_norm", "norm_eps"}


@pytest.mark.parametrize("kinds", [("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")])
def test_arguments_that_classes_share_have_the_same_description(kinds: tuple[str, ...]) -> None:
    found: dict[str, set[str]] = {}
    for kind in kinds:
        lines = sections(getattr(rnnkit, kind).__doc__)["Args"]
        for name in entries(lines):
            start = next(k for k, line in enumerate(lines) if line.startswith(f"{name}: "))
            more = itertools.takewhile(lambda line: line.startswith(" "), lines[start + 1 :])
            found.setdefault(name, set()).add(" ".join([lines[start], *(line.strip() for line in more)]))
    assert len(found) > 6
    assert {name for name, descriptions in found.items() if len(descriptions) > 1} <= OWN_WORDS


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some examples write files
    module = importlib.import_module(name)
    # Without the module's globals: an example must import what it uses, so that readers can run it.
    examples = doctest.DocTestFinder(exclude_empty=True).find(module, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in examples:
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0


# The checker itself: it must report each kind of gap


def complete(x: int, *rest: int, flag: bool = False) -> int:
    """Adds numbers.

    Args:
        x: a number, over
            two lines.
        *rest: more numbers.
        flag: ignored.

    Returns:
        The sum.

    Examples:
        >>> complete(1, 2)
        3
    """
    return x + sum(rest)


class Pair(NamedTuple):
    """Two numbers.

    Attributes:
        first: one.
        second: the other.

    Examples:
        >>> Pair(1, 2).first
        1
    """

    first: int
    second: int


def _with_docstring(docstring: str | None) -> Any:
    def changed(x: int, *rest: int, flag: bool = False) -> int:
        return x + sum(rest)

    changed.__doc__ = docstring
    return changed


def test_the_checker_accepts_a_complete_docstring() -> None:
    assert faults("complete", complete) == []
    assert faults("Pair", Pair) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("    flag: ignored.\n", "", "does not describe the parameter flag"),
        ("    *rest: more numbers.\n", "", "does not describe the parameter *rest"),
        ("    x: a number, over\n", "    x:\n", "does not describe the parameter x"),
        ("    flag: ignored.\n", "    flag: ignored.\n    colour: none.\n", "describes colour, which is no parameter"),
        ("Returns:\n    The sum.\n", "", "does not describe what is returned"),
        ("    The sum.\n", "", "does not describe what is returned"),
        ("    >>> complete(1, 2)\n", "", "has no example"),
        ("Examples:\n", "", "has no example"),
        ("Returns:\n", "Returns the sum.\n", "has text after a section: 'Returns the sum.'"),
    ],
)
def test_the_checker_reports_a_gap(old: str, new: str, fault: str) -> None:
    docstring = inspect.getdoc(complete) or ""
    assert old in docstring
    assert f"changed: {fault}" in faults("changed", _with_docstring(docstring.replace(old, new)))


def test_the_checker_reports_missing_docstrings() -> None:
    assert faults("changed", _with_docstring(None)) == ["changed: has no docstring"]


def test_the_checker_reports_a_field_and_a_property() -> None:
    class Short(NamedTuple):
        """Examples:
        >>> 1
        1
        """

        first: int

    assert "Short: does not describe the parameter first" in faults("Short", Short)
    assert faults("p", property(lambda self: 1, doc="No sentence"))
    assert not faults("p", property(lambda self: 1, doc="A sentence."))


def test_a_wrong_example_fails() -> None:
    wrong = _with_docstring(">>> 1 + 1\n3\n")
    runner = doctest.DocTestRunner(verbose=False)
    (test,) = doctest.DocTestFinder(recurse=False).find(wrong, "wrong", globs={})
    assert runner.run(test, out=lambda text: None).failed == 1
