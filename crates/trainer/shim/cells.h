// The arithmetic of one step of a recurrent cell, for a range of rows: everything but the matrix products, in one pass.
//
// A row is worked on by itself and in the same order whatever stands in the others, and an element is computed alike in
// vectors of any width but for the contraction of a multiplication and an addition, which the processor decides once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace bastion {

#define BASTION_INLINE inline __attribute__((always_inline))

// e^x to 2 units in the last place: Cephes' polynomial after reduction by multiples of ln 2. NaN stays NaN.
BASTION_INLINE float exponential(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + kMagic;
  const float whole = shifted - kMagic;
  float rest = x - whole * 0.693359375f;
  rest = rest - whole * -2.12194440e-4f;
  float power = 1.9875691500e-4f;
  power = power * rest + 1.3981999507e-3f;
  power = power * rest + 8.3334519073e-3f;
  power = power * rest + 4.1665795894e-2f;
  power = power * rest + 1.6666665459e-1f;
  power = power * rest + 5.0000001201e-1f;
  power = power * rest * rest + rest + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3F800000u;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}

BASTION_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Cephes' tanhf: an odd polynomial near zero, where the quotient would cancel.
BASTION_INLINE float hyperbolic_tangent(float x) {
  const float square = x * x;
  float odd = -5.70498872745e-3f;
  odd = odd * square + 2.06390887954e-2f;
  odd = odd * square - 5.37397155531e-2f;
  odd = odd * square + 1.33314422036e-1f;
  odd = odd * square - 3.33332819422e-1f;
  odd = odd * square * x + x;
  const float quotient = 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
  return square < 0.390625f ? odd : quotient;
}

BASTION_INLINE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
BASTION_INLINE double hyperbolic_tangent(double x) { return std::tanh(x); }

// Rows of one step. Of [N, T, width] tensors the pointers are to the step's first row and `*_stride` elements lead to
// the next; the others are [N, width].
template <typename T>
struct Forward {
  int64_t hidden;
  T* gates;           // input projections; overwritten with the gates (unused by relu and tanh cells)
  int64_t gate_stride;
  const T* product;   // [N, gates]: previous outputs times recurrent weight (GRU: plus its bias)
  const T* previous;  // previous cell state (LSTM) or previous output (GRU)
  int64_t previous_stride;
  T* kept;            // cell state (LSTM), recurrent part of the candidate (GRU)
  int64_t kept_stride;
  T* output;
  int64_t output_stride;
  T* now;             // [N, hidden]: the output again, for the next product
};

template <typename T>
struct Backward {
  int64_t hidden;
  const T* gates;
  int64_t gate_stride;
  const T* kept;
  int64_t kept_stride;
  const T* previous;  // as in Forward; of relu and tanh cells unused
  int64_t previous_stride;
  const T* output;    // of relu and tanh cells
  int64_t output_stride;
  const T* gradient;  // of the output; may be null
  T* carried;         // [N, hidden]: gradient of the output from later steps; GRU: overwritten with what passes by
  T* carried_cell;    // [N, hidden]: gradient of the cell state from later steps, overwritten (LSTM)
  T* pre;             // gradient of the input projections, [N, T, gates]
  T* recurrent;       // gradient of the recurrent projections, [N, T, gates]; may be null (GRU only)
  T* now;             // [N, gates]: gradient of the recurrent projections of this step
};

struct Lstm {
  template <typename T>
  static BASTION_INLINE void forward(const Forward<T>& f, int64_t n) {
    const int64_t h = f.hidden;
    T* gate = f.gates + n * f.gate_stride;
    const T* product = f.product + n * 4 * h;
    const T* previous = f.previous + n * f.previous_stride;
    T *kept = f.kept + n * f.kept_stride, *output = f.output + n * f.output_stride, *now = f.now + n * h;
#pragma GCC ivdep
    for (int64_t j = 0; j < h; ++j) {
      const T input = sigmoid(gate[j] + product[j]);
      const T forget = sigmoid(gate[h + j] + product[h + j]);
      const T candidate = hyperbolic_tangent(gate[2 * h + j] + product[2 * h + j]);
      const T out = sigmoid(gate[3 * h + j] + product[3 * h + j]);
      const T cell = forget * previous[j] + input * candidate;
      const T result = out * hyperbolic_tangent(cell);
      gate[j] = input;
      gate[h + j] = forget;
      gate[2 * h + j] = candidate;
      gate[3 * h + j] = out;
      kept[j] = cell;
      output[j] = result;
      now[j] = result;
    }
  }

