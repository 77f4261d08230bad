// y += ω · sum over the selected experts of B_i A_i x, for the tokens of many adapters at once.
//
// Shapes: T tokens, D inputs, O outputs; per adapter n experts, k selected, r rank, m = n*r + n.
//   x_TD, y_TO; a_mD the experts' A rows, then the n router rows; b_cjP = ω Bᵀ in C tiles of P
//   outputs, each with all j = n*r rows, the last tile padded; runs_R3 = (first token, end, slot).
//
// Three passes with a barrier between them:
//   1. router logits of every token; a run of several tokens takes all m rows while it is there
//   2. top-k per token; runs of one token then read only the A rows of the selected experts
//   3. per tile of outputs, each token adds its selected rows of B, experts ascending
// Each dot product and each output is computed by the same operations in the same order whatever
// else is in the batch, so a row's bits depend on that row and its adapter alone.

#include <omp.h>

#include "vec.h"

typedef struct {
    const float *a_mD, *b_cjP;
    int32_t n, k, r;  // n == 0: the slot is empty, its tokens are left as they are
} Slot;

typedef struct {
    const Slot *slots;
    const int32_t *runs_R3;
    const float *x_TD;
    float *y_TO;
    float *h_Tm;       // scratch: A x and the logits, in a row's own order of a_mD
    int32_t *picks_Tk; // out: selected experts, ascending, padded with -1
    int64_t R, D, O, m, k;
} Call;

#define P 64  // outputs in a tile of B: with n*r = 64 rows it fits the L1 cache

// A tile of dot products: its accumulators fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
#define ROWS 8
#define TOKENS 3
#else
#define ROWS 4
#define TOKENS 2
#endif

// From this many tokens on, almost every expert is selected by one of them.
#define DENSE_TOKENS 3

EXPORT int64_t remix_mixture_tile(void) { return P; }

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- dot products -----------------------------------------------------------------------------

INLINE void dot_tile(const int tokens, const float *const a[ROWS], int64_t rows, const float *x,
                     int64_t D, float *h, int64_t m) {
    vf sum[TOKENS][ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) sum[t][i] = (vf){0};
    int64_t d = 0;
    for (; d + VL <= D; d += VL) {
        vf w[ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) w[i] = load(a[i] + d);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            const vf v = load(x + t * D + d);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) sum[t][i] = fma_(w[i], v, sum[t][i]);
        }
    }
    if (d < D) {
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            const vf v = load_first(x + t * D + d, D - d);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++)
                sum[t][i] = fma_(load_first(a[i] + d, D - d), v, sum[t][i]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        float dots[ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) dots[i] = sum_lanes(sum[t][i]);
        if (rows == ROWS)
            memcpy(h + t * m, dots, sizeof dots);
        else
            memcpy(h + t * m, dots, (size_t)rows * sizeof(float));
    }
}

// h[t, i] = a[i] · x[t] for `rows` <= ROWS neighbouring rows and `tokens` <= TOKENS tokens.
static void dots(const float *a_mD, int64_t rows, const float *x, int64_t tokens, int64_t D,
                 float *h, int64_t m) {
    const float *a[ROWS];
    for (int64_t i = 0; i < ROWS; i++) a[i] = a_mD + min64(i, rows - 1) * D;
    switch (tokens) {
        case 1: dot_tile(1, a, rows, x, D, h, m); break;
        case 2: dot_tile(2, a, rows, x, D, h, m); break;
#if TOKENS > 2
        case 3: dot_tile(3, a, rows, x, D, h, m); break;
#endif
    }
}

// ---- the passes; each thread takes its part of equal units --------------------------------------

typedef struct {
    int64_t first, tokens;
    const Slot *slot;
    int64_t row_first, rows;  // of a_mD, for pass 1
} Run;

static Run get_run(const Call *c, int64_t i) {
    const int32_t *run = c->runs_R3 + 3 * i;
    Run out = {run[0], run[1] - run[0], NULL, 0, 0};
    if (run[2] >= 0 && c->slots[run[2]].n > 0) {
        out.slot = &c->slots[run[2]];
        const int64_t experts = (int64_t)out.slot->n * out.slot->r;
        out.row_first = out.tokens >= DENSE_TOKENS ? 0 : experts;
        out.rows = experts + out.slot->n - out.row_first;
    }
    return out;
}

static int64_t dot_units(Run run) {
    return ceil_div(run.rows, ROWS) * ceil_div(run.tokens, TOKENS);
}

static void pass_logits(const Call *c, int64_t thread, int64_t threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < c->R; i++) total += dot_units(get_run(c, i));
    const int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
    int64_t before = 0;
    for (int64_t i = 0; i < c->R && before < end; i++) {
        const Run run = get_run(c, i);
        const int64_t units = dot_units(run), tiles = ceil_div(run.tokens, TOKENS);
        int64_t unit = begin > before ? begin - before : 0;
        // A tile of rows meets all tokens of the run before the next one is read.
        for (; unit < min64(units, end - before); unit++) {
            const int64_t row = unit / tiles * ROWS, t = unit % tiles * TOKENS;
            dots(run.slot->a_mD + (run.row_first + row) * c->D, min64(run.rows - row, ROWS),
                 c->x_TD + (run.first + t) * c->D, min64(run.tokens - t, TOKENS), c->D,
                 c->h_Tm + (run.first + t) * c->m + run.row_first + row, c->m);
        }
        before += units;
    }
}

