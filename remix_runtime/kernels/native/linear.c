// y = x Wᵀ + b over weights packed into panels, for any number of tokens.
//
// Shapes: T tokens, D inputs, O outputs, P outputs in a panel, C = ceil(O / P) panels.
//   x_TD; y_TO; weights as they are stored, the last panel padded with zeros:
//   float32   [C, D, P]
//   bfloat16  the same, the two halves of each row of P interleaved
//   float16   the same
//   int8      [C, ceil(D / GROUP), 2 + GROUP, P] bytes: the scales of a group's outputs, bfloat16 in
//             the first two rows, then its weights; the last group is padded. A weight is byte ·
//             scale, which float32 holds exactly.
//
// The lanes of a vector are neighbouring outputs; an output is one chain of multiply-adds over D
// in order, in float32 whatever the weights are stored in, then plus the bias. Tokens that are
// computed together share the loads of the weights and nothing else, so a row of y has the same
// bits in every batch and at every thread count, and those of float32 weights of the same numbers.

#include <stdlib.h>

#include "kernels.h"
#include "widen.h"

#define P (2 * VL)
#define GROUP 32
// Tokens in a register tile: two accumulators each, and room for weights and x.
#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 12
#else
#define TILE 6
#endif
// A thread's share of many tokens: its x stays in the L2 cache while a panel passes over it.
#define TOKEN_BLOCK 192
// How far ahead of their use weights are fetched, in bytes.
#define AHEAD 4096
// From so many tokens on a tile computes for longer than its weights take to come.
#define BUSY_TOKENS 4
// More than this would leave the L2 caches again while all weights stream through them.
#define MOST_BYTES_BESIDE (3 << 19)

EXPORT int64_t remix_linear_panel(void) { return P; }
EXPORT int64_t remix_linear_group(void) { return GROUP; }

// Bytes of the weights of one d in a panel.
INLINE int64_t row_bytes(const int type) {
    return type == FLOAT32 ? 4 * P : type == INT8 ? P : 2 * P;
}

INLINE int64_t panel_bytes(const int type, int64_t D) {
    if (type == INT8) return (D + GROUP - 1) / GROUP * (GROUP + 2) * P;
    return D * row_bytes(type);
}

INLINE void load_weights(const int type, const char *w, const vf scale[2], vf *lo, vf *hi) {
    switch (type) {
        case FLOAT32:
            *lo = load((const float *)w);
            *hi = load((const float *)w + VL);
            break;
        case BFLOAT16: load_bfloat16(w, lo, hi); break;
        case FLOAT16:
            *lo = load_float16(w);
            *hi = load_float16(w + 2 * VL);
            break;
        case INT8:
            *lo = load_int8(w) * scale[0];
            *hi = load_int8(w + VL) * scale[1];
            break;
    }
}

// What a register tile does beside its products: read the weights in a stream; keep them in float32
// for those that come after it; fetch other memory.
enum { STREAMS, KEEPS, FETCHES };

// What a register tile works on.
typedef struct {
    const char *w;
    const float *x, *bias;
    float *y, *wide;     // `wide`: where a tile that keeps them leaves its weights in float32
    int64_t D, O, width; // `width`: outputs of the panel that are none of the padding
    const char *fetch;   // what is read ahead, `fetch_step` / 65536 bytes of it for each d
    int64_t fetch_step;
    const char *more; // the same, of other memory than the weights
    int64_t more_step;
} Tile;

INLINE void tile(const int type, const int use, const int tokens, const Tile *task) {
    const int64_t D = task->D, O = task->O, fetch_step = task->fetch_step;
    const char *w = task->w, *fetch = task->fetch;
    const float *x = task->x, *bias = task->bias;
    vf lo[TILE], hi[TILE], scale[2];
    const int64_t group = type == INT8 ? GROUP : D;
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) lo[t] = hi[t] = (vf){0};
    for (int64_t d = 0; d < D;) {
        const int64_t end = D - d < group ? D : d + group;
        if (type == INT8) {
            load_bfloat16(w, &scale[0], &scale[1]);
            w += 2 * P;
        }
        for (; d < end; d++, w += row_bytes(type)) {
            const char *line = fetch + (d * fetch_step >> 16);
            __builtin_prefetch(line, 0, 3);
            if (row_bytes(type) > 64) __builtin_prefetch(line + 64, 0, 3);
            if (use == FETCHES) __builtin_prefetch(task->more + (d * task->more_step >> 16), 0, 3);
            vf w_lo, w_hi;
            load_weights(type, w, scale, &w_lo, &w_hi);
            if (use == KEEPS) {
                store(task->wide + d * P, w_lo);
                store(task->wide + d * P + VL, w_hi);
            }
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++) {
                const vf a = set1(x[t * D + d]);
                lo[t] = fma_(a, w_lo, lo[t]);
                hi[t] = fma_(a, w_hi, hi[t]);
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
        if (bias) lo[t] += load(bias), hi[t] += load(bias + VL);
        float *out = task->y + t * O;
        if (task->width == P) {
            store(out, lo[t]);
            store(out + VL, hi[t]);
        } else {
            float edge[P];
            store(edge, lo[t]);
            store(edge + VL, hi[t]);
            memcpy(out, edge, (size_t)task->width * sizeof(float));
        }
    }
}

