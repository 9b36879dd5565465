// What `stepwise` launches beside its steps for a cell with zoneout or dropout on h: kernels/cuda/step_noise.cuh.

extern "C" __global__ void set_noise(Call* call, const Compute* hidden, const unsigned char* zone_h,
                                     const unsigned char* zone_c, Storage* masked, Compute* dmasked, Index h_t,
                                     Index h_b, Index c_t, Index c_b, Index masked_gate, Index batch, Compute share_h,
                                     Compute share_c) {
  static_assert(sizeof(Call) <= RK_NOISE_AT && RK_NOISE_AT + sizeof(Noise) <= RK_NOISE_END, "the Noise overlaps");
  *(Noise*)((char*)call + RK_NOISE_AT) = {hidden, zone_h, zone_c, masked,      dmasked, h_t,     h_b,
                                          c_t,    c_b,    masked_gate, batch, share_h, share_c};
}

#if RK_MASKS
// Before the first step of forward: masked (kMasked, B, R) = the masks times h (B, R).
extern "C" __global__ void __launch_bounds__(256, 2)
mask_first(const Call* given, const Index* order, const Storage* h, Index B, Index R) {
  Call call = {};  // the one at `given` is not written yet
  call.order = order;
  for (Index i = first_index(); i < B * R; i += index_stride()) {
    const int b = (int)(i / R);
    const Compute before = load(h[i]);
    RowNoise(given, call, 0, b).put_masked<1>(b, (int)(i - b * R), (int)R, &before);
  }
}

// Before the first step of backward: dmasked (kMasked, B, R) = 0.
extern "C" __global__ void __launch_bounds__(256, 2) clear_products(Compute* dmasked, Index count) {
  for (Index i = first_index(); i < count; i += index_stride()) dmasked[i] = Compute(0);
}

// After the last step of backward: dh (B, R) += the masks times dmasked.
extern "C" __global__ void __launch_bounds__(256, 2)
add_last(const Call* given, Compute* dh, Index B, Index R) {
  const Call call = *given;
  for (Index i = first_index(); i < B * R; i += index_stride()) {
    const int b = (int)(i / R);
    RowNoise(given, call, 0, b).add_to<1>(dh, b, (int)(i - b * R), (int)R);
  }
}
#endif
