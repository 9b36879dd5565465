// The exchange of schedule C: h through the L2 cache, between the blocks of a group ("members") that serve one tile of
// rows. Every 32 bits of h travel in one word of 64 bits with a tag that tells the step, so that who sees the tag sees
// the value: one trip through the cache per step, and no fence.
//
// A tile has two buffers of words, for even and for odd steps. A member writes h of step s + 2 over that of step s. It
// has then received h of step s + 1 from every member, and each sent that only after all its threads had received h of
// step s and met at a barrier. So nobody still waits for what is overwritten.
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
  unsigned tag;   // of step 0; each step has the next one. No tag that the words may still hold is used
  int members;
  unsigned B, H;
  int tiles;      // of units, of a member

  __device__ __forceinline__ int member() const { return blockIdx.x % members; }
  __device__ __forceinline__ int tile() const { return blockIdx.x / members; }
  // Words of a row: an even number.
  __device__ __forceinline__ int width() const { return (H + 2 * kUnitsOfWord - 1) / (2 * kUnitsOfWord) * 2; }
  __device__ __forceinline__ int rows() const { return min((unsigned)kRows, B - tile() * kRows); }
  __device__ __forceinline__ Word* buffer(int s) const { return words + (tile() * 2 + s % 2) * kRows * width(); }

  __device__ __forceinline__ void put(Storage* h, int stride, int s, int row, int unit, Storage value) const {
    if (unit < H) h[row_at(row, stride) + unit] = value;
    const unsigned bits = word_of(value);
    const int word = unit / kUnitsOfWord;
    if (unit % kUnitsOfWord == 0 && word < width() && row < rows())
      store_word(buffer(s) + row * width() + word, (Word)(tag + s) << 32 | bits);
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

  // Waits for the other members' words of step s, and writes their values to h. Threads share each row.
  __device__ __forceinline__ void receive(Storage* h, int stride, int s) const {
    const int thread = recomputed(threadIdx.x);
    const int rows_shift = rows() > 4 ? 3 : rows() > 2 ? 2 : rows() - 1;
    const int row = thread & ((1 << rows_shift) - 1);
    if (row >= rows()) return;
    const int pairs = width() / 2;
    const unsigned own = kUnits / kUnitsOfWord / 2 * tiles;  // pairs of this member
    const unsigned own_first = member() * own;
    const ulonglong2* from = reinterpret_cast<const ulonglong2*>(buffer(s) + row * width());
    uint2* to = reinterpret_cast<uint2*>(h + row_at(row, stride));
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
        for (unsigned looks = 0; !has_come(got[i], tag + s); ++looks) {
          if (looks == kPatience) __trap();
          poll_again();
          got[i] = load_pair(from + pair);
        }
        to[pair] = make_uint2((unsigned)got[i].x, (unsigned)got[i].y);
      }
    }
  }
};
