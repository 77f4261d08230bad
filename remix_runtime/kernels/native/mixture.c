// y += ω · sum over the selected experts of B_i A_i x, for the tokens of many adapters at once.
//
// Shapes: T tokens, D inputs, O outputs, R runs = (first token, end, slot); per adapter n experts,
// k selected, r rank. Weights are float32, or bfloat16 where that loses nothing.
//   A: tiles of 8 rows, [tile][ceil(D / VL)][8][VL]; ceil(r / 8) tiles for each expert, then
//      ceil(n / 8) of router rows. What is short is padded with zeros.
//   B: Bᵀ, [n][C][r][P], C tiles of P outputs, an odd number so that the experts' tiles do
//      not all compete for the same lines of the cache.
//   h_Tm: scratch, for each token ω A x in the order of A's rows, then the router logits P x.
//
// Four passes. Where whole runs can be dealt out evenly each thread takes its own through all of
// them; else all threads share every pass, with barriers between them:
//   1. router logits of every token
//   2. top-k per token
//   3. expert by expert, A x for the tokens that selected it
//   4. each token adds its selected rows of B, experts ascending
// Small batches are limited by memory: every weight that is needed is read once, in streams.
// Each dot product and each output is computed by the same operations in the same order whatever
// else is in the batch, so a row's bits depend on that row and its adapter alone.

#include <omp.h>

#include "mixture_dots.h"
#include "top_k.h"

// ---- the passes; each thread takes its part -----------------------------------------------------

static Run get_run(const Call *c, int64_t index) {
    const int32_t *entry = c->runs_R3 + 3 * index;
    Run run = {.first = entry[0], .tokens = entry[1] - entry[0], .index = index};
    if (entry[2] >= 0) run.slot = c->slots[entry[2]];
    run.expert_tiles = ceil_div(run.slot.r, ROWS);
    run.router_tile = run.slot.n * run.expert_tiles;
    run.tiles = run.router_tile + ceil_div(run.slot.n, ROWS);
    return run;
}

static int64_t logit_units(const Run *run) {
    return (run->tiles - run->router_tile) * ceil_div(run->tokens, TOKENS);
}

static void pass_logits(const Call *c, int64_t thread, int64_t threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        total += logit_units(&run);
    }
    const int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
    int64_t before = 0;
    for (int64_t i = 0; i < c->R && before < end; i++) {
        const Run run = get_run(c, i);
        const int64_t units = logit_units(&run), groups = ceil_div(run.tokens, TOKENS);
        const int64_t from = max64(begin - before, 0), to = min64(units, end - before);
        // A tile meets all tokens of the run before the next one is read.
        for (int64_t unit = from; unit < to; unit++) {
            const int64_t tile = run.router_tile + unit / groups, first = unit % groups * TOKENS;
            int64_t tokens[TOKENS];
            for (int64_t t = 0; t < TOKENS; t++) tokens[t] = run.first + first + t;
            dots(c, &run, tile, min64(tile + 1, run.tiles - 1), tokens,
                 min64(run.tokens - first, TOKENS), first == 0 || unit == from);
        }
        before += units;
    }
}

static void pass_select(const Call *c, int64_t thread, int64_t threads) {
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        for (int64_t t = run.first; t < run.first + run.tokens; t++) {
            if (t % threads != thread) continue;
            int32_t *picks = c->picks_Tk + t * c->k;
            if (run.slot.n)
                top_k(c->h_Tm + t * c->m + run.router_tile * ROWS, run.slot.n, run.slot.k, picks);
            for (int64_t j = run.slot.k; j < c->k; j++) picks[j] = -1;
        }
    }
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

// The expert that `token` selected next after e; e itself when it is the last.
static int32_t expert_after(const Call *c, const Run *run, int64_t token, int32_t e) {
    const int32_t *picks = c->picks_Tk + token * c->k;
    int64_t j = 0;
    while (picks[j] < e) j++;
    return j + 1 < run->slot.k ? picks[j + 1] : e;
}

