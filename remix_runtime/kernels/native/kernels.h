// The kernels' types and functions, for kernels that are made of others.
#pragma once

#include "vec.h"

// mixture.c: one adapter at one linear.
typedef struct Slot Slot;

// attention.c: the pages of one layer. G, d, and d rounded up to a full vector.
typedef struct {
    float *keys, *values;
    int64_t kv_heads, head_dim, value_width;
} Layer;

// attention.c: which rows of the step belong to which of the S sequences.
typedef struct {
    const int32_t *page_table;                     // [S, page_table_stride]
    const int32_t *first_row, *num_rows, *context; // [S]
    int64_t num_sequences, page_table_stride;
} Batch;

// Memory that will be read soon.
typedef struct {
    const char *at;
    int64_t bytes;
} Span;

// linear.c: how weights are stored.
enum { FLOAT32, BFLOAT16, FLOAT16, INT8 };

// linear.c: a layer's weights in panels.
typedef struct {
    const char *panels;
    const float *bias; // of whole panels, or NULL
    int64_t in, out;
    int32_t type;
} Linear;

void remix_linear(const Linear *linear, const float *x_TD, float *y_TO, int64_t T, int threads);

// One thread's part of it, with memory that is fetched into the thread's caches on the way: the
// spans, and at the end the beginning of its part of `next`, or NULL.
void remix_linear_part(const Linear *linear, const Linear *next, const float *x_TD, float *y_TO,
                       int64_t T, const Span *spans, int64_t num_spans, int64_t thread,
                       int64_t threads);

// Whether it is so much work that a second thread helps.
int remix_linear_is_long(const Linear *linear, int64_t T);

void remix_mixture_add(const Slot *slots, const int32_t *runs_R3, const float *x_TD, float *y_TO,
                       int64_t y_row, float *h_Tm, int32_t *picks_Tk, int64_t R, int64_t D,
                       int64_t O, int64_t m, int64_t k, int counted, int threads);

// A base linear and the mixtures in its slots.
typedef struct {
    const Linear *linear;
    const Slot *slots;
} Projection;

#define MOST_PROJECTIONS 3

// mixture.c: y[i] = what projection i of `count` makes of x, base and mixture, with the selected
// experts on their way while the base products are computed, and the routers of the `num_next` ones
// that come next. Scratch: h [count, T, m], picks [count, T, k].
void remix_project(const Projection *projections, int64_t count, const Projection *next,
                   int64_t num_next, const int32_t *runs_R3, int64_t R, const float *x_TD,
                   float *const *y, int64_t T, float *h_Tm, int32_t *picks_Tk, int64_t m, int64_t k,
                   int threads);

void remix_attend(const Layer *layer, const Batch *batch, int64_t heads, const float *query,
                  int64_t query_row, int64_t query_head, const float *key, int64_t key_row,
                  int64_t key_head, const float *value, int64_t value_row, int64_t value_head,
                  float *output, float scale, int64_t window, float softcap, int threads);

void remix_rms_norm(const float *x, int64_t stride, int64_t rows, int64_t D, const float *weight,
                    float eps, float offset, float *y, int threads);

void remix_act_mul(int gelu, const float *gate, int64_t gate_stride, const float *up,
                   int64_t up_stride, int64_t rows, int64_t F, float *y, int threads);

void remix_rope(float *q, int64_t q_heads, int64_t q_head_stride, int64_t q_token_stride, float *k,
                int64_t k_heads, int64_t k_head_stride, int64_t k_token_stride, const float *cos,
                const float *sin, int64_t angle_stride, int64_t tokens, int64_t D, int threads);
