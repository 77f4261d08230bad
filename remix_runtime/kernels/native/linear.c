// y = x Wᵀ + b over weights packed into panels, for any number of tokens.
//
// Shapes: T tokens, D inputs, O outputs, P outputs in a panel, C = ceil(O / P) panels.
//   w_CDP packed weights, the last panel padded with zeros; x_TD; y_TO; bias_CP or NULL.
//
// The lanes of a vector are neighbouring outputs; an output is one chain of multiply-adds over D
// in order, then plus the bias. Tokens that are computed together share the loads of the weights
// and nothing else, so a row of y has the same bits in every batch and at every thread count.

#include "kernels.h"

#define P (2 * VL)
// Tokens in a register tile: two accumulators each, and room for weights and x.
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 12
#else
#define TILE 6
#endif
// A thread's share of many tokens: its x stays in the L2 cache while a panel passes over it.
#define TOKEN_BLOCK 192
// How far ahead of their use weights are fetched, in bytes.
#define AHEAD 2048

EXPORT int64_t remix_linear_panel(void) { return P; }

// `fetch` is read ahead, `fetch_step` / 65536 bytes of it for each d.
INLINE void tile(const int tokens, const float *w_DP, const float *x, int64_t D, const float *bias,
                 float *y, int64_t O, int64_t width, const char *fetch, int64_t fetch_step) {
    vf lo[TILE], hi[TILE];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) lo[t] = hi[t] = (vf){0};
    for (int64_t d = 0; d < D; d++) {
        const float *w = w_DP + d * P;
        const char *line = fetch + (d * fetch_step >> 16);
        __builtin_prefetch(line, 0, 3);
        if (P * sizeof(float) > 64) __builtin_prefetch(line + 64, 0, 3);
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

#define CASE(n)                                                  \
    case n:                                                      \
        tile(n, w_DP, x, D, bias, y, O, width, fetch, step);     \
        break;

// What is fetched in the time of one register tile that finds its weights in the cache:
// part `i` of `n` equal ones of all spans together.
static Span part_of(const Span *spans, int64_t count, int64_t i, int64_t n) {
    int64_t total = 0;
    for (int64_t s = 0; s < count; s++) total += spans[s].bytes;
    int64_t begin = total * i / n, bytes = total * (i + 1) / n - begin;
    for (; count > 0; spans++, count--) {
        if (begin < spans->bytes) {
            if (bytes > spans->bytes - begin) bytes = spans->bytes - begin;
            return (Span){spans->at + begin, bytes};
        }
        begin -= spans->bytes;
    }
    return (Span){NULL, 0};
}

static void tokens_of_panel(int64_t tokens, const float *w_DP, const float *x, int64_t D,
                            const float *bias, float *y, int64_t O, int64_t width,
                            const Span *spans, int64_t num_spans, int64_t unit, int64_t units) {
    // The first tile streams the weights; the others find them in the cache.
    const char *fetch = (const char *)w_DP + AHEAD;
    int64_t step = (int64_t)(P * sizeof(float)) << 16;
    // Equal tiles: 32 tokens are 11 + 11 + 10, not 12 + 12 + 8.
    const int64_t all = (tokens + TILE - 1) / TILE;
    for (int64_t tiles = all; tiles > 0; tiles--) {
        const int64_t count = (tokens + tiles - 1) / tiles;
        if (tiles < all) {
            const int64_t part = unit * (all - 1) + all - 1 - tiles;
            const Span span = part_of(spans, num_spans, part, units * (all - 1));
            fetch = span.bytes ? span.at : (const char *)w_DP;
            step = (span.bytes << 16) / D;
        }
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

void remix_linear_fetching(const float *w_CDP, const float *bias_CP, const float *x_TD,
                           float *y_TO, int64_t T, int64_t D, int64_t O, int threads,
                           const Span *spans, int64_t num_spans) {
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
                        width, spans, num_spans, unit, units);
    }
}

EXPORT void remix_linear(const float *w_CDP, const float *bias_CP, const float *x_TD, float *y_TO,
                         int64_t T, int64_t D, int64_t O, int threads) {
    remix_linear_fetching(w_CDP, bias_CP, x_TD, y_TO, T, D, O, threads, NULL, 0);
}
