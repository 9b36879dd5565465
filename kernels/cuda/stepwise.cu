// Schedule D: the pointwise kernels of a step, for every cell. A step has one product, or two: the second one is the
// projection, or W_hn (r h') of a GRU that resets before. The launches and the products around them, in order:
//
//            one product      projection                    reset before
//   forward  h W_hh^T         h W_hh^T                      h W_hr^T, h W_hz^T
//            forward_step     forward_step: m               forward_step: r, z, rh = r h'
//                             m W_proj^T                    rh W_hn^T
//                             forward_output: h, y          forward_output: n, h, y
//   backward                  backward_output: dprojected   backward_output: gradients of z and n
//                             dprojected W_proj: dm         dgates_n W_hn: drh
//            backward_step    backward_step                 backward_step: gradient of r
//            dgates_h W_hh    dgates_h W_hh                 dgates_r W_hr + dgates_z W_hz
//
// The products of a step are of `most` rows, and those past the live ones are not used. Kernels of one name take the
// same arguments in every cell:
//
//   x_side (rows of the chunk, G*H)   products of x, without biases
//   h_side (most, G*H)                products of h, without biases
//   bias (2, G*H)                     b_ih, then b_hh
//   h (B, R), c (B, H)                states, updated in place: the launches of one stream see each other's writes
//   m (B, H)                          operand of the second product: the unprojected output, or rh; null without one
//   projected (B, R)                  the second product under projection; null without
//   dgates_x, dgates_h (chunk, G*H)   gradients of the two sides' pre-activations; one array unless kSplits
//   dprojected (chunk, R)             gradient of the projection's output
//   now (most, G*H) or (most, R)      a copy of the step's rows of dgates_h or dprojected, at a fixed address, for the
//                                     products of ragged batches; null where every row has T steps
//   dh (B, R), dc (B, H)              gradients of the states, updated in place
//   dm (B, H)                         gradient of m; null without a second product
//   t                                 time step, from the graph's first one
//
// R = P under projection, else H. The product of dgates_h replaces dh. Where kReadsH, or with `now`, it is added to dh:
// so that rows which are not live keep theirs, their rows of `now` are zero.
//
// RK_NOISE is 1 for a cell with zoneout or dropout on h: kernels/cuda/step_noise.cuh.

// Zeros for the units of a row of `now` that is not live.
template <int V>
__device__ __forceinline__ void clear_gates(Storage* now, int b, int first, int end, int j, int H) {
  const Compute zeros[V] = {};
#pragma unroll
  for (int g = first; g < end; ++g) store_units<V>(now + gate_at(b, g, j, H), zeros);
}

// The last argument of the functions of a cell with options, unit i of a thread: see kernels/cells/with_options.cuh.
#if defined(RK_OPTIONS)
#define RK_UNIT_EXTRAS , Extras(given, j + i, H)
#else
#define RK_UNIT_EXTRAS
#endif

#if !RK_RESETS_BEFORE

