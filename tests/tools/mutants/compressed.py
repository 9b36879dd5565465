"""COMPRESSED_MUTANTS: bugs in compressed weights, `rnnkit.compress`."""

from __future__ import annotations

from tests.tools.mutants.planting import Mutant, row

MATRICES, LAYERS = "rnnkit/core/compression.py", "rnnkit/nn/compressed.py"


def _api(name: str, file: str, at: str, old: str, new: str, pick: str) -> Mutant:
    return row(f"compressed weights: {name}", file, at, old, new, "tests/api/test_compress.py", pick)


COMPRESSED_MUTANTS = (
    _api("ties are rounded away", MATRICES, "compressed", "np.rint(w / scales[:, None])",
         "np.trunc(w / scales[:, None] + np.copysign(0.5, w))", "rounded_to_even"),
    _api("one scale for the whole matrix", MATRICES, "compressed", "largest / np.float32(MOST)",
         "largest.max() / np.float32(MOST)", "rounded_to_even"),
    _api("a subnormal scale", MATRICES, "compressed", "np.maximum(largest / np.float32(MOST), _LEAST_SCALE)",
         "largest / np.float32(MOST)", "rounded_to_even"),
    _api("the scale of the row before", MATRICES, "CompressedMatrix.astype", "self.scales.astype(dtype)",
         "np.roll(self.scales, 1).astype(dtype)", "rounded_to_even"),
    _api("a copy's parameters are not those that it computes with", "rnnkit/nn/module.py", "__setstate__",
         "if self._matrices:", "if False:", "same_bits"),
    _api("loading keeps the old matrices", LAYERS, "replace_arrays", "layer._matrices = matrices", "pass", "same_bits"),
    _api("an optimizer takes them", "rnnkit/optim/models.py", "modules_of",
         'module._check_trainable("an optimizer or clipping")', "pass", "training_is_refused"),
    row("compressed weights: the digest leaves the scales out", "kernels/cpu/formats.py", "row_bytes",
        "K * size + behind", "K * size", "tests/cpu/test_compressed.py", "other_scales"),
    row("compressed weights: the scale of each panel's first column", "kernels/cpu/matmul.py", "emit_tile",
        "builder.add(scales, number(n * vector_size))", "scales", "tests/cpu/test_compressed.py",
        "float64_oracle and numba and int8 and lstm"),
)  # fmt: skip
