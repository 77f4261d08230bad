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
#include "mixture_expand.h"
#include "mixture_fetch.h"
#include "top_k.h"

// ---- the passes; each thread takes its part -----------------------------------------------------

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

static void pass_expand(const Call *c, int64_t thread, int64_t threads) {
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        if (!run.slot.n) continue;
        const int bf16 = run.slot.bf16 != 0;
        switch ((c->fetched ? 4 : run.tokens <= STREAM_TOKENS ? 2 : 0) + bf16) {
            case 0: expand_tiles(c, &run, 0, 0, thread, threads); break;
            case 1: expand_tiles(c, &run, 1, 0, thread, threads); break;
            case 2: expand_stream(c, &run, 0, thread, threads); break;
            case 3: expand_stream(c, &run, 1, thread, threads); break;
            case 4: expand_tiles(c, &run, 0, 1, thread, threads); break;
            case 5: expand_tiles(c, &run, 1, 1, thread, threads); break;
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

static int64_t all_work(const Call *c) {
    int64_t total = 0;
    for (int64_t i = 0; i < c->R; i++) total += work_of(c, i);
    return total;
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

// What one thread does of all passes: whole runs by itself, or its part of each pass.
typedef struct {
    Call call;
    int64_t thread, threads;
} Share;

static Share share_of(const Call *c, int64_t total, int even) {
    Share share = {*c, omp_get_thread_num(), omp_get_num_threads()};
    if (even) {
        int64_t begin, end;
        whole_runs(c, total, share.thread, share.threads, &begin, &end);
        share.call.runs_R3 += 3 * begin;
        share.call.R = end - begin;
        share.thread = 0, share.threads = 1;
    }
    return share;
}

// Behind a pass that the threads share.
static void meet(const Share *s) {
    if (s->threads > 1) {
#pragma omp barrier
    }
}

// `turn`: who does what is too short to share.
static void route(const Share *s, int64_t turn) {
    const Call *c = &s->call;
    if (s->threads > 1 && c->R == 1 && c->runs_R3[1] - c->runs_R3[0] <= TOKENS) {
        // One thread is done before both have met.
        if (s->thread == turn % s->threads) pass_logits(c, 0, 1), pass_select(c, 0, 1);
        return;
    }
    pass_logits(c, s->thread, s->threads);
    meet(s);
    pass_select(c, s->thread, s->threads);
}

static void add(const Share *s) {
    pass_selected_dots(&s->call, s->thread, s->threads);
    meet(s);
    pass_expand(&s->call, s->thread, s->threads);
}

EXPORT void remix_mixture_add(const Slot *slots, const int32_t *runs_R3, const float *x_TD,
                              float *y_TO, int64_t y_row, float *h_Tm, int32_t *picks_Tk,
                              int64_t R, int64_t D, int64_t O, int64_t m, int64_t k, int counted,
                              int threads) {
    const Call call = {slots, runs_R3, x_TD, y_TO, y_row, h_Tm, picks_Tk, R, D, O, m, k, 0};
    const int64_t total = all_work(&call);
    // Below some microseconds of work, waking the other threads costs more than they give.
    if (total < 40000) threads = 1;
    const int even = is_even(&call, total, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const Share share = share_of(&call, total, even && omp_get_num_threads() == threads);
        route(&share, 0);
        meet(&share);
        add(&share);
    }
    if (counted) count_selected(&call);
}

typedef struct {
    Call call;
    int64_t total;
    int adapted, even; // whether any token has an adapter here; whether whole runs are dealt out
} Part;

static Part make_part(const Projection *p, const int32_t *runs_R3, int64_t R, const float *x_TD,
                      float *y_TO, int64_t m, int64_t k, float *h_Tm, int32_t *picks_Tk,
                      int threads) {
    const int64_t D = p->linear->in, O = p->linear->out;
    Part part = {{p->slots, runs_R3, x_TD, y_TO, O, h_Tm, picks_Tk, R, D, O, m, k, 0}, 0, 0, 0};
    part.total = all_work(&part.call);
    part.adapted = part.total > 0;
    part.even = !part.adapted || is_even(&part.call, part.total, threads);
    return part;
}

EXPORT void remix_project(const Projection *p, int64_t count, const Projection *next,
                          int64_t num_next, const int32_t *runs_R3, int64_t R, const float *x_TD,
                          float *const *y, int64_t T, float *h_Tm, int32_t *picks_Tk, int64_t m,
                          int64_t k, int threads) {
    if (threads > 1 && !remix_linear_is_long(p->linear, T)) threads = 1;
    // Few tokens leave out experts: those that they select are known before weights are fetched.
    const int routed = T <= FEW_TOKENS;
    Part parts[MOST_PROJECTIONS];
    int adapted = 0, shared = 0;
    for (int64_t i = 0; i < count; i++) {
        parts[i] = make_part(p + i, runs_R3, R, x_TD, y[i], m, k, h_Tm + i * T * m,
                             picks_Tk + i * T * k, threads);
        adapted |= parts[i].adapted;
        shared |= !parts[i].even;
    }
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        Share shares[MOST_PROJECTIONS];
        for (int64_t i = 0; i < count; i++)
            shares[i] = share_of(&parts[i].call, parts[i].total, parts[i].even && all == threads);
        if (routed && adapted) {
            for (int64_t i = 0; i < count; i++)
                if (parts[i].adapted) route(&shares[i], i);
            if (shared || all != threads) {
#pragma omp barrier
            }
        }
        for (int64_t i = 0; i < count; i++) {
            Spans spans;
            spans.count = 0;
            if (parts[i].adapted && T <= MOST_TOKENS_FETCHING)
                fetch_experts(&spans, &shares[i].call, shares[i].thread, shares[i].threads, routed);
            if (i + 1 == count && routed)
                for (int64_t j = 0; j < num_next; j++)
                    fetch_routers(&spans, next + j, j, runs_R3, R, thread, all);
            shares[i].call.fetched = routed;
            const Linear *after = i + 1 < count ? p[i + 1].linear : num_next ? next->linear : NULL;
            remix_linear_part(p[i].linear, after, x_TD, y[i], T, spans.at, spans.count, thread,
                              all);
            if (!parts[i].adapted) continue;
#pragma omp barrier
            if (!routed) {
                route(&shares[i], i);
                meet(&shares[i]);
            }
            add(&shares[i]);
        }
    }
    for (int64_t i = 0; i < count; i++)
        if (parts[i].adapted) count_selected(&parts[i].call);
}
