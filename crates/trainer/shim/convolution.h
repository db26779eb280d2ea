// Weight gradients of convolutions, one record and group at a time, from memory that stays in a core's own cache.
#pragma once
#include <cstdint>

#ifdef __cplusplus
extern "C" {
#endif

// Neighbouring columns of a record's unfolded rows, at most as many as the product's vectors have lanes.
typedef struct {
  // The first of them, from the start of a row.
  int32_t offset;
  // The first column of the result that they are.
  int32_t column;
  int32_t lanes;
} BastionSlot;

// target[r][column] += Σ_t plain[r][t] · source[starts[t] + offset] for each column of each slot, in f32.
typedef struct {
  // Of the vectors: 16 or 8, and no more than bastion_convolution_lanes().
  int32_t lanes;
  // [rows, positions], `plain_stride` elements from row to row.
  const float* plain;
  int64_t plain_stride;
  int64_t rows;
  int64_t positions;
  // Readable from any start and offset for as many elements as there are lanes.
  const float* source;
  // [positions].
  const int32_t* starts;
  const BastionSlot* slots;
  int64_t slot_count;
  // [rows, width].
  float* target;
  int64_t width;
  // Room for rows · positions.
  float* packed;
  // Whether to add to the target, or to overwrite it.
  int32_t add;
  // The sum of the result's squares is added here, in f64; may be null.
  double* squares;
} BastionWindowProduct;

// Lanes of the widest vectors of this machine; 0 where there is no kernel for it.
int32_t bastion_convolution_lanes(void);

// Each sum is one chain of fused multiplications and additions in the order of positions.
void bastion_window_product(const BastionWindowProduct* product);

#ifdef __cplusplus
}
#endif
