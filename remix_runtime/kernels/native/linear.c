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

#include <omp.h>
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
// Up to so many, two panels are computed together: one alone has too few chains of multiply-adds to
// hide the time of each, which shows where a vector is as narrow as 8 numbers.
#if defined(__AVX512F__)
#define PAIRED_TOKENS 0
#else
#define PAIRED_TOKENS 2
#endif
// A thread's share of many tokens: its x stays in the L2 cache while a panel passes over it.
#define TOKEN_BLOCK 192
// How far ahead of their use weights are fetched, in bytes.
#define AHEAD 4096
// The same for each of two panels, by the type of the weights.
static const int64_t PAIR_AHEAD[] = {256, 1024, 1024, 4096};
// More than this would leave a thread's L2 cache again while its weights stream through it.
#define MOST_BYTES_BESIDE (3 << 18)

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
    int64_t D, O, width; // `width`: outputs of the panels that are none of the padding
    const char *fetch;   // what is read ahead, `fetch_step` / 65536 bytes of it for each d
    int64_t fetch_step;
    const char *fetch_end;           // from here on, what lies `fetch_jump` bytes further is read
    int64_t fetch_jump, fetch_apart; // ahead instead, for the second panel `fetch_apart` after that
    const char *more, *then; // the same, of other memory: of `more` up to `more_bytes`, then of `then`
    int64_t more_step, more_bytes;
} Tile;

INLINE void tile(const int type, const int use, const int tokens, const int panels,
                 const Tile *task) {
    const int64_t D = task->D, O = task->O, fetch_step = task->fetch_step;
    const int64_t apart = panel_bytes(type, D); // from one panel to the next
    const char *w = task->w, *fetch = task->fetch;
    const float *x = task->x;
    const int few = tokens <= 2; // with more, products take all the time
    // No other tile reads them again: they go past the second-level cache.
    const int once = panels > 1 || use == FETCHES;
    vf lo[TILE], hi[TILE], scale[2][2];
    const int64_t group = type == INT8 ? GROUP : D;
#pragma GCC unroll 16
    for (int i = 0; i < tokens * panels; i++) lo[i] = hi[i] = (vf){0};
    for (int64_t d = 0; d < D;) {
        const int64_t end = D - d < group ? D : d + group;
        if (type == INT8) {
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++)
                load_bfloat16(w + p * apart, &scale[p][0], &scale[p][1]);
            w += 2 * P;
        }
        for (; d < end; d++, w += row_bytes(type)) {
            const char *line = fetch + (d * fetch_step >> 16);
            int64_t line_apart = apart;
            if (few && line >= task->fetch_end)
                line += task->fetch_jump, line_apart = task->fetch_apart;
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++, line += line_apart) {
                __builtin_prefetch(line, 0, once ? 0 : 3);
                if (row_bytes(type) > 64) __builtin_prefetch(line + 64, 0, once ? 0 : 3);
            }
            if (use == FETCHES) {
                const int64_t at = d * task->more_step >> 16;
                __builtin_prefetch((at < task->more_bytes ? task->more : task->then) + at, 0, 3);
            }
#pragma GCC unroll 2
            for (int p = 0; p < panels; p++) {
                vf w_lo, w_hi;
                load_weights(type, w + p * apart, scale[p], &w_lo, &w_hi);
                if (use == KEEPS) {
                    store(task->wide + d * P, w_lo);
                    store(task->wide + d * P + VL, w_hi);
                }
#pragma GCC unroll 16
                for (int t = 0; t < tokens; t++) {
                    const vf a = set1(x[t * D + d]);
                    const int i = p * tokens + t;
                    lo[i] = fma_(a, w_lo, lo[i]);
                    hi[i] = fma_(a, w_hi, hi[i]);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; p++) {
        const float *bias = task->bias ? task->bias + p * P : NULL;
        const int64_t width = task->width - p * P;
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++) {
            const int i = p * tokens + t;
            if (bias) lo[i] += load(bias), hi[i] += load(bias + VL);
            float *out = task->y + t * O + p * P;
            if (width >= P) {
                store(out, lo[i]);
                store(out + VL, hi[i]);
            } else {
                float edge[P];
                store(edge, lo[i]);
                store(edge + VL, hi[i]);
                memcpy(out, edge, (size_t)width * sizeof(float));
            }
        }
    }
}

typedef void Tiles(int64_t tokens, int64_t panels, const Tile *task);

#define CASE(tokens, panels) \
    case 2 * tokens + panels - 1: tile(type, use, tokens, panels, task); break;
