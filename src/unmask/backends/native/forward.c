/* One forward of a Llama-shaped network for columns of many requests, on a CPU with VNNI or AVX2.

   Weights are stored in groups of 32 along the input, 16 outputs interleaved: 4 bits with a scale and a minimum (as
   Q4_1 stores them), or 8 bits with a scale (Q8_0). Inputs of a product are rounded to 8 bits, a scale for every 32.
   Every sum runs in an order that depends on nothing but its own column, so a column's result is the same to the bit
   in any company and however the text before it came into the cache.

   Shapes: T columns, D hidden size, K head width, H heads, G key/value heads, S slots of the cache, V vocabulary. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

#define LANES 16  /* outputs of half a tile, slots of a block of the cache */
#define GROUP 32  /* inputs that share a scale */
#define MOST 8    /* columns that stand together */
#ifdef __AVX512F__
#define FEW 6     /* columns whose sums the registers hold */
#else
#define FEW 4
#endif
#define LOW (-1e30f)

#ifdef __AVX512F__
#define WIDE 16 /* floats of a register: a wider vector would live in memory */
#else
#define WIDE 8
#endif
#define HALVES (LANES / WIDE)

typedef float floats __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t quad __attribute__((may_alias, aligned(4)));
typedef int8_t bytes __attribute__((vector_size(WIDE), aligned(1), may_alias));

typedef struct {
    int32_t rows, columns, bits, unused;
    const uint8_t *blocks; /* [rows / 32][columns / 32], rows padded: codes of 16 rows, of 16 more, then scales */
} Matrix;

#define CODES(bits) (LANES * GROUP * (bits) / 8)        /* bytes of a block's codes of 16 rows */
#define SCALES(bits) ((bits) == 4 ? 2 * LANES : LANES)  /* float16 of 16 rows: scales, of 4 bits then minima */
#define BLOCK(bits) (2 * CODES(bits) + 4 * SCALES(bits)) /* bytes */

typedef struct {
    Matrix qkv, out, gate_up, down, adapter_down, adapter_up; /* gate_up: 32 rows of gate, then 32 of up, and so on */
    const float *norm1, *norm2;
} Layer;

typedef struct {
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, adapter, mask_id; /* adapter: its width, or 0 */
    float eps, unused;
    Matrix head, draft_head; /* the head is the embedding too; draft_head.rows is 0 without one */
    Matrix chain_in, chain_out; /* of the head that tells drafts the token before; 32 rows of gate, 32 of inner, .. */
    const float *norm, *mask_embedding, *cos, *sin; /* [D], [D], [positions][K / 2] */
    const Layer *layer;
} Network;

typedef struct {
    int32_t columns, text_rows, draft_rows, slot_rows, places, blocks, threads; /* blocks of 16 slots in the cache */
    const int32_t *id, *position, *place;        /* [T] */
    const int32_t *seen, *first, *last, *drafts; /* [T]: cached keys seen, columns of its group, is it a slot */
    const int32_t *text, *draft, *slot;          /* columns to score, and those whose states alone are asked for */
    uint16_t *keys, *values;    /* float16 [layers][places][G][blocks][K][16], [layers][places][G][16 * blocks][K] */
    float *text_logits, *draft_logits; /* [text_rows][V], [draft_rows][V'] */
    float *text_states, *slot_states;  /* [text_rows][D], [slot_rows][D], normalised */
} Batch;

typedef struct { /* inputs of a product, rounded; MOST of them stand together, group by group */
    int8_t *code;           /* [T / MOST][groups][MOST][32] */
    float *scale, *sum;     /* [T / MOST][groups][MOST]: scale, and the sum of what the group stands for */
    int32_t *offset;        /* like these: -128 times the sum of the codes */
    int columns;
} Rounded;

static inline floats load(const float *p) { return *(const floats *)p; }
static inline void store(float *p, floats v) { *(floats *)p = v; }
static inline floats all(float v) { return v - (floats){0}; }
static inline floats choose(ints where, floats a, floats b) { return (floats)(((ints)a & where) | ((ints)b & ~where)); }
static inline floats greater(floats a, floats b) { return choose(a > b, a, b); }

/* The lanes of a register as one value: each half with the other, until one is left. */
#ifdef __AVX512F__
#define IN_8(op8, v) op8(_mm256_castpd_ps(_mm512_castpd512_pd256((__m512d)v)), _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)))
#else
#define IN_8(op8, v) ((__m256)v)
#endif
#define FOLD(name, op8, op4, op1) \
    static inline float name(floats v) { \
        const __m256 w = IN_8(op8, v); \
        __m128 x = op4(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1)); \
        x = op4(x, _mm_movehl_ps(x, x)); \
        return _mm_cvtss_f32(op1(x, _mm_shuffle_ps(x, x, 1))); \
    }
