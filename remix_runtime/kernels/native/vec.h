// One vector type for all kernels: the widest of the machine. `vf` holds VL floats.
//
// Every product-sum goes through `fma_`, so that each variant of a kernel (one token, many
// tokens, a tail) rounds in the same places and gives the same bits.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

typedef float vf __attribute__((vector_size(VL * 4)));

INLINE vf set1(float a) { return a - (vf){0}; }

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }

// The first `count` floats of `p`, zeros behind them; never reads past them.
INLINE vf load_first(const float *p, int64_t count) {
    vf v = {0};
    memcpy(&v, p, (size_t)count * sizeof(float));
    return v;
}

// a * b + c, rounded once where the machine can.
INLINE vf fma_(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// Sum of all lanes, always added in the same order: upper half onto lower half, and again.
INLINE float sum_lanes(vf v) {
#if defined(__AVX512F__)
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1));
    const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), upper);
#elif defined(__AVX__)
    const __m256 v8 = (__m256)v;
#endif
#if defined(__AVX__)
    const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}
