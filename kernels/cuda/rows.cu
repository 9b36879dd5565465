// What every schedule launches beside its steps, for every cell: states in and out, ragged rows, sums over row-steps.

extern "C" __global__ void set_call(Call* call, Storage* y, Storage* saved, Storage* h_prev, Compute* c_prev,
                                    Storage* operand, const Index* order, const Index* offsets, const Storage* dy,
                                    Index y_t, Index y_b, Index dy_t, Index dy_b, Index t0, Index n0) {
  const Call made = {y, saved, h_prev, c_prev, operand, order, offsets, dy, y_t, y_b, dy_t, dy_b, t0, n0};
  *call = made;
}

// States in sorted order. bias (2, G*H) is b_ih then b_hh, with zeros for a null one.
extern "C" __global__ void __launch_bounds__(256, 2)
forward_begin(const Storage* h0, const Storage* c0, const Storage* b_ih, const Storage* b_hh, const Index* order,
              Storage* h, Compute* c, Compute* bias, Index B, Index R, Index H, Index GH) {
  sort_rows(h, h0, order, B, R);
  if (c0) sort_rows(c, c0, order, B, H);
  for (Index i = first_index(); i < 2 * GH; i += index_stride()) {
    const Storage* b = i < GH ? b_ih : b_hh;
    bias[i] = b ? load(b[i < GH ? i : i - GH]) : Compute(0);
  }
}

extern "C" __global__ void __launch_bounds__(256, 2)
forward_end(const Storage* h, const Compute* c, const Index* order, Storage* h_n, Storage* c_n, Index B, Index R,
            Index H) {
  unsort_rows(h_n, h, order, B, R);
  if (c_n) unsort_rows(c_n, c, order, B, H);
}

extern "C" __global__ void __launch_bounds__(256, 2)
backward_begin(const Storage* dh_n, const Storage* dc_n, const Index* order, Compute* dh, Compute* dc, Index B, Index R,
               Index H) {
  sort_rows(dh, dh_n, order, B, R);
  if (dc_n) sort_rows(dc, dc_n, order, B, H);
}

extern "C" __global__ void __launch_bounds__(256, 2)
backward_end(const Compute* dh, const Compute* dc, const Index* order, Storage* dh0, Storage* dc0, Index B, Index R,
             Index H) {
  unsort_rows(dh0, dh, order, B, R);
  if (dc0) unsort_rows(dc0, dc, order, B, H);
}

// packed (N, K) = the row-steps of src (T, B, K). Blocks along y take the steps.
extern "C" __global__ void __launch_bounds__(256, 2)
pack_rows(Storage* packed, const Storage* src, const Index* order, const Index* offsets, Index T, Index B, Index K) {
  for (Index t = blockIdx.y; t < T; t += gridDim.y) {
    const Index n = offsets[t];
    const Index rows = offsets[t + 1] - n;
    for (Index i = first_index(); i < rows * K; i += index_stride()) {
      const Index b = i / K;
      const Index k = i - b * K;
      packed[n * K + i] = src[(t * B + order[b]) * K + k];
    }
  }
}

// The inverse of pack_rows; zero past each row's end.
extern "C" __global__ void __launch_bounds__(256, 2)
unpack_rows(Storage* dst, const Storage* packed, const Index* order, const Index* offsets, Index T, Index B, Index K) {
  for (Index t = blockIdx.y; t < T; t += gridDim.y) {
    const Index n = offsets[t];
    const Index rows = offsets[t + 1] - n;
    for (Index i = first_index(); i < B * K; i += index_stride()) {
      const Index b = i / K;
      const Index k = i - b * K;
      dst[(t * B + order[b]) * K + k] = b < rows ? packed[n * K + i] : store(Compute(0));
    }
  }
}

// partial (gridDim.y, K): sums down the columns of a (N, K); each block along y sums a part of the rows.
// blockDim = (32, 8).
extern "C" __global__ void __launch_bounds__(256, 2)
column_sums(Compute* partial, const Storage* a, Index N, Index K) {
  __shared__ Compute sums[8][32];
  const Index k = (Index)blockIdx.x * 32 + threadIdx.x;
  const Index stride = (Index)gridDim.y * 8;
  LongSum total = {0, 0};
  if (k < K)
    for (Index n = (Index)blockIdx.y * 8 + threadIdx.y; n < N;) {
      const Index chain = n + kChain * stride;
      const Index end = chain < N ? chain : N;
      Compute sum = 0;
      for (; n < end; n += stride) sum += load(a[n * K + k]);
      total.add(sum);
    }
  sums[threadIdx.y][threadIdx.x] = total.value();
  __syncthreads();
  for (int half = 4; half; half /= 2) {
    if (threadIdx.y < half) sums[threadIdx.y][threadIdx.x] += sums[threadIdx.y + half][threadIdx.x];
    __syncthreads();
  }
  if (threadIdx.y == 0 && k < K) partial[blockIdx.y * K + k] = sums[0][threadIdx.x];
}

// Adds part (parts, K) to total (K,), or to zero if `first`. Writes the sum to total and, rounded, to result; or adds it
// to the old result if `adds`, before it is rounded. `also`, a second result, is treated like the first one. total is
// null if these are all the parts; result is null if more parts follow; also is null if there is one result.
extern "C" __global__ void __launch_bounds__(256, 2)
add_parts(Storage* result, Storage* also, LongSum* total, const Compute* part, int parts, Index K, int first, int adds) {
  for (Index k = first_index(); k < K; k += index_stride()) {
    LongSum sum = {0, 0};
    if (!first) sum = total[k];
#pragma unroll 8
    for (int p = 0; p < parts; ++p) sum.add(part[p * K + k]);
    if (total) total[k] = sum;
    if (result) result[k] = store(sum.value() + (adds ? load(result[k]) : Compute(0)));
    if (also) also[k] = store(sum.value() + (adds ? load(also[k]) : Compute(0)));
  }
}

#if defined(RK_FLOAT32)
// to (columns, rows) = the transpose of from (rows, columns), for products in TF32. blockDim = (32, 8).
extern "C" __global__ void __launch_bounds__(256, 2)
transpose(Storage* to, const Storage* __restrict__ from, Index rows, Index columns) {
  __shared__ Storage tile[32][33];
  const Index column = (Index)blockIdx.x * 32;
  const Index row = (Index)blockIdx.y * 32;
  for (int k = threadIdx.y; k < 32; k += 8)
    if (row + k < rows && column + threadIdx.x < columns)
      tile[k][threadIdx.x] = from[(row + k) * columns + column + threadIdx.x];
  __syncthreads();
  for (int k = threadIdx.y; k < 32; k += 8)
    if (column + k < columns && row + threadIdx.x < rows)
      to[(column + k) * rows + row + threadIdx.x] = tile[threadIdx.x][k];
}
#endif