FOLD(total, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
FOLD(highest, _mm256_max_ps, _mm_max_ps, _mm_max_ss)

static inline floats exponential(floats x) { /* relative error below 2e-7; 0 below -87 */
    x = choose(x < all(-87.f), all(-87.f), choose(x > all(88.f), all(88.f), x));
    floats shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
    floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = all(1.9875691500e-4f) * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return (floats)((ints)p + ((ints)shifted << 23));
}

static inline floats halves(const uint16_t *p) {
#ifdef __AVX512F__
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#endif
}

static inline floats scaled(floats sum, floats dots, const uint16_t *scale, const Rounded *x, size_t at, int bits) {
    sum += dots * (halves(scale) * x->scale[at]);
    if (bits == 4) sum += halves(scale + LANES) * x->sum[at];
    return sum;
}

/* 32 outputs from 32 tile on, of up to FEW columns of one block of x, `skip` of them left out. With the last
   columns, the weights of the next tile are sent for. */
#if defined(__AVX512VNNI__)
static inline __attribute__((always_inline)) void multiply(
    const Matrix *m, int tile, const Rounded *x, int block, int skip, float out[2][MOST][LANES], int last, const int count,
    const int bits) {
    const int groups = m->columns / GROUP;
    const uint8_t *code = m->blocks + (size_t)tile * groups * BLOCK(bits);
    const __m512i low = _mm512_set1_epi8(15);
    const size_t next = (size_t)groups * BLOCK(bits); /* the tile after this one is on its way meanwhile */
    size_t at = (size_t)block * groups * MOST + skip;
    floats sum[2][FEW];
#pragma GCC unroll 8
    for (int t = 0; t < count; t++) sum[0][t] = sum[1][t] = (floats){0};
    for (int g = 0; g < groups; g++, code += BLOCK(bits), at += MOST) {
        const quad *four = (const quad *)(x->code + at * GROUP);
        const uint16_t *scale = (const uint16_t *)(code + 2 * CODES(bits));
        for (int i = 0; i < BLOCK(bits) && last; i += 64) _mm_prefetch(code + next + i, _MM_HINT_T1);
        __m512i dots[2][FEW];
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) dots[0][t] = dots[1][t] = _mm512_set1_epi32(bits == 8 ? x->offset[at + t] : 0);
#pragma GCC unroll 8
        for (int j = 0; j < CODES(bits) / 64; j++) {
            const __m512i one = _mm512_loadu_si512(code + 64 * j), two = _mm512_loadu_si512(code + CODES(bits) + 64 * j);
#pragma GCC unroll 2
            for (int high = 0; high < (bits == 4 ? 2 : 1); high++) {
                const __m512i a = bits == 8 ? one : _mm512_and_si512(high ? _mm512_srli_epi16(one, 4) : one, low);
                const __m512i b = bits == 8 ? two : _mm512_and_si512(high ? _mm512_srli_epi16(two, 4) : two, low);
#pragma GCC unroll 8
                for (int t = 0; t < count; t++) {
                    const __m512i v = _mm512_set1_epi32(four[t * 8 + j + 4 * high]);
                    dots[0][t] = _mm512_dpbusd_epi32(dots[0][t], a, v);
                    dots[1][t] = _mm512_dpbusd_epi32(dots[1][t], b, v);
                }
            }
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
#pragma GCC unroll 8
            for (int t = 0; t < count; t++)
                sum[i][t] = scaled(sum[i][t], (floats)_mm512_cvtepi32_ps(dots[i][t]), scale + i * SCALES(bits), x, at + t,
                                   bits);
    }
#pragma GCC unroll 8
    for (int t = 0; t < count; t++) store(out[0][skip + t], sum[0][t]), store(out[1][skip + t], sum[1][t]);
}
#else /* AVX2: codes of 4 bits times bytes, whose sums over a group fit 16 bits; codes of 8 bits are split in two */
#define KEEP(v) __asm__("" : "+x"(v)) /* in its register: sums that the compiler reorders fall out of them */

static inline __attribute__((always_inline)) void multiply(
    const Matrix *m, int tile, const Rounded *x, int block, int skip, float out[2][MOST][LANES], int last, const int count,
    const int bits) {
    const int groups = m->columns / GROUP;
    const uint8_t *code = m->blocks + (size_t)tile * groups * BLOCK(bits);
    const __m256i low = _mm256_set1_epi8(15);
    const size_t next = (size_t)groups * BLOCK(bits); /* the tile after this one is on its way meanwhile */
    size_t at = (size_t)block * groups * MOST + skip;
    floats sum[4][FEW];
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < count; t++) sum[i][t] = (floats){0};
    for (int g = 0; g < groups; g++, code += BLOCK(bits), at += MOST) {
        const quad *four = (const quad *)(x->code + at * GROUP);
        for (int i = 0; i < BLOCK(bits) && last; i += 64) _mm_prefetch(code + next + i, _MM_HINT_T1);
#pragma GCC unroll 1
        for (int half = 0; half < 2; half++) { /* 16 outputs */
            const uint8_t *p = code + half * CODES(bits);
            const uint16_t *scale = (const uint16_t *)(code + 2 * CODES(bits)) + half * SCALES(bits);
            __m256i dots[2][FEW]; /* of 16 bits for codes of 4: 8 times two products of 15 * 127 at the most; else of 32 */
#pragma GCC unroll 4
            for (int t = 0; t < count; t++) dots[0][t] = dots[1][t] = _mm256_setzero_si256();
#pragma GCC unroll 2
            for (int j = 0; j < CODES(bits) / 64; j++, p += 64) {
                __m256i a[2], b[2];
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const __m256i w = _mm256_loadu_si256((const __m256i *)(p + 32 * i));
                    if (bits == 4) a[i] = _mm256_and_si256(w, low), b[i] = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
                    else b[i] = _mm256_xor_si256(w, _mm256_set1_epi8(-128)), a[i] = _mm256_abs_epi8(b[i]);
                }
#pragma GCC unroll 4
                for (int t = 0; t < count; t++) {
                    const __m256i v = _mm256_set1_epi32(four[t * 8 + j]);
                    if (bits == 4) {
                        const __m256i u = _mm256_set1_epi32(four[t * 8 + j + 4]);
#pragma GCC unroll 2
                        for (int i = 0; i < 2; i++) {
                            dots[i][t] = _mm256_add_epi16(dots[i][t], _mm256_maddubs_epi16(a[i], v));
                            KEEP(dots[i][t]);
                        }
#pragma GCC unroll 2
                        for (int i = 0; i < 2; i++) {
                            dots[i][t] = _mm256_add_epi16(dots[i][t], _mm256_maddubs_epi16(b[i], u));
                            KEEP(dots[i][t]);
                        }
                    } else {
#pragma GCC unroll 2
                        for (int i = 0; i < 2; i++) {
                            const __m256i two = _mm256_maddubs_epi16(a[i], _mm256_sign_epi8(v, b[i]));
                            dots[i][t] = _mm256_add_epi32(dots[i][t], _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
                            KEEP(dots[i][t]);
                        }
                    }
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < count; t++)
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const __m256i n = bits == 4 ? _mm256_madd_epi16(dots[i][t], _mm256_set1_epi16(1)) : dots[i][t];
                    floats *to = &sum[2 * half + i][t];
                    *to = scaled(*to, (floats)_mm256_cvtepi32_ps(n), scale + i * WIDE, x, at + t, bits);
                }
        }
    }
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < count; t++) store(out[i / 2][skip + t] + i % 2 * WIDE, sum[i][t]);
}
#endif

