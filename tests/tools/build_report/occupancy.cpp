// The number of resident blocks of a kernel per multiprocessor, from NVIDIA's cuda_occupancy.h. Needs no GPU. Returns
// minus the error code if the header rejects the arguments.
#include <cuda_occupancy.h>

extern "C" int blocks_per_multiprocessor(int major, int minor, int multiprocessors, int shared_sm, int shared_block_optin,
                                         int reserved_shared, int threads_sm, int registers, int static_shared,
                                         int dynamic_shared, int barriers, int threads) {
  cudaOccDeviceProp card = {};
  card.computeMajor = major;
  card.computeMinor = minor;
  card.numSms = multiprocessors;
  card.warpSize = 32;
  card.maxThreadsPerBlock = 1024;
  card.maxThreadsPerMultiprocessor = threads_sm;
  card.regsPerBlock = 65536;
  card.regsPerMultiprocessor = 65536;
  card.sharedMemPerBlock = 48 * 1024;
  card.sharedMemPerBlockOptin = shared_block_optin;
  card.sharedMemPerMultiprocessor = shared_sm;
  card.reservedSharedMemPerBlock = reserved_shared;

  cudaOccFuncAttributes kernel = {};
  kernel.maxThreadsPerBlock = 1024;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = static_shared;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = shared_block_optin - static_shared;
  kernel.numBlockBarriers = barriers;

  cudaOccDeviceState state = {};
  state.cacheConfig = CACHE_PREFER_SHARED;
  state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;

  cudaOccResult result;
  cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &card, &kernel, &state, threads, dynamic_shared);
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -int(error);
}
