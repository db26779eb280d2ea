// The inner loops of products.cpp, for one width of vectors. Included once for each, with
//   BASTION_LANES   f32 in a vector: 16 (AVX-512), 8 (AVX2 with FMA), 4 (any processor)
//   BASTION_TARGET  the attribute that lets a function use them
// and inside a namespace of its own. No function here calls one of the standard library that is not inlined: a copy compiled
// for wide vectors must never be the one that the linker keeps for everybody.

typedef float Vector __attribute__((vector_size(4 * BASTION_LANES)));
// The same at any address.
typedef float Loose __attribute__((vector_size(4 * BASTION_LANES), aligned(4), may_alias));

constexpr int kLanes = BASTION_LANES;

// Terms of a dot product before its lanes are added up: 48 or 64 in each lane, in cache.
constexpr int64_t kChunk = kLanes == 16 ? 768 : 64 * kLanes;

// A block of a contraction's result that stays in registers: kRows × kColumns.
constexpr int kRows = kLanes == 16 ? 8 : 4;
constexpr int kVectors = kLanes == 4 ? 2 : 3;
constexpr int kColumns = kVectors * kLanes;

#define BASTION_INNER static inline __attribute__((always_inline)) BASTION_TARGET

BASTION_INNER Vector load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
BASTION_INNER void store(float* at, Vector value) { *reinterpret_cast<Loose*>(at) = value; }

// The first `count` of them, and zeros.
BASTION_INNER Vector load_part(const float* at, int64_t count) {
  float values[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = at[i];
  return load(values);
}

#if BASTION_LANES == 16
BASTION_INNER Vector fused(Vector a, Vector b, Vector sum) { return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum); }
BASTION_INNER Vector all(float value) { return (Vector)_mm512_set1_ps(value); }
#elif BASTION_LANES == 8
BASTION_INNER Vector fused(Vector a, Vector b, Vector sum) { return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum); }
BASTION_INNER Vector all(float value) { return (Vector)_mm256_set1_ps(value); }
#else
BASTION_INNER Vector fused(Vector a, Vector b, Vector sum) { return sum + a * b; }
BASTION_INNER Vector all(float value) { return Vector{value, value, value, value}; }
#endif

// Sums of the lanes of four rows' products with kWide columns, kSide of a row. Two steps add pairs within 16 bytes, the
// others whole groups of four.
#if BASTION_LANES == 16
constexpr int kWide = 4;
BASTION_INNER void add_lanes(const Vector (&sums)[4][4], float* to) {
  __m512 quads[4];
  for (int r = 0; r < 4; ++r) {
    const __m512 a = (__m512)sums[r][0], b = (__m512)sums[r][1], c = (__m512)sums[r][2], d = (__m512)sums[r][3];
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    quads[r] = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  }
  __m512 pairs[2];
  for (int p = 0; p < 2; ++p)
    pairs[p] = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2 * p], quads[2 * p + 1], 0x44), _mm512_shuffle_f32x4(quads[2 * p], quads[2 * p + 1], 0xEE));
  const __m512 result = _mm512_add_ps(_mm512_shuffle_f32x4(pairs[0], pairs[1], 0x88), _mm512_shuffle_f32x4(pairs[0], pairs[1], 0xDD));
  _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), result));
}
#elif BASTION_LANES == 8
constexpr int kWide = 2;
BASTION_INNER void add_lanes(const Vector (&sums)[4][2], float* to) {
  __m256 pairs[2];
  for (int p = 0; p < 2; ++p) {
    const __m256 a = (__m256)sums[2 * p][0], b = (__m256)sums[2 * p][1], c = (__m256)sums[2 * p + 1][0], d = (__m256)sums[2 * p + 1][1];
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    pairs[p] = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
  }
  float found[8];
  _mm256_storeu_ps(found, _mm256_add_ps(_mm256_permute2f128_ps(pairs[0], pairs[1], 0x20), _mm256_permute2f128_ps(pairs[0], pairs[1], 0x31)));
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 2; ++c) to[4 * r + c] += found[2 * r + c];
}
#else
constexpr int kWide = 2;
BASTION_INNER void add_lanes(const Vector (&sums)[4][2], float* to) {
  for (int r = 0; r < 4; ++r)
    for (int c = 0; c < 2; ++c) {
      const Vector sum = sums[r][c];
      to[4 * r + c] += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}
#endif

// to[4·r + c] += ⟨left[r], right[c]⟩ over `width` terms from `first`, four rows with four.
BASTION_INNER void dot_products(const float* const (&left)[4], const float* const (&right)[4], int64_t first, int64_t width, float* to) {
  const int64_t whole = width / kLanes * kLanes;
  for (int side = 0; side < 4; side += kWide) {
    Vector sums[4][kWide] = {};
    for (int64_t at = first; at < first + whole; at += kLanes) {
      Vector columns[kWide];
#pragma GCC unroll 4
      for (int c = 0; c < kWide; ++c) columns[c] = load(right[side + c] + at);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vector row = load(left[r] + at);
#pragma GCC unroll 4
        for (int c = 0; c < kWide; ++c) sums[r][c] = fused(row, columns[c], sums[r][c]);
      }
    }
    if (whole < width) {
      const int64_t at = first + whole, rest = width - whole;
      Vector columns[kWide];
      for (int c = 0; c < kWide; ++c) columns[c] = load_part(right[side + c] + at, rest);
      for (int r = 0; r < 4; ++r) {
        const Vector row = load_part(left[r] + at, rest);
        for (int c = 0; c < kWide; ++c) sums[r][c] = fused(row, columns[c], sums[r][c]);
      }
    }
    add_lanes(sums, to + side);
  }
}