/* The same for a whole block of x: of its columns from MOST block on, the first `count`. */
static void product(const Matrix *m, int tile, const Rounded *x, int block, int count, float out[2][MOST][LANES], int last) {
#define CASE(k) \
    case k: \
        if (m->bits == 4) multiply(m, tile, x, block, skip, out, last && skip + n >= count, k, 4); \
        else multiply(m, tile, x, block, skip, out, last && skip + n >= count, k, 8); \
        break;
    for (int skip = 0, n; skip < count; skip += n) {
        n = count - skip;
        if (n > FEW) n = 4;
        switch (n) {
            CASE(1) CASE(2) CASE(3) CASE(4)
#if FEW > 4
            CASE(5) CASE(6)
#endif
        }
    }
#undef CASE
}

/* Features `first` to first + count - 1 of a column. */
static void round_off(const float *x, const Rounded *to, int column, int first, int count) {
    const int groups = to->columns / GROUP;
    size_t at = ((size_t)(column / MOST) * groups + first / GROUP) * MOST + column % MOST;
    for (int i = 0; i < count; i += GROUP, at += MOST) {
        floats top = {0}, whole = {0};
        for (int j = 0; j < GROUP; j += WIDE) top = greater(top, greater(load(x + i + j), -load(x + i + j)));
        const float most = highest(top), inverse = most > 0 ? 127.f / most : 0.f;
        for (int j = 0; j < GROUP; j += WIDE) {
            floats n = load(x + i + j) * inverse + 12582912.f - 12582912.f; /* rounds to even */
            *(bytes *)(to->code + at * GROUP + j) = __builtin_convertvector(__builtin_convertvector(n, ints), bytes);
            whole += n;
        }
        const float sum = total(whole); /* of whole numbers: exact */
        to->scale[at] = most / 127.f, to->sum[at] = sum * (most / 127.f), to->offset[at] = -128 * (int32_t)sum;
    }
}

