// Schedule C, "grid": the batch in tiles of rows, each served by a group of blocks that hold W_hh together and hand
// each other h through the L2 cache. One cooperative launch runs the steps of a chunk.
//
// RK_THREADS: the largest block. RK_HELD: blocks of columns that a warp holds in registers. The grid is members times
// tiles of rows. splits: warps that share a tile of units, each for a part of the columns.

extern "C" __global__ void __launch_bounds__(RK_THREADS, 1)
forward_chunk(const Compute* x_side, const Compute* bias, const Vec* weights, const Vec* second, const Storage* h,
              Storage* h_out, Compute* c, Storage* y, Index y_t, Index y_b, Storage* saved, Storage* h_prev,
              Compute* c_prev, Storage* operand, const Index* order, const Index* offsets, int B, int H, int R, Index t0,
              Index n0, int steps, int descending,
              Word* words, unsigned tag, int members, int splits) {
  extern __shared__ uint4 memory[];
  const Sequence all = {offsets, (unsigned)B, t0, n0, steps, descending != 0};
  const ForwardArrays in = {x_side, bias,  weights, second, h,       h_out, c, y, y_t,
                            y_b,    saved, h_prev,  c_prev, operand, order, H, R};
  const GridExchange exchange = {words, tag, members, (unsigned)B, (unsigned)H, (int)blockDim.x / 32 / splits};
  forward_steps<RK_HELD, kAnySplits>(memory, all, in, exchange, splits);
}