static void pass_selected_dots(const Call *c, int64_t thread, int64_t threads) {
    int64_t total = 0;
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        total += run.tokens * run.slot.k * run.expert_tiles;
    }
    const int64_t begin = total * thread / threads, end = total * (thread + 1) / threads;
    int64_t before = 0;  // products of a token with a tile, in the order of these loops
    for (int64_t i = 0; i < c->R && before < end; i++) {
        const Run run = get_run(c, i);
        const int64_t tiles = run.expert_tiles, stop = run.first + run.tokens;
        const int64_t all = run.tokens * run.slot.k * tiles;
        if (before + all <= begin) {
            before += all;
            continue;
        }
        for (int64_t first = run.first; first < stop; first += LISTED_TOKENS)
            for (int32_t e = 0; e < run.slot.n; e++) {
                int64_t tokens[LISTED_TOKENS];
                const int64_t last = min64(first + LISTED_TOKENS, stop);
                const int64_t count = tokens_of(c, &run, first, last, e, tokens);
                for (int64_t i = 0; i < tiles && count; i++, before += count) {
                    const int64_t tile = e * tiles + i, after = expert_after(c, &run, tokens[0], e);
                    const int64_t next = i + 1 < tiles ? tile + 1 : after * tiles;
                    const int64_t from = max64(begin - before, 0), to = min64(count, end - before);
                    for (int64_t t = from; t < to; t += TOKENS)
                        dots(c, &run, tile, next, tokens + t, min64(to - t, TOKENS), t == from);
                }
            }
    }
}

// ---- B h ----------------------------------------------------------------------------------------

// The k experts of each of `count` neighbouring rows of picks onto those tokens' outputs of one
// tile. Two tokens at once hide the time of a multiply-add; they share nothing.
INLINE void add_experts(const Call *c, const Run *run, const int bf16, const int count,
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
INLINE void add_experts_of(const Call *c, const Run *run, const int bf16, const int32_t *picks,
                           int64_t picks_stride, int64_t k, int64_t tile, const int64_t *tokens,
                           int64_t count) {
    int64_t i = 0;
    for (; i + 2 <= count; i += 2) {
        const int32_t *both[2] = {picks + tokens[i] * picks_stride,
                                  picks + tokens[i + 1] * picks_stride};
        add_experts(c, run, bf16, 2, both, k, tile, tokens + i);
    }
    if (i < count) {
        const int32_t *one[2] = {picks + tokens[i] * picks_stride, NULL};
        add_experts(c, run, bf16, 1, one, k, tile, tokens + i);
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
            add_experts_of(c, run, bf16, &e, 0, 1, tile, tokens, count);
        }
    }
}

// A long run: tile by tile, which stay in the L1 cache while all tokens pass.
INLINE void expand_tiles(const Call *c, const Run *run, const int bf16, int64_t thread,
                         int64_t threads) {
    const int64_t units = ceil_div(c->O, P) * run->tokens;
    const int64_t end = units * (thread + 1) / threads;
    for (int64_t unit = units * thread / threads; unit < end;) {
        const int64_t first = unit % run->tokens;
        const int64_t count = min64(min64(run->tokens - first, end - unit), 2);
        const int64_t tokens[2] = {run->first + first, run->first + first + 1};
        add_experts_of(c, run, bf16, c->picks_Tk, c->k, run->slot.k, unit / run->tokens, tokens,
                       count);
        unit += count;
    }
}

static void pass_expand(const Call *c, int64_t thread, int64_t threads) {
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        if (!run.slot.n) continue;
        switch ((run.tokens <= STREAM_TOKENS) * 2 + (run.slot.bf16 != 0)) {
            case 0: expand_tiles(c, &run, 0, thread, threads); break;
            case 1: expand_tiles(c, &run, 1, thread, threads); break;
            case 2: expand_stream(c, &run, 0, thread, threads); break;
            case 3: expand_stream(c, &run, 1, thread, threads); break;
        }
    }
}

static int64_t work_of(const Call *c, int64_t index) {
    const Run run = get_run(c, index);
    return run.tokens * (run.tiles * ROWS * c->D + run.slot.k * run.slot.r * c->O);
}