static void normalise(const float *x, const float *weight, int size, float eps, float *out) {
    floats squares = {0};
    for (int i = 0; i < size; i += WIDE) squares += load(x + i) * load(x + i);
    float scale = 1.f / sqrtf(total(squares) / size + eps);
    for (int i = 0; i < size; i += WIDE) store(out + i, load(x + i) * scale * (weight ? load(weight + i) : all(1.f)));
}

static void embed(const Matrix *m, int row, float *out) {
    const int groups = m->columns / GROUP, half = row / LANES % 2, lane = row % LANES;
    for (int g = 0; g < groups; g++) {
        const uint8_t *block = m->blocks + ((size_t)(row / GROUP) * groups + g) * BLOCK(m->bits);
        const uint8_t *code = block + half * CODES(m->bits);
        const uint16_t *scale = (const uint16_t *)(block + 2 * CODES(m->bits)) + half * SCALES(m->bits);
        float d = _cvtsh_ss(scale[lane]), least = m->bits == 4 ? _cvtsh_ss(scale[LANES + lane]) : -128.f * d;
        for (int k = 0; k < GROUP; k++) {
            int four = k / 4, at = lane * 4 + k % 4;
            int q = m->bits == 4 ? (code[four % 4 * 64 + at] >> (four / 4 * 4)) & 15 : code[four * 64 + at];
            out[g * GROUP + k] = d * q + least;
        }
    }
}

static void rotate(float *x, const float *cos, const float *sin, int size) {
    for (int i = 0; i < size / 2; i += WIDE) {
        floats a = load(x + i), b = load(x + size / 2 + i), c = load(cos + i), s = load(sin + i);
        store(x + i, a * c - b * s), store(x + size / 2 + i, b * c + a * s);
    }
}

typedef struct { /* what one column attends to with heads that share keys */
    const float *q, *own;          /* [heads][K]; the first column of its group */
    const uint16_t *keys, *values; /* float16 [blocks][K][16], [S][K] */
    int seen, own_count, own_stride, to_values, size; /* cached keys, columns of the group, floats between them */
} View;

/* The mix of values, `count` registers of features from `at` on. */
static inline __attribute__((always_inline)) void mix(
    const View *v, int at, const float *score, int stride, const float *share, float *out, const int heads, const int count) {
    floats sum[4][4] = {{{0}}};
    const int start = (v->seen + LANES - 1) / LANES * LANES;
    for (int n = 0; n < v->seen; n++)
        for (int i = 0; i < count; i++) {
            floats value = halves(v->values + (size_t)n * v->size + at + i * WIDE);
            for (int h = 0; h < heads; h++) sum[h][i] += value * score[h * stride + n];
        }
    for (int n = 0; n < v->own_count; n++)
        for (int i = 0; i < count; i++) {
            floats value = load(v->own + (size_t)n * v->own_stride + v->to_values + at + i * WIDE);
            for (int h = 0; h < heads; h++) sum[h][i] += value * score[h * stride + start + n];
        }
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < count; i++) store(out + h * v->size + at + i * WIDE, sum[h][i] * share[h]);
}

#define CHAINS (4 / HALVES) /* sums of one score that grow side by side */

