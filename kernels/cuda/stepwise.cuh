// Schedule D, "stepwise": what its kernels share. A step is a cuBLAS product and a pointwise launch.
//
// A sequence is walked in chunks of steps, and a chunk is one CUDA graph, replayed whenever its shape comes back. A
// graph has its addresses built in, so its kernels work on buffers that stay where they are, and find what changes
// from call to call (outputs, what is kept, where in the sequence the chunk begins) in a Call in device memory.

struct Call {
  Storage* y;           // (T, B, R) out; rows past their end are not written
  Storage* kept;        // (N, kKept, H) activations for backward, or null
  Storage* h_prev;      // (N, R) state before each step, or null
  Compute* c_prev;      // (N, H), or null
  Storage* extra;       // (N, H) m under projection, rh for a GRU that resets before, or null
  const Index* order;   // (B,) see rows.cuh
  const Storage* dy;    // (T, B, R) of strides dy_t, dy_b, 1; null for zeros
  Index dy_t, dy_b;
  Index t0, n0;         // the chunk's first time step and its first live step
};

extern "C" __global__ void set_call(Call* call, Storage* y, Storage* kept, Storage* h_prev, Compute* c_prev,
                                    Storage* extra, const Index* order, const Storage* dy, Index dy_t, Index dy_b,
                                    Index t0, Index n0) {
  call->y = y, call->kept = kept, call->h_prev = h_prev, call->c_prev = c_prev, call->extra = extra;
  call->order = order, call->dy = dy, call->dy_t = dy_t, call->dy_b = dy_b, call->t0 = t0, call->n0 = n0;
}

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
