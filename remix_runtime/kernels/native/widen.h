// Weights of 16 and 8 bits as vectors of float32, which is exact.
#pragma once

#include "vec.h"

typedef uint32_t vu __attribute__((vector_size(VL * 4)));

// bfloat16 is the upper half of a float32. Of 2 VL of them from `p` the two vectors are interleaved,
// so that each is one operation away.
INLINE void load_bfloat16(const char *p, vf *lo, vf *hi) {
    vu both;
    memcpy(&both, p, sizeof both);
    *lo = (vf)(both << 16);
    *hi = (vf)(both & 0xffff0000u);
}

INLINE float from_bfloat16(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE vf load_float16(const char *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    typedef uint16_t half __attribute__((vector_size(VL * 2)));
    half h;
    memcpy(&h, p, sizeof h);
    const vu bits = __builtin_convertvector(h, vu), magnitude = (bits & 0x7fff) << 13;
    // The exponent is rebased by a product, which makes numbers of what were subnormal ones.
    const vf number = (vf)magnitude * 0x1p112f;
    const vu top = (vu)(magnitude >= 0x7c00u << 13); // infinite, or no number
    return (vf)((vu)number | (top & 0x7f800000u) | (bits & 0x8000) << 16);
#endif
}

INLINE vf load_int8(const char *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    typedef int8_t bytes __attribute__((vector_size(VL)));
    typedef int32_t vi __attribute__((vector_size(VL * 4)));
    bytes b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}
