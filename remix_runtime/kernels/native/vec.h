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

// The sums of all lanes of 8 vectors, each added in the same order.
INLINE void sum_lanes_of_8(const vf v[8], float out[8]) {
#if defined(__AVX__)
    __m256 s[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
#if defined(__AVX512F__)
        const __m512 z = (__m512)v[i];
        const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(z), 1));
        s[i] = _mm256_add_ps(_mm512_castps512_ps256(z), upper);
#else
        s[i] = (__m256)v[i];
#endif
    }
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
    const __m256 left = _mm256_permute2f128_ps(low, high, 0x20);
    const __m256 right = _mm256_permute2f128_ps(low, high, 0x31);
    _mm256_storeu_ps(out, _mm256_add_ps(left, right));
#else
    for (int i = 0; i < 8; i++) out[i] = (v[i][0] + v[i][2]) + (v[i][1] + v[i][3]);
#endif
}
