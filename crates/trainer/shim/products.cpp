#include "products.h"

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "bounds of rounding and the refusal of NaN need arithmetic as it is written: build without -ffast-math"
#endif

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// GCC 12 takes its own _mm512_undefined_ps for a variable that was forgotten.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace bastion {
namespace {

// `1.5·2^52`: adding it rounds an f64 below 2^51 to an integer, ties to even, and leaves it in the low bits.
constexpr double kRoundingShift = 6755399441055744.0;

// Rows of one record.
struct Rows {
  const float* at;
  int64_t stride, count;
};

// Groups of four rows [low, low_end) with groups [high, high_end), on or above the diagonal: tiles by i, then by j.
struct Pair {
  int64_t low, low_end, high, high_end;
  int64_t begin(int64_t i) const { return i > high ? i : high; }
  int64_t tiles() const {
    int64_t count = 0;
    for (int64_t i = low; i < low_end; ++i) count += high_end - begin(i);
    return count;
  }
};

// The inner loops for one width of vectors.
struct Kernels {
  int lanes;
  int64_t chunk, rows, columns;
  void (*gram_tiles)(const Rows&, const Pair&, int64_t first, int64_t width, float* tiles);
  double (*tile_products)(const Pair&, const float* left, const float* right);
  void (*pack_left)(const float* const* rows, const uint32_t* masks, const float* factors, int64_t row_count, int64_t columns, int64_t panel_rows, float* to);
  void (*pack_right)(const float* const* rows, const uint32_t* masks, const float* factors, int64_t row_count, int64_t columns, int64_t panel_rows, float* to);
  void (*multiply_panels)(const float* left, int64_t left_panels, const float* right, int64_t right_panels, int64_t rows, double* to);
  bool (*add_to_grid)(const double* from, int64_t rows, int64_t columns, const Grid& grid, int64_t stride, int64_t* sums);
  bool (*put_on_grid)(const double* from, int64_t rows, int64_t columns, const Grid& grid, int64_t stride, int64_t* sums);
};

#if defined(__x86_64__)
namespace wide {
#define BASTION_LANES 16
#define BASTION_TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")))
#include "products_kernels.h"
}  // namespace wide
namespace middle {
#define BASTION_LANES 8
#define BASTION_TARGET __attribute__((target("avx2,fma")))
#include "products_kernels.h"
}  // namespace middle
#endif
namespace plain {
#define BASTION_LANES 4
#define BASTION_TARGET
#include "products_kernels.h"
}  // namespace plain

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

const Kernels& kernels(int32_t lanes) {
#if defined(__x86_64__)
  static const bool has_middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool has_wide = has_middle && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (has_wide && (lanes == 0 || lanes == 16)) return wide::kKernels;
  if (has_middle && (lanes == 0 || lanes == 8)) return middle::kKernels;
#endif
  require(lanes == 0 || lanes == 4, "this processor has no vectors of that width");
  return plain::kKernels;
}

// Groups of rows in a block: 32 rows, so that two blocks' chunks fit in a core's own cache.
constexpr int64_t kBlockGroups = 8;

// Fewer multiplications than this (about 20 µs) are not worth a second thread.
constexpr int64_t kWorthThreads = 1 << 19;

// Columns of a contraction's result on either side that one thread works on at a time: its f64 sums and both packed blocks
// fit in a core's own cache.
constexpr int64_t kResultSide = 192;

// Runs `body(item, worker's scratch)` on every item; which thread takes which does not matter to the result.
template <typename Scratch, typename Body>
void in_parallel(int64_t items, bool worth_threads, const Scratch& scratch, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t workers = worth_threads ? std::min<int64_t>(items, at::get_num_threads()) : 1;
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      auto own = scratch();
      for (int64_t item = next++; item < items; item = next++) body(item, own);
    }
  });
}

