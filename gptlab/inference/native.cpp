// One decoding step of the transformer in model/transformer.py on a CPU: the hidden states of a few
// tokens, the next ones of their rows, through every layer and the KV cache to the logits.
//
// A step reads every weight once and does little with it, so it is as fast as the memory. Hence one
// parallel region for the whole step, weights of 4, 2 or 1 bytes that become float in registers, and
// no tensor between. A token's logits are the same to the bit whatever is computed beside it.
// Letters: B tokens, C channels, D head_dim, H heads, K key/value heads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__) || defined(__FMA__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(8), aligned(1), may_alias));
constexpr int64_t LANES = 8;
constexpr int64_t GROUP = 64;  // int8 weights of a row that share a scale

enum Type { FLOAT32, BFLOAT16, INT8 };
enum Activation { SWIGLU, GELU, GELU_TANH, RELU, RELU2 };

extern "C" {
struct Matrix {  // [rows, cols], row by row; scales [rows, ceil(cols / GROUP)] of int8 only
    const void* data;
    const float* scales;
    const float* bias;
    int64_t rows, cols, type;
};
struct Norm {
    const float* weight;  // null: there is no such norm
    const float* bias;
};
struct Layer {
    Norm attention_norm, mlp_norm, q_norm, k_norm;
    Matrix q, k, v, o, gate, up, down;
    float* keys;  // [rows, K, slots, D]
    float* values;
};
struct Model {
    int64_t layers, heads, kv_heads, head_dim, width, hidden, slots, uses_layer_norm, activation;
    double eps;
    const Layer* layer;
    Norm final_norm;
    Matrix head;
    const float* cos;  // [slots, D], or null without rotary positions
    const float* sin;  // its first half negated
};
}

// Rows of weights, eight at a time and one at a time. ------------------------------------------------

struct FloatRow {
    const float* data;
    Floats load(int64_t i) const { return *reinterpret_cast<const Floats*>(data + i); }
    float at(int64_t i) const { return data[i]; }
};

struct HalfRow {
    const uint16_t* data;
    Floats load(int64_t i) const {
        Words wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(data + i), Words) << 16;
        return (Floats)wide;  // the same bits
    }
    float at(int64_t i) const {
        uint32_t wide = uint32_t(data[i]) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
};

struct ByteRow {
    const int8_t* data;
    const float* scales;
    Floats load(int64_t i) const {
#ifdef __AVX2__  // GCC takes the eight apart one by one
        const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + i));
        const Floats wide = (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(narrow));
#else
        const Bytes narrow = *reinterpret_cast<const Bytes*>(data + i);
        const Floats wide = __builtin_convertvector(__builtin_convertvector(narrow, Ints), Floats);
#endif
        return wide * scales[i / GROUP];
    }
    float at(int64_t i) const { return data[i] * scales[i / GROUP]; }
};

