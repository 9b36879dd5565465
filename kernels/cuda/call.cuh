// Call: the addresses and positions that differ between the calls of a captured graph, in device memory. A graph contains
// the addresses of its buffers, so everything else is in workspace that does not move.

struct Call {
  Storage* y;           // (T, B, R) out; rows past their end are not written
  Storage* saved;       // (N, kSaved, H) values saved for backward, or null
  Storage* h_prev;      // (N, R) the state before each step, or null
  Compute* c_prev;      // (N, H), or null
  Storage* operand;     // (N, H) operand of the second product, saved: m under projection, or r h'; or null
  const Index* order;   // (B,) see rows.cuh
  const Storage* dy;    // (T, B, R) of strides dy_t, dy_b, 1; null for zeros
  Index dy_t, dy_b;
  Index t0, n0;         // the chunk's first time step and first row-step
};

// Row b of the chunk's step t, as a row-step of the whole call. n: the step's first row-step, from the chunk's.
__device__ __forceinline__ Index row_step(const Call* call, Index n, int b) { return call->n0 + n + b; }

// Element k of row b of y and dy at the chunk's step t.
__device__ __forceinline__ Storage* y_at(const Call* call, int t, int b, int B, Index R, int k) {
  const Index row = call->order ? call->order[b] : b;
  return call->y + ((call->t0 + t) * B + row) * R + k;
}

__device__ __forceinline__ Compute dy_at(const Call* call, int t, int b, int k) {
  if (!call->dy) return 0;
  const Index row = call->order ? call->order[b] : b;
  return load(call->dy[(call->t0 + t) * call->dy_t + row * call->dy_b + k]);
}