  template <typename T>
  static BASTION_INLINE void backward(const Backward<T>& b, int64_t n) {
    const int64_t h = b.hidden;
    const T* gate = b.gates + n * b.gate_stride;
    const T *cell = b.kept + n * b.kept_stride, *previous = b.previous + n * b.previous_stride;
    const T* gradient = b.gradient ? b.gradient + n * b.output_stride : nullptr;
    T *carried = b.carried + n * h, *carried_cell = b.carried_cell + n * h;
    T *pre = b.pre + n * b.gate_stride, *now = b.now + n * 4 * h;
#pragma GCC ivdep
    for (int64_t j = 0; j < h; ++j) {
      const T input = gate[j], forget = gate[h + j], candidate = gate[2 * h + j], out = gate[3 * h + j];
      const T squashed = hyperbolic_tangent(cell[j]);
      const T arriving = carried[j] + (gradient ? gradient[j] : T(0));
      const T of_cell = carried_cell[j] + arriving * out * (T(1) - squashed * squashed);
      const T of_input = of_cell * candidate * input * (T(1) - input);
      const T of_forget = of_cell * previous[j] * forget * (T(1) - forget);
      const T of_candidate = of_cell * input * (T(1) - candidate * candidate);
      const T of_out = arriving * squashed * out * (T(1) - out);
      carried_cell[j] = of_cell * forget;
      pre[j] = now[j] = of_input;
      pre[h + j] = now[h + j] = of_forget;
      pre[2 * h + j] = now[2 * h + j] = of_candidate;
      pre[3 * h + j] = now[3 * h + j] = of_out;
    }
  }
};

struct Gru {
  template <typename T>
  static BASTION_INLINE void forward(const Forward<T>& f, int64_t n) {
    const int64_t h = f.hidden;
    T* gate = f.gates + n * f.gate_stride;
    const T* product = f.product + n * 3 * h;
    const T* previous = f.previous + n * f.previous_stride;
    T *kept = f.kept + n * f.kept_stride, *output = f.output + n * f.output_stride, *now = f.now + n * h;
#pragma GCC ivdep
    for (int64_t j = 0; j < h; ++j) {
      const T reset = sigmoid(gate[j] + product[j]);
      const T update = sigmoid(gate[h + j] + product[h + j]);
      const T recurrent = product[2 * h + j];
      const T candidate = hyperbolic_tangent(gate[2 * h + j] + reset * recurrent);
      const T result = candidate + update * (previous[j] - candidate);
      gate[j] = reset;
      gate[h + j] = update;
      gate[2 * h + j] = candidate;
      kept[j] = recurrent;
      output[j] = result;
      now[j] = result;
    }
  }

  template <typename T>
  static BASTION_INLINE void backward(const Backward<T>& b, int64_t n) {
    const int64_t h = b.hidden;
    const T* gate = b.gates + n * b.gate_stride;
    const T *recurrent = b.kept + n * b.kept_stride, *previous = b.previous + n * b.previous_stride;
    const T* gradient = b.gradient ? b.gradient + n * b.output_stride : nullptr;
    T* carried = b.carried + n * h;
    T *pre = b.pre + n * b.gate_stride, *now = b.now + n * 3 * h;
    T* kept = b.recurrent ? b.recurrent + n * b.gate_stride : nullptr;
#pragma GCC ivdep
    for (int64_t j = 0; j < h; ++j) {
      const T reset = gate[j], update = gate[h + j], candidate = gate[2 * h + j];
      const T arriving = carried[j] + (gradient ? gradient[j] : T(0));
      const T of_candidate = arriving * (T(1) - update) * (T(1) - candidate * candidate);
      const T of_update = arriving * (previous[j] - candidate) * update * (T(1) - update);
      const T of_reset = of_candidate * recurrent[j] * reset * (T(1) - reset);
      carried[j] = arriving * update;
      pre[j] = now[j] = of_reset;
      pre[h + j] = now[h + j] = of_update;
      pre[2 * h + j] = of_candidate;
      now[2 * h + j] = of_candidate * reset;
    }
    if (kept) std::memcpy(kept, now, sizeof(T) * 3 * h);
  }
};