template <int V>
__device__ __forceinline__ void forward_step_of(const Call* __restrict__ given, const Compute* __restrict__ x_side,
                                                const Compute* __restrict__ h_side, const Compute* __restrict__ bias,
                                                Storage* h, Compute* c, Storage* m, int most, int H, int R, int t) {
  const int G = Cell::kGates;
  const int K = Cell::kSaved;
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  for (int b = first_row(); b < live.rows; b += row_stride()) {
    const Index step = live.first + b;
    const Index row = step - call.n0;
    Storage* const y = m ? nullptr : y_row(call, t, b);
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      Compute x[G][V], u[G][V], saved[K][V], c_prev[V] = {}, h_prev[V] = {}, new_h[V], new_c[V] = {};
#pragma unroll
      for (int g = 0; g < G; ++g) {
        Compute b_x[V], b_h[V];
        load_units<V>(x_side + gate_at(row, g, j, H), x[g]);
        load_units<V>(h_side + gate_at(b, g, j, H), u[g]);
        load_units<V>(bias + g * H + j, b_x);
        load_units<V>(bias + gate_at(1, g, j, H), b_h);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          x[g][i] += b_x[i];
          u[g][i] += b_h[i];
        }
      }
      const Index at = (Index)b * H + j;
      if (Cell::kHasC) load_units<V>(c + at, c_prev);
      const bool saves_h = !m && call.h_prev;
#if RK_ZONEOUT_H
      if (Cell::kReadsH || !m) load_units<V>(h + at, h_prev);
#else
      if (Cell::kReadsH || saves_h) load_units<V>(h + at, h_prev);
#endif
#if RK_ZONEOUT_C
      Compute keep_c[V];
      noise.keep_c<V>(j, keep_c);
#endif
      if (saves_h) store_units<V>(call.h_prev + step * H + j, h_prev);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        Compute x_i[G], u_i[G], saved_i[K];
#pragma unroll
        for (int g = 0; g < G; ++g) {
          x_i[g] = x[g][i];
          u_i[g] = u[g][i];
        }
        Cell::forward(x_i, u_i, h_prev[i], c_prev[i], saved_i, new_h[i], new_c[i] RK_UNIT_EXTRAS);
#if RK_ZONEOUT_C
        new_c[i] = blended(keep_c[i], c_prev[i], new_c[i]);
#endif
#if RK_ZONED_OUTPUT
        new_h[i] = saved_i[3] * tanh_of(new_c[i]);
#endif
#pragma unroll
        for (int k = 0; k < K; ++k) saved[k][i] = saved_i[k];
      }
      if (Cell::kHasC) {
        store_units<V>(c + at, new_c);
        if (call.c_prev) store_units<V>(call.c_prev + step * H + j, c_prev);
      }
      if (call.saved) {
#pragma unroll
        for (int k = 0; k < K; ++k) store_units<V>(call.saved + saved_at(step, k, j, H), saved[k]);
      }
      if (m) {
        store_units<V>(m + at, new_h);
        if (call.operand) store_units<V>(call.operand + step * H + j, new_h);
      } else {
#if RK_NOISE
        noise.blend_h<V>(j, h_prev, new_h);
        noise.put_masked<V>(b, j, H, new_h);
#endif
        store_units<V>(h + at, new_h);
        store_any<V>(y + j, new_h);
      }
    }
    // Under projection a row of h has R elements, so the loop over H units does not save it.
    if (m && call.h_prev)
      for (int k = first_unit<1>(); k < R; k += unit_stride<1>()) call.h_prev[step * R + k] = h[(Index)b * R + k];
  }
}

RK_BOTH_WIDTHS(forward_step,
               (const Call* given, const Compute* x_side, const Compute* h_side, const Compute* bias, Storage* h,
                Compute* c, Storage* m, int most, int H, int R, int t),
               (given, x_side, h_side, bias, h, c, m, most, H, R, t))

// Under projection, after the second product: h and y at step t = projected.
template <int V>
__device__ __forceinline__ void forward_output_of(const Call* __restrict__ given,
                                                  const Storage* __restrict__ projected, Storage* h, int most, int R,
                                                  int t) {
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  for (int b = first_row(); b < live.rows; b += row_stride()) {
    Storage* const y = y_row(call, t, b);
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int k = first_unit<V>(); k < R; k += unit_stride<V>()) {
      Compute v[V];
      load_units<V>(projected + (Index)b * R + k, v);
#if RK_NOISE
      Compute before[V];
      load_units<V>(h + (Index)b * R + k, before);
      noise.blend_h<V>(k, before, v);
      noise.put_masked<V>(b, k, R, v);
#endif
      store_units<V>(h + (Index)b * R + k, v);
      store_any<V>(y + k, v);
    }
  }
}

RK_BOTH_WIDTHS(forward_output,
               (const Call* given, const Compute*, const Compute*, const Compute*, Storage* h,
                const Storage* projected, int most, int R, int t),
               (given, projected, h, most, R, t))