// a * b + sum, rounded once where the CPU can: said here, since the compiler would choose for each
// loop anew and so change the last bit with the number of tokens.
static inline Floats fused(Floats a, Floats b, Floats sum) {
#ifdef __FMA__
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

// Products of one row of weights with N vectors x + n * stride of `size` floats. Each is summed in
// the same order whatever N is.
template <int N, class Row>
static inline void products(const Row& row, const float* x, int64_t stride, int64_t size, float* out) {
    constexpr int CHAINS = 2;  // sums that do not wait for each other
    Floats sums[N][CHAINS] = {};
    int64_t i = 0;
    for (; i + LANES * CHAINS <= size; i += LANES * CHAINS)
        for (int chain = 0; chain < CHAINS; chain++) {
            const int64_t at = i + LANES * chain;
            const Floats weights = row.load(at);
            for (int n = 0; n < N; n++) {
                const Floats values = *reinterpret_cast<const Floats*>(x + n * stride + at);
                sums[n][chain] = fused(weights, values, sums[n][chain]);
            }
        }
    for (; i + LANES <= size; i += LANES) {
        const Floats weights = row.load(i);
        for (int n = 0; n < N; n++) {
            const Floats values = *reinterpret_cast<const Floats*>(x + n * stride + i);
            sums[n][0] = fused(weights, values, sums[n][0]);
        }
    }
    for (int n = 0; n < N; n++) {
        float total = 0;
        for (int chain = 1; chain < CHAINS; chain++) sums[n][0] += sums[n][chain];
        for (int lane = 0; lane < LANES; lane++) total += sums[n][0][lane];
        for (int64_t rest = i; rest < size; rest++) total += row.at(rest) * x[n * stride + rest];
        out[n] = total;
    }
}

template <class Row>
static inline void row_times(const Row& row, const float* x, int64_t B, int64_t size, float* out) {
    constexpr int64_t MOST = 6;  // vectors whose sums fit the registers
    for (int64_t parts = (B + MOST - 1) / MOST; parts > 0; parts--) {
        const int64_t n = (B + parts - 1) / parts;  // of equal size
        switch (n) {
            case 1: products<1>(row, x, size, size, out); break;
            case 2: products<2>(row, x, size, size, out); break;
            case 3: products<3>(row, x, size, size, out); break;
            case 4: products<4>(row, x, size, size, out); break;
            case 5: products<5>(row, x, size, size, out); break;
            default: products<MOST>(row, x, size, size, out);
        }
        B -= n, x += n * size, out += n;
    }
}

// out[b] = row r of the matrix times x[b], plus the bias, for x [B, cols].
static inline void times(const Matrix& m, int64_t r, const float* x, int64_t B, float* out) {
    if (m.type == FLOAT32) {
        row_times(FloatRow{static_cast<const float*>(m.data) + r * m.cols}, x, B, m.cols, out);
    } else if (m.type == BFLOAT16) {
        row_times(HalfRow{static_cast<const uint16_t*>(m.data) + r * m.cols}, x, B, m.cols, out);
    } else {
        const float* scales = m.scales + r * ((m.cols + GROUP - 1) / GROUP);
        const int8_t* data = static_cast<const int8_t*>(m.data) + r * m.cols;
        row_times(ByteRow{data, scales}, x, B, m.cols, out);
    }
    if (m.bias)
        for (int64_t b = 0; b < B; b++) out[b] += m.bias[r];
}

// The small steps ------------------------------------------------------------------------------------

static void normalise(const Norm& norm, const float* x, int64_t size, bool layer_norm, double eps,
                      float* out) {
    double mean = 0, square = 0;
    if (layer_norm) {
        for (int64_t i = 0; i < size; i++) mean += x[i];
        mean /= size;
    }
    for (int64_t i = 0; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(square / size + eps), centre = mean;
    for (int64_t i = 0; i < size; i++) {
        out[i] = (x[i] - centre) * scale * norm.weight[i];
        if (norm.bias) out[i] += norm.bias[i];
    }
}

static float activate(int64_t kind, float x) {
    switch (kind) {
        case SWIGLU: return x / (1 + std::exp(-x));
        case GELU: return 0.5f * x * (1 + std::erf(x * float(M_SQRT1_2)));
        case GELU_TANH:
            return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
        case RELU: return std::max(x, 0.0f);
        default: return x > 0 ? x * x : 0.0f;
    }
}

static void turn(float* x, const float* cos, const float* sin, int64_t D) {
    for (int64_t i = 0; i < D / 2; i++) {
        const float low = x[i], high = x[i + D / 2];
        x[i] = low * cos[i] + high * sin[i];
        x[i + D / 2] = high * cos[i + D / 2] + low * sin[i + D / 2];
    }
}

// What the attention of head k needs of a token: its queries turned, its key and value cached.
static void prepare(const Model& m, const Layer& layer, int64_t row, int64_t k, int64_t position,
                    float* qkv) {
    const int64_t D = m.head_dim, shared = m.heads / m.kv_heads;
    float* key = qkv + (m.heads + k) * D;
    const float* value = qkv + (m.heads + m.kv_heads + k) * D;
    const int64_t slot = ((row * m.kv_heads + k) * m.slots + position) * D;
    for (int64_t i = 0; i <= shared; i++) {
        float* vector = i < shared ? qkv + (k * shared + i) * D : key;
        const Norm& norm = i < shared ? layer.q_norm : layer.k_norm;
        if (norm.weight) normalise(norm, vector, D, false, m.eps, vector);
        if (m.cos) turn(vector, m.cos + position * D, m.sin + position * D, D);
    }
    std::memcpy(layer.keys + slot, key, D * sizeof(float));
    std::memcpy(layer.values + slot, value, D * sizeof(float));
}

// Attention of the heads that share key/value head k, for a token of this row at this position.
static void attend(const Model& m, const Layer& layer, int64_t row, int64_t k, int64_t position,
                   const float* qkv, float* out, float* scores) {
    const int64_t D = m.head_dim, shared = m.heads / m.kv_heads;
    const int64_t slot = (row * m.kv_heads + k) * m.slots * D;
    const float *keys = layer.keys + slot, *values = layer.values + slot;
    const float scale = 1 / std::sqrt(float(D));
    for (int64_t i = 0; i < shared; i++) {
        const float* query = qkv + (k * shared + i) * D;
        float largest = -INFINITY, total = 0;
        for (int64_t t = 0; t <= position; t++) {
            products<1>(FloatRow{keys + t * D}, query, D, D, scores + t);
            scores[t] *= scale;
            largest = std::max(largest, scores[t]);
        }
        float* result = out + (k * shared + i) * D;
        std::fill(result, result + D, 0.0f);
        for (int64_t t = 0; t <= position; t++) {
            const float weight = std::exp(scores[t] - largest);
            total += weight;
            for (int64_t d = 0; d < D; d++) result[d] += weight * values[t * D + d];
        }
        for (int64_t d = 0; d < D; d++) result[d] /= total;
    }
}

// The step -------------------------------------------------------------------------------------------

// x [B, C]: the embedded tokens, overwritten. Token b stands at positions[b] of rows[b] of the cache:
// several tokens of a row stand side by side. logits [B, vocabulary].
extern "C" void decode_step(const Model* model, int64_t B, const int64_t* rows,
                            const int64_t* positions, float* x, float* logits, int64_t threads) {
    const Model& m = *model;
    const int64_t C = m.width, D = m.head_dim, F = m.hidden;
    const int64_t q_size = m.heads * D, kv_size = m.kv_heads * D, qkv_size = q_size + 2 * kv_size;
    std::vector<float> qkv(B * qkv_size), attended(B * q_size), hidden(B * F);
    bool share_a_row = false;
    for (int64_t b = 1; b < B; b++) share_a_row |= rows[b] == rows[b - 1];
#pragma omp parallel num_threads(int(threads))
    {
        const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
        const auto first = [&](int64_t jobs) { return jobs * thread / count; };
        const auto last = [&](int64_t jobs) { return jobs * (thread + 1) / count; };
        std::vector<float> normed(B * C), scores(m.slots), out(B), other(B);
        const auto normalise_all = [&](const Norm& norm) {  // each thread for itself: no waiting
            for (int64_t b = 0; b < B; b++)
                normalise(norm, x + b * C, C, m.uses_layer_norm, m.eps, normed.data() + b * C);
        };
        const auto add_to_x = [&](const Matrix& matrix, const float* input) {
            for (int64_t r = first(C); r < last(C); r++) {
                times(matrix, r, input, B, out.data());
                for (int64_t b = 0; b < B; b++) x[b * C + r] += out[b];
            }
        };
        for (int64_t l = 0; l < m.layers; l++) {
            const Layer& layer = m.layer[l];
            normalise_all(layer.attention_norm);
            for (int64_t r = first(qkv_size); r < last(qkv_size); r++) {
                const int64_t in_kv = r - q_size;
                if (in_kv < 0) times(layer.q, r, normed.data(), B, out.data());
                else if (in_kv < kv_size) times(layer.k, in_kv, normed.data(), B, out.data());
                else times(layer.v, in_kv - kv_size, normed.data(), B, out.data());
                for (int64_t b = 0; b < B; b++) qkv[b * qkv_size + r] = out[b];
            }
#pragma omp barrier
            const auto each_head = [&](auto work) {  // work(token, key/value head, its queries)
                for (int64_t job = first(B * m.kv_heads); job < last(B * m.kv_heads); job++) {
                    const int64_t b = job / m.kv_heads;
                    work(b, job % m.kv_heads, qkv.data() + b * qkv_size);
                }
            };
            each_head([&](int64_t b, int64_t k, float* own) {
                prepare(m, layer, rows[b], k, positions[b], own);
            });
            if (share_a_row) {  // else a thread sees only what it has cached itself
#pragma omp barrier
            }
            each_head([&](int64_t b, int64_t k, const float* own) {
                attend(m, layer, rows[b], k, positions[b], own, attended.data() + b * q_size,
                       scores.data());
            });
#pragma omp barrier
            add_to_x(layer.o, attended.data());
#pragma omp barrier
            normalise_all(layer.mlp_norm);
            for (int64_t r = first(F); r < last(F); r++) {
                times(layer.up, r, normed.data(), B, out.data());
                if (m.activation == SWIGLU) times(layer.gate, r, normed.data(), B, other.data());
                for (int64_t b = 0; b < B; b++)
                    hidden[b * F + r] = m.activation == SWIGLU ? activate(SWIGLU, other[b]) * out[b]
                                                               : activate(m.activation, out[b]);
            }
#pragma omp barrier
            add_to_x(layer.down, hidden.data());
#pragma omp barrier
        }
        normalise_all(m.final_norm);
        for (int64_t r = first(m.head.rows); r < last(m.head.rows); r++) {
            times(m.head, r, normed.data(), B, out.data());
            for (int64_t b = 0; b < B; b++) logits[b * m.head.rows + r] = out[b];
        }
    }
}
