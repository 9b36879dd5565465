// Schedule D: the pointwise kernels of a step, for cells with several states beside h and one product. The launches and
// the products around them are those of kernels/cuda/stepwise.cu, and so are the arguments, except that
//
//   c (kCellStates, B, H)    the states beside h, updated in place; call.c_prev is (N, kCellStates, H)
//   dc (kCellStates, B, H)   their gradients, updated in place
//   B                        the rows of each of them
//   m, R, dgates_h, dm       are not read: such a cell has no second product, and one gradient for both sides
//
// The functions of the cell take the states beside h as an array: see kernels/cells/slstm.cuh.

static_assert(Cell::kCellStates == RK_CELL_STATES, "kCellStates is not the number of the row's states beside h");
static_assert(!Cell::kReadsH && !Cell::kSplits && !Cell::kResetsBefore,
              "the kernels of several states beside h have neither h' nor gradients of two sides");

// Offset of state s of row b, unit j, in (kCellStates, B, H); of a row-step in (N, kCellStates, H).
__device__ __forceinline__ Index state_at(int s, Index b, int B, int j, int H) { return (s * (Index)B + b) * H + j; }
__device__ __forceinline__ Index kept_state_at(Index step, int s, int j, int H) {
  return (step * Cell::kCellStates + s) * H + j;
}

// As RK_BOTH_WIDTHS of stepwise.cuh. In float64, from sm_100 on, two blocks of the wide kernels would spill registers.
#if defined(RK_FLOAT64)
#define RK_WIDE_BLOCKS 1
#else
#define RK_WIDE_BLOCKS 2
#endif
#define RK_BOTH_WIDTHS_OF_STATES(NAME, PARAMETERS, ARGUMENTS)                                      \
  extern "C" __global__ void __launch_bounds__(256, 2) NAME PARAMETERS { NAME##_of<1> ARGUMENTS; } \
  extern "C" __global__ void __launch_bounds__(256, RK_WIDE_BLOCKS) NAME##_wide PARAMETERS {       \
    NAME##_of<kWide> ARGUMENTS;                                                                    \
  }

template <int V>
__device__ __forceinline__ void forward_step_of(const Call* __restrict__ given, const Compute* __restrict__ x_side,
                                                const Compute* __restrict__ h_side, const Compute* __restrict__ bias,
                                                Storage* h, Compute* c, int most, int H, int t, int B) {
  const int G = Cell::kGates;
  const int K = Cell::kSaved;
  const int S = Cell::kCellStates;
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  for (int b = first_row(); b < live.rows; b += row_stride()) {
    const Index step = live.first + b;
    const Index row = step - call.n0;
    Storage* const y = y_row(call, t, b);
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      Compute a[G][V], saved[K][V], before[S][V], after[S][V], new_h[V];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        Compute u[V], b_x[V], b_h[V];
        load_units<V>(x_side + gate_at(row, g, j, H), a[g]);
        load_units<V>(h_side + gate_at(b, g, j, H), u);
        load_units<V>(bias + g * H + j, b_x);
        load_units<V>(bias + gate_at(1, g, j, H), b_h);
#pragma unroll
        for (int i = 0; i < V; ++i) a[g][i] = (a[g][i] + b_x[i]) + (u[i] + b_h[i]);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) load_units<V>(c + state_at(s, b, B, j, H), before[s]);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        Compute a_i[G], saved_i[K], before_i[S], after_i[S];
#pragma unroll
        for (int g = 0; g < G; ++g) a_i[g] = a[g][i];
#pragma unroll
        for (int s = 0; s < S; ++s) before_i[s] = before[s][i];
        Cell::forward(a_i, before_i, saved_i, new_h[i], after_i);
#pragma unroll
        for (int k = 0; k < K; ++k) saved[k][i] = saved_i[k];
#pragma unroll
        for (int s = 0; s < S; ++s) after[s][i] = after_i[s];
      }
      const Index at = (Index)b * H + j;
      if (call.saved) {
        Compute h_prev[V];
        load_units<V>(h + at, h_prev);
        store_units<V>(call.h_prev + step * H + j, h_prev);
#pragma unroll
        for (int k = 0; k < K; ++k) store_units<V>(call.saved + saved_at(step, k, j, H), saved[k]);
#pragma unroll
        for (int s = 0; s < S; ++s) store_units<V>(call.c_prev + kept_state_at(step, s, j, H), before[s]);
      }
