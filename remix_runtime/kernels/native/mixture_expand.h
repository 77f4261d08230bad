// The products B h of the last pass of mixture.c.
#pragma once

#include "mixture_dots.h"

// The k experts of each of `count` neighbouring rows of picks onto those tokens' outputs of one
// tile. Two tokens at once hide the time of a multiply-add; they share nothing. `ahead`: fetches the
// experts' next tiles.
INLINE void add_experts(const Call *c, const Run *run, const int bf16, const int count,
                        const int ahead,
                        const int32_t *const picks[2], int64_t k, int64_t tile,
                        const int64_t token[2]) {
    const int64_t r = run->slot.r, C = ceil_div(c->O, P) | 1;
    const int64_t row_bytes = P * size(bf16), chunk = r * row_bytes;
    const int64_t width = min64(c->O - tile * P, P);
    float *y[2], edge[2][P];
    const float *h_m[2];
    vf sum[2][P / VL];
#pragma GCC unroll 2
    for (int t = 0; t < count; t++) {
        y[t] = c->y_TO + token[t] * c->y_row + tile * P;
        h_m[t] = c->h_Tm + token[t] * c->m;
        if (width < P) memcpy(edge[t], y[t], (size_t)width * sizeof(float));
#pragma GCC unroll 16
        for (int i = 0; i < P / VL; i++) sum[t][i] = load((width < P ? edge[t] : y[t]) + i * VL);
    }
    for (int64_t j = 0; j < k; j++) {
        const char *b[2];
        const float *h[2];
#pragma GCC unroll 2
        for (int t = 0; t < count; t++) {
            b[t] = (const char *)run->slot.b + (picks[t][j] * C + tile) * chunk;
            h[t] = h_m[t] + picks[t][j] * run->expert_tiles * ROWS;
        }
        for (int64_t row = 0; row < r; row++) {
#pragma GCC unroll 2
            for (int t = 0; t < count; t++) {
                const vf a = set1(h[t][row]);
                if (ahead) prefetch(b[t] + chunk, row_bytes);
#pragma GCC unroll 16
                for (int i = 0; i < P / VL; i += 2) {
                    vf lo, hi;
                    load_pair(b[t] + i * VL * size(bf16), bf16, &lo, &hi);
                    sum[t][i] = fma_(a, lo, sum[t][i]);
                    sum[t][i + 1] = fma_(a, hi, sum[t][i + 1]);
                }
                b[t] += row_bytes;
            }
        }
    }
#pragma GCC unroll 2
    for (int t = 0; t < count; t++) {
#pragma GCC unroll 16
        for (int i = 0; i < P / VL; i++) store((width < P ? edge[t] : y[t]) + i * VL, sum[t][i]);
        if (width < P) memcpy(y[t], edge[t], (size_t)width * sizeof(float));
    }
}

// The same for any number of tokens in pairs. `picks_stride` 0: one expert for all of them.
INLINE void add_experts_of(const Call *c, const Run *run, const int bf16, const int ahead,
                           const int32_t *picks, int64_t picks_stride, int64_t k, int64_t tile,
                           const int64_t *tokens, int64_t count) {
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
        const int32_t *both[2] = {picks + tokens[i] * picks_stride,
                                  picks + tokens[i + 1] * picks_stride};
        add_experts(c, run, bf16, 2, ahead, both, k, tile, tokens + i);
    }
    if (i < count) {
        const int32_t *one[2] = {picks + tokens[i] * picks_stride, NULL};
        add_experts(c, run, bf16, 1, ahead, one, k, tile, tokens + i);
    }
}

// A short run: expert by expert, each one's tiles in a stream.
INLINE void expand_stream(const Call *c, const Run *run, const int bf16, int64_t thread,
                          int64_t threads) {
    const int64_t tiles = ceil_div(c->O, P), C = tiles | 1, uneven = run->index & 1;
    const int64_t chunk = run->slot.r * P * size(bf16), near = ceil_div(AHEAD, chunk);
    // An odd number of tiles: every other run gives the larger half to the other thread.
    const int64_t from = thread ? (tiles * thread + uneven * (threads - 1)) / threads : 0;
    const int64_t to = thread + 1 < threads
                           ? (tiles * (thread + 1) + uneven * (threads - 1)) / threads
                           : tiles;
    for (int32_t e = 0; e < run->slot.n; e++) {
        int64_t tokens[STREAM_TOKENS];
        const int64_t stop = run->first + run->tokens;
        const int64_t count = tokens_of(c, run, run->first, stop, e, tokens);
        if (!count) continue;
        const char *b = (const char *)run->slot.b + e * C * chunk;
        for (int64_t tile = from; tile < min64(from + near, to); tile++)
            prefetch(b + tile * chunk, chunk);
        for (int64_t tile = from; tile < to; tile++) {
            if (tile + near < to) prefetch(b + (tile + near) * chunk, chunk);
            add_experts_of(c, run, bf16, 0, &e, 0, 1, tile, tokens, count);
        }
    }
}

// A long run, or experts that are in the caches: tile by tile, which stay in the L1 cache while all
// tokens pass.
INLINE void expand_tiles(const Call *c, const Run *run, const int bf16, const int ahead,
                         int64_t thread, int64_t threads) {
    const int64_t units = ceil_div(c->O, P) * run->tokens;
    const int64_t end = units * (thread + 1) / threads;
    for (int64_t unit = units * thread / threads; unit < end;) {
        const int64_t first = unit % run->tokens;
        const int64_t count = min64(min64(run->tokens - first, end - unit), 2);
        const int64_t tokens[2] = {run->first + first, run->first + first + 1};
        add_experts_of(c, run, bf16, ahead, c->picks_Tk, c->k, run->slot.k, unit / run->tokens,
                       tokens, count);
        unit += count;
    }
}
