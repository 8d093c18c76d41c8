// One decoding step of the transformer in model/transformer.py on a CPU: the hidden states of a few
// tokens, the next ones of their rows, through every layer and the KV cache to the logits.
//
// A step reads every weight once and does little with it, so it is as fast as the memory. Hence one
// parallel region for the whole step, weights of 4, 2 or 1 bytes that are widened in registers, and no
// tensor between. A token's logits are the same to the bit whatever is computed beside it.
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
constexpr int64_t LANES = 8;
constexpr int64_t GROUP = 64;         // int8 weights of a row that share a scale
constexpr int64_t TILE = 48;          // rows of weights that stay in the cache for all tokens
constexpr int64_t MOST = 6;           // tokens whose sums fit the registers
constexpr int64_t CLOSE = 24 * 1024;  // bytes of them that fit the nearest cache

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

// Products of rows of weights with tokens ------------------------------------------------------------

// Tokens [B, size]. For int8 weights they are integers too, of 16 bits: steps of a 32,767th of the
// largest of each group, far finer than the weights' own. Their sums are exact in any order.
struct Tokens {
    const float* x;
    int64_t size;
    std::vector<int16_t> steps;
    std::vector<float> scales;  // [B, groups]
    int64_t groups;

    Tokens(const float* x, int64_t size) : x(x), size(size) {}

    void quantize(int64_t B) {
        groups = (size + GROUP - 1) / GROUP;
        steps.resize(B * size);
        scales.resize(B * groups);
        for (int64_t b = 0; b < B; b++)
            for (int64_t g = 0; g < groups; g++) {
                const int64_t first = b * size + g * GROUP;
                const int64_t last = std::min(first + GROUP, (b + 1) * size);
                float largest = 1e-30f;
                for (int64_t i = first; i < last; i++) largest = std::max(largest, std::abs(x[i]));
                const float scale = 32767 / largest;
                for (int64_t i = first; i < last; i++)
                    steps[i] = int16_t(int32_t(x[i] * scale + (x[i] < 0 ? -0.5f : 0.5f)));
                scales[b * groups + g] = largest / 32767;
            }
    }
};

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

static inline float total(Floats sums) {
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// Products of one row of weights with N tokens from `b` on. Each is summed in the same order
// whatever N is.
template <int N, class Row>
static inline void products(const Row& row, const Tokens& tokens, int64_t b, float* out) {
    constexpr int CHAINS = 2;  // sums that do not wait for each other
    const int64_t size = tokens.size;
    const float* x = tokens.x + b * size;
    Floats sums[N][CHAINS] = {};
    int64_t i = 0;
    for (; i + LANES * CHAINS <= size; i += LANES * CHAINS)
        for (int chain = 0; chain < CHAINS; chain++) {
            const int64_t at = i + LANES * chain;
            const Floats weights = row.load(at);
            for (int n = 0; n < N; n++) {
                const Floats values = *reinterpret_cast<const Floats*>(x + n * size + at);
                sums[n][chain] = fused(weights, values, sums[n][chain]);
            }
        }
    for (; i + LANES <= size; i += LANES) {
        const Floats weights = row.load(i);
        for (int n = 0; n < N; n++) {
            const Floats values = *reinterpret_cast<const Floats*>(x + n * size + i);
            sums[n][0] = fused(weights, values, sums[n][0]);
        }
    }
    for (int n = 0; n < N; n++) {
        out[n] = total(sums[n][0] + sums[n][1]);
        for (int64_t rest = i; rest < size; rest++) out[n] += row.at(rest) * x[n * size + rest];
    }
}

// Sixteen weights at once, times sixteen steps: the sums of neighbours.
struct Pairs {
#ifdef __AVX2__
    __m256i weights;
    Pairs(const int8_t* data)
        : weights(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)))) {}
    Ints times(const int16_t* steps) const {
        const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(steps));
        return (Ints)_mm256_madd_epi16(weights, values);
    }
#else
    const int8_t* weights;
    Pairs(const int8_t* data) : weights(data) {}
    Ints times(const int16_t* steps) const {
        Ints sums;
        for (int64_t i = 0; i < LANES; i++)
            sums[i] = weights[2 * i] * steps[2 * i] + weights[2 * i + 1] * steps[2 * i + 1];
        return sums;
    }
#endif
};

template <int N>
static inline void products(const ByteRow& row, const Tokens& tokens, int64_t b, float* out) {
    const int64_t size = tokens.size, whole = size / GROUP;
    const int16_t* steps = tokens.steps.data() + b * size;
    const float* scales = tokens.scales.data() + b * tokens.groups;
    Floats sums[N] = {};
    for (int64_t g = 0; g < whole; g++) {
        Ints group[N] = {};  // at most 8 * 127 * 32,767 in each lane
        for (int64_t i = g * GROUP; i < (g + 1) * GROUP; i += 2 * LANES) {
            const Pairs pairs(row.data + i);
            for (int n = 0; n < N; n++) group[n] += pairs.times(steps + n * size + i);
        }
        for (int n = 0; n < N; n++) {
            const float scale = row.scales[g] * scales[n * tokens.groups + g];
            sums[n] = fused(__builtin_convertvector(group[n], Floats), Floats{} + scale, sums[n]);
        }
    }
    for (int n = 0; n < N; n++) {
        out[n] = total(sums[n]);
        if (whole == tokens.groups) continue;
        int32_t rest = 0;
        for (int64_t i = whole * GROUP; i < size; i++) rest += row.data[i] * steps[n * size + i];
        out[n] += rest * (row.scales[whole] * scales[n * tokens.groups + whole]);
    }
}