#if TILE == 12
#define CASES CASE(7, 1) CASE(8, 1) CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1)
#else
#define CASES
#endif
#if PAIRED_TOKENS == 2
#define PAIRS CASE(1, 2) CASE(2, 2)
#else
#define PAIRS
#endif
#define TILES(name, type_, use_)                                                  \
    static void name(int64_t tokens, int64_t panels, const Tile *task) {          \
        enum { type = type_, use = use_ };                                        \
        switch (2 * tokens + panels - 1) {                                        \
            CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASES \
            PAIRS                                                                 \
        }                                                                         \
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
// From so many tiles on, the first one makes a copy in float32: widening anew would take longer.
#if defined(__AVX2__) && !defined(__AVX512F__)
static const int64_t KEPT_FROM[] = {INT64_MAX, INT64_MAX, INT64_MAX, 3};
#else
static const int64_t KEPT_FROM[] = {INT64_MAX, INT64_MAX, 2, 2};
#endif
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

// What is fetched in the time of one register tile: from part `i` of `n` equal ones of all spans
// together, `total` bytes, `parts` of them, as far as two spans have it.
static void part_of(const Span *spans, int64_t count, int64_t total, int64_t i, int64_t parts,
                    int64_t n, Span part[2]) {
    int64_t begin = total * i / n, bytes = total * (i + parts) / n - begin, found = 0;
    part[0] = part[1] = (Span){NULL, 0};
    for (; count > 0 && bytes > 0 && found < 2; spans++, count--) {
        if (begin < spans->bytes) {
            const int64_t left = spans->bytes - begin, here = bytes < left ? bytes : left;
            part[found++] = (Span){spans->at + begin, here};
            bytes -= here;
            begin = 0;
        } else {
            begin -= spans->bytes;
        }
    }
}

// All tokens of one panel or two; they fetch as many of `units` parts of the spans, from `unit` on.
static void tokens_of_panels(const int type, int64_t tokens, int64_t panels, Tile task,
                             const Span *spans, int64_t num_spans, int64_t total, int64_t unit,
                             int64_t units) {
    // The first tile streams the weights; the others find them in the cache.
    task.fetch = task.w + (panels == 1 ? AHEAD : PAIR_AHEAD[type]);
    task.fetch_step = (panel_bytes(type, task.D) << 16) / task.D;
    // Equal tiles: 32 tokens are 11 + 11 + 10, not 12 + 12 + 8.
    const int64_t all = (tokens + TILE - 1) / TILE;
    Tiles *first = TILES_OF[type], *others = first;
    if (all >= KEPT_FROM[type] && (task.wide = wide_panel(task.D)))
        first = KEPT_TILES_OF[type], others = float32;
    Span part[2];
    if (all == 1 && total > 0 && total <= MOST_BYTES_BESIDE) {
        first = FETCHING_TILES_OF[type];
        part_of(spans, num_spans, total, unit, panels, units, part);
        task.more = part[0].at, task.more_bytes = part[0].bytes;
        task.then = part[1].bytes ? part[1].at - part[0].bytes : task.more;
        task.more_step = ((part[0].bytes + part[1].bytes) << 16) / task.D;
    }
    for (int64_t tiles = all; tiles > 0; tiles--) {
        const int64_t count = (tokens + tiles - 1) / tiles;
        if (tiles < all) {
            if (first != others) task.w = (const char *)task.wide;
            part_of(spans, num_spans, total, unit * (all - 1) + all - 1 - tiles, 1,
                    units * (all - 1), part);
            task.fetch = part[0].bytes ? part[0].at : task.w;
            task.fetch_step = (part[0].bytes << 16) / task.D;
        }
        (tiles == all ? first : others)(count, panels, &task);
        task.x += count * task.D;
        task.y += count * task.O;
        tokens -= count;
    }
}

INLINE int64_t panels_of(const Linear *linear) { return (linear->out + P - 1) / P; }

void remix_linear_part(const Linear *linear, const Linear *next, const float *x_TD, float *y_TO,
                       int64_t T, const Span *spans, int64_t num_spans, int64_t thread,
                       int64_t threads) {
    const int64_t D = linear->in, O = linear->out;
    const int64_t panels = panels_of(linear), bytes = panel_bytes(linear->type, D);
    const int64_t blocks = (T + TOKEN_BLOCK - 1) / TOKEN_BLOCK;
    const int64_t block = blocks ? (T + blocks - 1) / blocks : 0;
    const int64_t units = panels * blocks;
    const int64_t begin = units * thread / threads, end = units * (thread + 1) / threads;
    int64_t total = 0; // bytes of the spans
    for (int64_t s = 0; s < num_spans; s++) total += spans[s].bytes;
    for (int64_t unit = begin, pair = 1; unit < end; unit += pair) {
        pair = T <= PAIRED_TOKENS && unit + 1 < end ? 2 : 1;
        const int64_t panel = unit / blocks, first = unit % blocks * block;
        const int64_t tokens = T - first < block ? T - first : block;
        Tile task = {
            .w = linear->panels + panel * bytes,
            .x = x_TD + first * D,
            .bias = linear->bias ? linear->bias + panel * P : NULL,
            .y = y_TO + first * O + panel * P,
            .D = D,
            .O = O,
            .width = O - panel * P,
            // Behind this panel its neighbour is read ahead; where two are read, the one after that.
            .fetch_end = linear->panels + (panel + 1) * bytes,
            .fetch_jump = (pair - 1) * bytes,
            .fetch_apart = bytes,
        };
        if (next && unit + pair == end) {
            const int64_t next_bytes = panel_bytes(next->type, next->in);
            const int64_t first_panel = panels_of(next) * thread / threads;
            task.fetch_jump = next->panels + first_panel * next_bytes - task.fetch_end;
            task.fetch_apart = next_bytes;
        }
        tokens_of_panels(linear->type, tokens, pair, task, spans, num_spans, total, unit - begin,
                         end - begin);
    }
}

// Below a few microseconds of work, waking the other threads costs more than they give.
int remix_linear_is_long(const Linear *linear, int64_t T) {
    return panels_of(linear) * P * linear->in * (T + 6) >= 400000;
}

EXPORT void remix_linear(const Linear *linear, const float *x_TD, float *y_TO, int64_t T,
                         int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1 && remix_linear_is_long(linear, T))
    remix_linear_part(linear, NULL, x_TD, y_TO, T, NULL, 0, omp_get_thread_num(),
                      omp_get_num_threads());
}
