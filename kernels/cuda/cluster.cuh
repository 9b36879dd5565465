// The exchange of schedule B: between the blocks of a cluster ("members"), which serve one tile of rows, through
// distributed shared memory. A member pushes 16 bytes at a time into its peers' shared memory, by stores that count
// their bytes at an mbarrier of the block that is stored to. Nothing is polled in memory, and no byte is a tag.
//
// RK_CLUSTER, the blocks of a cluster, decides about __cluster_dims__ alone: the code is the same for every size.

// The messages to a block are numbered from 0 and go to two buffers in turn, with an mbarrier each. A step has one
// message, or two where it has two products (resident_stage.cuh): then each of the two always goes to the same buffer.
//
// Arming. A phase ends when the block itself has arrived, with the number of bytes that it expects, and they have come.
// Both mbarriers are armed before the cluster meets for the first time, so before any peer pushes. For message k + 2 an
// mbarrier is armed when the wait for message k ends. A peer pushes message k + 2 only after it has received this
// block's message k + 1, which this block sends only after a barrier of all its threads after that wait.
//
// Parity. So the phases of an mbarrier do not overlap: bytes of message k + 2 never count for k. Phase k / 2 of an
// mbarrier has parity k / 2 % 2. No thread can take the parity of message k + 2 for that of k: phase k + 2 cannot end
// before all threads have seen the end of phase k, because they meet before message k + 1 leaves.
//
// Overwriting. By the same order a peer writes the buffer of message k again, with k + 2, only after all threads of
// this block have met after their last read of k. In forward, the last barrier before m leaves is that of the first
// product (StageProduct), behind the reads of h.
//
// The end. A block waits for every byte that is sent to it, and nobody looks at its memory otherwise. So no peer writes
// into a block that has ended, and no barrier of the cluster is needed at the end.
//
// Under projection, forward, a block without units of R sends the first message of a step and receives the second one; in
// backward it receives the first one and sends the second one. All others send and receive both. So two blocks that
// exchange anything wait for each other in every step, which is all that the above needs. A block does not wait for
// messages that nobody sends to it.
struct Mailbox {
  unsigned long long* full;  // (2,) mbarriers in shared memory
  unsigned even, odd;        // bytes of a message with an even number, and with an odd one

  // Before `cluster_barrier`, after which peers may push.
  __device__ __forceinline__ void set_up() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 2; ++i) {
      init_barrier(full + i);
      expect_bytes(full + i, bytes(i));
    }
  }

  __device__ __forceinline__ unsigned bytes(int message) const { return kSecond && message & 1 ? odd : even; }

  // Waits for a message. All threads call it.
  __device__ __forceinline__ void wait(int k) const {
    if (kSecond && bytes(k) == 0) return;
    for (unsigned looks = 0; !phase_ended(full + k % 2, k / 2 % 2); ++looks) {
      if (looks == kBarrierPatience) __trap();
      poll_again();
    }
    if (threadIdx.x == 0) expect_bytes(full + k % 2, bytes(k));
  }
};

// Rows of the tile that begins at row b0.
__device__ __forceinline__ int rows_of_tile(unsigned B, int b0) { return min((unsigned)kRows, B - b0); }

// h: every member that has units receives those of all others. A member without units sends nothing that the others could
// wait for, so they would run ahead of it: it does not receive either.
//
// Where a step has two products, m goes before h, to the members that have units of R. Each warp pushes its units of m
// when it puts them, because `receive` is not called for m in members without units of R. The kVec lanes with the units
// of a piece push it to different peers. Before the first m leaves, the peers that it goes to must have cleared their
// tiles. Not all threads of a member come to a place where the cluster could meet after that, so those peers say it,
// each once, at an mbarrier of every member.
struct ClusterExchange {
  Mailbox mail;
  unsigned long long* cleared;  // where a step has two products
  unsigned B, H, R;
  int tiles;  // of units, of a member

  // mail: (2,) mbarriers, or (3,) where a step has two products.
  __device__ __forceinline__ ClusterExchange(unsigned long long* mail, unsigned B, unsigned H, unsigned R, int tiles)
      : mail{mail, 0, 0}, cleared(mail + 2), B(B), H(H), R(R), tiles(tiles) {
    this->mail.even = bytes_of(H, R);
    this->mail.odd = bytes_of(R, H);
    this->mail.set_up();
    if (!kSecond) return;
    if (threadIdx.x == 0) init_barrier(cleared, (pieces(R) + each() - 1) / each());
    cluster_barrier();  // all have set up their mailboxes
  }