static inline __attribute__((always_inline)) void attend_with(
    const View *v, float *score, int stride, float *out, const int heads) {
    const int size = v->size, blocks = (v->seen + LANES - 1) / LANES, start = blocks * LANES;
    float share[4];
    for (int b = 0; b < blocks; b++) {
        const uint16_t *k = v->keys + (size_t)b * size * LANES;
        floats part[4][CHAINS][HALVES] = {{{{0}}}};
        for (int i = 0; i < size; i += CHAINS)
            for (int j = 0; j < CHAINS; j++)
                for (int half = 0; half < HALVES; half++) {
                    const floats key = halves(k + (i + j) * LANES + half * WIDE);
                    for (int h = 0; h < heads; h++) part[h][j][half] += key * v->q[h * size + i + j];
                }
        for (int h = 0; h < heads; h++)
            for (int half = 0; half < HALVES; half++) {
                floats s = part[h][0][half] + part[h][1][half];
                if (CHAINS == 4) s += part[h][CHAINS - 2][half] + part[h][CHAINS - 1][half];
                store(score + h * stride + b * LANES + half * WIDE, s);
            }
    }
    for (int h = 0; h < heads; h++) {
        float *all_scores = score + h * stride, *own = all_scores + start;
        for (int n = v->seen; n < start; n++) all_scores[n] = LOW;
        for (int n = 0; n < v->own_count; n++) {
            floats s = {0};
            for (int i = 0; i < size; i += WIDE) s += load(v->own + (size_t)n * v->own_stride + i) * load(v->q + h * size + i);
            own[n] = total(s);
        }
        for (int n = v->own_count; n % WIDE; n++) own[n] = LOW;
        floats top = all(LOW), sum = {0};
        for (int n = 0; n < start + v->own_count; n += WIDE) top = greater(top, load(all_scores + n));
        const floats most = all(highest(top));
        for (int n = 0; n < start + v->own_count; n += WIDE) {
            floats s = load(all_scores + n), p = choose(s <= all(LOW), (floats){0}, exponential(s - most));
            sum += p;
            store(all_scores + n, p);
        }
        share[h] = 1.f / total(sum);
    }
    int at = 0;
    for (; at + 4 * WIDE <= size; at += 4 * WIDE) mix(v, at, score, stride, share, out, heads, 4);
    for (; at < size; at += WIDE) mix(v, at, score, stride, share, out, heads, 1);
}

/* Up to 4 heads that share keys; each head's sums are those that it would have alone. */
static void attend(const View *v, int heads, float *score, int stride, float *out) {
    switch (heads) {
        case 1: attend_with(v, score, stride, out, 1); break;
        case 2: attend_with(v, score, stride, out, 2); break;
        case 3: attend_with(v, score, stride, out, 3); break;
        default: attend_with(v, score, stride, out, 4);
    }
}

static Rounded rounded(char **room, int columns, int size) {
    size_t count = (size_t)(columns + MOST - 1) / MOST * MOST * size;
    Rounded r = {.columns = size};
    r.scale = (float *)*room, r.sum = r.scale + count / GROUP, r.offset = (int32_t *)(r.sum + count / GROUP);
    r.code = (int8_t *)(r.offset + count / GROUP);
    *room += (count + count / GROUP * 12 + 63) / 64 * 64;
    return r;
}

static float *room_for(char **room, size_t count) {
    float *p = (float *)*room;
    *room += (count * sizeof(float) + 63) / 64 * 64;
    return p;
}

/* A product set or added to rows of out [.][stride]: row n, or of[n] where that is given. */
static void project(const Matrix *m, const Rounded *x, int count, float *out, int stride, int add, const int32_t *of) {
    EACH(tile, (m->rows + 2 * LANES - 1) / (2 * LANES)) {
        for (int from = 0; from < count; from += MOST) {
            const int n = count - from < MOST ? count - from : MOST;
            float y[2][MOST][LANES];
            product(m, tile, x, from / MOST, n, y, from + MOST >= count);
            for (int i = 0; i < 2; i++) {
                const int row = (tile * 2 + i) * LANES, left = m->rows - row < LANES ? m->rows - row : LANES;
                for (int t = 0; t < n; t++) {
                    float *p = out + (size_t)(of ? of[from + t] : from + t) * stride + row;
                    for (int j = 0; j < left; j++) p[j] = y[i][t][j] + (add ? p[j] : 0);
                }
            }
        }
    }
}

static inline floats swish(floats x) { return x / (1.f + exponential(-x)); }

/* swish(gate) * up, or swish of one matrix alone, rounded: what becomes one group is made by one thread. */
static void activate(const Matrix *m, const Rounded *x, int count, const Rounded *out, int gated) {
    EACH(group, m->rows / (gated ? 2 * GROUP : GROUP)) {
        for (int from = 0; from < count; from += MOST) {
            const int n = count - from < MOST ? count - from : MOST;
            float y[2][MOST][LANES], up[2][MOST][LANES];
            product(m, gated ? 2 * group : group, x, from / MOST, n, y, from + MOST >= count);
            if (gated) product(m, 2 * group + 1, x, from / MOST, n, up, from + MOST >= count);
            for (int t = 0; t < n; t++) {
                float h[GROUP];
                for (int i = 0; i < GROUP; i += WIDE) {
                    const int half = i / LANES, lane = i % LANES;
                    store(h + i, swish(load(y[half][t] + lane)) * (gated ? load(up[half][t] + lane) : all(1.f)));
                }
                round_off(h, out, from + t, group * GROUP, GROUP);
            }
        }
    }
}

