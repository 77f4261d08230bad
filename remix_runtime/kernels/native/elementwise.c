// The small operations of a transformer layer, fused, float32.
//
// A row of an input is contiguous and the next one begins a stride (in floats) behind it, so that
// slices of a fused projection need no copy. Outputs are contiguous. A row is computed by itself
// and from left to right, so its bits depend on nothing but the row.

#include "vector_math.h"

// Fewer floats than this are done before a second thread has woken up.
#define WORTH_A_TEAM 32768

// Sum of all lanes, always in the same order: upper half onto lower half, and again.
INLINE float add_lanes(vf v) {
    float lane[VL];
    store(lane, v);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

// y = x / sqrt(mean of x² + eps) · (offset + weight) over the last dimension D.
EXPORT void remix_rms_norm(const float *x, int64_t stride, int64_t rows, int64_t D,
                           const float *weight, float eps, float offset, float *y, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * D > WORTH_A_TEAM)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = x + row * stride;
        float *out = y + row * D;
        vf sum[4] = {0};
        int64_t i = 0;
        for (; i + 4 * VL <= D; i += 4 * VL)
            for (int v = 0; v < 4; v++) {
                const vf a = load(in + i + v * VL);
                sum[v] = fma_(a, a, sum[v]);
            }
        for (; i < D; i += VL) {
            const vf a = load_first(in + i, D - i < VL ? D - i : VL);
            sum[0] = fma_(a, a, sum[0]);
        }
        const float mean = add_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)D;
        const float inverse = 1.0f / sqrtf(mean + eps);
#pragma omp simd
        for (int64_t j = 0; j < D; j++) out[j] = in[j] * inverse * (offset + weight[j]);
    }
}

INLINE float silu(float x) { return x / (1.0f + exp_f32(-x)); }

// x · (1 + tanh u) / 2 with u = sqrt(2 / pi) · (x + 0.044715 x³) is x · sigmoid(2u).
INLINE float gelu_tanh(float x) {
    const float u = 0.797884561f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp_f32(-2.0f * u));
}

// y = act(gate) · up
EXPORT void remix_act_mul(int gelu, const float *gate, int64_t gate_stride, const float *up,
                          int64_t up_stride, int64_t rows, int64_t F, float *y, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * F > WORTH_A_TEAM)
    for (int64_t row = 0; row < rows; row++) {
        const float *g = gate + row * gate_stride, *u = up + row * up_stride;
        float *out = y + row * F;
        if (gelu) {
#pragma omp simd
            for (int64_t i = 0; i < F; i++) out[i] = gelu_tanh(g[i]) * u[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < F; i++) out[i] = silu(g[i]) * u[i];
        }
    }
}

typedef struct {
    float *data;
    int64_t heads, head_stride, token_stride;
} Heads;

INLINE void rotate(const Heads *x, int64_t token, const float *cos, const float *sin,
                   int64_t half) {
    for (int64_t h = 0; h < x->heads; h++) {
        float *lo = x->data + token * x->token_stride + h * x->head_stride, *hi = lo + half;
#pragma omp simd
        for (int64_t i = 0; i < half; i++) {
            const float a = lo[i], b = hi[i];
            lo[i] = a * cos[i] - b * sin[i];
            hi[i] = b * cos[i + half] + a * sin[i + half];
        }
    }
}

// Rotates the first D of every head of every token in place, by the rule of `rotate_half`:
// element i and element i + D / 2 are a pair.
EXPORT void remix_rope(float *q, int64_t q_heads, int64_t q_head_stride, int64_t q_token_stride,
                       float *k, int64_t k_heads, int64_t k_head_stride, int64_t k_token_stride,
                       const float *cos, const float *sin, int64_t angle_stride, int64_t tokens,
                       int64_t D, int threads) {
    const Heads query = {q, q_heads, q_head_stride, q_token_stride};
    const Heads key = {k, k_heads, k_head_stride, k_token_stride};
    const int64_t work = tokens * (q_heads + k_heads) * D;
#pragma omp parallel for num_threads(threads) if (threads > 1 && work > WORTH_A_TEAM)
    for (int64_t t = 0; t < tokens; t++) {
        const float *c = cos + t * angle_stride, *s = sin + t * angle_stride;
        rotate(&query, t, c, s, D / 2);
        rotate(&key, t, c, s, D / 2);
    }
}