struct Release {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

template <typename T>
using Aligned = std::unique_ptr<T[], Release>;

template <typename T>
Aligned<T> aligned(int64_t count) {
  return Aligned<T>(static_cast<T*>(::operator new(sizeof(T) * static_cast<size_t>(count), std::align_val_t(64))));
}

void require_rows(const at::Tensor& rows) {
  require(rows.defined() && rows.dim() == 3 && rows.is_cpu() && rows.scalar_type() == at::kFloat, "rows are not [records, rows, width] in f32");
  require(rows.size(2) <= 1 || rows.stride(2) == 1, "a row is not in one piece");
}

// How the tiles of a record are cut: items are rows of blocks.
struct Cut {
  int64_t records, count, width, groups, blocks, tiles;
  explicit Cut(const at::Tensor& rows)
      : records(rows.size(0)), count(rows.size(1)), width(rows.size(2)), groups((count + 3) / 4),
        blocks((groups + kBlockGroups - 1) / kBlockGroups), tiles(groups * (groups + 1) / 2) {}
  bool worth_threads() const { return records * tiles * 16 * width > kWorthThreads; }
  Rows of(const at::Tensor& rows, int64_t record) const {
    return {rows.const_data_ptr<float>() + record * rows.stride(0), rows.stride(1), count};
  }
  // Tiles of earlier rows of blocks.
  int64_t before(int64_t block) const {
    const int64_t first = block * kBlockGroups;
    return first * groups - first * (first - 1) / 2;
  }
  Pair pair(int64_t low, int64_t high) const {
    const auto end = [&](int64_t block) { return std::min(groups, (block + 1) * kBlockGroups); };
    return {low * kBlockGroups, end(low), high * kBlockGroups, end(high)};
  }
};

// The tiles of one pair; dot products with rows beyond the last are zero.
void make_tiles(const Kernels& kernels, const Cut& cut, const Rows& rows, const Pair& pair, float* tiles) {
  std::fill_n(tiles, pair.tiles() * 16, 0.0f);
  for (int64_t first = 0; first < cut.width; first += kernels.chunk)
    kernels.gram_tiles(rows, pair, first, std::min(kernels.chunk, cut.width - first), tiles);
  const int64_t last = cut.count % 4;
  if (last == 0 || pair.high_end != cut.groups) return;
  for (int64_t i = pair.low; i < pair.low_end; ++i)
    for (int64_t j = pair.begin(i); j < pair.high_end; ++j, tiles += 16)
      for (int64_t e = 0; e < 16; ++e)
        if ((i == cut.groups - 1 && e / 4 >= last) || (j == cut.groups - 1 && e % 4 >= last)) tiles[e] = 0.0f;
}

// The diagonal of a pair's tiles.
void read_diagonal(const Cut& cut, const Pair& pair, const float* tiles, float* squares) {
  if (pair.low != pair.high) return;
  for (int64_t i = pair.low; i < pair.low_end; tiles += 16 * (pair.high_end - i), ++i)
    for (int64_t r = 0; r < std::min<int64_t>(4, cut.count - 4 * i); ++r) squares[4 * i + r] = tiles[5 * r];
}

}  // namespace

at::Tensor gram(const at::Tensor& rows, int32_t lanes) {
  require_rows(rows);
  const Kernels& kernels = bastion::kernels(lanes);
  const Cut cut(rows);
  at::Tensor tiles = at::empty({cut.records, cut.tiles, 16}, rows.options().memory_format(at::MemoryFormat::Contiguous));
  float* to = tiles.data_ptr<float>();
  in_parallel(cut.records * cut.blocks, cut.worth_threads(), [] { return 0; }, [&](int64_t item, int) {
    const int64_t record = item / cut.blocks, low = item % cut.blocks;
    const Rows own = cut.of(rows, record);
    float* place = to + (record * cut.tiles + cut.before(low)) * 16;
    for (int64_t high = low; high < cut.blocks; ++high) {
      const Pair pair = cut.pair(low, high);
      make_tiles(kernels, cut, own, pair, place);
      place += pair.tiles() * 16;
    }
  });
  return tiles;
}