// Under projection, before the second product: dprojected (rows, R) = dh + dy, the gradient of the projection's output.
template <int V>
__device__ __forceinline__ void backward_output_of(const Call* __restrict__ given, Storage* dprojected, Storage* now,
                                                   Compute* dh, int most, int R, int t) {
#if !RK_NOISE
  const Compute zeros[V] = {};
#endif
  const Call call = *given;
  const Live live = live_rows(call, t, most);
#if RK_MASKS
  const int rows = now ? most : live.rows;
  for (int b = first_row(); b < rows; b += row_stride()) {
#else
  for (int b = first_row(); b < live.rows; b += row_stride()) {
#endif
    const Index row = live.first + b - call.n0;
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
    if (b >= live.rows) {
      for (int k = first_unit<V>(); k < R; k += unit_stride<V>()) noise.add_to<V>(dh, b, k, R);
      continue;
    }
#endif
    const Storage* const dy = dy_row(call, t, b);
    for (int k = first_unit<V>(); k < R; k += unit_stride<V>()) {
      Compute d[V], dy_k[V] = {};
      const Index at = (Index)b * R + k;
      load_units<V>(dh + at, d);
      if (dy) load_any<V>(dy + k, dy_k);
#if RK_NOISE
      Compute passed[V];
      noise.add_products<V>(b, k, R, d);
      noise.split_h<V>(k, d, dy_k, passed);
#if RK_MASKS
      Compute h_prev[V];
      load_units<V>(call.h_prev + (live.first + b) * R + k, h_prev);
      noise.put_masked<V>(row, k, R, h_prev);
#endif
#else
#pragma unroll
      for (int i = 0; i < V; ++i) d[i] += dy_k[i];
#endif
      store_units<V>(dprojected + row * R + k, d);
#if RK_NOISE
      if (now) store_units<V>(now + at, d);
      store_units<V>(dh + at, passed);
#else
      if (now) {
        store_units<V>(now + at, d);
        store_units<V>(dh + at, zeros);
      }
#endif
    }
  }
}

RK_BOTH_WIDTHS(backward_output,
               (const Call* given, Storage* dprojected, Storage* now, Compute* dh, int most, int R, int t),
               (given, dprojected, now, dh, most, R, t))

// Where kReadsH, dh becomes the part of it that bypasses the product.
template <int V>
__device__ __forceinline__ void backward_step_of(const Call* __restrict__ given, Storage* dgates_x, Storage* dgates_h,
                                                 Storage* now, Compute* dh, Compute* dc, const Compute* dm, int most,
                                                 int H, int t) {
  const int G = Cell::kGates;
  const int K = Cell::kSaved;
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  const int rows = now ? most : live.rows;
  for (int b = first_row(); b < rows; b += row_stride()) {
    const bool is_live = b < live.rows;
    const Index step = live.first + b;
    const Index row = step - call.n0;
    const Storage* const dy = is_live && !dm ? dy_row(call, t, b) : nullptr;
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      if (!is_live) {
        clear_gates<V>(now, b, 0, G, j, H);
#if RK_NOISE
        if (!dm) noise.add_to<V>(dh, b, j, H);
#endif
        continue;
      }
      Compute saved[K][V], dx[G][V], du[G][V], dh_in[V], dy_j[V] = {}, c_prev[V] = {}, h_prev[V] = {}, dc_in[V] = {};
      Compute direct[V] = {}, dc_prev[V] = {};
      const Index at = (Index)b * H + j;
      load_units<V>((dm ? dm : dh) + at, dh_in);
      if (dy) load_any<V>(dy + j, dy_j);
#pragma unroll
      for (int k = 0; k < K; ++k) load_units<V>(call.saved + saved_at(step, k, j, H), saved[k]);
      if (Cell::kHasC) {
        load_units<V>(call.c_prev + step * H + j, c_prev);
        load_units<V>(dc + at, dc_in);
      }
      if (Cell::kReadsH) load_units<V>(call.h_prev + step * H + j, h_prev);
#if RK_NOISE
      Compute passed[V] = {};
      if (!dm) {
        noise.add_products<V>(b, j, H, dh_in);
        noise.split_h<V>(j, dh_in, dy_j, passed);
#if RK_MASKS
        if (!Cell::kReadsH) load_units<V>(call.h_prev + step * H + j, h_prev);
        noise.put_masked<V>(row, j, H, h_prev);
#endif
      }
#endif
#if RK_ZONEOUT_C
      Compute keep_c[V];
      noise.keep_c<V>(j, keep_c);
#endif
#pragma unroll
      for (int i = 0; i < V; ++i) {
        Compute saved_i[K], dx_i[G], du_i[G];
#pragma unroll
        for (int k = 0; k < K; ++k) saved_i[k] = saved[k][i];
#if RK_ZONEOUT_C
        const ZonedC zoned(keep_c[i], saved_i, c_prev[i], dh_in[i], dc_in[i]);
#endif
        Cell::backward(saved_i, h_prev[i], c_prev[i], dh_in[i] + dy_j[i], dc_in[i], dx_i, du_i, direct[i],
                       dc_prev[i] RK_UNIT_EXTRAS);
#if RK_ZONEOUT_C
        zoned.finish(dx_i, dc_prev[i]);
#endif
#if RK_NOISE
        direct[i] += passed[i];
#endif
#pragma unroll
        for (int g = 0; g < G; ++g) {
          dx[g][i] = dx_i[g];
          du[g][i] = Cell::kSplits ? du_i[g] : dx_i[g];
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g) {
        store_units<V>(dgates_x + gate_at(row, g, j, H), dx[g]);
        if (Cell::kSplits) store_units<V>(dgates_h + gate_at(row, g, j, H), du[g]);
        if (now) store_units<V>(now + gate_at(b, g, j, H), du[g]);
      }
#if RK_NOISE
      if (!dm) store_units<V>(dh + at, direct);
#else
      if (Cell::kReadsH || (now && !dm)) store_units<V>(dh + at, direct);
#endif
      if (Cell::kHasC) store_units<V>(dc + at, dc_prev);
    }
  }
}

RK_BOTH_WIDTHS(backward_step,
               (const Call* given, Storage* dgates_x, Storage* dgates_h, Storage* now, Compute* dh, Compute* dc,
                const Compute* dm, int most, int H, int t),
               (given, dgates_x, dgates_h, now, dh, dc, dm, most, H, t))

#else  // a GRU that resets before

// The saved values are the gates, so call.saved (N, 3*H) has the layout of gates.
enum Gate { kR, kZ, kN };

// The pre-activation of gate g: both sides' products and biases.
template <int V>
__device__ __forceinline__ void preactivation(const Compute* x_side, const Compute* h_side, const Compute* bias,
                                              Index row, int b, int g, int j, int H, Compute* a) {
  Compute u[V], b_x[V], b_h[V];
  load_units<V>(x_side + gate_at(row, g, j, H), a);
  load_units<V>(h_side + gate_at(b, g, j, H), u);
  load_units<V>(bias + g * H + j, b_x);
  load_units<V>(bias + gate_at(1, g, j, H), b_h);
#pragma unroll
  for (int i = 0; i < V; ++i) a[i] = a[i] + b_x[i] + u[i] + b_h[i];
}

// h_side holds the products of r and z. z replaces its product, for forward_output. rh replaces m.
template <int V>
__device__ __forceinline__ void forward_step_of(const Call* __restrict__ given, const Compute* __restrict__ x_side,
                                                Compute* h_side, const Compute* __restrict__ bias,
                                                const Storage* __restrict__ h, Storage* m, int most, int H, int t) {
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  for (int b = first_row(); b < live.rows; b += row_stride()) {
    const Index step = live.first + b;
    const Index row = step - call.n0;
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      Compute a_r[V], a_z[V], before[V], r[V], z[V], rh[V];
      preactivation<V>(x_side, h_side, bias, row, b, kR, j, H, a_r);
      preactivation<V>(x_side, h_side, bias, row, b, kZ, j, H, a_z);
      const Index at = (Index)b * H + j;
      load_units<V>(h + at, before);
#if RK_MASKS
      Compute mask[V];
      noise.candidate_mask<V>(j, H, mask);
#pragma unroll
      for (int i = 0; i < V; ++i)
        Cell::gates(a_r[i], a_z[i], rounded(before[i] * mask[i]), r[i], z[i], rh[i] RK_UNIT_EXTRAS);
#else
#pragma unroll
      for (int i = 0; i < V; ++i) Cell::gates(a_r[i], a_z[i], before[i], r[i], z[i], rh[i] RK_UNIT_EXTRAS);
#endif
      store_units<V>(m + at, rh);
      store_units<V>(h_side + gate_at(b, kZ, j, H), z);
      if (call.saved) {
        store_units<V>(call.saved + gate_at(step, kR, j, H), r);
        store_units<V>(call.saved + gate_at(step, kZ, j, H), z);
        store_units<V>(call.h_prev + step * H + j, before);
        store_units<V>(call.operand + step * H + j, rh);
      }
    }
  }
}

