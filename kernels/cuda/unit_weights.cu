// What `stepwise` launches beside its steps for a cell with options: kernels/cells/with_options.cuh.

// The constants of a call and its weights per unit (count), after the Call. The first `constants` of a0 to a7 count.
extern "C" __global__ void __launch_bounds__(256, 2)
set_extras(Call* call, const Storage* units, Index count, int constants, double a0, double a1, double a2, double a3,
           double a4, double a5, double a6, double a7) {
  Compute* const extras = (Compute*)((char*)call + RK_CALL_BYTES);
  const Index first = (Index)blockIdx.x * blockDim.x + threadIdx.x;
  if (first < constants) {
    const double low = first == 0 ? a0 : first == 1 ? a1 : first == 2 ? a2 : a3;
    const double high = first == 4 ? a4 : first == 5 ? a5 : first == 6 ? a6 : a7;
    extras[first] = (Compute)(first < 4 ? low : high);
  }
  for (Index i = first; i < count; i += (Index)gridDim.x * blockDim.x) extras[constants + i] = load(units[i]);
}

#if RK_PEEPHOLE
// products (N, 3*H): what each row-step of a chunk adds to the gradients of p_i, p_f and p_o.
extern "C" __global__ void __launch_bounds__(256, 2)
unit_products(const Call* given, const Storage* saved, const Compute* c_prev, const Storage* dgates, Storage* products,
              Index N, int H) {
  const Index stride = (Index)gridDim.x * blockDim.x;
  for (Index at = (Index)blockIdx.x * blockDim.x + threadIdx.x; at < N * H; at += stride) {
    const Index n = at / H;
    const int j = (int)(at - n * H);
    const Compute before = c_prev[n * H + j];
    Compute kept[Cell::kSaved], value[3], slope[3];
    for (int k = 0; k < Cell::kSaved; ++k) kept[k] = load(saved[saved_at(n, k, j, H)]);
    const Compute c = Cell::cell_state(kept, before, Extras(given, j, H), value, slope);
    products[(n * 3 + 0) * H + j] = store(load(dgates[gate_at(n, 0, j, H)]) * before);
    products[(n * 3 + 1) * H + j] = store(load(dgates[gate_at(n, 1, j, H)]) * before);
    products[(n * 3 + 2) * H + j] = store(load(dgates[gate_at(n, 3, j, H)]) * c);
  }
}
#endif