GramProducts gram_products(const at::Tensor& tiles, const at::Tensor& rows, int32_t lanes) {
  require_rows(rows);
  const Kernels& kernels = bastion::kernels(lanes);
  const Cut cut(rows);
  require(tiles.defined() && tiles.is_cpu() && tiles.scalar_type() == at::kFloat && tiles.is_contiguous() &&
              tiles.sizes() == at::IntArrayRef{cut.records, cut.tiles, 16},
          "Gram tiles of other rows");
  const auto f64 = rows.options().dtype(at::kDouble);
  const at::Tensor parts = at::zeros({cut.records, cut.blocks}, f64);
  const GramProducts found{at::zeros({cut.records}, f64), at::zeros({cut.records, cut.count}, rows.options()),
                           at::zeros({cut.records, cut.count}, rows.options())};
  const float* lefts = tiles.const_data_ptr<float>();
  double* sums = parts.data_ptr<double>();
  float *left_squares = found.left.data_ptr<float>(), *right_squares = found.right.data_ptr<float>();
  const auto scratch = [] { return aligned<float>(kBlockGroups * kBlockGroups * 16); };
  in_parallel(cut.records * cut.blocks, cut.worth_threads(), scratch, [&](int64_t item, const Aligned<float>& rights) {
    const int64_t record = item / cut.blocks, low = item % cut.blocks;
    const Rows own = cut.of(rows, record);
    const float* left = lefts + (record * cut.tiles + cut.before(low)) * 16;
    double sum = 0.0;
    for (int64_t high = low; high < cut.blocks; ++high) {
      const Pair pair = cut.pair(low, high);
      make_tiles(kernels, cut, own, pair, rights.get());
      sum += kernels.tile_products(pair, left, rights.get());
      read_diagonal(cut, pair, left, left_squares + record * cut.count);
      read_diagonal(cut, pair, rights.get(), right_squares + record * cut.count);
      left += pair.tiles() * 16;
    }
    sums[item] = sum;
  });
  double* to = found.sums.data_ptr<double>();
  for (int64_t item = 0; item < cut.records * cut.blocks; ++item) to[item / cut.blocks] += sums[item];
  return found;
}

namespace {

// Columns of one side that are packed at a time, and how many of them a thread works on.
struct Side {
  int64_t width, panel, part, parts;
  Side(int64_t width, int64_t panel, int64_t fewest) : width(width), panel(panel) {
    const int64_t wanted = std::max(fewest, (width + kResultSide - 1) / kResultSide);
    part = std::max<int64_t>(1, ((width + wanted - 1) / wanted + panel - 1) / panel) * panel;
    parts = (width + part - 1) / part;
  }
  int64_t first(int64_t index) const { return index * part; }
  int64_t count(int64_t index) const { return std::min(part, width - index * part); }
  int64_t panels(int64_t columns) const { return (columns + panel - 1) / panel; }
  int64_t padded() const { return panels(width) * panel; }
};

// The rows of one side, block by block in panels: of a block first [panels][rows][panel columns].
struct Packed {
  Aligned<float> values;
  int64_t width;
  float* block(int64_t rows_before) const { return values.get() + rows_before * width; }
};

// The blocks of a contraction's rows: (first, count) pairs.
struct Blocks {
  at::IntArrayRef list;
  std::vector<int64_t> before;
  explicit Blocks(at::IntArrayRef list) : list(list), before(1, 0) {
    for (size_t block = 0; block < count(); ++block) before.push_back(before.back() + rows(block));
  }
  size_t count() const { return list.size() / 2; }
  int64_t first(size_t block) const { return list[2 * block]; }
  int64_t rows(size_t block) const { return list[2 * block + 1]; }
};

// A contraction's operand.
struct Operand {
  const float* at;
  int64_t record_stride, row_stride, length;
  explicit Operand(const at::Tensor& rows)
      : at(rows.const_data_ptr<float>()), record_stride(rows.stride(0)), row_stride(rows.stride(1)), length(rows.size(1)) {}
  const float* row(int64_t flat, int64_t column) const { return at + flat / length * record_stride + flat % length * row_stride + column; }
};

// Few enough rows that what is read of them and written of a panel stays in the nearest cache.
constexpr int64_t kPackedRows = 8;

// Packs columns [first, first + side.width) of all blocks' rows; multiplied by the factors where they are given.
Packed packed(decltype(Kernels::pack_left) pack, const Operand& operand, const Side& side, int64_t first, const Blocks& blocks,
              const double* factors, bool scaled, bool worth_threads) {
  Packed packed{aligned<float>(blocks.before.back() * side.padded()), side.padded()};
  const auto none = [] { return 0; };
  in_parallel(static_cast<int64_t>(blocks.count()), worth_threads, none, [&](int64_t block, int) {
    const int64_t count = blocks.rows(block);
    for (int64_t begin = 0; begin < count; begin += kPackedRows) {
      const float* rows[kPackedRows];
      uint32_t masks[kPackedRows];
      float scales[kPackedRows];
      const int64_t few = std::min(kPackedRows, count - begin);
      for (int64_t k = 0; k < few; ++k) {
        const int64_t flat = blocks.first(block) + begin + k;
        const double factor = factors[flat / operand.length];
        rows[k] = operand.row(flat, first);
        masks[k] = factor > 0.0 ? ~0u : 0u;
        scales[k] = factor > 0.0 ? static_cast<float>(factor) : 0.0f;
      }
      pack(rows, masks, scaled ? scales : nullptr, few, side.width, count, packed.block(blocks.before[block]) + begin * side.panel);
    }
  });
  return packed;
}

// Columns of either side that are packed at a time: a whole number of parts.
constexpr int64_t kStrip = 10 * kResultSide;

}  // namespace

