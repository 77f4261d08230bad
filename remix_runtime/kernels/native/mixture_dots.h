// What the passes of mixture.c work on, and the dot products A x of the first ones.
#pragma once

#include "kernels.h"
#include "widen.h"

struct Slot {
    const void *a, *b;
    int64_t *counts;  // [n]: how often each expert was selected; NULL: nobody asks
    int32_t n, k, r;  // n == 0: the slot is empty, its tokens are left as they are
    int32_t bf16;
    float weight;  // ω
};

typedef struct {
    const Slot *slots;
    const int32_t *runs_R3;
    const float *x_TD;
    float *y_TO;
    int64_t y_row;  // from one row of y to the next: O, or more where y is part of a wider row
    float *h_Tm;
    int32_t *picks_Tk;  // out: selected experts, ascending, padded with -1
    int64_t R, D, O, m, k;
    int fetched;  // the selected experts are in the second-level cache, or nearly
} Call;

typedef struct {
    int64_t first, tokens, index;
    Slot slot;
    int64_t expert_tiles, router_tile, tiles;  // of A: of one expert, before the router, all
} Run;

#define ROWS 8  // of a tile of A
#define P 64    // outputs in a tile of B

// A register tile of dot products.
#if defined(__AVX512F__) || defined(__aarch64__)
#define TOKENS 3
#define PART ROWS
#else
#define TOKENS 2
#define PART (ROWS / 2)
#endif

#define LISTED_TOKENS 256 // tokens of a run that are sorted by expert at a time
#define STREAM_TOKENS 16  // up to here B is streamed expert by expert
#define AHEAD 4096        // bytes between a prefetch and its use
// With more tokens than this, what is fetched during the base product has left the caches before
// it is used, and reading it is little of the work.
#define MOST_TOKENS_FETCHING 128
#define FEW_TOKENS 12

EXPORT int64_t remix_vector_lanes(void) { return VL; }

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static Run get_run(const Call *c, int64_t index) {
    const int32_t *entry = c->runs_R3 + 3 * index;
    Run run = {.first = entry[0], .tokens = entry[1] - entry[0], .index = index};
    if (entry[2] >= 0) run.slot = c->slots[entry[2]];
    run.expert_tiles = ceil_div(run.slot.r, ROWS);
    run.router_tile = run.slot.n * run.expert_tiles;
    run.tiles = run.router_tile + ceil_div(run.slot.n, ROWS);
    return run;
}

// Bytes of one weight.
INLINE int64_t size(const int bf16) { return bf16 ? 2 : 4; }

// Two vectors of weights, 2 VL of them from `p`.
INLINE void load_pair(const char *p, const int bf16, vf *lo, vf *hi) {
    if (bf16) {
        load_bfloat16(p, lo, hi);
    } else {
        *lo = load((const float *)p);
        *hi = load((const float *)p + VL);
    }
}

INLINE void prefetch(const char *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 3);
}

// Which of the tokens first .. end selected expert e.
static int64_t tokens_of(const Call *c, const Run *run, int64_t first, int64_t end, int32_t e,
                         int64_t *tokens) {
    int64_t count = 0;
    for (int64_t t = first; t < end; t++)
        for (int64_t j = 0; j < run->slot.k; j++)
            if (c->picks_Tk[t * c->k + j] == e) tokens[count++] = t;
    return count;
}

// ---- A x ----------------------------------------------------------------------------------------

// h = scale · (one tile of A) x for `tokens` tokens. `next`: the tile to be read after this one.
INLINE void dot_tile(const int tokens, const int bf16, const char *a, const char *next, int cold,
                     float scale, const float *const x[TOKENS], int64_t D, float *const h[TOKENS]) {
    const int64_t step = ROWS * VL * size(bf16), bytes = ceil_div(D, VL) * step;
    vf sum[TOKENS][ROWS];
#pragma GCC unroll 2
    for (int part = 0; part < ROWS; part += PART) {
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int i = part; i < part + PART; i++) sum[t][i] = (vf){0};
        for (int64_t at = 0, d = 0; at < bytes; at += step, d += VL) {
            if (cold)
                prefetch(at + AHEAD < bytes ? a + at + AHEAD : next + (at + AHEAD - bytes), step);
            vf v[TOKENS];
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
                v[t] = d + VL <= D ? load(x[t] + d) : load_first(x[t] + d, D - d);
#pragma GCC unroll 8
            for (int i = part; i < part + PART; i += 2) {
                vf lo, hi;
                load_pair(a + at + i * VL * size(bf16), bf16, &lo, &hi);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++) {
                    sum[t][i] = fma_(lo, v[t], sum[t][i]);
                    sum[t][i + 1] = fma_(hi, v[t], sum[t][i + 1]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        float dots[ROWS];
        sum_lanes_of_8(sum[t], dots);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) h[t][i] = scale * dots[i];
    }
}

static void dots(const Call *c, const Run *run, int64_t tile, int64_t next, const int64_t *tokens,
                 int64_t count, int cold) {
    const int bf16 = run->slot.bf16;
    const int64_t D = c->D, bytes = ceil_div(D, VL) * ROWS * VL * size(bf16);
    const char *a = (const char *)run->slot.a + tile * bytes;
    const char *after = (const char *)run->slot.a + next * bytes;
    const float scale = tile < run->router_tile ? run->slot.weight : 1.0f;
    const float *x[TOKENS];
    float *h[TOKENS];
    for (int64_t t = 0; t < count; t++) {
        x[t] = c->x_TD + tokens[t] * D;
        h[t] = c->h_Tm + tokens[t] * c->m + tile * ROWS;
    }
    switch (count * 2 + (bf16 != 0)) {
        case 2: dot_tile(1, 0, a, after, cold, scale, x, D, h); break;
        case 3: dot_tile(1, 1, a, after, cold, scale, x, D, h); break;
        case 4: dot_tile(2, 0, a, after, cold, scale, x, D, h); break;
        case 5: dot_tile(2, 1, a, after, cold, scale, x, D, h); break;
#if TOKENS > 2
        case 6: dot_tile(3, 0, a, after, cold, scale, x, D, h); break;
        case 7: dot_tile(3, 1, a, after, cold, scale, x, D, h); break;
#endif
    }
}