#pragma unroll
      for (int s = 0; s < S; ++s) store_units<V>(c + state_at(s, b, B, j, H), after[s]);
      store_units<V>(h + at, new_h);
      store_any<V>(y + j, new_h);
    }
  }
}

RK_BOTH_WIDTHS_OF_STATES(forward_step,
               (const Call* given, const Compute* x_side, const Compute* h_side, const Compute* bias, Storage* h,
                Compute* c, Storage*, int most, int H, int, int t, int B),
               (given, x_side, h_side, bias, h, c, most, H, t, B))

template <int V>
__device__ __forceinline__ void backward_step_of(const Call* __restrict__ given, Storage* dgates, Storage* now,
                                                 Compute* dh, Compute* dc, int most, int H, int t, int B) {
  const int G = Cell::kGates;
  const int K = Cell::kSaved;
  const int S = Cell::kCellStates;
  const Compute zeros[V] = {};
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  const int rows = now ? most : live.rows;
  for (int b = first_row(); b < rows; b += row_stride()) {
    const bool is_live = b < live.rows;
    const Index step = live.first + b;
    const Index row = step - call.n0;
    const Storage* const dy = is_live ? dy_row(call, t, b) : nullptr;
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      if (!is_live) {
#pragma unroll
        for (int g = 0; g < G; ++g) store_units<V>(now + gate_at(b, g, j, H), zeros);
        continue;
      }
      Compute saved[K][V], dx[G][V], before[S][V], d[S][V], dh_in[V];
      const Index at = (Index)b * H + j;
      load_units<V>(dh + at, dh_in);
      if (dy) {
        Compute dy_j[V];
        load_any<V>(dy + j, dy_j);
#pragma unroll
        for (int i = 0; i < V; ++i) dh_in[i] += dy_j[i];
      }
#pragma unroll
      for (int k = 0; k < K; ++k) load_units<V>(call.saved + saved_at(step, k, j, H), saved[k]);
#pragma unroll
      for (int s = 0; s < S; ++s) {
        load_units<V>(call.c_prev + kept_state_at(step, s, j, H), before[s]);
        load_units<V>(dc + state_at(s, b, B, j, H), d[s]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        Compute saved_i[K], dx_i[G], before_i[S], d_i[S];
#pragma unroll
        for (int k = 0; k < K; ++k) saved_i[k] = saved[k][i];
#pragma unroll
        for (int s = 0; s < S; ++s) {
          before_i[s] = before[s][i];
          d_i[s] = d[s][i];
        }
        Cell::backward(saved_i, before_i, dh_in[i], d_i, dx_i);
#pragma unroll
        for (int g = 0; g < G; ++g) dx[g][i] = dx_i[g];
#pragma unroll
        for (int s = 0; s < S; ++s) d[s][i] = d_i[s];
      }
#pragma unroll
      for (int g = 0; g < G; ++g) {
        store_units<V>(dgates + gate_at(row, g, j, H), dx[g]);
        if (now) store_units<V>(now + gate_at(b, g, j, H), dx[g]);
      }
      if (now) store_units<V>(dh + at, zeros);
#pragma unroll
      for (int s = 0; s < S; ++s) store_units<V>(dc + state_at(s, b, B, j, H), d[s]);
    }
  }
}

RK_BOTH_WIDTHS_OF_STATES(backward_step,
               (const Call* given, Storage* dgates_x, Storage*, Storage* now, Compute* dh, Compute* dc, const Compute*,
                int most, int H, int t, int B),
               (given, dgates_x, now, dh, dc, most, H, t, B))
