"""python -m rnnkit.parity: its table, exit statuses, JSON file and heat map."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from rnnkit import backends
from rnnkit.parity import Check, Outcome, text
from rnnkit.parity.__main__ import Progress, main
from rnnkit.testing import CASES, Case
from tests.api.planted import Fault, broken, changing_bits, off, planted, refusing, unwritten
from tests.cuda.cuda_helpers import cuda
from tests.helpers import LAYERS
from tests.tools import emulator

ROOT = Path(__file__).resolve().parents[2]
NO_CUDA = not backends.available("cupy")


# The command


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects the cells of the table with their classes and tooltips."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[dict[str, Any]] = []
        self.rows: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        given = dict(attrs)
        if tag == "td":
            self.cells.append(given | {"text": ""})
        if tag == "th" and given.get("scope") == "row":
            self.rows.append(str(given["title"]))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "td":
            self.cells[-1]["text"] += data


def command(tmp_path: Path, *options: str) -> tuple[int, dict[str, Any], Page]:
    """The exit status of the command, and its two files."""

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON")

    files = (tmp_path / "parity.json", tmp_path / "parity.html")
    status = main([*options, "--json", str(files[0]), "--html", str(files[1])])
    assert sorted(tmp_path.iterdir()) == sorted(files)
    found = json.loads(files[0].read_text(), parse_constant=refuse)
    assert found["exit_status"] == status
    return status, found, Page(files[1].read_text(encoding="utf-8"))


def test_the_command_on_the_numpy_backend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found, page = command(tmp_path, "--backend", "numpy", "--dtype", "float32", "float16")
    out = capsys.readouterr().out
    assert status == 0
    assert f"{2 * len(CASES)} checks: all within their bounds" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("cpu ")]
    assert len(rows) == 2 * len(LAYERS)
    for row in rows:
        assert row[1] == "numpy"
        assert (row[4], row[5], row[-1]) == (str(sum(c.cell == row[3] for c in CASES)), "0", "yes")
    outcomes = [Outcome.from_dict(o) for o in found["outcomes"]]
    assert text.table(outcomes) in out
    assert found["counts"] == {"checks": len(outcomes), "ok": len(outcomes), "wrong": 0, "failed": 0}
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]["processor"]
    assert page.rows == [str(case) for cell in LAYERS for case in CASES if case.cell == cell]
    assert len(page.cells) == len(outcomes)
    assert not [cell for cell in page.cells if not re.fullmatch(r"s\d( edge)?", cell["class"])]
    worst = max(outcomes, key=lambda o: o.worst)
    assert any(f"worst {worst.worst:.3g} in {worst.worst_array}" in cell["title"] for cell in page.cells)
    assert f"numpy {np.__version__}" in page.text


@pytest.mark.parametrize(
    ("fault", "kind", "sign", "why"),
    [
        (off("dw_hh"), "over", "✗", "over the bound: dw_hh at "),
        (changing_bits(), "over", "≠", "bits differ from call to call: dw_hh"),
        (broken, "failed", "!", "planted raised FloatingPointError: planted"),
        (unwritten, "over", "✗", "over the bound: y at "),
    ],
)
def test_the_command_lists_what_is_wrong(
    fault: Fault, kind: str, sign: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backend", "numpy", "planted", "--dtype", "float32", "--cell", "gru", "lstm", "--shape", "4,3,4,5")
    with planted(fault):
        status, found, page = command(tmp_path, *options)
    out = capsys.readouterr().out
    assert status == 1
    assert out.count(why) == 4
    assert "8 checks: 4 not ok" in out
    (gru, lstm) = [line.split() for line in out.splitlines() if line.startswith("cpu") and "planted" in line]
    assert (gru[3:6], lstm[3:6]) == (["gru", "2", "2"], ["lstm", "2", "2"])
    assert gru[-1] == lstm[-1] == {"≠": "no", "!": "-", "✗": "yes"}[sign]
    bad = [Outcome.from_dict(o) for o in found["outcomes"] if o["status"] != "ok"]
    assert {o.check.backend for o in bad} == {"planted"}
    assert all(o.why.startswith(why) for o in bad)
    cells = [cell for cell in page.cells if cell["class"].startswith(kind)]
    assert len(cells) == 4
    assert all(sign in cell["text"] and why in cell["title"] for cell in cells)
    assert len([cell for cell in page.cells if re.match(r"s\d", cell["class"])]) == 4


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device here")
def test_a_requested_check_that_does_not_run_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--cell", "gru", "--dtype", "float32", "--shape", "3,2,3,4")
    status, found, page = command(tmp_path, "--backend", "numpy", "cupy", *options)
    assert status == 3
    assert found["missing"] == ["cupy"]
    out = capsys.readouterr().out
    assert "2 checks: all within their bounds" in out
    assert "not checked here, requested by name: cupy: CuPy" in out
    assert "cupy, requested by name: CuPy" in page.text
    status, found, _ = command(tmp_path, "--device", "cuda:0", *options)
    assert (status, found["outcomes"]) == (3, [])
    assert "no check ran" in capsys.readouterr().out
    assert main(["--backend", "numpy", "--dtype", "float32", "--cell", "gru", "lstm", "--shape", "3,2,3,4,2"]) == 3
    with planted(broken):  # wrong results come first
        assert main(["--backend", "planted", "cupy", *options]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--backend fast", "'fast'"),
        ("--backend cupy:fast", "'cupy:fast'"),
        ("--dtype float8", "'float8'"),
        ("--cell mgu", "'mgu'"),
        ("--device tpu", "'tpu'"),
        ("--shape 3,4,5", "T,B,I,H"),
        ("--shape 3,4,5,0", "positive"),
        ("--shape 3,4,5,six", "T,B,I,H"),
        ("--shape 3,4,5,6,6", "P < H"),
        ("--shape 3,4,5,6,2 --cell gru", "gru"),
        ("--json no/folder/here.json", "--json"),
        ("--html .", "--html"),
        ("--fast", "--fast"),
    ],
)
def test_a_bad_argument_exits_with_2(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = itertools.count()

    def fault(found: dict[str, Any]) -> None:
        if next(calls) >= 4:  # a forward and a backward, twice
            raise KeyboardInterrupt

    with planted(fault):
        options = ["--backend", "planted", "--dtype", "float32", "--cell", "gru", "--json", str(tmp_path / "a.json")]
        assert main(options) == 130
    assert "interrupted after 1 of 12 checks" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_replaced_is_left_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "parity.json"
    path.write_text("before")
    options = ["--backend", "numpy", "--dtype", "float32", "--cell", "gru", "--shape", "3,2,3,4", "--json", str(path)]
    with mock.patch("os.replace", side_effect=OSError("planted")):
        assert main(options) == 1
    assert "planted" in capsys.readouterr().err
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_list_is_truncated_with_a_count() -> None:
    bad = [Outcome(Check("numpy", "float32", Case("gru", T=t), "cpu"), "failed", "planted") for t in range(1, 24)]
    listed = text.not_ok(bad)
    assert len(listed) == 21
    assert listed[-1] == "and 3 more"


def test_progress_is_one_line_in_a_terminal_and_rare_elsewhere() -> None:
    stream = mock.Mock(**{"isatty.return_value": True})
    progress = Progress(3, stream)
    progress.show(1, 0, "first")
    progress.clear()
    assert [call.args[0] for call in stream.write.mock_calls] == ["\r\x1b[K1/3 checks, 0 not ok: first", "\r\x1b[K"]
    quiet = mock.Mock(**{"isatty.return_value": False})
    progress = Progress(3, quiet)
    progress.show(1, 0, "first")
    quiet.write.assert_not_called()
    progress.shown -= 6
    progress.show(2, 1, "second")
    progress.clear()
    quiet.write.assert_called_once_with("2/3 checks, 1 not ok: second\n")


def test_the_module_runs_as_a_command() -> None:
    options = ["--backend", "numba", "--cell", "lstm", "--dtype", "float32", "--shape", "4,3,4,5,3"]
    done = subprocess.run(
        [sys.executable, "-m", "rnnkit.parity", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 checks: all within their bounds" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
def test_the_command_on_the_stand_in_cupy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--backend", "cupy:stepwise", "numpy", "--dtype", "float32", "--cell", "lstm", "--shape", "4,3,4,5")
    with cuda():
        status, found, page = command(tmp_path, *options, "--device", "cpu", "cuda:1")
    out = capsys.readouterr().out
    assert status == 0, out
    assert [line.split()[:3] for line in out.splitlines() if " lstm " in line] == [
        ["cpu", "numpy", "float32"],
        ["cuda:1", "cupy:stepwise", "float32"],
    ]
    assert list(found["machine"]["devices"]) == ["cuda:1"]
    assert found["machine"]["devices"]["cuda:1"] in page.text
    assert len(page.cells) == 4


@pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
def test_a_requested_shape_that_the_named_schedule_refuses_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--backend",
        "cupy:stepwise",
        "--dtype",
        "float32",
        "--cell",
        "gru",
        "--shape",
        "3,2,3,4",
        "--shape",
        "3,2,3,11",
    ]
    with cuda(devices=1), refusing(lambda sizes: "too wide" if sizes.H > 10 else None):
        assert main(options) == 3
    out = capsys.readouterr().out
    assert "2 checks: all within their bounds" in out
    assert "not checked here: 2 of 4 cases of cupy:stepwise float32 on cuda:0: " in out
    assert "not checked here, requested by name: shape 3,2,3,11: " in out
