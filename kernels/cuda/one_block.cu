// Schedule A, "one_block": a block serves a tile of rows, with all of W_hh in its registers and shared memory. One
// launch runs the steps of a chunk; blocks do not wait for each other.
//
// RK_THREADS: the largest block. RK_HELD: blocks of columns that a warp holds in registers. The grid is the tiles of
// rows, the block a warp per tile of units.

extern "C" __global__ void __launch_bounds__(RK_THREADS, 1)
forward_chunk(const Compute* x_side, const Compute* bias, const Vec* weights, const Vec* second, const Storage* h,
              Storage* h_out, Compute* c, Storage* y, Index y_t, Index y_b, Storage* saved, Storage* h_prev,
              Compute* c_prev, Storage* operand, const Index* order, const Index* offsets, int B, int H, int R, Index t0,
              Index n0, int steps, int descending) {
  extern __shared__ uint4 memory[];
  const Sequence all = {offsets, (unsigned)B, t0, n0, steps, descending != 0};
  const ForwardArrays in = {x_side, bias,  weights, second, h,       h_out, c, y, y_t,
                            y_b,    saved, h_prev,  c_prev, operand, order, H, R};
  forward_steps<RK_HELD, 1>(memory, all, in, OneBlock{});
}
