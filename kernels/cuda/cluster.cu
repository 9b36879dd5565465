// Schedule B, "cluster": the batch in tiles of rows, each served by a cluster of blocks that hold W_hh together and push
// h into each other's shared memory. One launch runs the steps of a chunk.
//
// RK_CLUSTER: blocks of a cluster, a power of two. RK_THREADS: the largest block. RK_HELD: blocks of columns that a warp
// holds in registers. The grid is a cluster per tile of rows. splits: warps that share a tile of units, each for a part
// of the columns.

extern "C" __global__ void __cluster_dims__(RK_CLUSTER, 1, 1) __launch_bounds__(RK_THREADS, 1)
forward_chunk(const Compute* x_side, const Compute* bias, const Vec* weights, const Vec* second, const Storage* h,
              Storage* h_out, Compute* c, Storage* y, Index y_t, Index y_b, Storage* saved, Storage* h_prev,
              Compute* c_prev, Storage* operand, const Index* order, const Index* offsets, int B, int H, int R, Index t0,
              Index n0, int steps, int descending, int splits) {
  extern __shared__ uint4 memory[];
  __shared__ unsigned long long mail[kSecond ? 3 : 2];
  const Sequence all = {offsets, (unsigned)B, t0, n0, steps, descending != 0};
  const ForwardArrays in = {x_side, bias,  weights, second, h,       h_out, c, y, y_t,
                            y_b,    saved, h_prev,  c_prev, operand, order, H, R};
  const ClusterExchange exchange(mail, B, H, kProjected ? R : H, blockDim.x / 32 / splits);
  forward_steps<RK_HELD, kAnySplits>(memory, all, in, exchange, splits);
}
