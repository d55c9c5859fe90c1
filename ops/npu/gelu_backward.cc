// dx of GELU, of TILE elements of bf16: x, dy -> dx. Sums in float; one rounding, at the end.
// tanh by Lambert's continued fraction; beyond 5 it is 1 to more bits than bf16 has.

#include <stdint.h>
#if __has_include(<aie_api/aie.hpp>)
#include <aie_api/aie.hpp>  // bfloat16, where a core is compiled for
#endif

static inline float hyperbolic_tangent(float u) {
  if (u > 5.0f) return 1.0f;
  if (u < -5.0f) return -1.0f;
  float square = u * u, tail = 25.0f;
  for (int odd = 23; odd >= 1; odd -= 2) tail = (float)odd + square / tail;
  return u / tail;
}

extern "C" void gelu_backward_bf16(bfloat16 *x, bfloat16 *dy, bfloat16 *dx) {
  for (int i = 0; i < TILE; i++) {
    float v = (float)x[i];
    float t = hyperbolic_tangent(0.7978845608f * (v + 0.044715f * v * v * v));
    float slope = 0.7978845608f * (1.0f + 0.134145f * v * v);
    dx[i] = (bfloat16)((float)dy[i] * 0.5f * (1.0f + t + v * (1.0f - t * t) * slope));
  }
}