#define WAIT meet();

typedef struct { /* one forward, and its room */
    const Network *net;
    const Batch *b;
    float *x, *qkv, *mixed, *scores, *normed; /* [T][D], [T][(H + 2 G) K], [T][H K], [threads][4][..], [threads][D] */
    int32_t *gate, *slot;                     /* [T]: number among the drafts or -1; the column of a draft */
    Rounded h, drafted, o, inner, low;        /* inputs: all columns, drafts alone, heads, the MLP's, the adapter's */
    int drafts, room_score;
} Pass;

static void compute(void *job) {
    const Pass *pass = job;
    const Network *net = pass->net;
    const Batch *b = pass->b;
    const int T = b->columns, D = net->hidden, K = net->head_dim, H = net->heads, G = net->kv_heads;
    const int wide = (H + 2 * G) * K, scored = b->text_rows + b->draft_rows, drafts = pass->drafts;
    const size_t per_layer = (size_t)b->places * G * b->blocks * LANES * K;
    const float scale = 1.f / sqrtf((float)K);
    const int heads = T * G < 4 * crew.count ? 1 : 4; /* of one piece of work */
    const int parts = (H / G + heads - 1) / heads;
    float *x = pass->x, *qkv = pass->qkv;
    float *own_score = pass->scores + (size_t)crew.id * pass->room_score * 4, *own_norm = pass->normed + (size_t)crew.id * D;
    {
        EACH(t, T) {
            if (b->drafts[t] && b->id[t] == net->mask_id && net->mask_embedding)
                memcpy(x + (size_t)t * D, net->mask_embedding, D * sizeof(float));
            else embed(&net->head, b->id[t], x + (size_t)t * D);
        }
    }
    for (int l = 0; l < net->layers; l++) {
        const Layer *layer = net->layer + l;
        uint16_t *keys = b->keys + l * per_layer, *values = b->values + l * per_layer;
        WAIT {
            EACH(t, T) {
                normalise(x + (size_t)t * D, layer->norm1, D, net->eps, own_norm);
                round_off(own_norm, &pass->h, t, 0, D);
            }
        }
        WAIT project(&layer->qkv, &pass->h, T, qkv, wide, 0, 0);
        WAIT {
            EACH(t, T) {
                float *row = qkv + (size_t)t * wide;
                const float *cos = net->cos + (size_t)b->position[t] * (K / 2);
                const float *sin = net->sin + (size_t)b->position[t] * (K / 2);
                for (int n = 0; n < H + G; n++) rotate(row + n * K, cos, sin, K);
                for (int i = 0; i < H * K; i += WIDE) store(row + i, load(row + i) * scale);
                for (int n = 0; n < G && !b->drafts[t]; n++) {
                    size_t head = ((size_t)b->place[t] * G + n) * b->blocks;
                    int slot = b->position[t];
                    uint16_t *k = keys + (head + slot / LANES) * K * LANES + slot % LANES;
                    uint16_t *v = values + (head * LANES + slot) * K;
                    for (int i = 0; i < K; i++) k[i * LANES] = _cvtss_sh(row[(H + n) * K + i], 0);
                    for (int i = 0; i < K; i++) v[i] = _cvtss_sh(row[(H + G + n) * K + i], 0);
                }
            }
        }
        WAIT {
            EACH(item, T * G * parts) { /* columns of one request follow each other: they read the same keys */
                int t = item % T, group = item / T / parts, from = item / T % parts * heads;
                int n = group * (H / G) + from, count = H / G - from < heads ? H / G - from : heads;
                size_t head = ((size_t)b->place[t] * G + group) * b->blocks * LANES * K;
                float *out = pass->mixed + (size_t)t * H * K + n * K;
                const View view = {qkv + (size_t)t * wide + n * K, qkv + (size_t)b->first[t] * wide + (H + group) * K,
                                   keys + head, values + head, b->seen[t], b->last[t] - b->first[t], wide, G * K, K};
                attend(&view, count, own_score, pass->room_score, out);
                round_off(out, &pass->o, t, n * K, count * K);
            }
        }
        WAIT project(&layer->out, &pass->o, T, x, D, 1, 0);
        WAIT {
            EACH(t, T) {
                normalise(x + (size_t)t * D, layer->norm2, D, net->eps, own_norm);
                round_off(own_norm, &pass->h, t, 0, D);
                if (pass->gate[t] >= 0) round_off(own_norm, &pass->drafted, pass->gate[t], 0, D);
            }
        }
        WAIT activate(&layer->gate_up, &pass->h, T, &pass->inner, 1);
        if (drafts) activate(&layer->adapter_down, &pass->drafted, drafts, &pass->low, 0);
        WAIT project(&layer->down, &pass->inner, T, x, D, 1, 0);
        if (drafts) project(&layer->adapter_up, &pass->low, drafts, x, D, 1, pass->slot); /* same tiles, same threads */
    }
    WAIT {
        EACH(n, scored + b->slot_rows) {
            const int draft = n - b->text_rows, slot = n - scored;
            int t = draft < 0 ? b->text[n] : slot < 0 ? b->draft[draft] : b->slot[slot];
            float *to = draft < 0 ? b->text_states + (size_t)n * D : slot < 0 ? own_norm : b->slot_states + (size_t)slot * D;
            normalise(x + (size_t)t * D, net->norm, D, net->eps, to);
            if (draft < 0) round_off(to, &pass->h, n, 0, D);
            else if (slot < 0) round_off(to, &pass->drafted, draft, 0, D);
        }
    }
    WAIT project(&net->head, &pass->h, b->text_rows, b->text_logits, net->head.rows, 0, 0);
    if (b->draft_rows) project(&net->draft_head, &pass->drafted, b->draft_rows, b->draft_logits, net->draft_head.rows, 0, 0);
}

