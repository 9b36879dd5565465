// Schedule D, "stepwise": what its kernels share. A step is a cuBLAS product and a pointwise launch.
//
// A sequence is processed in chunks of steps. Each chunk is one CUDA graph, replayed for every later chunk of the same
// shape. A graph contains the addresses of its buffers, so its kernels use workspace that does not move. Addresses and
// positions that differ between calls are in a Call in device memory.

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