RK_BOTH_WIDTHS(forward_step,
               (const Call* given, const Compute* x_side, Compute* h_side, const Compute* bias, Storage* h, Compute*,
                Storage* m, int most, int H, int, int t),
               (given, x_side, h_side, bias, h, m, most, H, t))

// h_side holds z and the product of n.
template <int V>
__device__ __forceinline__ void forward_output_of(const Call* __restrict__ given, const Compute* __restrict__ x_side,
                                                  const Compute* __restrict__ h_side,
                                                  const Compute* __restrict__ bias, Storage* h, int most, int H,
                                                  int t) {
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  for (int b = first_row(); b < live.rows; b += row_stride()) {
    const Index step = live.first + b;
    const Index row = step - call.n0;
    Storage* const y = y_row(call, t, b);
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      Compute a_n[V], z[V], before[V], candidate[V], new_h[V];
      preactivation<V>(x_side, h_side, bias, row, b, kN, j, H, a_n);
      const Index at = (Index)b * H + j;
      load_units<V>(h_side + gate_at(b, kZ, j, H), z);
      load_units<V>(h + at, before);
#pragma unroll
      for (int i = 0; i < V; ++i) Cell::output(a_n[i], z[i], before[i], candidate[i], new_h[i] RK_UNIT_EXTRAS);
#if RK_NOISE
      noise.blend_h<V>(j, before, new_h);
      noise.put_masked<V>(b, j, H, new_h);
#endif
      store_units<V>(h + at, new_h);
      store_any<V>(y + j, new_h);
      if (call.saved) store_units<V>(call.saved + gate_at(step, kN, j, H), candidate);
    }
  }
}