// The k largest logits, ties to the lower index, NaN before all numbers; in ascending order.
static void top_k(const float *z_n, const Slot *slot, int32_t *picks) {
    for (int32_t j = 0; j < slot->k; j++) {
        int32_t best = -1;
        for (int32_t e = 0; e < slot->n; e++) {
            int taken = 0;
            for (int32_t i = 0; i < j; i++) taken |= picks[i] == e;
            if (taken) continue;
            if (best < 0 || z_n[e] > z_n[best] || (isnan(z_n[e]) && !isnan(z_n[best]))) best = e;
        }
        int32_t i = j;  // picks stays sorted
        for (; i > 0 && picks[i - 1] > best; i--) picks[i] = picks[i - 1];
        picks[i] = best;
    }
}

static void pass_select(const Call *c, int64_t thread, int64_t threads) {
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        for (int64_t t = run.first; t < run.first + run.tokens; t++) {
            if (t % threads != thread) continue;
            int32_t *picks = c->picks_Tk + t * c->k;
            int64_t used = 0;
            if (run.slot) {
                used = run.slot->k;
                top_k(c->h_Tm + t * c->m + (int64_t)run.slot->n * run.slot->r, run.slot, picks);
            }
            for (; used < c->k; used++) picks[used] = -1;
        }
    }
}

static void pass_sparse(const Call *c, int64_t thread, int64_t threads) {
    int64_t unit = 0;
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        if (!run.slot || run.row_first == 0) continue;
        const int64_t r = run.slot->r;
        for (int64_t t = run.first; t < run.first + run.tokens; t++)
            for (int64_t j = 0; j < run.slot->k; j++)
                for (int64_t i = 0; i < r; i += ROWS) {
                    if (unit++ % threads != thread) continue;
                    const int64_t row = c->picks_Tk[t * c->k + j] * r + i;
                    dots(run.slot->a_mD + row * c->D, min64(r - i, ROWS), c->x_TD + t * c->D, 1,
                         c->D, c->h_Tm + t * c->m + row, c->m);
                }
    }
}

// One token's selected rows onto one tile of its outputs.
INLINE void add_rows(const float *b_jP, int64_t r, const int32_t *picks, int64_t k,
                     const float *h_m, float *y) {
    vf sum[P / VL];
#pragma GCC unroll 16
    for (int i = 0; i < P / VL; i++) sum[i] = load(y + i * VL);
    for (int64_t j = 0; j < k; j++) {
        const float *h = h_m + picks[j] * r, *b = b_jP + picks[j] * r * P;
        for (int64_t row = 0; row < r; row++, b += P) {
            const vf a = set1(h[row]);
#pragma GCC unroll 16
            for (int i = 0; i < P / VL; i++) sum[i] = fma_(a, load(b + i * VL), sum[i]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < P / VL; i++) store(y + i * VL, sum[i]);
}

static void pass_expand(const Call *c, int64_t thread, int64_t threads) {
    const int64_t T = c->runs_R3[3 * (c->R - 1) + 1], tiles = ceil_div(c->O, P);
    const int64_t begin = tiles * T * thread / threads, end = tiles * T * (thread + 1) / threads;
    for (int64_t tile = begin / T; tile * T < end; tile++) {
        const int64_t from = begin - tile * T, to = end - tile * T;
        const int64_t width = min64(c->O - tile * P, P);
        for (int64_t i = 0; i < c->R; i++) {
            const Run run = get_run(c, i);
            if (!run.slot) continue;
            const int64_t r = run.slot->r, k = run.slot->k;
            const float *b_jP = run.slot->b_cjP + tile * run.slot->n * r * P;
            int64_t t = run.first > from ? run.first : from;
            for (; t < min64(run.first + run.tokens, to); t++) {
                const int32_t *picks = c->picks_Tk + t * c->k;
                const float *h_m = c->h_Tm + t * c->m;
                float *y = c->y_TO + t * c->O + tile * P;
                if (width == P) {
                    add_rows(b_jP, r, picks, k, h_m, y);
                } else {
                    float edge[P] = {0};
                    memcpy(edge, y, (size_t)width * sizeof(float));
                    add_rows(b_jP, r, picks, k, h_m, edge);
                    memcpy(y, edge, (size_t)width * sizeof(float));
                }
            }
        }
    }
}

EXPORT void remix_mixture_add(const Slot *slots, const int32_t *runs_R3, const float *x_TD,
                              float *y_TO, float *h_Tm, int32_t *picks_Tk, int64_t R, int64_t D,
                              int64_t O, int64_t m, int64_t k, int threads) {
    const Call call = {slots, runs_R3, x_TD, y_TO, h_Tm, picks_Tk, R, D, O, m, k};
    int64_t work = 0, sparse = 0;
    for (int64_t i = 0; i < R; i++) {
        const Run run = get_run(&call, i);
        if (!run.slot) continue;
        work += run.tokens * (run.rows * D + run.slot->k * run.slot->r * O);
        sparse |= run.row_first > 0;
    }
    // Below some microseconds of work, waking the other threads costs more than they give.
    if (work < 40000) threads = 1;

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        pass_logits(&call, me, all);
#pragma omp barrier
        pass_select(&call, me, all);
#pragma omp barrier
        if (sparse) {
            pass_sparse(&call, me, all);
#pragma omp barrier
        }
        pass_expand(&call, me, all);
    }
}
