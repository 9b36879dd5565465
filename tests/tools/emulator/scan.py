"""Parses preprocessed, uncompiled source: finds its kernels, and replaces CUDA syntax that g++ does not accept."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.tools.emulator.errors import EmulatorError


class FoundKernel(NamedTuple):
    """A kernel of the source, with the texts of its __launch_bounds__ and __cluster_dims__ ("" if it has none)."""

    name: str
    template: bool
    bounds: str
    cluster: str


_ATTRIBUTE = ("__launch_bounds__", "__cluster_dims__", "__attribute__", "__align__", "alignas")


def _bracket(text: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise EmulatorError("unclosed bracket in the declaration of a kernel", "compile")


def find_kernels(scanned: str) -> list[FoundKernel]:
    """The kernels that a scanned source declares, in order, each once."""
    text = re.sub(r"^#.*$", "", scanned, flags=re.MULTILINE)
    found: dict[str, FoundKernel] = {}
    for mark in re.finditer(r"\b__global__\b", text):
        before = re.split(r"[;{}]", text[: mark.start()])[-1]
        attributes = {}
        at = mark.end()
        while word := re.compile(r"[\s\*]*([A-Za-z_]\w*)\s*(\(?)").match(text, at):
            if not word[2]:
                at = word.end()
            elif word[1] in _ATTRIBUTE:
                at = _bracket(text, word.end() - 1)
                attributes[word[1]] = text[word.end() : at - 1].strip()
            else:
                bounds, cluster = (attributes.get(a, "") for a in _ATTRIBUTE[:2])
                found.setdefault(word[1], FoundKernel(word[1], "template" in before, bounds, cluster))
                break
    return list(found.values())


_DYNAMIC = re.compile(
    r"\bextern\s+(?:__shared__\s+)((?:__align__|alignas|__attribute__)\s*\(+[^()]*\)+\s*)?"
    r"((?:[\w:<>,]+\s+)*?[\w:<>,]+)\s*\b(\w+)\s*\[\s*\]\s*;"
)


def rewrite(scanned: str) -> str:
    """The text that g++ compiles: dynamic shared memory is a pointer, and the emulator's headers replace CUDA's."""
    text = _DYNAMIC.sub(lambda m: f"EMULATOR_DYNAMIC_SHARED({m[2].strip()}, {m[3]});", scanned)
    left = re.search(r"\bextern\b[^;\n]*\b__shared__\b[^;]*;", text)
    if left:
        raise EmulatorError(f"the emulator cannot parse this declaration: {left[0]}", "compile")
    return re.sub(r"^#pragma rnnkit_emulator include", "#include", text, flags=re.MULTILINE)