RK_BOTH_WIDTHS(forward_output,
               (const Call* given, const Compute* x_side, const Compute* h_side, const Compute* bias, Storage* h,
                const Storage*, int most, int H, int t),
               (given, x_side, h_side, bias, h, most, H, t))

// Adds dy of step t to dh, for backward_step.
template <int V>
__device__ __forceinline__ void backward_output_of(const Call* __restrict__ given, Storage* dgates, Storage* now,
                                                   Compute* dh, int most, int H, int t) {
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  const int rows = now ? most : live.rows;
  for (int b = first_row(); b < rows; b += row_stride()) {
    const bool is_live = b < live.rows;
    const Index step = live.first + b;
    const Index row = step - call.n0;
    const Storage* const dy = is_live ? dy_row(call, t, b) : nullptr;
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      if (!is_live) {
        clear_gates<V>(now, b, kZ, kN + 1, j, H);
#if RK_NOISE
        noise.add_to<V>(dh, b, j, H);
#endif
        continue;
      }
      Compute z[V], candidate[V], before[V], d[V], dy_j[V] = {}, da_z[V], da_n[V];
      const Index at = (Index)b * H + j;
      load_units<V>(call.saved + gate_at(step, kZ, j, H), z);
      load_units<V>(call.saved + gate_at(step, kN, j, H), candidate);
      load_units<V>(call.h_prev + step * H + j, before);
      load_units<V>(dh + at, d);
      if (dy) load_any<V>(dy + j, dy_j);
#if RK_NOISE
      // dh becomes all of it, for backward_step, which splits it again.
      Compute passed[V], whole[V];
      noise.add_products<V>(b, j, H, d);
#pragma unroll
      for (int i = 0; i < V; ++i) whole[i] = d[i] + dy_j[i];
      noise.split_h<V>(j, d, dy_j, passed);
      noise.put_masked<V>(row, j, H, before);
#endif
#pragma unroll
      for (int i = 0; i < V; ++i) {
        d[i] += dy_j[i];
        Cell::output_backward(z[i], candidate[i], before[i], d[i], da_z[i], da_n[i] RK_UNIT_EXTRAS);
      }
#if RK_NOISE
      store_units<V>(dh + at, whole);
#else
      store_units<V>(dh + at, d);
#endif
      store_units<V>(dgates + gate_at(row, kZ, j, H), da_z);
      store_units<V>(dgates + gate_at(row, kN, j, H), da_n);
      if (now) {
        store_units<V>(now + gate_at(b, kZ, j, H), da_z);
        store_units<V>(now + gate_at(b, kN, j, H), da_n);
      }
    }
  }
}

