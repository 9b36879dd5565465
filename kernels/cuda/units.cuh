// Several consecutive units of a row at once: one access of V elements where the address is aligned to it.

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
  T v[V];
};

template <typename T, int V>
__device__ __forceinline__ bool aligned(const T* at) {
  return (size_t)at % sizeof(Pack<T, V>) == 0;
}

// at must be aligned to V elements.
template <int V, typename T>
__device__ __forceinline__ void load_units(const T* at, Compute* to) {
  const Pack<T, V> found = *(const Pack<T, V>*)at;
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = Convert<Compute, T>::of(found.v[i]);
}

template <int V, typename T>
__device__ __forceinline__ void store_units(T* at, const Compute* from) {
  Pack<T, V> made;
#pragma unroll
  for (int i = 0; i < V; ++i) made.v[i] = Convert<T, Compute>::of(from[i]);
  *(Pack<T, V>*)at = made;
}

// For arrays of the caller, whose alignment is not known.
template <int V>
__device__ __forceinline__ void load_any(const Storage* at, Compute* to) {
  if (aligned<Storage, V>(at)) {
    load_units<V>(at, to);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = load(at[i]);
  }
}

template <int V>
__device__ __forceinline__ void store_any(Storage* at, const Compute* from) {
  if (aligned<Storage, V>(at)) {
    store_units<V>(at, from);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) at[i] = store(from[i]);
  }
}