bool contract(const at::Tensor& left, const at::Tensor& right, const at::Tensor& factors, at::IntArrayRef blocks, const Grid& grid,
              int64_t* sums, size_t sum_count, bool fresh, int32_t lanes) {
  require_rows(left);
  require_rows(right);
  const int64_t records = left.size(0), length = left.size(1);
  require(right.size(0) == records && right.size(1) == length, "rows of two sides that do not match");
  require(factors.dim() == 1 && factors.size(0) == records && factors.is_cpu() && factors.scalar_type() == at::kDouble && factors.is_contiguous(),
          "factors are not one f64 a record");
  require(sum_count == static_cast<size_t>(left.size(2) * right.size(2)), "sums of another shape");
  require(blocks.size() % 2 == 0, "blocks are pairs");
  for (size_t block = 0; block < blocks.size(); block += 2) {
    const int64_t first = blocks[block], count = blocks[block + 1];
    require(first >= 0 && count > 0 && count <= kMostBlockRows && first <= records * length - count, "a block that is not of these rows");
  }
  const Kernels& kernels = bastion::kernels(lanes);
  const int64_t width = left.size(2), stride = right.size(2);
  const bool worth_threads = records * length * width * stride > kWorthThreads;
  const auto to_grid = fresh ? kernels.put_on_grid : kernels.add_to_grid;
  const Blocks all(blocks);
  const Operand lefts(left), rights(right);
  const double* factor_of = factors.const_data_ptr<double>();
  std::atomic<bool> fine{true};
  for (int64_t first_column = 0; first_column < stride; first_column += kStrip) {
    const Side columns(std::min(kStrip, stride - first_column), kernels.columns, 1);
    const Packed right_panels = packed(kernels.pack_right, rights, columns, first_column, all, factor_of, false, worth_threads);
    for (int64_t first_row = 0; first_row < width; first_row += kStrip) {
      const int64_t shares = worth_threads ? (2 * at::get_num_threads() + columns.parts - 1) / columns.parts : 1;
      const Side rows(std::min(kStrip, width - first_row), kernels.rows, shares);
      const Packed left_panels = packed(kernels.pack_left, lefts, rows, first_row, all, factor_of, true, worth_threads);
      const auto scratch = [&] { return aligned<double>(rows.part * columns.part); };
      in_parallel(rows.parts * columns.parts, worth_threads, scratch, [&](int64_t item, const Aligned<double>& own) {
        const int64_t row = item / columns.parts, column = item % columns.parts;
        const int64_t left_count = rows.panels(rows.count(row)), right_count = columns.panels(columns.count(column));
        std::fill_n(own.get(), left_count * rows.panel * right_count * columns.panel, 0.0);
        for (size_t block = 0; block < all.count(); ++block) {
          const int64_t count = all.rows(block);
          kernels.multiply_panels(left_panels.block(all.before[block]) + rows.first(row) * count, left_count,
                                  right_panels.block(all.before[block]) + columns.first(column) * count, right_count, count, own.get());
        }
        int64_t* to = sums + (first_row + rows.first(row)) * stride + first_column + columns.first(column);
        if (!to_grid(own.get(), rows.count(row), columns.count(column), grid, stride, to)) fine = false;
      });
    }
  }
  return fine;
}

}  // namespace bastion
