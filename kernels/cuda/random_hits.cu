// Masks of regularisation: bytes that are 1 with a probability. A thread draws four units of a row at one step.
//
//   out (T, B, units)      out
//   rows, times (B,)       what identifies each row, and the time of its step 0
//   limit                  a word is a hit if it is less than that; at most 2^32

extern "C" __global__ void __launch_bounds__(256, 2)
random_hits(unsigned char* out, const long long* rows, const long long* times, long long T, long long B,
            long long units, unsigned k0, unsigned k1, unsigned stream, unsigned long long limit) {
  const long long blocks = (units + 3) / 4;
  const long long stride = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < T * B * blocks; i += stride) {
    const long long q = i % blocks;
    const long long row = i / blocks;
    const long long b = row % B;
    const long long t = row / B;
    const Philox drawn((unsigned)q, (unsigned)rows[b], (unsigned)(times[b] + t), stream, k0, k1);
    for (int k = 0; k < 4; ++k)
      if (4 * q + k < units) out[row * units + 4 * q + k] = drawn.word[k] < limit;
  }
}