// Four rows of one record; beyond the last row it repeats it.
BASTION_INNER void group(const Rows& rows, int64_t of, const float* (&pointers)[4]) {
  for (int64_t r = 0; r < 4; ++r) {
    const int64_t row = 4 * of + r;
    pointers[r] = rows.at + (row < rows.count ? row : rows.count - 1) * rows.stride;
  }
}

// `width` terms from `first` of a pair's tiles, added to them.
BASTION_TARGET static void gram_tiles(const Rows& rows, const Pair& pair, int64_t first, int64_t width, float* tiles) {
  for (int64_t i = pair.low; i < pair.low_end; ++i) {
    const float* left[4];
    group(rows, i, left);
    for (int64_t j = pair.begin(i); j < pair.high_end; ++j, tiles += 16) {
      const float* right[4];
      group(rows, j, right);
      dot_products(left, right, first, width, tiles);
    }
  }
}

// Sum of the products of two Gram matrices' elements over a pair's tiles, those off the diagonal twice.
BASTION_TARGET static double tile_products(const Pair& pair, const float* left, const float* right) {
  double sums[16] = {};
  for (int64_t i = pair.low; i < pair.low_end; ++i)
    for (int64_t j = pair.begin(i); j < pair.high_end; ++j, left += 16, right += 16) {
      const double times = i == j ? 1.0 : 2.0;
#pragma GCC ivdep
      for (int e = 0; e < 16; ++e) sums[e] += times * static_cast<double>(left[e]) * static_cast<double>(right[e]);
    }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// As many values as a panel of the left side has rows.
typedef float Strip __attribute__((vector_size(4 * kRows)));
typedef float LooseStrip __attribute__((vector_size(4 * kRows), aligned(4), may_alias));
typedef uint32_t StripBits __attribute__((vector_size(4 * kRows)));

// One row's part of a panel of kPanel columns, zero beyond `count`; zero altogether where the mask is 0, whatever the row holds.
template <int kPanel>
BASTION_INNER void pack_row(const float* from, int64_t count, uint32_t mask, float factor, bool scaled, float* to) {
  float part[kPanel];
  if (count < kPanel) {
    for (int i = 0; i < kPanel; ++i) part[i] = 0.0f;
    for (int64_t i = 0; i < count; ++i) part[i] = from[i];
    from = part;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPanel; i += kRows) {
    Strip values = *reinterpret_cast<const LooseStrip*>(from + i);
    values = (Strip)((StripBits)values & mask);
    if (scaled) values *= factor;
    *reinterpret_cast<LooseStrip*>(to + i) = values;
  }
}

// `columns` columns of a few rows of a contraction into panels of kPanel columns, each with `panel_rows` rows. With factors rows are
// multiplied by theirs.
template <int kPanel>
BASTION_INNER void pack(const float* const* rows, const uint32_t* masks, const float* factors, int64_t row_count, int64_t columns, int64_t panel_rows,
                        float* to) {
  for (int64_t column = 0; column < columns; column += kPanel, to += panel_rows * kPanel)
    for (int64_t k = 0; k < row_count; ++k)
      pack_row<kPanel>(rows[k] + column, columns - column, masks[k], factors ? factors[k] : 1.0f, factors != nullptr, to + k * kPanel);
}

BASTION_TARGET static void pack_left(const float* const* rows, const uint32_t* masks, const float* factors, int64_t row_count, int64_t columns,
                                     int64_t panel_rows, float* to) {
  pack<kRows>(rows, masks, factors, row_count, columns, panel_rows, to);
}

BASTION_TARGET static void pack_right(const float* const* rows, const uint32_t* masks, const float* factors, int64_t row_count, int64_t columns,
                                      int64_t panel_rows, float* to) {
  pack<kColumns>(rows, masks, factors, row_count, columns, panel_rows, to);
}

// One block of the result: f32 sums over `rows` rows, added to the f64 sums at `to`, [kRows][kColumns].
BASTION_INNER void multiply(const float* left, const float* right, int64_t rows, double* to) {
  Vector sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < rows; ++k, left += kRows, right += kColumns) {
    Vector columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) columns[v] = load(right + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector row = all(left[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fused(row, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float found[kColumns];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(found + v * kLanes, sums[r][v]);
    for (int c = 0; c < kColumns; ++c) to[r * kColumns + c] += static_cast<double>(found[c]);
  }
}

// All blocks of panels of `left` and `right`.
BASTION_TARGET static void multiply_panels(const float* left, int64_t left_panels, const float* right, int64_t right_panels, int64_t rows, double* to) {
  for (int64_t j = 0; j < right_panels; ++j)
    for (int64_t i = 0; i < left_panels; ++i)
      multiply(left + i * rows * kRows, right + j * rows * kColumns, rows, to + (j * left_panels + i) * kRows * kColumns);
}

// Adds blocks of the result to `sums`, [rows][stride] integers, or puts them there if they are `fresh`, which are not read then; each
// element rounded to the nearest unit. False when one is not finite or beyond the limit.
template <bool fresh>
BASTION_TARGET static bool add_to_grid(const double* from, int64_t rows, int64_t columns, const Grid& grid, int64_t stride, int64_t* sums) {
  const int64_t left_panels = (rows + kRows - 1) / kRows;
  bool fine = true;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t first = 0; first < columns; first += kColumns) {
      const double* values = from + ((first / kColumns * left_panels + row / kRows) * kRows + row % kRows) * kColumns;
      int64_t* to = sums + row * stride + first;
      const int64_t count = columns - first < kColumns ? columns - first : kColumns;
      bool part = true;
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) {
        const double units = values[i] * grid.units;
        // False for what is not a number.
        part &= __builtin_fabs(units) <= grid.limit;
        const double shifted = units + kRoundingShift;
        uint64_t bits, shift;
        __builtin_memcpy(&bits, &shifted, sizeof bits);
        __builtin_memcpy(&shift, &kRoundingShift, sizeof shift);
        const uint64_t before = fresh ? 0 : static_cast<uint64_t>(to[i]);
        to[i] = static_cast<int64_t>(before + (bits - shift));
      }
      fine &= part;
    }
  return fine;
}

static const Kernels kKernels{kLanes, kChunk, kRows, kColumns, gram_tiles, tile_products, pack_left, pack_right, multiply_panels, add_to_grid<false>, add_to_grid<true>};

#undef BASTION_INNER
#undef BASTION_LANES
#undef BASTION_TARGET
