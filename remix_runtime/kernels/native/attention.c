// Causal attention over paged keys and values, float32.
//
// Shapes: T rows (tokens) of the step, H query heads, G key/value heads, R = H / G query heads
// that share one key/value head, d head width, d' = d rounded up to a multiple of 16.
//   keys    [page, G, d, 16]   transposed, so that 16 keys are one vector
//   values  [page, G, 16, d']  what is behind d reaches no output
//
// A tile is up to TILE_ROWS consecutive (row, head) pairs of one sequence and one g. It walks
// over the keys in blocks that begin at multiples of BLOCK in absolute position, with an online
// softmax. Every sum of a row has one order, given by positions alone, and a block that the row
// does not see leaves its state unchanged bit for bit. So the result of a row does not depend on
// its tile, on the chunk it came in, on other sequences or on the number of threads.
// Threads share nothing but tiles.
#include <float.h>

#include "kernels.h"
#include "vector_math.h"

#define PAGE 16
#define BLOCK_PAGES 4
#define BLOCK (PAGE * BLOCK_PAGES)
#define TILE_ROWS 48

// How much is held in registers together: STRIP rows times PAGES_AT_ONCE pages of scores, or times
// VALUE_VECTORS vectors of weighted values.
#define STRIP 6
#if VL == 16
#define PAGES_AT_ONCE 4
#define VALUE_VECTORS 4
#else
#define PAGES_AT_ONCE 1
#define VALUE_VECTORS 2
#endif
#define PAGE_VECTORS (PAGE / VL)
#define SCORE_VECTORS (PAGES_AT_ONCE * PAGE_VECTORS)

typedef struct {
    const float *data;
    int64_t row_stride, head_stride;
} Heads;

typedef struct {
    const Layer *layer;
    const int32_t *pages;
    const float *query[TILE_ROWS];
    float *output[TILE_ROWS];
    int64_t position[TILE_ROWS];
    int64_t rows, g, window;
    float scale, softcap;
} Tile;

// Asks for the cache line at p, to be in the second-level cache when the next loop reads it. Pages
// are too short for the machine to see where the next one lies. (Into the first level fewer lines
// can be on their way at once; that is 1.4 times slower.)
INLINE void fetch(const float *p) { __builtin_prefetch(p, 0, 2); }