  __device__ __forceinline__ int member() const { return cluster_rank(); }
  __device__ __forceinline__ int tile() const { return cluster_number(); }
  __device__ __forceinline__ int rows() const { return rows_of_tile(B, tile() * kRows); }
  // Pieces of 16 bytes: of a row of K units, of all of a member's tiles, and of a member's units that exist.
  __device__ __forceinline__ int pieces(unsigned K) const { return (K + kVec - 1) / kVec; }
  __device__ __forceinline__ int each() const { return kUnits / kVec * tiles; }
  __device__ __forceinline__ int own(int member, unsigned K) const {
    return max(0, min(each(), pieces(K) - member * each()));
  }
  // Of a message of K units from all others to members that have units of `readers`.
  __device__ __forceinline__ unsigned bytes_of(unsigned K, unsigned readers) const {
    if (kSecond && own(member(), readers) == 0) return 0;
    return (pieces(K) - own(member(), K)) * rows() * 16;
  }

  __device__ __forceinline__ void put(Storage* operand, int stride, int K, int message, int row, int unit,
                                      Storage value) const {
    Storage* to = operand + row_at(row, stride) + unit;
    if (unit < K) *to = value;
    if (!kSecond || message & 1) return;
    if (message == 0) meet();
    __syncwarp();
    const int lane = recomputed(unit) & (kVec - 1);
    Storage* first = to - lane;
    if (unit - lane >= K || row >= rows()) return;
    const uint4 piece = *reinterpret_cast<const uint4*>(first);
    const int members = cluster_blocks();
#pragma unroll 1
    for (int k = 1 + lane; k < members; k += kVec) {
      const int peer = (member() + k) & (members - 1);
      if (own(peer, R)) store_async(peer_of(first, peer), piece, peer_of(mail.full, peer));
    }
  }

  // Tells the peers that the block's tiles are cleared, and waits until those have told it that m is sent to.
  __device__ __forceinline__ void meet() const {
    const int lane = lane_of();
    const bool tells = own(member(), R) && lane < (int)cluster_blocks() && own(lane, H);
    if (threadIdx.x < 32 && tells) arrive_at(peer_of(cleared, lane));
    if (own(member(), H) == 0) return;
    for (unsigned looks = 0; !phase_ended(cleared, 0); ++looks) {
      if (looks == kBarrierPatience) __trap();
      poll_again();
    }
  }

  // Pushes the member's units of h, which `put` has left there, and waits for those of the others. A warp serves a peer at
  // a time, every member another one first. Never called for the last h, so that all that is sent is waited for.
  __device__ __forceinline__ void receive(Storage* h, int stride, int K, int s) const {
    if (kSecond && !(s & 1)) {  // m, which `put` has pushed
      mail.wait(s);
      return;
    }
    if (s == 0)
      cluster_barrier();  // all have set up their mailboxes and cleared their tiles
    else
      __syncthreads();
    if (own(member(), H) == 0) return;
    const int lane = recomputed(lane_of());
    const int rows = this->rows();
    const int shift = rows > 4 ? 3 : rows > 2 ? 2 : rows - 1;
    const int row = lane >> 1 & ((1 << shift) - 1);
    const int begin = (lane >> shift & ~1) | (lane & 1);  // neighbouring lanes fill 32 bytes
    const int count = row < rows ? own(member(), K) : 0;
    Storage* first = h + row_at(row, stride) + member() * each() * kVec;
    const int members = cluster_blocks();
    for (int k = 1 + threadIdx.x / 32; k < members; k += blockDim.x / 32) {
      const int peer = (member() + k) & (members - 1);
      if (begin >= count || own(peer, H) == 0) continue;
      const Peer to = peer_of(first, peer);
      const Peer full = peer_of(mail.full + s % 2, peer);
      for (int i = begin; i < count; i += 32 >> shift)
        store_async(to + i * 16, reinterpret_cast<const uint4*>(first)[i], full);
    }
    mail.wait(s);
  }
};
