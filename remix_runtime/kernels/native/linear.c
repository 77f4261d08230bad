// y = x Wᵀ + b over weights packed into panels, for any number of tokens.
//
// Shapes: T tokens, D inputs, O outputs, P outputs in a panel, C = ceil(O / P) panels.
//   w_CDP packed weights, the last panel padded with zeros; x_TD; y_TO; bias_CP or NULL.
//
// The lanes of a vector are neighbouring outputs; an output is one chain of multiply-adds over D
// in order, then plus the bias. Tokens that are computed together share the loads of the weights
// and nothing else, so a row of y has the same bits in every batch and at every thread count.

#include "vec.h"

#define P (2 * VL)
// Tokens in a register tile: two accumulators each, and room for weights and x.
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 12
#else
#define TILE 6
#endif
// A thread's share of many tokens: its x stays in the L2 cache while a panel passes over it.
#define TOKEN_BLOCK 192
// How far ahead of their use weights are fetched, in floats.
#define AHEAD 1024

EXPORT int64_t remix_linear_panel(void) { return P; }

INLINE void tile(const int tokens, const float *w_DP, const float *x, int64_t D, const float *bias,
                 float *y, int64_t O, int64_t width) {
    vf lo[TILE], hi[TILE];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) lo[t] = hi[t] = (vf){0};
    for (int64_t d = 0; d < D; d++) {
        const float *w = w_DP + d * P;
        __builtin_prefetch(w + AHEAD, 0, 3);
        if (P * sizeof(float) > 64) __builtin_prefetch(w + AHEAD + VL, 0, 3);
        const vf w_lo = load(w), w_hi = load(w + VL);
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++) {
            const vf a = set1(x[t * D + d]);
            lo[t] = fma_(a, w_lo, lo[t]);
            hi[t] = fma_(a, w_hi, hi[t]);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
        if (bias) lo[t] += load(bias), hi[t] += load(bias + VL);
        float *out = y + t * O;
        if (width == P) {
            store(out, lo[t]);
            store(out + VL, hi[t]);
        } else {
            float edge[P];
            store(edge, lo[t]);
            store(edge + VL, hi[t]);
            memcpy(out, edge, (size_t)width * sizeof(float));
        }
    }
}

#define CASE(n)                                       \
    case n:                                           \
        tile(n, w_DP, x, D, bias, y, O, width);       \
        break;

static void tokens_of_panel(int64_t tokens, const float *w_DP, const float *x, int64_t D,
                            const float *bias, float *y, int64_t O, int64_t width) {
    // Equal tiles: 32 tokens are 11 + 11 + 10, not 12 + 12 + 8.
    for (int64_t tiles = (tokens + TILE - 1) / TILE; tiles > 0; tiles--) {
        const int64_t count = (tokens + tiles - 1) / tiles;
        switch (count) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE == 12
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
        x += count * D;
        y += count * O;
        tokens -= count;
    }
}

EXPORT void remix_linear(const float *w_CDP, const float *bias_CP, const float *x_TD, float *y_TO,
                         int64_t T, int64_t D, int64_t O, int threads) {
    const int64_t panels = (O + P - 1) / P;
    const int64_t blocks = (T + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
    const int64_t block = blocks ? (T + blocks - 1) / blocks : 0;
    const int64_t units = panels * blocks;
    // Below a few microseconds of work, waking the other threads costs more than they give.
    if (panels * P * D * (T + 6) < 400000) threads = 1;
    if (threads > units) threads = (int)units;

#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t unit = 0; unit < units; unit++) {
        const int64_t panel = unit / blocks, first = unit % blocks * block;
        const int64_t tokens = T - first < block ? T - first : block;
        const int64_t width = O - panel * P < P ? O - panel * P : P;
        tokens_of_panel(tokens, w_CDP + panel * D * P, x_TD + first * D, D,
                        bias_CP ? bias_CP + panel * P : NULL, y_TO + first * O + panel * P, O,
                        width);
    }
}
