// Deterministic top-k of router logits: the rule of `remix_runtime.adapter.routing.top_k_experts`.
#pragma once

#include "vec.h"

typedef int32_t vi __attribute__((vector_size(VL * 4)));

// Logits as integers in the same order: -0 is 0, and NaN comes before all numbers.
INLINE int32_t sort_key(float z) {
    int32_t bits;
    z += 0.0f;
    memcpy(&bits, &z, sizeof bits);
    return isnan(z) ? INT32_MAX : bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
}

// The k largest logits, ties to the lower index, in ascending order. Without branches on data:
// an expert is selected if fewer than k others come before it.
static void top_k(const float *z_n, int32_t n, int32_t k, int32_t *picks) {
    int32_t count = 0;
    for (int32_t first = 0; first < n; first += VL) {
        const int32_t lanes = n - first < VL ? n - first : VL;
        vi key = {0}, rank = {0}, index;
        for (int32_t i = 0; i < VL; i++) index[i] = first + i;
        for (int32_t i = 0; i < lanes; i++) key[i] = sort_key(z_n[first + i]);
        for (int32_t e = 0; e < n; e++) {
            const vi other = sort_key(z_n[e]) - (vi){0};
            rank -= (other > key) | ((other == key) & (index > e));
        }
        for (int32_t i = 0; i < lanes; i++)
            if (rank[i] < k) picks[count++] = first + i;
    }
}