RK_BOTH_WIDTHS(backward_output,
               (const Call* given, Storage* dgates, Storage* now, Compute* dh, int most, int H, int t),
               (given, dgates, now, dh, most, H, t))

// dm is the gradient of rh. dh becomes the part of it that bypasses the product of r and z.
template <int V>
__device__ __forceinline__ void backward_step_of(const Call* __restrict__ given, Storage* dgates, Storage* now,
                                                 Compute* dh, const Compute* __restrict__ dm, int most, int H, int t) {
  const Call call = *given;
  const Live live = live_rows(call, t, most);
  const int rows = now ? most : live.rows;
  for (int b = first_row(); b < rows; b += row_stride()) {
    const bool is_live = b < live.rows;
    const Index step = live.first + b;
    const Index row = step - call.n0;
#if RK_NOISE
    const RowNoise noise(given, call, t, b);
#endif
    for (int j = first_unit<V>(); j < H; j += unit_stride<V>()) {
      if (!is_live) {
        clear_gates<V>(now, b, kR, kZ, j, H);
        continue;
      }
      Compute r[V], z[V], before[V], d[V], drh[V], da_r[V], direct[V];
      const Index at = (Index)b * H + j;
      load_units<V>(call.saved + gate_at(step, kR, j, H), r);
      load_units<V>(call.saved + gate_at(step, kZ, j, H), z);
      load_units<V>(call.h_prev + step * H + j, before);
      load_units<V>(dh + at, d);
      load_units<V>(dm + at, drh);
#if RK_NOISE
      Compute passed[V], none[V] = {};
      noise.split_h<V>(j, d, none, passed);
#endif
#if RK_MASKS
      Compute mask[V];
      noise.candidate_mask<V>(j, H, mask);
#pragma unroll
      for (int i = 0; i < V; ++i) drh[i] *= mask[i];
#endif
#pragma unroll
      for (int i = 0; i < V; ++i)
        Cell::gates_backward(r[i], z[i], before[i], d[i], drh[i], da_r[i], direct[i] RK_UNIT_EXTRAS);
      store_units<V>(dgates + gate_at(row, kR, j, H), da_r);
      if (now) store_units<V>(now + gate_at(b, kR, j, H), da_r);
#if RK_NOISE
#pragma unroll
      for (int i = 0; i < V; ++i) direct[i] += passed[i];
#endif
      store_units<V>(dh + at, direct);
    }
  }
}

RK_BOTH_WIDTHS(backward_step,
               (const Call* given, Storage* dgates, Storage*, Storage* now, Compute* dh, Compute*, const Compute* dm,
                int most, int H, int t),
               (given, dgates, now, dh, dm, most, H, t))

#endif
