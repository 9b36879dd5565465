// Bounds checks: live buffers, the shared memory of each block, and the module's variables.
#include <algorithm>

#include "checker.h"

namespace emulator {

namespace {
std::vector<Region> regions;  // sorted by address
constexpr unsigned kCachedRegions = 64;
const Region* region_cache[kCachedRegions];

unsigned slot_of(uintptr_t address) { return (address >> 8) % kCachedRegions; }

const Region* find(uintptr_t address) {
  const Region*& cached = region_cache[slot_of(address)];
  if (cached && address >= cached->low && address < cached->high) return cached;
  auto above = std::upper_bound(regions.begin(), regions.end(), address,
                                [](uintptr_t a, const Region& region) { return a < region.low; });
  if (above == regions.begin()) return nullptr;
  const Region* region = &*--above;
  if (address >= region->high) return nullptr;
  return cached = region;
}

std::string block_name(const Block* b) {
  return "block (" + std::to_string(b->position.x) + "," + std::to_string(b->position.y) + "," +
         std::to_string(b->position.z) + ")";
}

// Names the buffer by the kernel argument that points into it, if there is one.
std::string buffer_name(const Region& region) {
  for (unsigned i = 0; rt.config->parameter_kinds[i]; ++i) {
    if (rt.config->parameter_kinds[i] != 'p') continue;
    const uintptr_t value = *static_cast<const uintptr_t*>(rt.config->arguments[i]);
    if (value >= region.low && value < region.high) return "the buffer of argument " + std::to_string(i);
  }
  return "live buffer " + std::to_string(region.number);
}

[[noreturn]] void out_of_bounds(uintptr_t address, size_t bytes, bool writes, Origin origin) {
  std::string text = origin_name(origin) + ": out of bounds " + (writes ? "write" : "read") + " of " +
                     std::to_string(bytes) + " bytes";
  const Region* nearest = nullptr;
  const StaticObject* nearest_static = nullptr;
  uintptr_t nearest_distance = 1 << 20;
  for (const Region& region : regions) {
    const uintptr_t above = address < region.high ? 0 : address - region.high;
    const uintptr_t distance = address < region.low ? region.low - address : above;
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = &region;
    }
  }
  // The running block's static shared memory is in the objects themselves, which are not among the regions.
  for (const StaticObject& object : rt.statics) {
    const uintptr_t end = object.address + object.bytes;
    const uintptr_t distance = address < object.address ? object.address - address : address < end ? 0 : address - end;
    if (distance >= nearest_distance) continue;
    nearest_distance = distance;
    nearest_static = &object;
  }
  if (nearest_static)
    text += " at offset " + std::to_string((long long)(address - nearest_static->address)) + " of shared {static:" +
            std::to_string(nearest_static - rt.statics.data()) + "}, which has " +
            std::to_string(nearest_static->bytes) + " bytes";
  else if (!address || !nearest)
    text += address < 4096 ? " through a null pointer" : ", in no live buffer";
  else
    text += " at offset " + std::to_string((long long)(address - nearest->low)) + " of " +
            region_name(*nearest, nearest->low) + ", which has " + std::to_string(nearest->high - nearest->low) +
                " bytes";
  fail_at("bounds", text);
}

// The static shared object that contains `address`, or null. Accesses are checked at the address in the block's copy.
const StaticObject* static_object(uintptr_t address) {
  if (address < rt.statics_low || address >= rt.statics_high) return nullptr;
  for (const StaticObject& object : rt.statics)
    if (address - object.address < object.bytes) return &object;
  return nullptr;
}

void check_owner(const Region& region, Origin origin) {
  const Block* own = rt.thread->block;
  if (region.block == own) return;
  if (region.block->cluster != own->cluster)
    fail_at("bounds", origin_name(origin) + ": access to shared memory of " + block_name(region.block) +
                          ", which is not in this cluster");
  if (!own->cluster->phase)
    fail_at("cluster", origin_name(origin) + ": access to shared memory of " + block_name(region.block) +
                           " before the first cluster barrier: it may not have started");
  if (region.block->done == region.block->size)
    fail_at("cluster", origin_name(origin) + ": access to shared memory of " + block_name(region.block) +
                           ", which has exited");
}
}  // namespace

void regions_begin_launch(const std::vector<Block*>& blocks) {
  const LaunchConfig& config = *rt.config;
  regions.clear();
  std::fill(region_cache, region_cache + kCachedRegions, nullptr);
  for (unsigned i = 0; i < config.buffer_count; ++i) {
    const uint64_t* row = config.buffers + 3 * i;
    regions.push_back({Region::buffer, row[2] != 0, i, nullptr, row[0], row[0] + row[1]});
  }
  for (unsigned i = 0; i < config.variable_count; ++i) {
    const uintptr_t low = rt.image_base + config.variables[2 * i];
    const Region::Kind kind = i < config.variable_count - config.guard_count ? Region::module_variable : Region::guard;
    regions.push_back({kind, true, i, nullptr, low, low + config.variables[2 * i + 1]});
  }
  for (const Block* b : blocks) {
    const uintptr_t dynamic = (uintptr_t)b->dynamic, statics = (uintptr_t)b->statics;
    if (config.dynamic_shared)
      regions.push_back({Region::dynamic_shared, true, 0, b, dynamic, dynamic + config.dynamic_shared});
    for (unsigned i = 0; i < rt.statics.size(); ++i) {
      const uintptr_t low = statics + rt.statics[i].image_offset;
      regions.push_back({Region::static_shared, true, i, b, low, low + rt.statics[i].bytes});
    }
  }
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) { return a.low < b.low; });
}

uintptr_t canonical(uintptr_t address) {
  const StaticObject* object = static_object(address);
  return object ? (uintptr_t)rt.thread->block->statics + object->image_offset + (address - object->address) : address;
}

const Region* region_of(uintptr_t& address, size_t bytes, bool writes, Origin origin) {
  address = canonical(address);
  const Region* region = find(address);
  if (!region) {
    // Constants of the code (tables, strings) are in the read-only segments of the object file.
    const bool constant = address >= rt.image_low && address < rt.image_high &&
                          !(address >= rt.writable_low && address < rt.writable_high);
    if (constant && !writes) return nullptr;
    out_of_bounds(address, bytes, writes, origin);
  }
  if (region->kind == Region::guard) return nullptr;
  if (address + bytes > region->high) out_of_bounds(address, bytes, writes, origin);
  if (writes && !region->writable)
    fail_at("readonly", origin_name(origin) + ": write to " + region_name(*region, address) + ", which is read-only");
  if (region->shared()) check_owner(*region, origin);
  return region;
}

std::string region_name(const Region& region, uintptr_t address) {
  std::string name;
  switch (region.kind) {
    case Region::buffer: name = buffer_name(region); break;
    case Region::guard:
    case Region::module_variable: name = "module variable {variable:" + std::to_string(region.number) + "}"; break;
    case Region::dynamic_shared: name = "the dynamic shared memory of " + block_name(region.block); break;
    case Region::static_shared:
      name = "shared {static:" + std::to_string(region.number) + "} of " + block_name(region.block);
  }
  return address == region.low ? name : name + " at byte " + std::to_string(address - region.low);
}

}  // namespace emulator
