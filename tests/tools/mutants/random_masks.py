"""RANDOM_MASK_MUTANTS: bugs in the draw of random masks, in zoneout and in dropout on x, h and W_hh."""

from __future__ import annotations

from tests.tools.mutants.planting import row

STEPS = "rnnkit/core/noise_steps.py"
MASKS = "rnnkit/backends/random_masks.py"
CUPY = "tests/cuda/test_noise_on_device.py"
ORACLE, LAYERS = "tests/oracle/test_noise_steps.py", "tests/api/test_regularisation.py"

RANDOM_MASK_MUTANTS = (
    row(
        "random masks: Philox runs nine rounds", "rnnkit/core/philox.py", "philox", "range(ROUNDS)",
        "range(ROUNDS - 1)", "tests/oracle/test_philox.py", "known_answers",
    ),
    row(
        "random masks: the carried h of a step is masked", STEPS, "forward", "_mixed(noise.keep_h, state[0], new[0])",
        "_mixed(noise.keep_h, 0 * state[0], new[0])", ORACLE, "written_out",
    ),
    row(
        "random masks: the gradient of a masked product is not masked", STEPS, "__rmatmul__",
        "sum(m * (d @ w) for m, d, w", "sum(1 * (d @ w) for m, d, w", ORACLE, "differences",
    ),
    row(
        "random masks: zoneout of c is left out of its gradient", STEPS, "backward", "dcs = [dc - direct_c]",
        "dcs = [dc]", ORACLE, "differences",
    ),
    row(
        "random masks: the gradient of W_hh is not masked", MASKS, "unmasked",
        "masked(dweights.w_hh, weight_mask(noise, dweights.w_hh))", "dweights.w_hh", ORACLE, "differences",
    ),
    row(
        "random masks: every row has the masks of row 0", "rnnkit/core/regularisation.py", "row_numbers",
        "np.arange(B)", "np.zeros(B, np.int64)", LAYERS, "number_alone",
    ),
    row(
        "random masks: a chunk draws from time 0", "rnnkit/functional/chunked.py", "_part", "_replace(t0=t0)",
        "_replace(t0=0)", LAYERS, "chunks_draw",
    ),
    row(
        "random masks: cupy loses the masked products of rows that are not live", "kernels/cuda/step_noise.cuh", "",
        "add_products<V>(b, j, R, d); store_units<V>(dh + (Index)b * R + j, d);",
        "store_units<V>(dh + (Index)b * R + j, d);", CUPY, "cupy_is_the_oracle",
    ),
    row(
        "random masks: cupy masks sorted rows by their place", "kernels/cuda/step_noise.cuh", "",
        "row(call.order ? call.order[b] : b)", "row(b)", CUPY, "cupy_is_the_oracle",
    ),
    row(
        "random masks: cupy multiplies the gradient of W_hh by h that is not masked",
        "rnnkit/backends/cupy/stepwise_launch.py", "hidden_operands",
        "masked = self.storage_matrix(\"masked\", self.p.R)", "masked = self.array(states.h_prev).at(chunk.n0)",
        CUPY, "cupy_is_the_oracle",
    ),
    row(
        "random masks: numba_cuda multiplies every gate by the mask of the first one",
        "kernels/numba_cuda/scan_forward.py", "_first_product", "hidden[gate]", "hidden[0]", CUPY, "numba_cuda_is",
    ),
    row(
        "random masks: numba_cuda masks the gradient of h by the mask of the first gate",
        "kernels/numba_cuda/scan_backward.py", "_masked_product", "hidden[mask, b, j]", "hidden[0, b, j]", CUPY,
        "numba_cuda_is",
    ),
    row(
        "random masks: numba_cuda masks r h' as the first gate", "kernels/numba_cuda/scan_forward.py", "_unit",
        "hidden[LAST, b, j]", "hidden[0, b, j]", CUPY, "numba_cuda_is",
    ),
    row(
        "random masks: numba_cuda masks r h' twice", "rnnkit/backends/numba_cuda/plain.py", "_masks_of_products",
        "cupy.ones_like(hidden[:1])", "hidden[-1:]", CUPY, "numba_cuda_is",
    ),
)  # fmt: skip
