// Call: the addresses and positions that differ between the calls of a captured graph, in device memory. A graph
// contains the addresses of its buffers, so everything else is in workspace that does not move.

struct Call {
  Storage* y;            // (T, B, R) of strides y_t, y_b, 1; out; rows past their end are not written
  Storage* saved;        // (N, kSaved, H) values saved for backward, or null
  Storage* h_prev;       // (N, R) the state before each step, or null
  Compute* c_prev;       // (N, H), or null
  Storage* operand;      // (N, H) operand of the second product, saved: m under projection, or r h'; or null
  const Index* order;    // (B,) see rows.cuh
  const Index* offsets;  // (T+1,) see rows.cuh
  const Storage* dy;     // (T, B, R) of strides dy_t, dy_b, 1; null for zeros
  Index y_t, y_b, dy_t, dy_b;
  Index t0, n0;          // the graph's first time step, and the chunk's first row-step
};

// The row-steps of one time step: the first one, and how many rows are live.
struct Live {
  Index first;
  int rows;
};

// Of the graph's step t. most: the rows that the graph was captured for, at least as many as are live.
__device__ __forceinline__ Live live_rows(const Call& call, int t, int most) {
  const Index at = call.t0 + t;
  if (!call.offsets) return {at * most, most};
  const Index first = call.offsets[at];
  return {first, (int)(call.offsets[at + 1] - first)};
}

// Row b of y and dy at the graph's step t.
__device__ __forceinline__ Storage* y_row(const Call& call, int t, int b) {
  const Index row = call.order ? call.order[b] : b;
  return call.y + (call.t0 + t) * call.y_t + row * call.y_b;
}

// Null for zeros.
__device__ __forceinline__ const Storage* dy_row(const Call& call, int t, int b) {
  if (!call.dy) return nullptr;
  const Index row = call.order ? call.order[b] : b;
  return call.dy + (call.t0 + t) * call.dy_t + row * call.dy_b;
}
