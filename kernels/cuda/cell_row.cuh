// The constants of a cell's header equal the cell's row of CELLS (rnnkit/core/cells.py). The build defines each RK_
// macro below from that row, so a header that contradicts it does not compile.

static_assert(Cell::kGates == RK_GATES, "kGates is not the number of the row's gates");
static_assert(Cell::kSaved == RK_SAVED, "kSaved is not the number of the row's saved values");
static_assert(Cell::kHasC == RK_HAS_C, "kHasC differs from the row's states");
static_assert(Cell::kReadsH == RK_READS_H, "kReadsH differs from the row's reads_h");
static_assert(Cell::kSplits == RK_SPLITS, "kSplits differs from the row's splits_sides");
static_assert(Cell::kResetsBefore == RK_RESETS_BEFORE, "kResetsBefore differs from the row's products");
static_assert(!Cell::kResetsBefore || (Cell::kGates == 3 && Cell::kSaved == 3 && !Cell::kHasC && !Cell::kSplits),
              "the two-stage kernels are those of a GRU: gates r,z,n, all three saved, one gradient for both sides");
