// Schedule D, "stepwise": what its kernels share. A step is a cuBLAS product and a pointwise launch.
//
// A sequence is processed in chunks of steps. Each chunk is one CUDA graph, replayed for every later chunk of the same
// shape. A graph contains the addresses of its buffers, so its kernels use workspace that does not move. Addresses and
// positions that differ between calls are in a Call in device memory.

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

extern "C" __global__ void set_call(Call* call, Storage* y, Storage* saved, Storage* h_prev, Compute* c_prev,
                                    Storage* operand, const Index* order, const Storage* dy, Index dy_t, Index dy_b,
                                    Index t0, Index n0) {
  call->y = y;
  call->saved = saved;
  call->h_prev = h_prev;
  call->c_prev = c_prev;
  call->operand = operand;
  call->order = order;
  call->dy = dy;
  call->dy_t = dy_t;
  call->dy_b = dy_b;
  call->t0 = t0;
  call->n0 = n0;
}

// A kernel's threads cover pairs of a live row b and a unit j: units along x, so that a warp accesses neighbours; rows
// along y. The strides are unsigned: with signed ones NVRTC unrolls the loops, which costs up to 40 registers.
__device__ __forceinline__ int first_row() { return blockIdx.y * blockDim.y + threadIdx.y; }
__device__ __forceinline__ unsigned row_stride() { return gridDim.y * blockDim.y; }
__device__ __forceinline__ int first_unit() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ unsigned unit_stride() { return gridDim.x * blockDim.x; }

// Offset of gate g of row b, unit j, in (rows, G*H); of bias b in (2, G*H).
__device__ __forceinline__ Index gate_at(Index b, int g, int j, int H) {
  return b * (Cell::kGates * (Index)H) + g * H + j;
}

// Offset of saved value k of a row-step, unit j, in (N, kSaved, H).
__device__ __forceinline__ Index saved_at(Index step, int k, int j, int H) {
  return (step * Cell::kSaved + k) * H + j;
}

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
