// Philox4x32-10 (Salmon et al., SC 2011): four words from four counters and two keys. rnnkit/core/philox.py has the same
// function in NumPy, philox.py for Numba.

struct Philox {
  unsigned word[4];

  __device__ __forceinline__ Philox(unsigned a, unsigned b, unsigned c, unsigned d, unsigned k0, unsigned k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const unsigned long long p0 = 0xD2511F53ull * a;
      const unsigned long long p1 = 0xCD9E8D57ull * c;
      a = (unsigned)(p1 >> 32) ^ b ^ k0;
      b = (unsigned)p1;
      c = (unsigned)(p0 >> 32) ^ d ^ k1;
      d = (unsigned)p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    word[0] = a;
    word[1] = b;
    word[2] = c;
    word[3] = d;
  }
};
