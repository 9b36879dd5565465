// The resident schedules: one launch runs all steps of a chunk, with W_hh on the chip. What their passes share.
//
// The batch is cut into tiles of kRows rows. A tile is served by a group of blocks ("members"), each of which owns a
// slice of the units; the schedules differ in how members hand each other h: see the exchange policies.

// Row-steps of a chunk: time steps [t0, t0 + count), of which row-step n0 is the first. offsets: see rows.cuh.
struct Sequence {
  const Index* offsets;
  unsigned B;
  Index t0, n0;
  int count;
  bool descending;
};

// One step: its time step and first row-step, from the chunk's, and its number of live rows.
struct Step {
  int t, n;
  unsigned rows;
};

__device__ __forceinline__ int rows_at(const Sequence& all, Index t) {
  return all.offsets ? (int)(all.offsets[t + 1] - all.offsets[t]) : all.B;
}

// How many steps of the chunk have a live row in the tile that begins at row b0. They are the chunk's first ones in
// time, because rows are sorted by length.
__device__ __forceinline__ int live_steps(const Sequence& all, int b0) {
  if (!all.offsets) return all.count;
  int live = 0, dead = all.count;
  while (live < dead) {
    const int middle = (live + dead) / 2;
    if (rows_at(all, all.t0 + middle) > b0)
      live = middle + 1;
    else
      dead = middle;
  }
  return live;
}

// Step s of the `steps` live ones, in the order of the pass; no rows for s >= steps.
__device__ __forceinline__ Step step_at(const Sequence& all, int s, int steps) {
  if (s >= steps) return {0, 0, 0};
  const int t = all.descending ? steps - 1 - s : s;
  if (!all.offsets) return {t, t * (int)all.B, all.B};
  const Index n = all.offsets[all.t0 + t];
  return {t, (int)(n - all.n0), (unsigned)(all.offsets[all.t0 + t + 1] - n)};
}

// An exchange policy: which blocks serve which tile of rows, and how an operand (h, or m of a second product) of K units
// gets into `operand`, in shared memory, of every block. Messages are numbered from 0, one per stage of a step. All lanes of
// a warp call `put`, for units beyond the last one too; all threads call `receive`, except for the last message, and a
// barrier follows.

// No exchange: one block serves a tile.
struct OneBlock {
  __device__ __forceinline__ int member() const { return 0; }
  __device__ __forceinline__ int tile() const { return blockIdx.x; }
  __device__ __forceinline__ void put(Storage* operand, int stride, int K, int message, int row, int unit,
                                      Storage value) const {
    if (unit < K) operand[row_at(row, stride) + unit] = value;
  }
  __device__ __forceinline__ void receive(Storage* operand, int stride, int K, int message) const {}
};