// The runs begin .. end of `thread`, cut where they come nearest to equal work. Returns that work.
static int64_t whole_runs(const Call *c, int64_t total, int64_t thread, int64_t threads,
                          int64_t *begin, int64_t *end) {
    // The last thread also takes what has no work: rows of the base at the end.
    const int64_t from = total * thread / threads;
    const int64_t to = thread + 1 < threads ? total * (thread + 1) / threads : INT64_MAX;
    int64_t before = 0, mine = 0;
    *begin = *end = 0;
    for (int64_t i = 0; i < c->R; i++) {
        const int64_t work = work_of(c, i), middle = before + work / 2;
        before += work;
        if (middle < from) *begin = i + 1;
        if (middle >= to) break;
        *end = i + 1;
        if (middle >= from) mine += work;
    }
    return mine;
}

static int is_even(const Call *c, int64_t total, int64_t threads) {
    for (int64_t thread = 0; thread < threads; thread++) {
        int64_t begin, end;
        const int64_t mine = whole_runs(c, total, thread, threads, &begin, &end);
        if (mine * threads > total + total / 8) return 0;
    }
    return 1;
}

// One thread counts for all of them: an addition for each selection, of the thousands of
// multiply-adds that it stands for.
static void count_selected(const Call *c) {
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        if (!run.slot.counts) continue;
        for (int64_t t = run.first; t < run.first + run.tokens; t++)
            for (int64_t j = 0; j < run.slot.k; j++)
                run.slot.counts[c->picks_Tk[t * c->k + j]]++;
    }
}

EXPORT void remix_mixture_add(const Slot *slots, const int32_t *runs_R3, const float *x_TD,
                              float *y_TO, int64_t y_row, float *h_Tm, int32_t *picks_Tk,
                              int64_t R, int64_t D, int64_t O, int64_t m, int64_t k, int counted,
                              int threads) {
    const Call call = {slots, runs_R3, x_TD, y_TO, y_row, h_Tm, picks_Tk, R, D, O, m, k};
    int64_t total = 0;
    for (int64_t i = 0; i < R; i++) total += work_of(&call, i);
    // Below some microseconds of work, waking the other threads costs more than they give.
    if (total < 40000) threads = 1;
    const int even = is_even(&call, total, threads);

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        if (even && all == threads) {
            int64_t begin, end;
            whole_runs(&call, total, me, all, &begin, &end);
            Call own = call;
            own.runs_R3 += 3 * begin;
            own.R = end - begin;
            pass_logits(&own, 0, 1);
            pass_select(&own, 0, 1);
            pass_selected_dots(&own, 0, 1);
            pass_expand(&own, 0, 1);
        } else {
            pass_logits(&call, me, all);
#pragma omp barrier
            pass_select(&call, me, all);
#pragma omp barrier
            pass_selected_dots(&call, me, all);
#pragma omp barrier
            pass_expand(&call, me, all);
        }
    }
    if (counted) count_selected(&call);
}

// The weights of the runs that read all of them, as far as they can stay in the caches.
static int64_t spans_of(const Call *c, Span *spans, int64_t room) {
    int64_t count = 0;
    for (int64_t i = 0; i < c->R && count + 2 <= room; i++) {
        const Run run = get_run(c, i);
        if (run.tokens < WIDE_TOKENS || !run.slot.n) continue;
        const int64_t weight = size(run.slot.bf16), tiles = ceil_div(c->O, P) | 1;
        const int64_t a = run.tiles * ROWS * ceil_div(c->D, VL) * VL * weight;
        const int64_t b = tiles * P * run.slot.n * run.slot.r * weight;
        spans[count++] = (Span){run.slot.a, a};
        spans[count++] = (Span){run.slot.b, b};
    }
    return count;
}

EXPORT void remix_adapted_linear(const Linear *linear, const Slot *slots, const int32_t *runs_R3,
                                 const float *x_TD, float *y_TO, float *h_Tm, int32_t *picks_Tk,
                                 int64_t R, int64_t T, int64_t m, int64_t k, int threads) {
    const int64_t D = linear->in, O = linear->out;
    const Call call = {slots, runs_R3, x_TD, y_TO, O, h_Tm, picks_Tk, R, D, O, m, k};
    Span spans[16];
    const int64_t count = T <= MOST_TOKENS_FETCHING ? spans_of(&call, spans, 16) : 0;
    remix_linear_fetching(linear, x_TD, y_TO, T, threads, spans, count);
    remix_mixture_add(slots, runs_R3, x_TD, y_TO, O, h_Tm, picks_Tk, R, D, O, m, k, 1, threads);
}
