// One vector type for all kernels: the widest of the machine. `vf` holds VL floats.
//
// Every product-sum goes through `fma_`, so that each variant of a kernel (one token, many
// tokens, a tail) rounds in the same places and gives the same bits.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
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

// Sum of all lanes, always added in the same order: halves, quarters, ...
INLINE float sum_lanes(vf v) {
    float a[VL];
    memcpy(a, &v, sizeof v);
#pragma GCC unroll 8
    for (int half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}