/* Writes text's keys and values into the cache and logits of the chosen columns. 0, or 1 where memory is short. */
int unmask_forward(const Network *net, const Batch *b) {
    const int T = b->columns, D = net->hidden, heads = net->heads * net->head_dim;
    const int wide = heads + 2 * net->kv_heads * net->head_dim, scored = b->text_rows + b->draft_rows;
    const int lines = T > scored ? T : scored, room_score = b->blocks * LANES + T + LANES;
    const size_t width = 2 * D + heads + net->inner + net->adapter; /* of all rounded features */
    const size_t size = ((size_t)T * (D + wide + heads + 2) + (size_t)b->threads * (4 * room_score + D)) * sizeof(float) +
                        (lines + MOST) * width * (1 + 12.0 / GROUP) + 64 * 32;
    char *memory = aligned_alloc(64, (size + 63) / 64 * 64), *room = memory;
    if (!memory) return 1;
    Pass pass = {.net = net, .b = b, .room_score = room_score};
    pass.x = room_for(&room, (size_t)T * D), pass.qkv = room_for(&room, (size_t)T * wide);
    pass.mixed = room_for(&room, (size_t)T * heads), pass.normed = room_for(&room, (size_t)b->threads * D);
    pass.scores = room_for(&room, (size_t)b->threads * room_score * 4);
    pass.gate = (int32_t *)room_for(&room, T), pass.slot = (int32_t *)room_for(&room, T);
    pass.h = rounded(&room, lines, D), pass.drafted = rounded(&room, lines, D), pass.o = rounded(&room, T, heads);
    pass.inner = rounded(&room, T, net->inner), pass.low = rounded(&room, T, net->adapter);
    for (int t = 0; t < T; t++) {
        pass.gate[t] = b->drafts[t] && net->adapter ? pass.drafts : -1;
        if (pass.gate[t] >= 0) pass.slot[pass.drafts++] = t;
    }
    together(compute, &pass, b->threads);
    free(memory);
    return 0;
}

typedef struct { /* slots that are told the token before them, and room for it */
    const Network *net;
    const float *state, *before; /* [rows][D] */
    const int32_t *token;        /* [rows] */
    float *told, *logits, *parts; /* [rows][D], [rows][V'], [threads][2 D] */
    Rounded x, inner, h;
    int rows;
} Chain;