template <bool kRelu>
struct Plain {
  template <typename T>
  static BASTION_INLINE void forward(const Forward<T>& f, int64_t n) {
    const T *gate = f.gates + n * f.gate_stride, *product = f.product + n * f.hidden;
    T *output = f.output + n * f.output_stride, *now = f.now + n * f.hidden;
#pragma GCC ivdep
    for (int64_t j = 0; j < f.hidden; ++j) {
      const T sum = gate[j] + product[j];
      // Not max(sum, 0), which would turn NaN into 0.
      output[j] = now[j] = kRelu ? (sum < T(0) ? T(0) : sum) : hyperbolic_tangent(sum);
    }
  }

  template <typename T>
  static BASTION_INLINE void backward(const Backward<T>& b, int64_t n) {
    const T* output = b.output + n * b.output_stride;
    const T* gradient = b.gradient ? b.gradient + n * b.output_stride : nullptr;
    const T* carried = b.carried + n * b.hidden;
    T *pre = b.pre + n * b.gate_stride, *now = b.now + n * b.hidden;
#pragma GCC ivdep
    for (int64_t j = 0; j < b.hidden; ++j) {
      const T arriving = carried[j] + (gradient ? gradient[j] : T(0));
      const T slope = kRelu ? (output[j] > T(0) ? T(1) : T(0)) : T(1) - output[j] * output[j];
      pre[j] = now[j] = arriving * slope;
    }
  }
};

// The loops once for each width of vectors, chosen by what the processor has.
#define BASTION_WIDE __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")))
#define BASTION_MIDDLE __attribute__((target("avx2,fma")))


#define BASTION_LOOPS(NAME, STEP, CALL)                                                             \
  template <typename Cell, typename T>                                                              \
  BASTION_WIDE void NAME##_wide(const STEP<T>& step, int64_t begin, int64_t end) {                  \
    for (int64_t n = begin; n < end; ++n) Cell::CALL(step, n);                                      \
  }                                                                                                 \
  template <typename Cell, typename T>                                                              \
  BASTION_MIDDLE void NAME##_middle(const STEP<T>& step, int64_t begin, int64_t end) {              \
    for (int64_t n = begin; n < end; ++n) Cell::CALL(step, n);                                      \
  }                                                                                                 \
  template <typename Cell, typename T>                                                              \
  void NAME##_plain(const STEP<T>& step, int64_t begin, int64_t end) {                              \
    for (int64_t n = begin; n < end; ++n) Cell::CALL(step, n);                                      \
  }                                                                                                 \
  template <typename Cell, typename T>                                                              \
  void NAME(const STEP<T>& step, int64_t begin, int64_t end) {                                      \
    static const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && \
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"); \
    static const bool middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");     \
    if (wide && middle) NAME##_wide<Cell>(step, begin, end);                                        \
    else if (middle) NAME##_middle<Cell>(step, begin, end);                                         \
    else NAME##_plain<Cell>(step, begin, end);                                                      \
  }

BASTION_LOOPS(forward_rows, Forward, forward)
BASTION_LOOPS(backward_rows, Backward, backward)

#undef BASTION_LOOPS
#undef BASTION_WIDE
#undef BASTION_MIDDLE
#undef BASTION_INLINE

}  // namespace bastion
