// Elementary functions written so that the compiler turns a loop over them into vector code.
//
// All are branch-free and use only +, -, *, / and conversions, so a value's bits do not depend
// on its place in a loop. Never build with -ffast-math: the rounding trick below needs IEEE sums.
#pragma once

#include "vec.h"

// e^x, relative error below 2e-7. exp(0) is exactly 1, below -87 the result is exactly 0 (so
// masked scores of minus infinity vanish), above 88 it stays at e^88; NaN stays NaN.
INLINE float exp_f32(float x) {
    const float round_to_int = 12582912.0f; // 1.5 * 2^23: its sum with a small x has no fraction
    float c = x < -87.0f ? -87.0f : x;
    c = c > 88.0f ? 88.0f : c;
    float n = (c * 1.44269504f + round_to_int) - round_to_int;
    float r = c - n * 0.693145752f; // ln 2 in two parts; the first has few bits, so n * it is exact
    r = r - n * 1.42860677e-6f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t exponent_bits = ((int32_t)n + 127) << 23;
    float power_of_two;
    memcpy(&power_of_two, &exponent_bits, sizeof power_of_two);
    float y = p * power_of_two;
    return x < -87.0f ? 0.0f : y;
}

// tanh x, relative error below 4e-7: Lambert's continued fraction near 0, where the form with
// exp would cancel, and that form elsewhere.
INLINE float tanh_f32(float x) {
    float magnitude = x < 0.0f ? -x : x;
    float s = x * x;
    float near = x * (135135.0f + s * (17325.0f + s * (378.0f + s)))
                 / (135135.0f + s * (62370.0f + s * (3150.0f + s * 28.0f)));
    float far = 1.0f - 2.0f / (exp_f32(2.0f * magnitude) + 1.0f);
    far = x < 0.0f ? -far : far;
    return magnitude < 1.0f ? near : far;
}

