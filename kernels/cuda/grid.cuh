// The exchange of schedule C: operands through the L2 cache, between the blocks of a group ("members") that serve one
// tile of rows. Every 32 bits travel in one word of 64 bits with a tag that tells the message, so that who sees the tag
// sees the value: one trip through the cache per message, and no fence.
//
// A tile has two buffers of words, for even and for odd messages. A member writes message k + 2 over message k. It has
// then received k + 1 from every member that sends it, and each sent that only after all its threads had received k and
// met at a barrier. So nobody still waits for what is overwritten: where a step has two products, its members that send
// nothing of h do not receive m either.
//
// All blocks must run at once: the launch is cooperative, and the host checks that the grid fits.

typedef unsigned long long Word;

// Looks at a word before a wait ends with an error, seconds: a group that lacks a member must not hang the card.
constexpr unsigned kPatience = 1u << 26;
// Loads of 16 bytes that a thread has in flight.
constexpr int kInFlight = 4;
constexpr int kUnitsOfWord = sizeof(Storage) == 2 ? 2 : 1;

struct GridExchange {
  Word* words;    // (tiles of rows, 2, kRows, words of a row)
  unsigned tag;   // of message 0; each message has the next one. No tag that the words may still hold is used
  int members;
  unsigned B, H;  // H: the most units of a message
  int tiles;      // of units, of a member

  __device__ __forceinline__ int member() const { return blockIdx.x % members; }
  __device__ __forceinline__ int tile() const { return blockIdx.x / members; }
  // Words of a row of K units: an even number.
  static __device__ __forceinline__ int width(int K) { return (K + 2 * kUnitsOfWord - 1) / (2 * kUnitsOfWord) * 2; }
  __device__ __forceinline__ int rows() const { return min((unsigned)kRows, B - tile() * kRows); }
  __device__ __forceinline__ Word* buffer(int message) const {
    return words + (tile() * 2 + message % 2) * kRows * width(H);
  }

  __device__ __forceinline__ void put(Storage* operand, int stride, int K, int message, int row, int unit,
                                      Storage value) const {
    if (unit < K) operand[row_at(row, stride) + unit] = value;
    const unsigned bits = word_of(value);
    const int word = unit / kUnitsOfWord;
    if (unit % kUnitsOfWord == 0 && word < width(K) && row < rows())
      store_word(buffer(message) + row * width(K) + word, (Word)(tag + message) << 32 | bits);
  }

  // In 16 bits the value of this lane and that of the next unit, which is 4 lanes on.
  static __device__ __forceinline__ unsigned word_of(Storage value) {
#if defined(RK_FLOAT16)
    const unsigned bits = __half_as_ushort(value);
    return bits | __shfl_down_sync(0xffffffffu, bits, 4) << 16;
#elif defined(RK_BFLOAT16)
    const unsigned bits = __bfloat16_as_ushort(value);
    return bits | __shfl_down_sync(0xffffffffu, bits, 4) << 16;
#else
    return __float_as_uint(value);
#endif
  }

  __device__ __forceinline__ bool has_come(const ulonglong2& pair, unsigned wanted) const {
    return ((unsigned)(pair.x >> 32) == wanted) & ((unsigned)(pair.y >> 32) == wanted);
  }

  // Waits for the other members' words of a message, and writes their values to the operand. Threads share each row.
  __device__ __forceinline__ void receive(Storage* operand, int stride, int K, int message) const {
    const int thread = recomputed(threadIdx.x);
    const int rows_shift = rows() > 4 ? 3 : rows() > 2 ? 2 : rows() - 1;
    const int row = thread & ((1 << rows_shift) - 1);
    if (row >= rows()) return;
    const int pairs = width(K) / 2;
    const unsigned own = kUnits / kUnitsOfWord / 2 * tiles;  // pairs of this member
    const unsigned own_first = member() * own;
    const ulonglong2* from = reinterpret_cast<const ulonglong2*>(buffer(message) + row * width(K));
    uint2* to = reinterpret_cast<uint2*>(operand + row_at(row, stride));
    const int step = blockDim.x >> rows_shift;
    for (int first = thread >> rows_shift; first < pairs; first += kInFlight * step) {
      ulonglong2 got[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int pair = first + i * step;
        got[i] = make_ulonglong2(0, 0);
        if (pair < pairs && pair - own_first >= own) got[i] = load_pair(from + pair);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int pair = first + i * step;
        if (pair >= pairs || pair - own_first < own) continue;
        for (unsigned looks = 0; !has_come(got[i], tag + message); ++looks) {
          if (looks == kPatience) __trap();
          poll_again();
          got[i] = load_pair(from + pair);
        }
        to[pair] = make_uint2((unsigned)got[i].x, (unsigned)got[i].y);
      }
    }
  }
};
