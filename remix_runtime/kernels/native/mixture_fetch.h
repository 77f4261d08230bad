// What a thread is going to read of the adapters: fetched while a base product is computed.
#pragma once

#include "mixture_dots.h"

#define MOST_SPANS 64

typedef struct {
    Span at[MOST_SPANS];
    int64_t count;
} Spans;

// One more span, as far as there is room; one with the last where hardly anything is between them.
static void fetch(Spans *spans, const char *at, int64_t bytes, int64_t near) {
    Span *last = spans->count ? spans->at + spans->count - 1 : NULL;
    if (last && at >= last->at + last->bytes && at - last->at - last->bytes <= near)
        last->bytes = at + bytes - last->at;
    else if (spans->count < MOST_SPANS)
        spans->at[spans->count++] = (Span){at, bytes};
}

// Which of the first MOST_SPANS experts a run's tokens selected, a bit for each.
static uint64_t selected_by(const Call *c, const Run *run) {
    uint64_t bits = 0;
    for (int64_t t = run->first; t < run->first + run->tokens; t++)
        for (int64_t j = 0; j < run->slot.k; j++) {
            const int32_t e = c->picks_Tk[t * c->k + j];
            if (e < MOST_SPANS) bits |= UINT64_C(1) << e;
        }
    return bits;
}

// Bytes of a tile of A.
INLINE int64_t tile_bytes(const Run *run, int64_t D) {
    return ROWS * ceil_div(D, VL) * VL * size(run->slot.bf16);
}

static void fetch_router(Spans *spans, const Run *run, int64_t D) {
    const int64_t tile = tile_bytes(run, D);
    fetch(spans, (const char *)run->slot.a + run->router_tile * tile,
          (run->tiles - run->router_tile) * tile, 0);
}

// The experts: of a thread's own runs all, of others its part of A and of each expert's B. All of
// them, and the router, where none is selected yet.
static void fetch_experts(Spans *spans, const Call *c, int64_t thread, int64_t threads,
                          int routed) {
    const int64_t outputs = ceil_div(c->O, P);
    const int64_t from = outputs * thread / threads, to = outputs * (thread + 1) / threads;
    for (int64_t i = 0; i < c->R; i++) {
        const Run run = get_run(c, i);
        const int64_t a = run.expert_tiles * tile_bytes(&run, c->D);
        const int64_t b = run.slot.r * P * size(run.slot.bf16), next = (outputs | 1) * b;
        int32_t experts[MOST_SPANS];
        int64_t selected = 0;
        const uint64_t bits = routed ? selected_by(c, &run) : UINT64_MAX;
        for (int32_t e = 0; e < run.slot.n && e < MOST_SPANS; e++)
            if (bits >> e & 1) experts[selected++] = e;
        const char *const at_a = run.slot.a, *const at_b = (const char *)run.slot.b + from * b;
        const int64_t end = selected * (thread + 1) / threads;
        for (int64_t j = selected * thread / threads; j < end; j++)
            fetch(spans, at_a + experts[j] * a, a, 0);
        if (!routed && run.slot.n && end == selected) fetch_router(spans, &run, c->D);
        for (int64_t j = 0; j < selected; j++)
            fetch(spans, at_b + experts[j] * next, (to - from) * b, b);
    }
}

// The routers at projection number `index` of those that come next, as far as this thread is likely
// to need them: those of its runs, or of its projections where there is one run.
static void fetch_routers(Spans *spans, const Projection *next, int64_t index,
                          const int32_t *runs_R3, int64_t R, int64_t thread, int64_t threads) {
    const Call call = {.slots = next->slots, .runs_R3 = runs_R3, .R = R};
    for (int64_t i = 0; i < R; i++) {
        const Run run = get_run(&call, i);
        const int64_t whose = R > 1 ? i * threads / R : index % threads;
        if (run.slot.n && whose == thread) fetch_router(spans, &run, next->linear->in);
    }
}
