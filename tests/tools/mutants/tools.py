"""TOOL_MUTANTS: bugs in files, in the cache of compiled kernels, in the command-line tools and in `make gpu`."""

from __future__ import annotations

from tests.tools.mutants.planting import row

CACHE, CACHE_FILE, CORES = "kernels/cpu/cache.py", "kernels/cpu/cache_file.py", "rnnkit/core/cpu_limits.py"
FILES, CHECKPOINT, MEANING = "rnnkit/io/files.py", "rnnkit/io/checkpoint.py", "rnnkit/nn/conventions.py"

_FILES = (
    row(
        "files: the checksum omits the values",
        FILES,
        "_digest",
        "digest.update(safetensors_format.as_bytes(value).data)",
        "pass",
        "tests/api/test_safetensors.py",
        "every_flipped_byte",
    ),
    row(
        "checkpoint: dropout generators are not restored",
        CHECKPOINT,
        "_checked_generators",
        "bits.state = state",
        "bits",
        "tests/api/test_checkpoint.py",
        "continues_bit_for_bit and adam and float32",
    ),
    row(
        "checkpoint: the model is written before all is checked",
        CHECKPOINT,
        "Checkpoint.restore",
        "write_generators =",
        "write_model(); write_generators =",
        "tests/api/test_checkpoint.py",
        "does_not_fit_changes_nothing",
    ),
    row(
        "from_keras: the GRU's gates stay in Keras' order",
        "rnnkit/io/keras.py",
        "_KINDS",
        "_Kind(3, (1, 0, 2)",
        "_Kind(3, (0, 1, 2)",
        "tests/api/test_from_keras.py",
        "computes_what_the_keras_layer_does and GRU",
    ),
)

_CACHE = (
    row(
        "cache: a wrong checksum is accepted",
        CACHE_FILE,
        "decode",
        "hashlib.sha256(memoryview(data)[_BODY:]).digest() != data[len(MAGIC) : _BODY]",
        "len(data) < _BODY",
        "tests/cpu/test_cache.py",
        "is_found",
    ),
    row(
        "cache: machine code of another environment is used",
        CACHE,
        "KernelCache._name_and_header",
        "{**environment_stamp(),",
        "{",
        "tests/cpu/test_cache.py",
        "another_environment",
    ),
    row(
        "cache: a file is written in place",
        CACHE_FILE,
        "write_atomically",
        'folder / f"{name}.{secrets.token_hex(8)}{TEMPORARY}"',
        "folder / name",
        "tests/cpu/test_cache.py",
        "failed_write or cannot_be_written",
    ),
    row(
        "cache: an OSError reaches the caller",
        CACHE_FILE,
        "write_to_first",
        "except OSError as",
        "except EOFError as",
        "tests/cpu/test_cache.py",
        "cannot_be_written",
    ),
    row(
        "notice: one line per kernel",
        "kernels/cpu/notice.py",
        "Notice._show",
        "self._shown = True",
        "self._shown = False",
        "tests/cpu/test_notice.py",
        "shown_once",
    ),
)

_ENVIRONMENT = (
    row(
        "threads: only the innermost cgroup's quota is read",
        CORES,
        "_group_folders",
        "(innermost, *innermost.parents)",
        "(innermost,)",
        "tests/cpu/test_cores.py",
        "nested",
    ),
    row(
        "warmup: single steps are omitted",
        "rnnkit/warmup.py",
        "warm_up",
        ", (1, None)):",
        "):",
        "tests/cpu/test_warmup.py",
        "warmup_does_not_compile",
    ),
    row(
        "doctor: a wrong result is not reported",
        "rnnkit/doctor.py",
        "_smoke",
        "if not outcome.ok:",
        "if not outcome.status:",
        "tests/api/test_doctor.py",
        "wrong_or_raises",
    ),
    row(
        "parity: the bits of two calls are not compared",
        "rnnkit/parity/measure.py",
        "",
        "if len(distinct) > 1:",
        "if False:",
        "tests/api/test_parity_tool.py",
        "bits",
    ),
    row(
        "parity: the oracle has none of a layer's options",
        "rnnkit/parity/layer.py",
        "_on_numpy",
        "if name not in _OWN}",
        'if name not in _OWN | {"layer_norm", "norm_eps", "zoneout", "clip"}}',
        "tests/api/test_parity_users.py",
        "options_of_a_layer",
    ),
    row(
        "parity: tolerances do not grow with the features",
        "rnnkit/core/dtypes.py",
        "DType.growth",
        "max(1.0, reach / self.reach)",
        "1.0",
        "tests/cpu/test_sums.py",
        "grow_in_proportion and numpy-rnn_tanh",
    ),
)

_GPU_RUNS = (
    row(
        "gpu: items are not read if gpu.json is older",
        "bench/gpu/result_file.py",
        "load",
        "ended(read_lines(path.with_name(ITEMS)))",
        "ended([])",
        "tests/bench/test_gpu_command.py",
        "kill_at_a_random_moment",
    ),
    row(
        "gpu: processes outlive the run",
        "bench/gpu/processes.py",
        "Worker.start",
        "exit_with_parent.command((*self.command, *arguments))",
        "(*self.command, *arguments)",
        "tests/bench/test_gpu_run.py",
        "no_process_outlives",
    ),
    row(
        "gpu: the run continues after a failed base case",
        "bench/gpu/__main__.py",
        "Run._part",
        'part.name == "smoke"',
        'part.name == "none"',
        "tests/bench/test_gpu_command.py",
        "base_case",
    ),
    row(
        "gpu: a run on another GPU is continued",
        "bench/gpu/__main__.py",
        "main",
        "report.card_name(earlier) != name",
        "False",
        "tests/bench/test_gpu_command.py",
        "another_gpu",
    ),
    row(
        "gpu: the bits of a graph are not compared",
        "bench/gpu/smoke.py",
        "graph",
        "any(array.tobytes() != other[name].tobytes() for other in results[1:])",
        "False",
        "tests/bench/test_gpu_smoke.py",
        "other_bits",
    ),
)

TOOL_MUTANTS = (*_FILES, *_CACHE, *_ENVIRONMENT, *_GPU_RUNS)