typedef void Tiles(int64_t tokens, const Tile *task);

#define CASE(n) \
    case n: tile(type, use, n, task); break;
#if TILE == 12
#define CASES CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#else
#define CASES
#endif
#define TILES(name, type_, use_)                                 \
    static void name(int64_t tokens, const Tile *task) {         \
        enum { type = type_, use = use_ };                       \
        switch (tokens) {                                        \
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASES \
        }                                                        \
    }
TILES(float32, FLOAT32, STREAMS)
TILES(bfloat16, BFLOAT16, STREAMS)
TILES(float16, FLOAT16, STREAMS)
TILES(int8, INT8, STREAMS)
TILES(float16_kept, FLOAT16, KEEPS)
TILES(int8_kept, INT8, KEEPS)
TILES(float32_fetching, FLOAT32, FETCHES)
TILES(bfloat16_fetching, BFLOAT16, FETCHES)
TILES(float16_fetching, FLOAT16, FETCHES)
TILES(int8_fetching, INT8, FETCHES)

static Tiles *const TILES_OF[] = {float32, bfloat16, float16, int8};
// Where widening takes longer than the copy that saves it. The first tile of several makes it.
static Tiles *const KEPT_TILES_OF[] = {NULL, NULL, float16_kept, int8_kept};
// Where the only tile has time to fetch other memory, too.
static Tiles *const FETCHING_TILES_OF[] = {float32_fetching, bfloat16_fetching, float16_fetching,
                                           int8_fetching};

// Memory of this thread, kept from call to call; NULL where there is none.
static float *wide_panel(int64_t D) {
    static _Thread_local float *memory;
    static _Thread_local int64_t room;
    if (room < D) {
        free(memory);
        memory = aligned_alloc(64, (size_t)(D * P) * sizeof(float));
        room = memory ? D : 0;
    }
    return memory;
}

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

// All tokens of one panel; its part of the spans is `unit` of `units`.
static void tokens_of_panel(const int type, int64_t tokens, Tile task, const Span *spans,
                            int64_t num_spans, int64_t unit, int64_t units) {
    // The first tile streams the weights; the others find them in the cache.
    task.fetch = task.w + AHEAD;
    task.fetch_step = (panel_bytes(type, task.D) << 16) / task.D;
    // Equal tiles: 32 tokens are 11 + 11 + 10, not 12 + 12 + 8.
    const int64_t all = (tokens + TILE - 1) / TILE;
    Tiles *first = TILES_OF[type], *others = first;
    if (all > 1 && KEPT_TILES_OF[type] && (task.wide = wide_panel(task.D)))
        first = KEPT_TILES_OF[type], others = float32;
    if (all == 1 && tokens >= BUSY_TOKENS) {
        const Span span = part_of(spans, num_spans, unit, units);
        if (span.bytes && span.bytes * units <= MOST_BYTES_BESIDE) {
            task.more = span.at, task.more_step = (span.bytes << 16) / task.D;
            first = FETCHING_TILES_OF[type];
        }
    }
    for (int64_t tiles = all; tiles > 0; tiles--) {
        const int64_t count = (tokens + tiles - 1) / tiles;
        if (tiles < all) {
            if (first != others) task.w = (const char *)task.wide;
            const int64_t part = unit * (all - 1) + all - 1 - tiles;
            const Span span = part_of(spans, num_spans, part, units * (all - 1));
            task.fetch = span.bytes ? span.at : task.w;
            task.fetch_step = (span.bytes << 16) / task.D;
        }
        (tiles == all ? first : others)(count, &task);
        task.x += count * task.D;
        task.y += count * task.O;
        tokens -= count;
    }
}

void remix_linear_fetching(const Linear *linear, const float *x_TD, float *y_TO, int64_t T,
                           int threads, const Span *spans, int64_t num_spans) {
    const int64_t D = linear->in, O = linear->out;
    const int64_t panels = (O + P - 1) / P, bytes = panel_bytes(linear->type, D);
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
        const Tile task = {
            .w = linear->panels + panel * bytes,
            .x = x_TD + first * D,
            .bias = linear->bias ? linear->bias + panel * P : NULL,
            .y = y_TO + first * O + panel * P,
            .D = D,
            .O = O,
            .width = O - panel * P < P ? O - panel * P : P,
        };
        tokens_of_panel(linear->type, tokens, task, spans, num_spans, unit, units);
    }
}

EXPORT void remix_linear(const Linear *linear, const float *x_TD, float *y_TO, int64_t T,
                         int threads) {
    remix_linear_fetching(linear, x_TD, y_TO, T, threads, NULL, 0);
}
