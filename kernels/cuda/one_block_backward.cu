// Schedule A, "one_block", backward. As one_block.cu, with the weights of resident_backward.cuh.

extern "C" __global__ void __launch_bounds__(RK_THREADS, 1)
backward_chunk(const Vec* weights, const Vec* second, const Storage* saved, const Storage* h_prev,
               const Compute* c_prev, const Storage* dy, Index dy_t, Index dy_b, const Index* order,
               const Index* offsets, Storage* dgates_x, Storage* dgates_h, Storage* dprojected, Compute* dh,
               Compute* dc, int B, int H, int R, Index t0, Index n0, int steps, int descending) {
  extern __shared__ uint4 memory[];
  const Sequence all = {offsets, (unsigned)B, t0, n0, steps, descending != 0};
  const BackwardArrays in = {weights, second,   saved,    h_prev,     c_prev, dy, dy_t,        dy_b,
                             order,   dgates_x, dgates_h, dprojected, dh,     dc, (unsigned)H, (unsigned)R};
  backward_steps<RK_HELD, 1>(memory, all, in, OneBlock{});
}
