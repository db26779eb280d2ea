// The inner loops of convolution.cpp, for one width of vectors. Included once for each, inside a namespace of its own, with
//   BASTION_LANES   f32 in a vector: 16 (AVX-512) or 8 (AVX2 with FMA)
//   BASTION_TARGET  the attribute that lets a function use them

constexpr int kLanes = BASTION_LANES;

// Rows of a tile of the result: with two slots their sums fill the registers but for the operands.
constexpr int kRows = kLanes == 16 ? 14 : 6;

#define BASTION_INNER static inline __attribute__((always_inline)) BASTION_TARGET

#if BASTION_LANES == 16
typedef __m512 Vector;
typedef __m512d Wide;
BASTION_INNER Vector load(const float* at) { return _mm512_loadu_ps(at); }
BASTION_INNER Vector all(float value) { return _mm512_set1_ps(value); }
BASTION_INNER Vector zero() { return _mm512_setzero_ps(); }
BASTION_INNER Vector fused(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
BASTION_INNER Vector plus(Vector a, Vector b) { return _mm512_add_ps(a, b); }
struct Mask {
  __mmask16 bits;
};
BASTION_INNER Mask first_lanes(int32_t lanes) { return {static_cast<__mmask16>((1u << lanes) - 1u)}; }
BASTION_INNER Vector load(const float* at, Mask mask) { return _mm512_maskz_loadu_ps(mask.bits, at); }
BASTION_INNER Vector kept(Vector value, Mask mask) { return _mm512_maskz_mov_ps(mask.bits, value); }
BASTION_INNER void store(float* at, Vector value, Mask mask) { _mm512_mask_storeu_ps(at, mask.bits, value); }
BASTION_INNER Wide nothing() { return _mm512_setzero_pd(); }
BASTION_INNER Wide add_square(Wide sum, __m256 half) {
  const __m512d value = _mm512_cvtps_pd(half);
  return _mm512_fmadd_pd(value, value, sum);
}
BASTION_INNER void add_squares(Wide (&sums)[2], Vector value) {
  sums[0] = add_square(sums[0], _mm512_castps512_ps256(value));
  sums[1] = add_square(sums[1], _mm512_extractf32x8_ps(value, 1));
}
BASTION_INNER double total(const Wide (&sums)[2]) { return _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1])); }
#else
typedef __m256 Vector;
typedef __m256d Wide;
BASTION_INNER Vector load(const float* at) { return _mm256_loadu_ps(at); }
BASTION_INNER Vector all(float value) { return _mm256_set1_ps(value); }
BASTION_INNER Vector zero() { return _mm256_setzero_ps(); }
BASTION_INNER Vector fused(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
BASTION_INNER Vector plus(Vector a, Vector b) { return _mm256_add_ps(a, b); }
struct Mask {
  __m256i bits;
};
BASTION_INNER Mask first_lanes(int32_t lanes) {
  return {_mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
}
BASTION_INNER Vector load(const float* at, Mask mask) { return _mm256_maskload_ps(at, mask.bits); }
BASTION_INNER Vector kept(Vector value, Mask mask) { return _mm256_and_ps(value, _mm256_castsi256_ps(mask.bits)); }
BASTION_INNER void store(float* at, Vector value, Mask mask) { _mm256_maskstore_ps(at, mask.bits, value); }
BASTION_INNER Wide nothing() { return _mm256_setzero_pd(); }
BASTION_INNER Wide add_square(Wide sum, __m128 half) {
  const __m256d value = _mm256_cvtps_pd(half);
  return _mm256_fmadd_pd(value, value, sum);
}
BASTION_INNER void add_squares(Wide (&sums)[2], Vector value) {
  sums[0] = add_square(sums[0], _mm256_castps256_ps128(value));
  sums[1] = add_square(sums[1], _mm256_extractf128_ps(value, 1));
}
BASTION_INNER double total(const Wide (&sums)[2]) {
  double values[4];
  _mm256_storeu_pd(values, _mm256_add_pd(sums[0], sums[1]));
  return (values[0] + values[1]) + (values[2] + values[3]);
}
#endif

// kCount rows by kSlots slots: sums over all positions, added to the target, and their squares.
template <int kCount, int kSlots>
BASTION_INNER void tile(const BastionWindowProduct& of, const float* packed, int64_t row, const BastionSlot* slots, Wide (&squares)[2]) {
  Vector sums[kCount][kSlots];
#pragma GCC unroll 14
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 2
    for (int s = 0; s < kSlots; ++s) sums[r][s] = zero();
  const float* sources[kSlots];
  for (int s = 0; s < kSlots; ++s) sources[s] = of.source + slots[s].offset;
  for (int64_t t = 0; t < of.positions; ++t, packed += kCount) {
    const int64_t start = of.starts[t];
    Vector columns[kSlots];
#pragma GCC unroll 2
    for (int s = 0; s < kSlots; ++s) columns[s] = load(sources[s] + start);
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r) {
      const Vector value = all(packed[r]);
#pragma GCC unroll 2
      for (int s = 0; s < kSlots; ++s) sums[r][s] = fused(value, columns[s], sums[r][s]);
    }
  }
#pragma GCC unroll 2
  for (int s = 0; s < kSlots; ++s) {
    const Mask mask = first_lanes(slots[s].lanes);
    float* to = of.target + row * of.width + slots[s].column;
#pragma GCC unroll 14
    for (int r = 0; r < kCount; ++r, to += of.width) {
      // What lies behind the last lane may be anything.
      Vector sum = kept(sums[r][s], mask);
      if (of.add) sum = plus(sum, load(to, mask));
      store(to, sum, mask);
      if (of.squares) add_squares(squares, sum);
    }
  }
}

template <int kSlots>
BASTION_INNER void tile_of(int64_t count, const BastionWindowProduct& of, const float* packed, int64_t row, const BastionSlot* slots,
                           Wide (&squares)[2]) {
  switch (count) {
#define BASTION_CASE(N) \
  case N: return tile<N, kSlots>(of, packed, row, slots, squares)
    BASTION_CASE(1);
    BASTION_CASE(2);
    BASTION_CASE(3);
    BASTION_CASE(4);
    BASTION_CASE(5);
    BASTION_CASE(6);
#if BASTION_LANES == 16
    BASTION_CASE(7);
    BASTION_CASE(8);
    BASTION_CASE(9);
    BASTION_CASE(10);
    BASTION_CASE(11);
    BASTION_CASE(12);
    BASTION_CASE(13);
    BASTION_CASE(14);
#endif
#undef BASTION_CASE
    default: return;
  }
}

BASTION_TARGET static void product(const BastionWindowProduct& of) {
  const int64_t panels = (of.rows + kRows - 1) / kRows;
  const auto first = [&](int64_t panel) __attribute__((always_inline)) { return panel * of.rows / panels; };
  // Panels of rows, each [positions][rows of the panel].
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t from = first(panel), count = first(panel + 1) - from;
    float* packed = of.packed + from * of.positions;
    for (int64_t r = 0; r < count; ++r) {
      const float* row = of.plain + (from + r) * of.plain_stride;
      for (int64_t t = 0; t < of.positions; ++t) packed[t * count + r] = row[t];
    }
  }
  Wide squares[2] = {nothing(), nothing()};
  int64_t slot = 0;
  for (; slot + 2 <= of.slot_count; slot += 2)
    for (int64_t panel = 0; panel < panels; ++panel)
      tile_of<2>(first(panel + 1) - first(panel), of, of.packed + first(panel) * of.positions, first(panel), of.slots + slot, squares);
  if (slot < of.slot_count)
    for (int64_t panel = 0; panel < panels; ++panel)
      tile_of<1>(first(panel + 1) - first(panel), of, of.packed + first(panel) * of.positions, first(panel), of.slots + slot, squares);
  if (of.squares) *of.squares += total(squares);
}

#undef BASTION_INNER
#undef BASTION_LANES
#undef BASTION_TARGET
