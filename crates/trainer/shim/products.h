// f32 matrix products of the engine's own, in an order of summation that is known: Gram matrices of the rows of single
// records, and contractions of rows clipped on the way. What they can be off by follows from that order
// (crates/privacy/src/sensitivity.rs); no library promises one.
//
// `lanes` is 0 for the widest vectors of this machine, or 4, 8 or 16 for those. Rows are f32 on the CPU, [records, rows, width],
// with whatever strides but 1 along a row. A record's results depend on its own rows only, bit for bit, whatever its place.
#pragma once
#include <ATen/ATen.h>

#include <cstdint>

namespace bastion {

// Longest chain of additions in one lane, and the fewest terms between two of a dot product's chunks.
constexpr int64_t kMostInLane = 64;
constexpr int64_t kFewestInChunk = 256;

// Most rows of one block of a contraction.
constexpr int64_t kMostBlockRows = 512;

// The dot products ⟨x_s, x_t⟩, s ≤ t, of all rows of each record, in 4 × 4 tiles: [records, tiles, 16].
//
// A dot product of w terms is summed in lanes of at most 64 terms, whose 4 to 16 sums are added in pairs; after 256 to 768
// terms the result is added to that of the terms before. It has at most 64 + 4 + ⌈w / 256⌉ roundings on the way of any term.
at::Tensor gram(const at::Tensor& rows, int32_t lanes);

struct GramProducts {
  // [records], f64: Σ_st ⟨l_s, l_t⟩⟨r_s, r_t⟩ over all s and t, summed in f64.
  at::Tensor sums;
  // [records, rows]: the diagonals ⟨l_t, l_t⟩ and ⟨r_t, r_t⟩.
  at::Tensor left, right;
};

// Of Gram tiles and of the Gram matrices of `rows`, which are never written out.
GramProducts gram_products(const at::Tensor& tiles, const at::Tensor& rows, int32_t lanes);

// The integer grid on which sums are collected: units in 1, and how many of them a sum may have.
struct Grid {
  double units, limit;
};

// Adds Σ_i c_i Σ_t l_it r_itᵀ to `sums`, [left width, right width] integers, rounded to the grid; `fresh` ones are written without being
// read. False when an element is not finite or beyond the limit.
//
// `factors` is [records], f64, each an f32; rows of a record whose factor is not positive are selected as zeros and never multiplied.
// Left rows are multiplied by their factor, one rounding; the rows of a block, (first, count) pairs of flat rows, are summed in f32 in
// one chain; blocks are added in f64.
bool contract(const at::Tensor& left, const at::Tensor& right, const at::Tensor& factors, at::IntArrayRef blocks, const Grid& grid,
              int64_t* sums, size_t sum_count, bool fresh, int32_t lanes);

}  // namespace bastion
