// The forward pass of a Llama-like model in one call, made of the kernels beside this file.
//
// For a few tokens, calling each kernel from Python costs as much as the small ones take: the
// weights have driven what Python needs out of the caches. The order of operations is that of
// transformers' LlamaForCausalLM (Qwen2, Qwen3 and Mistral alike), each decoder layer being
//   x += o(attention(rope(q), rope(k), v)) of norm(x);  x += down(silu(gate) · up) of norm(x)
//
// Shapes: T tokens, S of them whose logits are wanted, V vocabulary, D hidden width, F feed-forward
// width, H query heads, G key-value heads, d head width, r rotated width, R runs, m and k row
// lengths of the mixtures' scratch.

#include <omp.h>

#include "kernels.h"
#include "widen.h"

// Fewer floats than this are done before a second thread has woken up.
#define WORTH_A_TEAM 32768

typedef struct {
    Projection qkv[3], o, gate_up[2], down;
    const float *attention_norm, *mlp_norm; // [D]
    const float *q_norm, *k_norm;           // [d], or NULL
    const Layer *kv;
    int64_t heads, window;
    float eps, scale;
} Block;

typedef struct {
    const char *embedding_VD; // of `embedding_type`, row after row
    const Block *blocks;
    const float *norm;        // [D]
    const float *frequencies; // [r / 2], in radians per position
    const Linear *head;
    int64_t num_blocks, D, r;
    int32_t embedding_type;
    float eps, rotary_scale;
} Network;

typedef struct {
    const int32_t *ids_T, *positions_T, *wanted_S;
    const Batch *attention;
    const int32_t *runs_R3;
    float *x_TD, *cos_Tr, *sin_Tr, *norm_TD, *q_THd, *k_TGd, *v_TGd, *o_THd, *gate_TF, *up_TF;
    float *rows_Tm;
    int32_t *picks_Tk;
    int64_t T, S, R, m, k;
    int32_t threads;
} Step;

static void embed(const Network *n, const Step *s) {
    const int64_t D = n->D;
    for (int64_t t = 0; t < s->T; t++) {
        float *x = s->x_TD + t * D;
        if (n->embedding_type == FLOAT32) {
            memcpy(x, n->embedding_VD + s->ids_T[t] * D * 4, (size_t)D * 4);
            continue;
        }
        const uint16_t *row = (const uint16_t *)n->embedding_VD + s->ids_T[t] * D;
        if (n->embedding_type == BFLOAT16)
            for (int64_t i = 0; i < D; i++) x[i] = from_bfloat16(row[i]);
        else
            for (int64_t i = 0; i < D; i += VL) {
                const size_t count = D - i < VL ? D - i : VL;
                uint16_t some[VL] = {0};
                memcpy(some, row + i, count * sizeof *row);
                const vf wide = load_float16((const char *)some);
                memcpy(x + i, &wide, count * sizeof *x);
            }
    }
}

// The two halves of a head turn by the same angles.
static void angles(const Network *n, const Step *s) {
    const int64_t half = n->r / 2;
    for (int64_t t = 0; t < s->T; t++) {
        float *c = s->cos_Tr + t * n->r, *sine = s->sin_Tr + t * n->r;
        for (int64_t i = 0; i < half; i++) {
            const float angle = (float)s->positions_T[t] * n->frequencies[i];
            c[i] = c[i + half] = cosf(angle) * n->rotary_scale;
            sine[i] = sine[i + half] = sinf(angle) * n->rotary_scale;
        }
    }
}

static void project(const Step *s, const Projection *p, int64_t count, const Projection *next,
                    int64_t num_next, const float *x, float *const *y) {
    remix_project(p, count, next, num_next, s->runs_R3, s->R, x, y, s->T, s->rows_Tm, s->picks_Tk,
                  s->m, s->k, s->threads);
}

static void norm(const Step *s, const float *x, int64_t rows, int64_t width, const float *weight,
                 float eps, float *y) {
    remix_rms_norm(x, width, rows, width, weight, eps, 0.0f, y, s->threads);
}

static void add(float *x, const float *y, int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) if (threads > 1 && count > WORTH_A_TEAM)
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

static void block(const Network *n, const Block *b, const Step *s) {
    const int is_last = b + 1 == n->blocks + n->num_blocks;
    const int64_t T = s->T, D = n->D, r = n->r;
    const int64_t d = b->kv->head_dim, H = b->heads, G = b->kv->kv_heads;
    float *const x_TD = s->x_TD;
    norm(s, x_TD, T, D, b->attention_norm, b->eps, s->norm_TD);
    project(s, b->qkv, 3, &b->o, 1, s->norm_TD, (float *[]){s->q_THd, s->k_TGd, s->v_TGd});
    if (b->q_norm) norm(s, s->q_THd, T * H, d, b->q_norm, b->eps, s->q_THd);
    if (b->k_norm) norm(s, s->k_TGd, T * G, d, b->k_norm, b->eps, s->k_TGd);
    remix_rope(s->q_THd, H, d, H * d, s->k_TGd, G, d, G * d, s->cos_Tr, s->sin_Tr, r, T, r,
               s->threads);
    remix_attend(b->kv, s->attention, H, s->q_THd, H * d, d, s->k_TGd, G * d, d, s->v_TGd, G * d,
                 d, s->o_THd, b->scale, b->window, 0.0f, s->threads);
    project(s, &b->o, 1, b->gate_up, 2, s->o_THd, (float *[]){s->norm_TD});
    add(x_TD, s->norm_TD, T * D, s->threads);

    norm(s, x_TD, T, D, b->mlp_norm, b->eps, s->norm_TD);
    project(s, b->gate_up, 2, &b->down, 1, s->norm_TD, (float *[]){s->gate_TF, s->up_TF});
    const int64_t F = b->down.linear->in;
    remix_act_mul(0, s->gate_TF, F, s->up_TF, F, T, F, s->gate_TF, s->threads);
    project(s, &b->down, 1, is_last ? NULL : b[1].qkv, is_last ? 0 : 3, s->gate_TF,
            (float *[]){s->norm_TD});
    add(x_TD, s->norm_TD, T * D, s->threads);
}

EXPORT void remix_forward(const Network *network, const Step *step, float *logits_SV) {
    const int64_t D = network->D, S = step->S;
    embed(network, step);
    angles(network, step);
    for (int64_t i = 0; i < network->num_blocks; i++) block(network, network->blocks + i, step);
    // The wanted rows ascend, so none is overwritten before it is read.
    for (int64_t i = 0; i < S; i++)
        memmove(step->x_TD + i * D, step->x_TD + step->wanted_S[i] * D, (size_t)D * sizeof(float));
    norm(step, step->x_TD, S, D, network->norm, network->eps, step->norm_TD);
    remix_linear(network->head, step->norm_TD, logits_SV, S, step->threads);
}