// score[r][j] = sum over i of query[r][i] * key[i][j], in the order of i.
INLINE void scores(int rows, const float *query, int64_t d, const float *const *key_pages,
                   const float *const *next, float *score) {
    vf sum[STRIP][SCORE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < SCORE_VECTORS; v++) sum[r][v] = (vf){0};
    for (int64_t i = 0; i < d; i++) {
        vf key[SCORE_VECTORS];
        for (int v = 0; v < SCORE_VECTORS; v++) {
            key[v] = load(key_pages[v / PAGE_VECTORS] + i * PAGE + v % PAGE_VECTORS * VL);
            if (v % PAGE_VECTORS == 0) fetch(next[v / PAGE_VECTORS] + i * PAGE);
        }
        for (int r = 0; r < rows; r++) {
            const vf x = set1(query[r * d + i]);
            for (int v = 0; v < SCORE_VECTORS; v++) sum[r][v] = fma_(x, key[v], sum[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < SCORE_VECTORS; v++) store(score + r * BLOCK + v * VL, sum[r][v]);
}

// sum[r][i] += sum over j < keys of weight[r][j] * value[j][i], in the order of j.
INLINE void weigh(int rows, int vectors, const float *weight, int64_t keys,
                  const float *const *value_pages, const float *const *next, int64_t width,
                  float *sum) {
    vf total[STRIP][VALUE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) total[r][v] = load(sum + r * width + v * VL);
    for (int64_t j = 0; j < keys; j++) {
        const float *value = value_pages[j / PAGE] + j % PAGE * width;
        vf x[VALUE_VECTORS];
        for (int v = 0; v < vectors; v++) {
            x[v] = load(value + v * VL);
            if (v * VL % 16 == 0) fetch(next[j / PAGE] + j % PAGE * width + v * VL);
        }
        for (int r = 0; r < rows; r++) {
            const vf w = set1(weight[r * BLOCK + j]);
            for (int v = 0; v < vectors; v++) total[r][v] = fma_(w, x[v], total[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(sum + r * width + v * VL, total[r][v]);
}

INLINE void weigh_all(int rows, const float *weight, int64_t keys, const float *const *pages,
                      const float *const *next, int64_t width, float *sum) {
    const float *column[BLOCK_PAGES], *next_column[BLOCK_PAGES];
    for (int64_t i = 0, done; i < width; i += done * VL) {
        for (int p = 0; p < BLOCK_PAGES; p++) {
            column[p] = pages[p] + i;
            next_column[p] = next[p] + i;
        }
        done = width - i < VALUE_VECTORS * VL ? 1 : VALUE_VECTORS;
        if (done == 1)
            weigh(rows, 1, weight, keys, column, next_column, width, sum + i);
        else
            weigh(rows, VALUE_VECTORS, weight, keys, column, next_column, width, sum + i);
    }
}

// Turns the scores of one block into weights and brings the running state of the row up to date:
// maximum, 16 partial sums of weights, weighted values.
INLINE void soften(float *score, float *maximum, float *weight_sum, float *sum, int64_t width) {
    float top = *maximum;
#pragma omp simd reduction(max : top)
    for (int j = 0; j < BLOCK; j++) top = score[j] > top ? score[j] : top;
    float decay = exp_f32(*maximum - top);
    *maximum = top;
#pragma omp simd
    for (int j = 0; j < BLOCK; j++) score[j] = exp_f32(score[j] - top);
#pragma omp simd
    for (int j = 0; j < 16; j++)
        weight_sum[j] = weight_sum[j] * decay
                        + ((score[j] + score[j + 16]) + (score[j + 32] + score[j + 48]));
    if (decay != 1.0f) {
#pragma omp simd
        for (int64_t i = 0; i < width; i++) sum[i] *= decay;
    }
}

// Scores outside (position - window, position] become minus infinity.
INLINE void hide(float *score, int64_t block, int64_t position, int64_t window) {
    int64_t last = position - block, first = position - window + 1 - block;
    int lo = first < 0 ? 0 : first > BLOCK ? BLOCK : (int)first;
    int hi = last < 0 ? 0 : last >= BLOCK ? BLOCK : (int)last + 1;
    if (lo == 0 && hi == BLOCK)
        return;
#pragma omp simd
    for (int j = 0; j < BLOCK; j++) score[j] = (j >= lo) & (j < hi) ? score[j] : -INFINITY;
}

static void cap(float *score, float softcap) {
    float inverse = 1.0f / softcap;
#pragma omp simd
    for (int j = 0; j < BLOCK; j++) score[j] = softcap * tanh_f32(score[j] * inverse);
}

// One strip of rows against one block of keys. `keys` counts the keys that any row of the tile
// sees: nothing behind them is read as a value, as it may be what a freed page left.
INLINE void strip_block(int rows, const Tile *tile, int64_t row, int64_t block, int64_t keys,
                        const float *const *key_pages, const float *const *value_pages,
                        const float *const *next_key_pages, const float *query, float *maximum,
                        float *weight_sum, float *sum) {
    const int64_t d = tile->layer->head_dim, width = tile->layer->value_width;
    float score[STRIP * BLOCK] __attribute__((aligned(64)));
    for (int p = 0; p < BLOCK_PAGES; p += PAGES_AT_ONCE)
        scores(rows, query, d, key_pages + p, value_pages + p, score + p * PAGE);
    for (int r = 0; r < rows; r++) {
        if (tile->softcap > 0.0f)
            cap(score + r * BLOCK, tile->softcap);
        hide(score + r * BLOCK, block, tile->position[row + r], tile->window);
        soften(score + r * BLOCK, maximum + r, weight_sum + r * 16, sum + r * width, width);
    }
    weigh_all(rows, score, keys, value_pages, next_key_pages, width, sum);
}

// Of page i of the sequence, or of its last page where i is behind it; `end` counts its keys.
INLINE int64_t page_number(const Tile *tile, int64_t i, int64_t end) {
    const int64_t last = (end - 1) / PAGE;
    return (int64_t)tile->pages[i < last ? i : last] * tile->layer->kv_heads + tile->g;
}

static void attend_tile(const Tile *tile) {
    const Layer *layer = tile->layer;
    const int64_t d = layer->head_dim, width = layer->value_width, rows = tile->rows;
    const int64_t page_keys = d * PAGE, page_values = PAGE * width;
    float query[TILE_ROWS * d] __attribute__((aligned(64)));
    float sum[TILE_ROWS * width] __attribute__((aligned(64)));
    float weight_sum[TILE_ROWS * 16] __attribute__((aligned(64)));
    float maximum[TILE_ROWS];

    memset(sum, 0, sizeof(float) * (size_t)(rows * width));
    memset(weight_sum, 0, sizeof(float) * (size_t)(rows * 16));
    for (int64_t r = 0; r < rows; r++) {
        maximum[r] = -FLT_MAX;
        for (int64_t i = 0; i < d; i++) query[r * d + i] = tile->query[r][i] * tile->scale;
    }

    const int64_t end = tile->position[rows - 1] + 1;
    int64_t begin = tile->position[0] - tile->window + 1;
    begin = begin < 0 ? 0 : begin / BLOCK * BLOCK;
    for (int64_t block = begin; block < end; block += BLOCK) {
        const int64_t keys = end - block < BLOCK ? end - block : BLOCK;
        const float *key_pages[BLOCK_PAGES], *value_pages[BLOCK_PAGES], *next[BLOCK_PAGES];
        for (int64_t p = 0; p < BLOCK_PAGES; p++) {
            // Behind the last page its keys are scored once more, and then hidden.
            key_pages[p] = layer->keys + page_number(tile, block / PAGE + p, end) * page_keys;
            value_pages[p] = layer->values + page_number(tile, block / PAGE + p, end) * page_values;
            next[p] = layer->keys
                      + page_number(tile, block / PAGE + BLOCK_PAGES + p, end) * page_keys;
        }
        for (int64_t row = 0; row < rows; row += STRIP) {
            int64_t left = rows - row < STRIP ? rows - row : STRIP;
            if (tile->position[row + left - 1] < block
                || tile->position[row] - tile->window >= block + BLOCK - 1)
                continue;
#define CASE(N)                                                                                 \
    case N:                                                                                     \
        strip_block(N, tile, row, block, keys, key_pages, value_pages, next, query + row * d,   \
                    maximum + row, weight_sum + row * 16, sum + row * width);                   \
        break;
            switch (left) {
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
            }
#undef CASE
        }
    }

    for (int64_t r = 0; r < rows; r++) {
        float *w = weight_sum + r * 16;
        for (int half = 8; half > 0; half /= 2)
            for (int j = 0; j < half; j++) w[j] += w[j + half];
        // + 0: a sum of underflown products may be -0, and a hidden key turns that into +0.
        for (int64_t i = 0; i < d; i++) tile->output[r][i] = sum[r * width + i] / w[0] + 0.0f;
    }
}

// Copies the new rows of sequence s into its pages.
static void store_rows(const Layer *layer, const Batch *batch, int64_t s, int64_t g, Heads key,
                  Heads value) {
    const int64_t d = layer->head_dim, width = layer->value_width;
    const int32_t *pages = batch->page_table + s * batch->page_table_stride;
    for (int64_t t = 0; t < batch->num_rows[s]; t++) {
        int64_t position = batch->context[s] + t, row = batch->first_row[s] + t;
        int64_t page = (int64_t)pages[position / PAGE] * layer->kv_heads + g;
        float *k = layer->keys + page * d * PAGE + position % PAGE;
        float *v = layer->values + (page * PAGE + position % PAGE) * width;
        const float *new_k = key.data + row * key.row_stride + g * key.head_stride;
        const float *new_v = value.data + row * value.row_stride + g * value.head_stride;
        for (int64_t i = 0; i < d; i++) k[i * PAGE] = new_k[i];
        memcpy(v, new_v, sizeof(float) * (size_t)d);
    }
}

// Fills in tile number `index` of sequence s.
static void attend_rows(const Layer *layer, const Batch *batch, int64_t s, int64_t g,
                        int64_t index, int64_t heads, Heads query, float *output, float scale,
                        int64_t window, float softcap) {
    const int64_t share = heads / layer->kv_heads, d = layer->head_dim;
    const int64_t all = batch->num_rows[s] * share, start = index * TILE_ROWS;
    Tile tile = {.layer = layer,
                 .pages = batch->page_table + s * batch->page_table_stride,
                 .rows = all - start < TILE_ROWS ? all - start : TILE_ROWS,
                 .g = g,
                 .window = window,
                 .scale = scale,
                 .softcap = softcap};
    for (int64_t r = 0; r < tile.rows; r++) {
        int64_t t = (start + r) / share, head = g * share + (start + r) % share;
        int64_t row = batch->first_row[s] + t;
        tile.position[r] = batch->context[s] + t;
        tile.query[r] = query.data + row * query.row_stride + head * query.head_stride;
        tile.output[r] = output + (row * heads + head) * d;
    }
    attend_tile(&tile);
}

// Stores the keys and values of all rows, then attends. Output [T, H, d] is contiguous; strides
// are in floats, the last dimension of every input has stride 1; softcap 0 means none.
EXPORT void remix_attend(const Layer *layer, const Batch *batch, int64_t heads, const float *query,
                  int64_t query_row, int64_t query_head, const float *key, int64_t key_row,
                  int64_t key_head, const float *value, int64_t value_row, int64_t value_head,
                  float *output, float scale, int64_t window, float softcap, int threads) {
    const int64_t sequences = batch->num_sequences, kv_heads = layer->kv_heads;
    const int64_t share = heads / kv_heads;
    int64_t tiles = 0, pairs = 0; // pairs of query row and key
    for (int64_t s = 0; s < sequences; s++) {
        tiles += (batch->num_rows[s] * share + TILE_ROWS - 1) / TILE_ROWS;
        pairs += (int64_t)batch->num_rows[s] * (batch->context[s] + batch->num_rows[s]);
    }
    const int worth_a_team = pairs * heads * layer->head_dim > 1 << 13;
    const Heads q = {query, query_row, query_head}, k = {key, key_row, key_head},
                v = {value, value_row, value_head};

#pragma omp parallel num_threads(threads) if (worth_a_team && threads > 1)
    {
#pragma omp for collapse(2) schedule(static)
        for (int64_t s = 0; s < sequences; s++)
            for (int64_t g = 0; g < kv_heads; g++) store_rows(layer, batch, s, g, k, v);
        // The late tiles of a long prefill see the most keys: they come first.
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = tiles * kv_heads - 1; task >= 0; task--) {
            int64_t index = task / kv_heads, s = 0;
            for (;; s++) {
                int64_t own = (batch->num_rows[s] * share + TILE_ROWS - 1) / TILE_ROWS;
                if (index < own)
                    break;
                index -= own;
            }
            attend_rows(layer, batch, s, task % kv_heads, index, heads, q, output, scale, window,
                        softcap);
        }
    }
}