template <class Row>
static inline void few_products(const Row& row, const Tokens& tokens, int64_t b, int64_t n, float* out) {
    switch (n) {
        case 1: products<1>(row, tokens, b, out); break;
        case 2: products<2>(row, tokens, b, out); break;
        case 3: products<3>(row, tokens, b, out); break;
        case 4: products<4>(row, tokens, b, out); break;
        case 5: products<5>(row, tokens, b, out); break;
        default: products<MOST>(row, tokens, b, out);
    }
}

// out[b * stride + r] = row r of the matrix times token b, plus the bias, for rows from begin to
// end; added to what is there with ADD. For int8 the tokens have to be quantized.
template <bool ADD = false>
static void multiply(const Matrix& m, int64_t begin, int64_t end, const Tokens& tokens, int64_t B,
                     float* out, int64_t stride) {
    const int64_t bytes = m.cols * (m.type == INT8 ? sizeof(int16_t) : sizeof(float));
    const int64_t most = std::min(std::max<int64_t>(CLOSE / bytes, 2), MOST);
    const int64_t parts = (B + most - 1) / most;
    float found[MOST];
    for (int64_t tile = begin; tile < end; tile += TILE)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t b = B * part / parts, n = B * (part + 1) / parts - b;
            for (int64_t r = tile; r < std::min(tile + TILE, end); r++) {
                if (m.type == FLOAT32) {
                    const FloatRow row{static_cast<const float*>(m.data) + r * m.cols};
                    few_products(row, tokens, b, n, found);
                } else if (m.type == BFLOAT16) {
                    const HalfRow row{static_cast<const uint16_t*>(m.data) + r * m.cols};
                    few_products(row, tokens, b, n, found);
                } else {
                    const ByteRow row{static_cast<const int8_t*>(m.data) + r * m.cols,
                                      m.scales + r * tokens.groups};
                    few_products(row, tokens, b, n, found);
                }
                for (int64_t i = 0; i < n; i++) {
                    float& place = out[(b + i) * stride + r];
                    place = (ADD ? place : 0) + (found[i] + (m.bias ? m.bias[r] : 0));
                }
            }
        }
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
        const Tokens query(qkv + (k * shared + i) * D, D);
        float largest = -INFINITY, total = 0;
        for (int64_t t = 0; t <= position; t++) {
            products<1>(FloatRow{keys + t * D}, query, 0, scores + t);
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
    std::vector<float> qkv(B * qkv_size), attended(B * q_size), hidden(B * F), gates(B * F);
    bool share_a_row = false;
    for (int64_t b = 1; b < B; b++) share_a_row |= rows[b] == rows[b - 1];
#pragma omp parallel num_threads(int(threads))
    {
        const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
        const auto first = [&](int64_t jobs) { return jobs * thread / count; };
        const auto last = [&](int64_t jobs) { return jobs * (thread + 1) / count; };
        std::vector<float> normed_x(B * C), scores(m.slots);
        // each thread makes them for itself, which is sooner than to wait for another
        Tokens normed(normed_x.data(), C), mixed(attended.data(), q_size), wide(hidden.data(), F);
        const auto ready = [&](Tokens& tokens) {
            if (m.head.type == INT8) tokens.quantize(B);
        };
        const auto normalise_all = [&](const Norm& norm) {
            for (int64_t b = 0; b < B; b++)
                normalise(norm, x + b * C, C, m.uses_layer_norm, m.eps, normed_x.data() + b * C);
            ready(normed);
        };
        for (int64_t l = 0; l < m.layers; l++) {
            const Layer& layer = m.layer[l];
            normalise_all(layer.attention_norm);
            int64_t before = 0;  // this thread's part of q, k and v as rows of one matrix
            for (const Matrix* part : {&layer.q, &layer.k, &layer.v}) {
                const int64_t begin = std::max<int64_t>(first(qkv_size) - before, 0);
                const int64_t end = std::min(last(qkv_size) - before, part->rows);
                multiply(*part, begin, end, normed, B, qkv.data() + before, qkv_size);
                before += part->rows;
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
            ready(mixed);
            multiply<true>(layer.o, first(C), last(C), mixed, B, x, C);
#pragma omp barrier
            if (F == 0) continue;  // no MLP
            normalise_all(layer.mlp_norm);
            multiply(layer.up, first(F), last(F), normed, B, hidden.data(), F);
            if (m.activation == SWIGLU)
                multiply(layer.gate, first(F), last(F), normed, B, gates.data(), F);
            for (int64_t b = 0; b < B; b++)
                for (int64_t i = b * F + first(F); i < b * F + last(F); i++)
                    hidden[i] = m.activation == SWIGLU ? activate(SWIGLU, gates[i]) * hidden[i]
                                                       : activate(m.activation, hidden[i]);
#pragma omp barrier
            ready(wide);
            multiply<true>(layer.down, first(C), last(C), wide, B, x, C);
#pragma omp barrier
        }
        normalise_all(m.final_norm);
        multiply(m.head, first(m.head.rows), last(m.head.rows), normed, B, logits, m.head.rows);
    }
}
