// Schedule C, "grid", backward: the steps of parts_backward.cuh, with parts that travel through the L2 cache in words of
// 64 bits with a tag that tells the message. One cooperative launch runs the steps of a chunk.
//
// RK_THREADS: the block. RK_HELD: blocks of columns that a warp holds in registers, of each of its pairs of tiles of
// units, of which it has at most RK_TILES; half as many of a second product. RK_OWN: the most pairs of a thread.

// The parts of dh in flight between the members of a group. Who sees a word's tag sees its value, so no fence is needed.
//
// There are two buffers, for even and for odd messages. A member overwrites the words of message k with those of k + 2
// after it has received a word of message k + 1 from every member that sends one, and each of them sent that after a
// barrier that all its threads reached when they had received the words of message k. Under projection, the members
// without units of R send the first message of a step to nobody and receive no word of the second one.
struct GridParts {
  Word* words;   // (tiles of the launch, 2, receiver, sender, kRows, units)
  unsigned tag;  // of message 0; each message has the next one. No tag that the words may still hold is used
  int members, units, first;  // first: the launch's first tile of rows

  __device__ __forceinline__ int member() const { return blockIdx.x % members; }
  __device__ __forceinline__ int tile() const { return first + blockIdx.x / members; }
  __device__ __forceinline__ Word* at(int message, int receiver, int sender) const {
    const Index buffer = blockIdx.x / members * 2 + message % 2;
    return words + ((buffer * members + receiver) * members + sender) * (kRows * units);
  }

  __device__ __forceinline__ void begin() const { __syncthreads(); }

  __device__ __forceinline__ void send(int message, int row, int unit, const float (&values)[4]) const {
    const int receiver = unit / units;
    if (receiver >= members) return;
    Word* to = at(message, receiver, member()) + row * units + unit % units;
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      store_pair(reinterpret_cast<ulonglong2*>(to + i),
                 make_ulonglong2(word(message, values[i]), word(message, values[i + 1])));
  }

  __device__ __forceinline__ Word word(int message, float value) const {
    return (Word)(tag + message) << 32 | __float_as_uint(value);
  }

  __device__ __forceinline__ void receive(int message, int senders) const {}

  // Waits for the parts of a pair of the member's, and adds them.
  __device__ __forceinline__ float sum(int message, int row, int unit, int senders) const {
    const Word* from = at(message, member(), 0) + row * units + unit;
    const int stride = kRows * units;
    float sum = 0;
    for (int first = 0; first < senders; first += kInFlight) {
      Word got[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        if (first + i < senders) got[i] = load_word(from + (first + i) * stride);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (first + i >= senders) break;
        for (unsigned looks = 0; (unsigned)(got[i] >> 32) != tag + message; ++looks) {
          if (looks == kPatience) __trap();
          poll_again();
          got[i] = load_word(from + (first + i) * stride);
        }
        sum += __uint_as_float((unsigned)got[i]);
      }
    }
    return sum;
  }
};

extern "C" __global__ void __launch_bounds__(RK_THREADS, 1)
backward_chunk(const Vec* weights, const Vec* second, const Storage* saved, const Storage* h_prev,
               const Compute* c_prev, const Storage* dy, Index dy_t, Index dy_b, const Index* order,
               const Index* offsets, Storage* dgates_x, Storage* dgates_h, Storage* dprojected, Compute* dh,
               Compute* dc, int B, int H, int R, Index t0, Index n0, int steps, int descending, Word* words,
               unsigned tag, int members, int units, int first) {
  extern __shared__ uint4 memory[];
  const Sequence all = {offsets, (unsigned)B, t0, n0, steps, descending != 0};
  const BackwardArrays in = {weights, second,   saved,    h_prev,     c_prev, dy, dy_t,        dy_b,
                             order,   dgates_x, dgates_h, dprojected, dh,     dc, (unsigned)H, (unsigned)R};
  parts_backward_steps<RK_HELD, RK_TILES, RK_OWN>(memory, all, in, GridParts{words, tag, members, units, first});
}
