// The exchange of schedule B: between the blocks of a cluster ("members"), which serve one tile of rows, through
// distributed shared memory. A member pushes 16 bytes at a time into its peers' shared memory, by stores that count
// their bytes at an mbarrier of the block that is stored to. Nothing is polled in memory, and no byte is a tag.
//
// RK_CLUSTER, the blocks of a cluster, decides about __cluster_dims__ alone: the code is the same for every size.

// The messages that a block receives, one per step, in turn in two buffers with an mbarrier each.
//
// Arming. A phase ends when the block itself has arrived, with the number of bytes that it expects, and they have come.
// Both mbarriers are armed before the cluster meets for the first time, so before any peer pushes. For step s + 2 an
// mbarrier is armed when the wait for step s ends. A peer pushes for step s + 2 only after it has received this block's
// message of step s + 1, which this block sends only after a barrier of all its threads after that wait.
//
// Parity. So the phases of an mbarrier do not overlap: bytes of step s + 2 never count for step s. Phase s / 2 of an
// mbarrier has parity s / 2 % 2. No thread can take the parity of step s + 2 for that of step s: phase s + 2 cannot end
// before all threads have seen the end of phase s, because they meet before the message of step s + 1 leaves.
//
// Overwriting. By the same order a peer writes the buffer of step s again, with step s + 2, only after all threads of
// this block have met after their last read of step s.
//
// The end. A block waits for every byte that is sent to it, and nobody looks at its memory otherwise. So no peer writes
// into a block that has ended, and no barrier of the cluster is needed at the end.
struct Mailbox {
  unsigned long long* full;  // (2,) mbarriers in shared memory
  unsigned bytes;            // of a message

  // Before `cluster_barrier`, after which peers may push.
  __device__ __forceinline__ void set_up() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 2; ++i) {
      init_barrier(full + i);
      expect_bytes(full + i, bytes);
    }
  }

  // Waits for the message of step s. All threads call it.
  __device__ __forceinline__ void wait(int s) const {
    for (unsigned looks = 0; !phase_ended(full + s % 2, s / 2 % 2); ++looks) {
      if (looks == kBarrierPatience) __trap();
      poll_again();
    }
    if (threadIdx.x == 0) expect_bytes(full + s % 2, bytes);
  }
};

// Rows of the tile that begins at row b0.
__device__ __forceinline__ int rows_of_tile(unsigned B, int b0) { return min((unsigned)kRows, B - b0); }

// h: every member that has units receives those of all others. A member without units sends nothing that the others could
// wait for, so they would run ahead of it: it does not receive either.
struct ClusterExchange {
  Mailbox mail;
  unsigned B, H;
  int tiles;  // of units, of a member

  __device__ __forceinline__ ClusterExchange(unsigned long long* full, unsigned B, unsigned H, int tiles)
      : mail{full, 0}, B(B), H(H), tiles(tiles) {
    mail.bytes = (pieces() - own(member())) * rows() * 16;
    mail.set_up();
  }

  __device__ __forceinline__ int member() const { return cluster_rank(); }
  __device__ __forceinline__ int tile() const { return blockIdx.x / cluster_blocks(); }
  __device__ __forceinline__ int rows() const { return rows_of_tile(B, tile() * kRows); }
  // Pieces of 16 bytes: of a row, of all of a member's tiles, and of a member's units that exist.
  __device__ __forceinline__ int pieces() const { return (H + kVec - 1) / kVec; }
  __device__ __forceinline__ int each() const { return kUnits / kVec * tiles; }
  __device__ __forceinline__ int own(int member) const { return max(0, min(each(), pieces() - member * each())); }

  __device__ __forceinline__ void put(Storage* h, int stride, int K, int s, int row, int unit, Storage value) const {
    if (unit < K) h[row_at(row, stride) + unit] = value;
  }

  // Pushes the member's units, which `put` has left in h, and waits for those of the others. A warp serves a peer at a
  // time, every member another one first. Never called in the last step, so that all that is sent is waited for.
  __device__ __forceinline__ void receive(Storage* h, int stride, int K, int s) const {
    if (s == 0)
      cluster_barrier();  // all have set up their mailboxes and cleared their tiles
    else
      __syncthreads();
    if (own(member()) == 0) return;
    const int lane = recomputed(lane_of());
    const int rows = this->rows();
    const int shift = rows > 4 ? 3 : rows > 2 ? 2 : rows - 1;
    const int row = lane >> 1 & ((1 << shift) - 1);
    const int begin = (lane >> shift & ~1) | (lane & 1);  // neighbouring lanes fill 32 bytes
    const int count = row < rows ? own(member()) : 0;
    Storage* first = h + row_at(row, stride) + member() * each() * kVec;
    const int members = cluster_blocks();
    for (int k = 1 + threadIdx.x / 32; k < members; k += blockDim.x / 32) {
      const int peer = (member() + k) & (members - 1);
      if (begin >= count || own(peer) == 0) continue;
      const Peer to = peer_of(first, peer);
      const Peer full = peer_of(mail.full + s % 2, peer);
      for (int i = begin; i < count; i += 32 >> shift)
        store_async(to + i * 16, reinterpret_cast<const uint4*>(first)[i], full);
    }
    mail.wait(s);
  }
};
