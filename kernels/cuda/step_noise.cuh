// Zoneout and dropout on h in the steps of schedule D: the equations of rnnkit/core/noise_steps.py. Part of the modules
// of cells with either; stepwise.cu uses it where RK_NOISE is defined.
//
// The build defines RK_ZONEOUT_H, RK_ZONEOUT_C and RK_ZONED_OUTPUT as 0 or 1; RK_MASKS, the masks on h: none, 1 or one
// per gate; and RK_NOISE_AT, where the Noise of a call is, in bytes from its Call. Masks are in the caller's order of
// rows. They are arrays of their own, which move from call to call, so that graphs reach them through the Noise.
//
// In forward, the kernel that writes h also writes h times each mask, the operands of the next step's product. In
// backward, that product's result is not dh but waits in a buffer until the next kernel that reads dh:
//
//   dh of a step = dh + sum of masks times dmasked
//
// So both buffers hold the whole batch from the first step on: masked = masks times h0, dmasked = 0. The kernels add
// dmasked for rows of a ragged batch that are not live as well, because the next product replaces it by zeros.

struct Noise {
  const Compute* hidden;        // (RK_MASKS, B, R)
  const unsigned char* zone_h;  // (T, B, R) of strides h_t, h_b, 1: 1 where the old h is kept
  const unsigned char* zone_c;  // (T, B, H) of strides c_t, c_b, 1
  Storage* masked;  // (kMasked, ·, R) of stride masked_gate along the masks. Forward: the operands of the next product,
                    // by row; backward: those of the gradient of W_hh, by row-step of the chunk
  Compute* dmasked;  // (kMasked, B, R) backward: products of dgates_h
  Index h_t, h_b, c_t, c_b;
  Index masked_gate, batch;  // batch = B * R
  Compute share_h, share_c;  // of the old values that is kept where the bytes are 1
};

// The masks of the first product of a step; a GRU that resets before has the one of n for r h'.
constexpr int kMasked = RK_MASKS > 1 && Cell::kResetsBefore ? 2 : RK_MASKS;

// x = z old + (1 - z) x: exactly one of both where z is 0 or 1.
__device__ __forceinline__ Compute blended(Compute z, Compute before, Compute x) {
  return z * before + (Compute(1) - z) * x;
}

// x in the precision that it is stored in.
__device__ __forceinline__ Compute rounded(Compute x) { return load(store(x)); }

// The noise of row b at the graph's step t. R units of h, and H of c.
struct RowNoise {
  const Noise* noise;  // not a copy, which would take 26 registers
  Index row;
  Index time;

  __device__ __forceinline__ RowNoise(const Call* given, const Call& call, int t, int b)
      : noise((const Noise*)((const char*)given + RK_NOISE_AT)),
        row(call.order ? call.order[b] : b),
        time(call.t0 + t) {}

  // z of h of units j to j + V.
  template <int V>
  __device__ __forceinline__ void keep_h(int j, Compute* z) const {
    shares<V>(noise->zone_h + time * noise->h_t + row * noise->h_b + j, noise->share_h, z);
  }

  template <int V>
  __device__ __forceinline__ void keep_c(int j, Compute* z) const {
    shares<V>(noise->zone_c + time * noise->c_t + row * noise->c_b + j, noise->share_c, z);
  }

  template <int V>
  static __device__ __forceinline__ void shares(const unsigned char* at, Compute share, Compute* z) {
    const Pack<unsigned char, V> kept = *(const Pack<unsigned char, V>*)at;
#pragma unroll
    for (int i = 0; i < V; ++i) z[i] = kept.v[i] ? share : Compute(0);
  }

  // Forward: zoneout of h.
  template <int V>
  __device__ __forceinline__ void blend_h(int j, const Compute* before, Compute* h) const {
#if RK_ZONEOUT_H
    Compute z[V];
    keep_h<V>(j, z);
#pragma unroll
    for (int i = 0; i < V; ++i) h[i] = blended(z[i], before[i], h[i]);
#endif
  }

  // Backward: d + dy becomes what goes through the step, and passed what zoneout of h passes by it. dy becomes zero.
  template <int V>
  __device__ __forceinline__ void split_h(int j, Compute* d, Compute* dy, Compute* passed) const {
    Compute z[V] = {};
#if RK_ZONEOUT_H
    keep_h<V>(j, z);
#endif
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Compute whole = d[i] + dy[i];
      dy[i] = Compute(0);
      passed[i] = z[i] * whole;
      d[i] = (Compute(1) - z[i]) * whole;
    }
  }

  // Writes h times the masks of the first product, for row `at` of masked.
  template <int V>
  __device__ __forceinline__ void put_masked(Index at, int j, int R, const Compute* h) const {
#pragma unroll
    for (int g = 0; g < kMasked; ++g) {
      Compute mask[V], product[V];
      load_units<V>(noise->hidden + g * noise->batch + row * R + j, mask);
#pragma unroll
      for (int i = 0; i < V; ++i) product[i] = rounded(h[i]) * mask[i];
      store_units<V>(noise->masked + g * noise->masked_gate + at * R + j, product);
    }
  }

  // d += the masked products of row b.
  template <int V>
  __device__ __forceinline__ void add_products(int b, int j, int R, Compute* d) const {
#pragma unroll
    for (int g = 0; g < kMasked; ++g) {
      Compute mask[V], product[V];
      load_units<V>(noise->hidden + g * noise->batch + row * R + j, mask);
      load_units<V>(noise->dmasked + g * noise->batch + (Index)b * R + j, product);
#pragma unroll
      for (int i = 0; i < V; ++i) d[i] += mask[i] * product[i];
    }
  }

  // Adds them to row b of dh (B, R), for a row that is not live.
  template <int V>
  __device__ __forceinline__ void add_to(Compute* dh, int b, int j, int R) const {
#if RK_MASKS
    Compute d[V];
    load_units<V>(dh + (Index)b * R + j, d);
    add_products<V>(b, j, R, d);
    store_units<V>(dh + (Index)b * R + j, d);
#endif
  }

  // The mask on h in r h' of a GRU that resets before.
  template <int V>
  __device__ __forceinline__ void candidate_mask(int j, int R, Compute* mask) const {
    load_units<V>(noise->hidden + (RK_MASKS > 1 ? RK_MASKS - 1 : 0) * noise->batch + row * R + j, mask);
  }
};

#if RK_ZONEOUT_C
// Backward of the zoneout of c of one unit, before that of the cell: dh and dc become those that the cell is given.
struct ZonedC {
  Compute passed;  // to the gradient of c'
  Compute da_o;    // gradient of o's pre-activation, where h is made from c after its zoneout

  __device__ __forceinline__ ZonedC(Compute z, const Compute* saved, Compute c_prev, Compute& dh, Compute& dc)
      : da_o(0) {
#if RK_ZONED_OUTPUT
    const Compute o = saved[3];
    const Compute tanh_c = tanh_of(blended(z, c_prev, saved[1] * c_prev + saved[0] * saved[2]));
    da_o = dh * tanh_c * o * (Compute(1) - o);
    dc += dh * o * (Compute(1) - tanh_c * tanh_c);
    dh = Compute(0);
#endif
    passed = z * dc;
    dc = (Compute(1) - z) * dc;
  }

  __device__ __forceinline__ void finish(Compute* dx, Compute& dc_prev) const {
    dc_prev += passed;
#if RK_ZONED_OUTPUT
    dx[3] = da_o;
#endif
  }
};
#endif
