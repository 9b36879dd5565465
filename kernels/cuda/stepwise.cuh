// Schedule D, "stepwise": what its kernels share. A step is a cuBLAS product and a pointwise launch.
//
// A sequence is processed in chunks of steps, and the steps of a chunk run as CUDA graphs. One graph serves all calls of
// its sizes: addresses, positions and the number of live rows are read from a Call.

// A kernel's threads cover pairs of a row b and V consecutive units from j on: units along x, so that a warp accesses
// neighbours; rows along y. The strides are unsigned: with signed ones NVRTC unrolls the loops, which costs up to 40
// registers.
__device__ __forceinline__ int first_row() { return blockIdx.y * blockDim.y + threadIdx.y; }
__device__ __forceinline__ unsigned row_stride() { return gridDim.y * blockDim.y; }
template <int V>
__device__ __forceinline__ int first_unit() {
  return V * (blockIdx.x * blockDim.x + threadIdx.x);
}
template <int V>
__device__ __forceinline__ unsigned unit_stride() {
  return V * gridDim.x * blockDim.x;
}

// The units that a thread of the wide kernels processes: 16 bytes of Compute. H must be a multiple of it.
constexpr int kWide = 16 / sizeof(Compute);

// Offset of gate g of row b, unit j, in (rows, G*H); of bias b in (2, G*H).
__device__ __forceinline__ Index gate_at(Index b, int g, int j, int H) {
  return b * (Cell::kGates * (Index)H) + g * H + j;
}

// Offset of saved value k of a row-step, unit j, in (N, kSaved, H).
__device__ __forceinline__ Index saved_at(Index step, int k, int j, int H) {
  return (step * Cell::kSaved + k) * H + j;
}

// The parameters of each kernel, once for both widths: NAME for one unit per thread, NAME_wide for kWide.
#define RK_BOTH_WIDTHS(NAME, PARAMETERS, ARGUMENTS)                                                  \
  extern "C" __global__ void __launch_bounds__(256, 2) NAME PARAMETERS { NAME##_of<1> ARGUMENTS; } \
  extern "C" __global__ void __launch_bounds__(256, 2) NAME##_wide PARAMETERS { NAME##_of<kWide> ARGUMENTS; }
