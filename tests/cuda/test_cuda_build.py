"""Compiles every CUDA C++ module with NVRTC for every architecture, without a driver; see tests/tools/build_report.

No kernel spills registers, uses local memory or calls a function, and float32 and half modules contain no float64. The
committed table matches the sources. Planted bugs show that each of these checks can fail.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.sources import Build, Kernel
from tests.required import needs_kernels, unless_required
from tests.tools.build_report import __main__ as command
from tests.tools.build_report import nvrtc, occupancy, printed, table

BUILDS = sources.builds()
needs_nvrtc = needs_kernels(nvrtc.unavailable())
needs_occupancy = needs_kernels(occupancy.unavailable())


# ---- the committed table


def test_the_table_matches_the_sources() -> None:
    changes = table.stale(table.read())
    assert not changes, f"{table.JSON.name} is stale ({'; '.join(changes)}): {table.REWRITE}, with {nvrtc.EXTRA}"


def test_the_markdown_matches_the_json() -> None:
    assert table.MARKDOWN.read_text(encoding="utf-8") == table.as_markdown(table.read()), table.REWRITE


def test_the_files_have_the_written_format() -> None:
    assert table.JSON.read_text(encoding="utf-8") == table.as_json(table.read()), table.REWRITE


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_the_table_has_every_kernel_and_architecture_and_none_spills(build: Build) -> None:
    kernels = table.read()["modules"][build.name]["kernels"]
    assert set(kernels) == {kernel.name for kernel in build.kernels}
    for kernel in build.kernels:
        entry = kernels[kernel.name]
        assert (entry["block"], entry["dynamic_shared"]) == (list(kernel.block), kernel.shared_bytes)
        for arch in table.archs_of(build):
            row = dict(zip(table.COLUMNS, entry[f"sm_{arch}"], strict=True))
            assert row["stack"] == row["spills"] == 0, (kernel.name, arch)
            assert 0 < row["registers"] <= 255, (kernel.name, arch)
            assert row["blocks_per_sm"] > 0, (kernel.name, arch)
            assert row["co_resident"] == row["blocks_per_sm"] * occupancy.DEVICES[arch].multiprocessors


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda t, name: t["modules"][name].update(digest="0"), "has changed since"),
        (lambda t, name: t["modules"].pop(name), "is not in the table"),
        (lambda t, name: t["modules"].update(gone=t["modules"][name]), "gone is in the table but no longer compiled"),
    ],
)
def test_a_stale_table_is_detected(change: Any, want: str) -> None:
    planted = copy.deepcopy(table.read())
    assert table.stale(planted) == []
    change(planted, BUILDS[-1].name)
    (problem,) = table.stale(planted)
    assert want in problem


def test_the_digest_depends_on_source_options_and_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    build = BUILDS[0]
    first = build.kernels[0]
    wider = build._replace(kernels=(first._replace(shared_bytes=first.shared_bytes + 16), *build.kernels[1:]))
    defined = build._replace(defines=(*build.defines, ("RK_PLANTED", "1")))
    digests = {table.digest(build), table.digest(wider), table.digest(defined)}
    text = sources.source(build)
    monkeypatch.setattr(sources, "source", lambda build: text + "\n")
    assert len(digests | {table.digest(build)}) == 4


# ---- CUDA C++


def each_module() -> list[Any]:
    """The (module, architecture) pairs of `table.cover`. `make build-report` compiles every pair, and the table that it
    writes is held to the sources by `test_the_table_matches_the_sources`."""
    cover = table.cover(BUILDS)
    pairs = [(build, arch) for build in BUILDS for arch in table.archs_of(build) if (build.name, arch) in cover]
    return [pytest.param(*pair, id=f"{pair[0].name}-sm_{pair[1]}") for pair in pairs]


def test_the_cover_has_every_module_and_architecture() -> None:
    cover = table.cover(BUILDS)
    assert {name for name, _ in cover} == {build.name for build in BUILDS}
    assert {arch for _, arch in cover} == set(nvrtc.ARCHS)
    assert cover <= {(build.name, arch) for build in BUILDS for arch in table.archs_of(build)}


@needs_nvrtc
def test_the_table_is_of_the_installed_compiler() -> None:
    then, now = table.read()["nvrtc"], nvrtc.version()
    if then != now:
        reason = f"the table is of NVRTC {then}, this is {now}: registers and occupancy are not compared"
        pytest.skip(str(unless_required("kernels", reason)))


@needs_nvrtc
@pytest.mark.parametrize(("build", "arch"), each_module())
def test_a_module_compiles_without_faults_and_matches_the_table(build: Build, arch: int) -> None:
    report = table.compiled(build, arch)
    assert table.problems(report, build.kernels, arch, table.in_float64(build)) == []
    recorded = table.read()
    if recorded["nvrtc"] == nvrtc.version() and not table.stale(recorded):
        entry, whole = recorded["modules"][build.name], occupancy.unavailable() is None
        assert table.differences(entry, report, build.kernels, arch, whole) == [], table.REWRITE


PLANTED = """
__device__ {inline} float half_of(float x) {{ return x * 0.5f; }}
extern "C" __global__ void {bounds} planted(const float* __restrict__ x, float* y, int n) {{
  {shared}
  float a[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[i] = x[i * n];
  float sum = 0.f;
  {statement}
#pragma unroll
  for (int i = 0; i < 96; ++i) sum += a[i] * a[95 - i];
  y[threadIdx.x] = {value};
}}
"""
CLEAN = {"inline": "__forceinline__", "bounds": "", "shared": "", "statement": "", "value": "half_of(sum)"}
BUGS = {
    "spill": ({"bounds": "__launch_bounds__(1024, 2)"}, "planted spills"),
    "local array": (
        {"statement": "for (int i = 0; i < n; ++i) a[i * 7 % 96] += a[i % 95];"},
        "planted has a stack frame of 384 bytes",
    ),
    "local array in the PTX": ({"value": "a[n]"}, "local memory in the PTX"),
    "float64 literal": ({"value": "sum * 0.1"}, "float64 in the PTX"),
    "call": ({"inline": "__noinline__"}, "calls that were not inlined in the PTX"),
    "warning": ({"statement": "float forgotten;"}, "the compiler warns"),
    "shared memory": (
        {"shared": "__shared__ float s[9000]; s[n] = x[n]; __syncthreads(); y[0] = s[n + 1];"},
        "planted needs 240800 bytes of shared memory, sm_90 has 232448",
    ),
}


def planted(change: dict[str, str]) -> list[str]:
    report = nvrtc.compile_module(PLANTED.format(**(CLEAN | change)), ("-std=c++17",), 90)
    return table.problems(report, [Kernel("planted", (256, 1, 1), 200 * 1024)], 90)


@needs_nvrtc
def test_the_kernel_without_a_planted_bug_has_no_faults() -> None:
    assert planted({}) == []


@needs_nvrtc
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_reported(bug: str) -> None:
    change, want = BUGS[bug]
    assert any(want in line for line in planted(change)), planted(change)


@needs_nvrtc
def test_an_unlisted_or_too_large_kernel_is_reported() -> None:
    report = nvrtc.compile_module(PLANTED.format(**CLEAN), ("-std=c++17",), 75)
    assert "compiled ['planted'], listed ['other']" in table.problems(report, [Kernel("other", (1, 1, 1), 0)], 75)[0]
    (problem,) = table.problems(report, [Kernel("planted", (1024, 1, 1), 0)], 75)
    assert "do not fit a multiprocessor" in problem
    (problem,) = table.problems(report, [Kernel("planted", (32, 1, 1), 64 * 1024 + 1)], 75)
    assert "needs 65537 bytes of shared memory, sm_75 has 65536" in problem
    varies = Kernel("planted", (32, 1, 1), 64 * 1024 + 1, varies=True)
    assert table.problems(report, [varies], 75) == []
    assert table.row(report.kernels["planted"], varies, 75)[-2:] == [1, 40]


@needs_nvrtc
def test_a_changed_register_count_is_reported() -> None:
    build = BUILDS[0]
    report = table.compiled(build, 90)
    entry = {"kernels": {k.name: {"sm_90": table.compiler_columns(report.kernels[k.name])} for k in build.kernels}}
    assert table.differences(entry, report, build.kernels, 90, whole=False) == []
    entry["kernels"][build.kernels[0].name]["sm_90"][0] += 1
    (problem,) = table.differences(entry, report, build.kernels, 90, whole=False)
    assert problem.startswith(f"{build.kernels[0].name} sm_90 registers: ")


@needs_nvrtc
def test_template_instances_are_named_as_in_launches() -> None:
    code = "template <int N> __global__ void add(float* x) { x[threadIdx.x] += N; }"
    report = nvrtc.compile_module(code, (), 80, ["add<3>", "add<4>"])
    assert set(report.kernels) == {"add<3>", "add<4>"}


@needs_nvrtc
def test_a_source_that_does_not_compile_raises_with_the_log() -> None:
    with pytest.raises(nvrtc.CompileError, match='identifier "oops" is undefined'):
        nvrtc.compile_module('extern "C" __global__ void k() { oops; }', (), 90)


@needs_nvrtc
def test_a_second_compilation_is_cached_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = 'extern "C" __global__ void k(float* x) { x[0] = N; }'
    first = nvrtc.compile_module(code, ("-DN=1",), 90)
    monkeypatch.setattr(nvrtc, "_compile", lambda *given: pytest.fail("compiled again"))
    assert nvrtc.compile_module(code, ("-DN=1",), 90) == first
    for changed in ((code, ("-DN=2",), 90), (code, ("-DN=1",), 80), (code + " ", ("-DN=1",), 90)):
        with pytest.raises(pytest.fail.Exception, match="compiled again"):
            nvrtc.compile_module(*changed)


def test_usage_includes_functions_that_were_not_inlined() -> None:
    log = """ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 2 barriers, 96 bytes smem
ptxas info    : Function properties for f
    16 bytes stack frame, 12 bytes spill stores, 0 bytes spill loads
"""
    assert nvrtc.parse_usage(log) == {"k": nvrtc.Usage(40, 24, 12, 4, 96, 2)}


# ---- the command


@needs_nvrtc
@needs_occupancy
def test_the_command_writes_what_it_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "JSON", tmp_path / "t.json")
    monkeypatch.setattr(table, "MARKDOWN", tmp_path / "t.md")
    monkeypatch.setattr(sources, "builds", lambda: BUILDS[:1])
    assert command.main(["--write"]) == 0
    made = table.read()
    assert table.stale(made) == []
    assert made["nvrtc"] == nvrtc.version()
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == table.as_markdown(made)
    archs = len(table.archs_of(BUILDS[0]))
    assert f"[{archs}/{archs}] {BUILDS[0].name} sm_" in capsys.readouterr().out


@needs_nvrtc
@needs_occupancy
def test_the_command_compiles_what_has_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "JSON", tmp_path / "t.json")
    monkeypatch.setattr(table, "MARKDOWN", tmp_path / "t.md")
    monkeypatch.setattr(sources, "builds", lambda: BUILDS[:1])
    name = BUILDS[0].name
    made = table.make()
    planted = copy.deepcopy(made)
    kernel = planted["modules"][name]["kernels"][BUILDS[0].kernels[0].name]
    kernel["sm_90"][0] += 1
    for digest, want in ((planted["modules"][name]["digest"], planted), ("0", made)):
        planted["modules"][name]["digest"] = digest
        table.write(planted)
        assert command.main(["--write", "--changed"]) == 0
        assert table.read() == want
    assert capsys.readouterr().out.count(f"{name} sm_") == len(table.archs_of(BUILDS[0])), "once"
    table.write({**made, "nvrtc": "1.0"})
    assert command.main(["--write", "--changed"]) == 1
    assert "the table is of NVRTC 1.0" in capsys.readouterr().err


@needs_nvrtc
@needs_occupancy
def test_the_command_refuses_to_write_a_spill(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "JSON", tmp_path / "t.json")
    build = Build("spilling", (), (), (Kernel("planted", (1024, 1, 1), 0),), 90)
    monkeypatch.setattr(sources, "builds", lambda: (build,))
    monkeypatch.setattr(sources, "source", lambda build: PLANTED.format(**(CLEAN | BUGS["spill"][0])))
    assert command.main(["--write"]) == 1
    assert "spilling for sm_90: planted spills" in capsys.readouterr().err
    assert not table.JSON.exists()


def test_the_command_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(nvrtc, "unavailable", lambda: "no compiler (planted)")
    assert command.main([]) == 2
    assert "no compiler (planted)" in capsys.readouterr().err


# ---- as CuPy compiles it


@pytest.mark.kernels
def test_cupy_adds_these_options_and_its_headers_give_the_same_code() -> None:
    """Of every eighth module: each compiles for a second time."""
    made = printed("as_cupy", "90", "8")
    taken = [build for build in BUILDS[::8] if build.min_arch <= 90]
    assert set(made) == {build.name for build in taken}
    for build in taken:
        assert made[build.name]["options"] == list(nvrtc.CUPY_OPTIONS)
        kernels = {name: nvrtc.Usage(*usage) for name, usage in made[build.name]["kernels"].items()}
        assert kernels == table.compiled(build, 90).kernels, build.name
