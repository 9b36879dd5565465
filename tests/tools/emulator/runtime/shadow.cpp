// Races and uninitialised reads: every 4 bytes of memory have a shadow cell that records the last accesses.
//
// A cell has kSlots slots, one per access: thread, event, mask of bytes, kind. A new access is compared with the
// recorded ones that it overlaps and is then recorded: a write replaces all accesses that it covers, a read replaces an
// earlier read. With more concurrent readers than slots, some are dropped, so a race with only those is missed.
#include <string.h>

#include <set>
#include <unordered_map>

#include "checker.h"
#include "order.h"

namespace emulator {

namespace {

constexpr unsigned kSlots = 6, kCellBytes = 4, kPageBytes = 4096;
constexpr size_t kFindings = 8, kMaxPages = 2048;
constexpr Origin kSite = 0x80000000u;  // set in an Origin that refers to a Site

struct Slot {
  uint32_t block, epoch, clock;
  Origin origin;
  uint16_t thread;
  uint8_t mask;  // one bit per byte of the cell; 0 if the slot is free
  Access access;
};

struct Cell {
  uint32_t generation;  // a cell of an earlier launch or block is treated as empty
  uint8_t written;      // mask of the bytes written so far
  bool has_writes;      // whether any slot is a write
  Slot slots[kSlots];
};

struct CachedPage {
  uintptr_t page = UINTPTR_MAX;
  Cell* cells = nullptr;
};

std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
constexpr unsigned kCachedPages = 64;
CachedPage page_cache[kCachedPages];
uint32_t launch_generation, block_generation, newest_generation;

std::vector<Site> sites;
std::unordered_map<uint64_t, Origin> site_numbers;

std::string findings;
const char* finding_kind;
size_t finding_count;
std::set<std::pair<Origin, Origin>> reported;

void clear_pages() {
  pages.clear();
  for (CachedPage& r : page_cache) r = CachedPage();
}

Cell& cell_at(uintptr_t address, uint32_t generation) {
  const uintptr_t page = address / kPageBytes;
  CachedPage& cached = page_cache[page % kCachedPages];
  if (cached.page != page) {
    auto& cells = pages[page];
    if (!cells) cells.reset(new Cell[kPageBytes / kCellBytes]());
    cached = {page, cells.get()};
  }
  Cell& cell = cached.cells[address % kPageBytes / kCellBytes];
  if (cell.generation != generation) {
    cell = Cell();
    cell.generation = generation;
  }
  return cell;
}

bool is_write(Access a) { return a != Access::read && a != Access::ordered_read; }
bool is_ordered(Access a) { return a == Access::ordered_read || a == Access::ordered_write || a == Access::update; }

const char* verb(Access a) {
  switch (a) {
    case Access::read: return "read";
    case Access::write: return "write";
    case Access::ordered_read: return "volatile or ordered read";
    case Access::ordered_write: return "volatile or ordered write";
    case Access::update: return "atomic";
    default: return "cp.async";
  }
}

void report(const char* kind, Origin first, Origin second, const std::string& text) {
  if (finding_count >= kFindings || !reported.insert({first, second}).second) return;
  ++finding_count;
  if (!finding_kind || !strcmp(kind, "race")) finding_kind = kind;
  if (!findings.empty()) findings += "\n";
  findings += text;
}

void report_race(const Slot& slot, const Slot& mine, const Region& region, uintptr_t address) {
  const bool async = slot.access == Access::async_write || mine.access == Access::async_write;
  const std::string me = thread_name(rt.thread), other = thread_name(slot.block, slot.thread);
  report(async ? "async" : "race", slot.origin, mine.origin,
         origin_name(mine.origin) + ": " + (async ? "asynchronous copy without a wait: " : "race on ") +
             region_name(region, address) + ": " + verb(mine.access) + " by " + me + ", " + verb(slot.access) + " by " +
             other + " at " + origin_name(slot.origin) + ", without synchronisation between the two");
}

bool conflict(const Slot& slot, const Slot& mine) {
  if (!(slot.mask & mine.mask)) return false;
  if (!is_write(slot.access) && !is_write(mine.access)) return false;
  if (slot.access == Access::async_write) return true;
  if (is_ordered(slot.access) && is_ordered(mine.access)) return false;
  return !happened_before(slot.block, slot.thread, slot.epoch, slot.clock, rt.thread);
}

void record_access(Cell& cell, const Slot& mine) {
  Slot* free = nullptr;
  if (is_write(mine.access)) {
    cell.has_writes = true;
    for (Slot& slot : cell.slots) {
      if (!(slot.mask & ~mine.mask)) slot.mask = 0;
      if (!slot.mask) free = &slot;
    }
    if (!free) free = &cell.slots[mine.thread % kSlots];
  } else {
    for (Slot& slot : cell.slots) {
      const bool earlier = !is_write(slot.access) && slot.block == mine.block && !(slot.mask & ~mine.mask) &&
                           (slot.epoch < mine.epoch || slot.thread == mine.thread);
      if (!slot.mask || earlier) {
        free = &slot;
        break;
      }
    }
    for (unsigned i = 0; !free && i < kSlots; ++i) {
      Slot& slot = cell.slots[(mine.thread + i) % kSlots];
      if (!is_write(slot.access)) free = &slot;
    }
    if (!free) return;  // all slots hold writes, which are not replaced by a read
  }
  *free = mine;
}

void check_cell(Cell& cell, Slot& mine, const Region& region, uintptr_t address) {
  if (mine.access == Access::read && !cell.has_writes && !region.shared()) return record_access(cell, mine);
  for (const Slot& slot : cell.slots)
    if (slot.thread == mine.thread && slot.block == mine.block && slot.epoch == mine.epoch &&
        slot.clock == mine.clock &&
        slot.mask == mine.mask && slot.access == mine.access && slot.access != Access::async_write)
      return;  // repeats a recorded access, with which later accesses were compared
  if (region.shared() && (!is_write(mine.access) || mine.access == Access::update) && mine.mask & ~cell.written)
    report("uninitialised", mine.origin, 0,
           origin_name(mine.origin) + ": uninitialised read of " + region_name(region, address) + " by " +
               thread_name(rt.thread));
  for (const Slot& slot : cell.slots)
    if (slot.mask && conflict(slot, mine)) report_race(slot, mine, region, address);
  if (is_write(mine.access)) cell.written |= mine.mask;
  record_access(cell, mine);
}

template <class Visit>
void for_each_cell(uintptr_t address, size_t bytes, const Region& region, Visit visit) {
  const uint32_t generation = region.shared() ? block_generation : launch_generation;
  const uintptr_t end = address + bytes;
  for (uintptr_t base = address / kCellBytes * kCellBytes; base < end; base += kCellBytes) {
    const unsigned from = base < address ? (unsigned)(address - base) : 0;
    const unsigned to = end - base < kCellBytes ? (unsigned)(end - base) : kCellBytes;
    visit(cell_at(base, generation), (uint8_t)((1u << to) - (1u << from)), base + from);
  }
}

Slot slot_for(Access access, Origin origin) {
  const Thread* t = rt.thread;
  return {t->block->index, t->block->order->epoch, order_of(t).clock, origin, (uint16_t)t->rank, 0, access};
}

}  // namespace

Origin origin_of(uintptr_t pc) { return (Origin)(pc - rt.image_base); }

Origin origin_of(Site site) {
  const uint64_t key = (uint64_t)(uintptr_t)site.file << 20 ^ (uint64_t)site.line;
  const auto [found, added] = site_numbers.try_emplace(key, kSite | (Origin)sites.size());
  if (added) sites.push_back(site);
  return found->second;
}

std::string origin_name(Origin origin) {
  return origin & kSite ? site_name(sites[origin & ~kSite]) : pc_name(rt.image_base + origin);
}

void check_access(uintptr_t address, size_t bytes, Access access, Origin origin) {
  if (is_emulator_memory(address)) return;
  ++rt.stats.accesses;
  rt.last_origin = origin;
  const Region* region = region_of(address, bytes, is_write(access), origin);
  if (!region) return;
  Slot mine = slot_for(access, origin);
  for_each_cell(address, bytes, *region, [&](Cell& cell, uint8_t mask, uintptr_t at) {
    mine.mask = mask;
    check_cell(cell, mine, *region, at);
  });
}

void check_copy_completed(uintptr_t address, size_t bytes, Origin origin) {
  const Region* region = region_of(address, bytes, true, origin);
  if (!region) return;
  Slot mine = slot_for(Access::write, origin);
  for_each_cell(address, bytes, *region, [&](Cell& cell, uint8_t mask, uintptr_t at) {
    mine.mask = mask;
    for (Slot& slot : cell.slots)
      if (slot.access == Access::async_write && slot.block == mine.block && slot.thread == mine.thread) slot.mask = 0;
    check_cell(cell, mine, *region, at);
  });
}

void check_not_written(uintptr_t address, size_t bytes, Origin origin) {
  const Region* region = region_of(address, bytes, false, origin);
  if (!region) return;
  for_each_cell(address, bytes, *region, [&](Cell& cell, uint8_t mask, uintptr_t at) {
    for (const Slot& slot : cell.slots)
      if (slot.mask & mask && is_write(slot.access))
        report("readonly", slot.origin, origin,
               origin_name(origin) + ": __ldg by " + thread_name(rt.thread) + " of " + region_name(*region, at) +
                   ", which this launch writes at " + origin_name(slot.origin));
  });
}

void checker_begin_launch() {
  if (pages.size() > kMaxPages) clear_pages();
  launch_generation = ++newest_generation;
  findings.clear();
  reported.clear();
  finding_kind = nullptr;
  finding_count = 0;
}

void checker_release() { clear_pages(); }

void checker_begin_blocks() { block_generation = ++newest_generation; }

const std::string& checker_findings() { return findings; }
const char* checker_kind() { return finding_kind ? finding_kind : ""; }

}  // namespace emulator
