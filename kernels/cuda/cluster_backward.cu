// Schedule B, "cluster", backward: the steps of parts_backward.cuh in clusters of blocks, with parts that travel through
// distributed shared memory. One launch runs the steps of a chunk.
//
// RK_CLUSTER: blocks of a cluster. RK_THREADS: the block. RK_HELD: blocks of columns that a warp holds in registers, of
// each of its pairs of tiles of units, of which it has at most RK_TILES; half as many of a second product. RK_OWN: the
// most pairs of a thread.

// Every member sends a part of each of its peers' units, and of its own ones, into a slot of its own: so nothing is added
// in memory, and the order of the sums is always that of the members.
//
// Where a step has two products, the first message has the parts of the second product's sums, from the members with
// units of R to all. Of dh under projection, nothing is sent beyond the last of the R units.
struct ClusterParts {
  Mailbox mail;
  Compute* inbox;  // (2, sender, kRows, units) in shared memory
  int members, units, R;
  unsigned reciprocal;  // unit * reciprocal >> 16 is unit / units, up to 64 units of a member and unit 1023

  __device__ __forceinline__ ClusterParts(unsigned long long* full, void* memory, unsigned B, int R, int units)
      : mail{full, 0, 0},
        inbox(static_cast<Compute*>(memory)),
        members(cluster_blocks()),
        units(units),
        R(R),
        reciprocal((65535 + units) / units) {
    const int of_unit = rows_of_tile(B, tile() * kRows) * sizeof(Compute);
    const int units_of_h = kProjected ? max(0, min(units, (R - member() * units + 3) / 4 * 4)) : units;
    mail.odd = members * units_of_h * of_unit;
    mail.even = kSecond ? (R + units - 1) / units * units * of_unit : mail.odd;
    mail.set_up();
  }

  __device__ __forceinline__ int member() const { return cluster_rank(); }
  __device__ __forceinline__ int tile() const { return cluster_number(); }
  __device__ __forceinline__ int inbox_size() const { return 2 * members * kRows * units; }
  __device__ __forceinline__ Compute* slot(int s, int sender) const {
    return inbox + (s % 2 * members + sender) * kRows * units;
  }

  __device__ __forceinline__ void begin() const { cluster_barrier(); }

  __device__ __forceinline__ void send(int s, int row, int unit, const Compute (&values)[4]) const {
    constexpr int kPieces = 4 * sizeof(Compute) / 16;
    const int receiver = unit * reciprocal >> 16;
    if (receiver >= members || (kProjected && s & 1 && unit >= R)) return;
    const Peer to = peer_of(slot(s, member()) + row * units + unit - receiver * units, receiver);
    const Peer full = peer_of(mail.full + s % 2, receiver);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) store_async(to + i * 16, piece_of(values, i), full);
  }

#if defined(RK_FLOAT64)
  static __device__ __forceinline__ uint4 piece_of(const double (&values)[4], int i) {
    const unsigned long long a = __double_as_longlong(values[2 * i]), b = __double_as_longlong(values[2 * i + 1]);
    return make_uint4((unsigned)a, (unsigned)(a >> 32), (unsigned)b, (unsigned)(b >> 32));
  }
#else
  static __device__ __forceinline__ uint4 piece_of(const float (&v)[4], int) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
  }
#endif

  __device__ __forceinline__ void receive(int s, int senders) const { mail.wait(s); }

  __device__ __forceinline__ Compute sum(int s, int row, int unit, int senders) const {
    const Compute* from = slot(s, 0) + row * units + unit;
    Compute sum = 0;
#pragma unroll 4
    for (int k = 0; k < (kSecond ? senders : members); ++k) sum += from[k * kRows * units];
    return sum;
  }
};

extern "C" __global__ void __cluster_dims__(RK_CLUSTER, 1, 1) __launch_bounds__(RK_THREADS, 1)
backward_chunk(const Vec* weights, const Vec* second, const Storage* saved, const Storage* h_prev,
               const Compute* c_prev, const Storage* dy, Index dy_t, Index dy_b, const Index* order,
               const Index* offsets, Storage* dgates_x, Storage* dgates_h, Storage* dprojected, Compute* dh,
               Compute* dc, int B, int H, int R, Index t0, Index n0, int steps, int descending, int units) {
  extern __shared__ uint4 memory[];
  __shared__ unsigned long long full[2];
  const Sequence all = {offsets, (unsigned)B, t0, n0, steps, descending != 0};
  const BackwardArrays in = {weights, second,   saved,    h_prev,     c_prev, dy, dy_t,        dy_b,
                             order,   dgates_x, dgates_h, dprojected, dh,     dc, (unsigned)H, (unsigned)R};
  const ClusterParts parts(full, memory, B, kProjected ? R : H, units);
  parts_backward_steps<RK_HELD, RK_TILES, RK_OWN>(parts.inbox + parts.inbox_size(), all, in, parts);
}