static void chain(void *job) {
    const Chain *c = job;
    const Network *net = c->net;
    const int D = net->hidden;
    float *embedded = c->parts + (size_t)crew.id * 2 * D, *part = embedded + D;
    {
        EACH(n, c->rows) {
            memcpy(c->told + (size_t)n * D, c->state + (size_t)n * D, D * sizeof(float));
            if (!net->chain_in.rows) continue;
            embed(&net->head, c->token[n], embedded);
            const float *parts[] = {c->state + (size_t)n * D, c->before + (size_t)n * D, embedded};
            for (int i = 0; i < 3; i++) {
                normalise(parts[i], 0, D, 1e-6f, part);
                round_off(part, &c->x, n, i * D, D);
            }
        }
    }
    if (net->chain_in.rows) {
        WAIT activate(&net->chain_in, &c->x, c->rows, &c->inner, 1);
        WAIT project(&net->chain_out, &c->inner, c->rows, c->told, D, 1, 0);
    }
    WAIT {
        EACH(n, c->rows) round_off(c->told + (size_t)n * D, &c->h, n, 0, D);
    }
    WAIT project(&net->draft_head, &c->h, c->rows, c->logits, net->draft_head.rows, 0, 0);
}

/* States of slots once the tokens before them are known, and their logits. 0, or 1 where memory is short. */
int unmask_chain(const Network *net, int rows, int threads, const float *state, const float *before, const int32_t *token,
                 float *told, float *logits) {
    const int D = net->hidden, C = net->chain_out.columns;
    const size_t size = (size_t)threads * 2 * D * sizeof(float) + (rows + MOST) * (size_t)(4 * D + C) * (1 + 12.0 / GROUP) + 64 * 8;
    char *memory = aligned_alloc(64, (size + 63) / 64 * 64), *room = memory;
    if (!memory) return 1;
    Chain c = {.net = net, .state = state, .before = before, .token = token, .told = told, .logits = logits, .rows = rows};
    c.parts = room_for(&room, (size_t)threads * 2 * D);
    c.x = rounded(&room, rows, 3 * D), c.inner = rounded(&room, rows, C), c.h = rounded(&room, rows, D);
    together(chain, &c, threads);
    free(memory);
    return 0;
}

typedef struct {
    const float *logits;
    int rows, size;
    int64_t *token;
    double *confidence, *entropy, *margin;
} Summary;

static void summarise(void *job) {
    const Summary *to = job;
    const int size = to->size, whole = size / WIDE * WIDE;
    EACH(n, to->rows) {
        const float *row = to->logits + (size_t)n * size;
        floats top = all(LOW), next = all(LOW);
        float tail[WIDE];
        for (int i = 0; i < WIDE; i++) tail[i] = whole + i < size ? row[whole + i] : LOW;
        for (int i = 0; i <= whole; i += WIDE) {
            floats v = i < whole ? load(row + i) : load(tail);
            next = greater(next, choose(v > top, top, v));
            top = greater(top, v);
        }
        int lane = 0;
        for (int i = 1; i < WIDE; i++) lane = top[i] > top[lane] ? i : lane;
        float most = top[lane], other = next[lane];
        for (int i = 0; i < WIDE; i++) other = i != lane && top[i] > other ? top[i] : other;
        int where = 0;
        while (where < size - 1 && row[where] != most) where++;
        double s = 0, w = 0;
        for (int from = 0; from <= whole; from += 512 * WIDE) { /* short sums of floats, long ones of doubles */
            floats part = {0}, weighted = {0};
            for (int i = from; i <= whole && i < from + 512 * WIDE; i += WIDE) {
                floats gap = (i < whole ? load(row + i) : load(tail)) - most;
                floats p = choose(gap < all(-87.f), (floats){0}, exponential(gap));
                part += p, weighted += choose(gap < all(-87.f), (floats){0}, p * gap);
            }
            s += total(part), w += total(weighted);
        }
        to->token[n] = where, to->confidence[n] = 1 / s, to->entropy[n] = log(s) - w / s;
        to->margin[n] = (1 - exp((double)other - most)) / s;
    }
}

/* Of each row of logits [N][V]: the best token, its probability, the entropy in nats, and how far the second best
   token's probability is below. */
void unmask_summarise(const float *logits, int rows, int size, int threads, int64_t *token, double *confidence,
                      double *entropy, double *margin) {
    Summary to = {logits, rows, size, token, confidence, entropy, margin};
    together(summarise, &to, rows > 1 ? threads : 1);
}

/* Whether this CPU has the instructions that this build uses. */
int unmask_supported(void) {
#ifdef __AVX512VNNI__
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "forward", .m_size = -1};

#ifdef __AVX512VNNI__
PyMODINIT_FUNC PyInit__forward_vnni(void) { return PyModule_Create(&module); }
#else
PyMODINIT_FUNC PyInit__forward_avx2(void) { return PyModule_Create(&module); }
#endif
