#include "convolution.h"

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "bounds of rounding and the refusal of NaN need arithmetic as it is written: build without -ffast-math"
#endif

#if defined(__x86_64__)
#include <immintrin.h>

// GCC 12 takes its own _mm512_undefined_ps for a variable that was forgotten.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace {
namespace wide {
#define BASTION_LANES 16
#define BASTION_TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#include "convolution_kernels.h"
}  // namespace wide
namespace middle {
#define BASTION_LANES 8
#define BASTION_TARGET __attribute__((target("avx2,fma")))
#include "convolution_kernels.h"
}  // namespace middle

int32_t lanes() {
  static const bool has_middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool has_wide = has_middle && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  return has_wide ? wide::kLanes : has_middle ? middle::kLanes : 0;
}
}  // namespace

extern "C" {
int32_t bastion_convolution_lanes() { return lanes(); }

void bastion_window_product(const BastionWindowProduct* product) {
  if (product->lanes == wide::kLanes) wide::product(*product);
  else middle::product(*product);
}
}
#else
extern "C" {
int32_t bastion_convolution_lanes() { return 0; }
void bastion_window_product(const BastionWindowProduct*) {}
}
#endif
