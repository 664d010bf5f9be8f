/* One forward of a transformer, dense or with experts, for columns of many requests, on a CPU: with AMX, VNNI, AVX2 or
   NEON, or any other.

   Weights are stored in groups of 32 along the input, 16 outputs interleaved: 4 bits with a scale and a minimum (as
   Q4_1 stores them), or 8 bits with a scale (Q8_0). Inputs of a product are rounded to 8 bits, a scale for every 32.
   An exact network has float32 weights, inputs, keys and values instead.
   Every sum runs in an order that depends on nothing but its own column, so a column's result is the same to the bit
   in any company and however the text before it came into the cache.

   Shapes: T columns, D hidden size, K head width, H heads, G key/value heads, S slots of the cache, V vocabulary,
   E experts, k of them for a column, P = T k pairs of a column and an expert. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#ifdef __AMX_INT8__
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "lanes.h"
#include "threads.h"

#define LANES 16  /* outputs of half a tile, slots of a block of the cache */
#define GROUP 32  /* inputs that share a scale */
#define MOST 8    /* columns that stand together where nothing is rounded */
#ifdef __AMX_INT8__
#define TILED 1   /* products of many columns are made of tiles */
#else
#define TILED 0
#endif
#define MANY 32   /* columns of one product of 32 outputs */
#define SOME 64   /* columns that all of a thread's outputs are made of before the next: their inputs stay near */
#define STEP 64   /* inputs of a tile, of weights that have one scale for all inputs */
#define PART_BITS 4 /* a rounded input is 2^4 times one byte, and another byte */
#if defined(__AVX512F__) || !defined(__AVX2__)
#define APART 1   /* which are stored apart; else they are one number */
#else
#define APART 0
#endif
#if defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
#define UNSIGNED 1 /* with 128 added to each byte */
#else
#define UNSIGNED 0
#endif
#define TOP 2039  /* the greatest, 127 * 16 + 7 */
#ifdef __AVX512F__
#define FEW 6     /* columns whose sums the registers hold */
#else
#define FEW 4
#endif
#define ASK_FOR_STATE 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl, and the number of the tiles' data: */
#define TILE_STATE 18

#define HALVES (LANES / WIDE)

typedef int32_t quad __attribute__((may_alias, aligned(4)));
typedef struct {
    int32_t rows, columns, bits, by_row;
    const uint8_t *blocks; /* [rows / 32][columns / 32], rows padded: codes of 16 rows, of 16 more, then scales;
                              of 32 bits [rows / 32][columns][32] floats; by_row: see below */
    const float *bias;     /* [rows, padded], or none */
} Matrix;

#define CODES(bits) (LANES * GROUP * (bits) / 8)        /* bytes of a block's codes of 16 rows */
#define SCALES(bits) ((bits) == 4 ? 2 * LANES : LANES)  /* float16 of 16 rows: scales, of 4 bits then minima */
#define BLOCK(bits) (2 * CODES(bits) + 4 * SCALES(bits)) /* bytes */

/* Of 32 rows with a scale each (by_row): signed codes [columns / STEP][2][STEP / 4][16][4], columns padded with 0; then
   float scales [32] and the sums of the codes, int32 [32]. */
#define PADDED(columns) (((columns) + STEP - 1) / STEP * STEP)
#define ROW_TILE(columns) ((size_t)PADDED(columns) * 2 * LANES + 2 * 2 * LANES * 4) /* bytes */

typedef struct {
    const float *scale, *shift; /* one of them, or both, may be missing */
} Norm;

/* gate_up: 32 rows of gate, then 32 of up, and so on. A layer has an MLP (gate_up, down), or a router and experts, beside
   which such an MLP is the one that all columns pass. Matrices of experts are those of the first; the others follow it. */
typedef struct {
    Matrix qkv, out, gate_up, down, adapter_down, adapter_up, router, expert_gate_up, expert_down;
    Norm norm1, norm2, q_norm, k_norm;
    const float *router_bias; /* [E]: what experts are favoured by; or none */
} Layer;

enum { SWISH, GELU, GELU_TANH };
enum { SOFTMAX, SIGMOID };

typedef struct {
    int32_t count, per_column, inner, groups, groups_kept, scores, normalised; /* count: 0 without experts; scores: SOFTMAX .. */
    float scale;
} Experts;

typedef struct {
    int32_t layers, hidden, heads, kv_heads, head_dim, inner, adapter, mask_id; /* inner: of the widest MLP; adapter: its width, or 0 */
    int32_t rotated, centred, qk_norm, gated, activation, exact; /* features of a head that are rotated; layer norms */
    int32_t by_row, loops, cells; /* by_row: text's products have one scale a row; passes of the layers, the embeddings added again each time; of a grid, or 0 */
    float eps, cap;
    Matrix embedding, head, draft_head;       /* draft_head.rows is 0 without one */
    Matrix chain_in, chain_out; /* of the sequential draft head; 32 rows of gate, 32 of inner, .. */
    Experts experts;
    Norm norm;
    const float *mask_embedding, *positions, *cos, *sin; /* [D], [positions][D], [positions][rotated / 2] */
    const float *grid; /* [H][cells][cells]: what a head adds to the score of a cell for another; or none */
    const Layer *layer;
    const float *query; /* [positions]: what rotated queries are scaled by; or none */
} Network;

typedef struct {
    int32_t columns, text_rows, draft_rows, slot_rows, places, blocks, threads; /* blocks of 16 slots in the cache */
    const int32_t *id, *position, *place;        /* [T] */
    const int32_t *seen, *after, *until;         /* [T]: cached keys from 0 to seen - 1 and from after to until - 1 */
    const int32_t *first, *last, *drafts;        /* [T]: columns of its group, is it a slot */
    const int32_t *told;                         /* [T]: row of `modulation` */
    const int32_t *text, *draft, *slot;          /* columns to score, and those whose states alone are asked for */
    void *keys, *values;        /* float16, or float32 where exact: [loops * layers][places][G][blocks][K][16], and
                                   [..][16 * blocks][K] */
    float *text_logits, *draft_logits; /* [text_rows][V], [draft_rows][V'] */
    float *text_states, *slot_states;  /* [text_rows][D], [slot_rows][D], normalised */
    const float *modulation;           /* [.][layers * PARTS + 2][D]: what a noise level does (see below); or none */
    void *room;                        /* room_size bytes to work in, from a cache line's start */
    int64_t room_size;
} Batch;

/* What a noise level does to a layer: it shifts and scales what is behind each norm, and scales what is added to columns
   (adaLN of DiT). Behind the last norm there are a shift and a scale as well. */
enum { SHIFT, SCALE, GATE, PARTS = 6 }; /* of the first half, and again of the second */

typedef struct { /* inputs of a product, rounded group by group; by_row: each column as a whole, to 12 bits */
    int8_t *code;           /* [groups][lines][32]; by_row [T][columns, padded] of 12 bits, see `round_row` */
    float *scale, *sum;     /* [groups][lines]: scale, and the sum of what the group stands for; by_row the scale alone, [T] */
    int32_t *offset;        /* like these: -128 times the sum of the codes */
    float *whole;           /* of an exact network instead of all these: [T / MOST][columns][MOST] */
    int columns, by_row, lines; /* lines: T, and one more where that is even: a cache holds few that are powers of 2 apart */
} Rounded;

#include "products.h"

/* Features `first` to first + count - 1 of a column. */
static void round_off(const float *x, const Rounded *to, int column, int first, int count) {
    size_t at = (size_t)(first / GROUP) * to->lines + column;
    if (to->whole) {
        float *p = to->whole + ((size_t)(column / MOST) * to->columns + first) * MOST + column % MOST;
        for (int i = 0; i < count; i++) p[i * MOST] = x[i];
        return;
    }
    for (int i = 0; i < count; i += GROUP, at += to->lines) {
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

/* A whole column, for products of matrices by_row: numbers n up to TOP, the row's greatest. AMX, VNNI: all n >> 4, rounded,
   then what is left of them, each with 128 added for VNNI; AVX2: int16 of every four inputs 0, 2, 1, 3. */
static void round_row(const float *x, const Rounded *to, int column, int count) {
    const int wide = PADDED(to->columns);
    int8_t *code = to->code + (size_t)column * 2 * wide;
    floats top = {0};
    for (int i = 0; i < count; i += WIDE) top = greater(top, greater(load(x + i), -load(x + i)));
    const float most = highest(top), inverse = most > 0 ? TOP / most : 0.f;
    to->scale[column] = most / TOP;
    for (int i = 0; i < wide; i += WIDE) {
        const floats v = i < count ? load(x + i) : (floats){0};
        const ints n = __builtin_convertvector(v * inverse + 12582912.f - 12582912.f, ints);
#if APART
        const ints high = (n + (1 << PART_BITS) / 2) >> PART_BITS;
        const int more = UNSIGNED ? 128 : 0;
        *(bytes *)(code + i) = __builtin_convertvector(high + more, bytes);
        *(bytes *)(code + wide + i) = __builtin_convertvector(n - (high << PART_BITS) + more, bytes);
#else
        for (int j = 0; j < WIDE; j++) ((int16_t *)code)[i + j / 4 * 4 + j % 4 / 2 + j % 2 * 2] = n[j];
#endif
    }
}

static void round_column(const float *x, const Rounded *to, int column, int count) {
    if (to->by_row) round_row(x, to, column, count);
    else round_off(x, to, column, 0, count);
}

/* To unit root mean square, or first to mean 0 (centred), then scaled and shifted. */
static void normalise(const float *x, Norm norm, int size, float eps, int centred, float *out) {
    floats whole = {0}, squares = {0};
    for (int i = 0; i < size && centred; i += WIDE) whole += load(x + i);
    const float mean = centred ? total(whole) / size : 0.f;
    for (int i = 0; i < size; i += WIDE) {
        floats v = load(x + i) - mean;
        squares += v * v;
    }
    const float scale = 1.f / sqrtf(total(squares) / size + eps);
    for (int i = 0; i < size; i += WIDE) {
        floats v = (load(x + i) - mean) * scale;
        if (norm.scale) v = v * load(norm.scale + i);
        if (norm.shift) v = v + load(norm.shift + i);
        store(out + i, v);
    }
}

static void embed(const Matrix *m, int row, float *out) {
    const int groups = m->columns / GROUP, half = row / LANES % 2, lane = row % LANES;
    if (m->bits == 32) {
        const float *w = (const float *)m->blocks + (size_t)(row / GROUP) * m->columns * GROUP + row % GROUP;
        for (int k = 0; k < m->columns; k++) out[k] = w[(size_t)k * GROUP];
        return;
    }
    if (m->by_row) {
        const uint8_t *tile = m->blocks + row / GROUP * ROW_TILE(m->columns);
        const float scale = ((const float *)(tile + (size_t)PADDED(m->columns) * GROUP))[row % GROUP];
        for (int k = 0; k < m->columns; k++)
            out[k] = scale * (int8_t)tile[(k / STEP * 2 + half) * STEP * LANES + k % STEP / 4 * 64 + lane * 4 + k % 4];
        return;
    }
    for (int g = 0; g < groups; g++) {
        const uint8_t *block = m->blocks + ((size_t)(row / GROUP) * groups + g) * BLOCK(m->bits);
        const uint8_t *code = block + half * CODES(m->bits);
        const uint16_t *scale = (const uint16_t *)(block + 2 * CODES(m->bits)) + half * SCALES(m->bits);
        float d = of_half(scale[lane]), least = m->bits == 4 ? of_half(scale[LANES + lane]) : -128.f * d;
        for (int k = 0; k < GROUP; k++) {
            int four = k / 4, at = lane * 4 + k % 4;
            int q = m->bits == 4 ? (code[four % 4 * 64 + at] >> (four / 4 * 4)) & 15 : code[four * 64 + at];
            out[g * GROUP + k] = d * q + least;
        }
    }
}

/* Turns the first `size` features of a head, pairs that stand size / 2 apart. */
static void rotate(float *x, const float *cos, const float *sin, int size) {
    int i = 0;
    for (; i + WIDE <= size / 2; i += WIDE) {
        floats a = load(x + i), b = load(x + size / 2 + i), c = load(cos + i), s = load(sin + i);
        store(x + i, a * c - b * s), store(x + size / 2 + i, b * c + a * s);
    }
    for (; i < size / 2; i++) {
        float a = x[i], b = x[size / 2 + i];
        x[i] = a * cos[i] - b * sin[i], x[size / 2 + i] = b * cos[i] + a * sin[i];
    }
}

#define ROWS 4 /* queries that read the same keys together: heads of a column, or columns of a request */

typedef struct { /* queries of one group of heads, and what they attend to */
    const float *q[ROWS], *bias[ROWS]; /* bias: what is added to the scores of slots, or none */
    float *out[ROWS];
    int seen[ROWS];     /* of the cached keys from slot 0 on; the rest of `low` .. is seen by all of them */
    int low[2], high[2]; /* slots of the cache: from 0 to the greatest `seen`, and others behind */
    const float *own;   /* the first column of their group */
    const char *keys, *values; /* [blocks][K][16], [S][K] */
    int own_count, own_stride, to_values, size; /* columns of the group, floats between them */
} View;

static inline floats cached(const char *p, size_t i, const int exact) {
    return exact ? load((const float *)p + i) : halves((const uint16_t *)p + i);
}

/* The mix of values, `count` registers of features from `at` on. */
static inline __attribute__((always_inline)) void mix(
    const View *v, int at, const float *score, int stride, const float *share, const int rows, const int count,
    const int exact) {
    floats sum[ROWS][4] = {{{0}}};
    for (int part = 0; part < 2; part++) {
        for (int n = v->low[part]; n < v->high[part]; n++)
            for (int i = 0; i < count; i++) {
                floats value = cached(v->values, (size_t)n * v->size + at + i * WIDE, exact);
                for (int r = 0; r < rows; r++) sum[r][i] += value * score[r * stride + n - v->low[part] / LANES * LANES];
            }
        score += (v->high[part] + LANES - 1) / LANES * LANES - v->low[part] / LANES * LANES;
    }
    for (int n = 0; n < v->own_count; n++)
        for (int i = 0; i < count; i++) {
            floats value = load(v->own + (size_t)n * v->own_stride + v->to_values + at + i * WIDE);
            for (int r = 0; r < rows; r++) sum[r][i] += value * score[r * stride + n];
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < count; i++) store(v->out[r] + at + i * WIDE, sum[r][i] * share[r]);
}

#define CHAINS (HALVES < 4 ? 4 / HALVES : 1) /* sums of one score that grow side by side */

/* Each query's sums are those that it would have alone: keys that only others see weigh nothing. */
static inline __attribute__((always_inline)) void attend_with(
    const View *v, float *score, int stride, const int rows, const int exact) {
    const int size = v->size;
    float share[ROWS];
    int start = 0; /* of the scores of this part */
    for (int part = 0; part < 2; part++) {
        const int from = v->low[part] / LANES, blocks = (v->high[part] + LANES - 1) / LANES - from;
        for (int b = 0; b < blocks; b++) {
            const size_t k = (size_t)(from + b) * size * LANES;
            floats sums[ROWS][CHAINS][HALVES] = {{{{0}}}};
            for (int i = 0; i < size; i += CHAINS)
                for (int j = 0; j < CHAINS; j++)
                    for (int half = 0; half < HALVES; half++) {
                        const floats key = cached(v->keys, k + (i + j) * LANES + half * WIDE, exact);
                        for (int r = 0; r < rows; r++) sums[r][j][half] += key * v->q[r][i + j];
                    }
            for (int r = 0; r < rows; r++)
                for (int half = 0; half < HALVES; half++) {
                    floats s = sums[r][0][half];
                    if (CHAINS > 1) s += sums[r][CHAINS > 1][half];
                    if (CHAINS == 4) s += sums[r][CHAINS - 2][half] + sums[r][CHAINS - 1][half];
                    store(score + r * stride + start + b * LANES + half * WIDE, s);
                }
        }
        for (int r = 0; r < rows; r++) {
            float *p = score + r * stride + start - from * LANES;
            for (int n = v->low[part]; n < v->high[part] && v->bias[r]; n++) p[n] += v->bias[r][n];
            for (int n = from * LANES; n < v->low[part]; n++) p[n] = LOW;
            for (int n = part ? v->high[1] : v->seen[r]; n < (from + blocks) * LANES; n++) p[n] = LOW;
        }
        start += blocks * LANES;
    }
    for (int r = 0; r < rows; r++) {
        float *all_scores = score + r * stride, *own = all_scores + start;
        for (int n = 0; n < v->own_count; n++) {
            floats s = {0};
            for (int i = 0; i < size; i += WIDE) s += load(v->own + (size_t)n * v->own_stride + i) * load(v->q[r] + i);
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
        share[r] = 1.f / total(sum);
    }
    int at = 0;
    for (; at + 4 * WIDE <= size; at += 4 * WIDE) mix(v, at, score, stride, share, rows, 4, exact);
    for (; at < size; at += WIDE) mix(v, at, score, stride, share, rows, 1, exact);
}

static void attend(const View *v, int rows, float *score, int stride, int exact) {
#define CASE(n) \
    case n: \
        if (exact) attend_with(v, score, stride, n, 1); \
        else attend_with(v, score, stride, n, 0); \
        break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4)
    }
#undef CASE
}

/* Rooms are taken one after another; a null `room` counts the bytes. */
static void *room_for(char **room, size_t bytes) {
    void *p = *room;
    *room += (bytes + 63) / 64 * 64;
    return p;
}

static Rounded rounded(char **room, int columns, int size, int exact, int by_row) {
    Rounded r = {.columns = size, .by_row = by_row, .lines = columns | 1};
    if (exact) {
        r.whole = room_for(room, (size_t)(columns + MOST - 1) / MOST * MOST * size * sizeof(float));
        return r;
    }
    if (by_row) {
        r.scale = room_for(room, columns * sizeof(float)), r.code = room_for(room, (size_t)columns * 2 * PADDED(size));
        return r;
    }
    const size_t scales = (size_t)r.lines * (size / GROUP) * 4;
    r.scale = room_for(room, scales), r.sum = room_for(room, scales), r.offset = room_for(room, scales);
    r.code = room_for(room, (size_t)r.lines * size);
    return r;
}

typedef struct { /* rows of out [.][stride] where a product goes */
    float *out;
    int stride, add;
    const int32_t *row; /* of a column, or none: its own number */
    const float *share; /* what a column is multiplied by, or none */
    const float *gate;  /* [.][step]: what the features of a row of out are multiplied by; or none */
    const int32_t *told; /* of a row of out: its row of gate */
    size_t step;
} Target;

/* A product of columns first to last - 1, set or added. */
static void project(const Matrix *m, const Rounded *x, int first, int last, Target to) {
    for (int some = first; some < last; some += SOME) {
        const int end = last - some < SOME ? last : some + SOME;
        EACH(tile, (m->rows + 2 * LANES - 1) / (2 * LANES)) {
            for (int from = some; from < end; from += MANY) {
                const int n = end - from < MANY ? end - from : MANY;
                float y[2][MANY][LANES];
                product(m, tile, x, from, n, y, from + MANY >= end);
                for (int i = 0; i < 2; i++) {
                    const int row = (tile * 2 + i) * LANES, left = m->rows - row < LANES ? m->rows - row : LANES;
                    for (int t = 0; t < n; t++) {
                        const int place = to.row ? to.row[from + t] : from + t;
                        const float share = to.share ? to.share[from + t] : 1.f;
                        const float *gate = to.gate ? to.gate + to.told[place] * to.step + row : NULL;
                        float *p = to.out + (size_t)place * to.stride + row;
                        for (int j = 0; j < left && gate; j++) y[i][t][j] *= gate[j];
                        for (int j = 0; j < left; j++) p[j] = y[i][t][j] * share + (to.add ? p[j] : 0);
                    }
                }
            }
        }
    }
}

static inline floats activated(floats x, int kind) {
    if (kind == SWISH) return x / (1.f + exponential(-x));
    if (kind == GELU_TANH) return x / (1.f + exponential(x * (1.f + 0.044715f * x * x) * -1.5957691216f));
    /* erf of Abramowitz and Stegun 7.1.26, off by 1.5e-7 at the most */
    const floats z = greater(x, -x) * 0.70710678f, t = 1.f / (1.f + 0.3275911f * z);
    floats p = all(1.061405429f) * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const floats rest = p * t * exponential(-z * z) * 0.5f;
    return x * choose(x > all(0.f), 1.f - rest, rest);
}

/* An activation of one product times another, or of one alone, rounded: what becomes one group is made by one thread.
   Of columns first to last - 1. What is rounded by whole columns is left in `unrounded` [.][out->columns]. */
static void activate(
    const Matrix *m, const Rounded *x, int first, int last, const Rounded *out, float *unrounded, int gated, int kind) {
    for (int some = first; some < last; some += SOME) {
        const int end = last - some < SOME ? last : some + SOME;
        EACH(group, m->rows / (gated ? 2 * GROUP : GROUP)) {
            for (int from = some; from < end; from += MANY) {
                const int n = end - from < MANY ? end - from : MANY;
                float y[2][MANY][LANES], up[2][MANY][LANES];
                product(m, gated ? 2 * group : group, x, from, n, y, from + MANY >= end);
                if (gated) product(m, 2 * group + 1, x, from, n, up, from + MANY >= end);
                for (int t = 0; t < n; t++) {
                    float own[GROUP], *h = unrounded ? unrounded + (size_t)(from + t) * out->columns + group * GROUP : own;
                    for (int i = 0; i < GROUP; i += WIDE) {
                        const int half = i / LANES, lane = i % LANES;
                        floats v = activated(load(y[half][t] + lane), kind);
                        if (gated) v = v * load(up[half][t] + lane);
                        store(h + i, v);
                    }
                    if (!unrounded) round_off(h, out, from + t, group * GROUP, GROUP);
                }
            }
        }
    }
}

#define WAIT if (meet()) return;       /* in what threads do together; */
#define MEET if (meet()) return 1;     /* in a part of it, which says whether this thread is to leave */

typedef struct { /* who asks which experts, and the room of their products */
    float *scores, *weight;         /* [T][3 E]; [T][k]: what a column weighs its experts by */
    int32_t *asked, *starts;        /* [T][k]; [threads][E + 2]: the first pair of an expert, each thread's own count */
    int32_t *column;                /* [P]: the columns of pairs, by expert; like all that follow */
    float *share, *active;          /* [P]: the pairs' weights; [P][inner] where columns are rounded whole */
    Rounded whole, h, inner;        /* the router's inputs [T], never rounded; the pairs': a column, and the expert's own */
} Routed;

typedef struct { /* one forward, and its room */
    const Network *net;
    const Batch *b;
    float *x, *qkv, *mixed, *scores, *normed; /* [T][D], [T][(H + 2 G) K], [T][H K], [threads][4][..], [threads][D] */
    float *given, *active; /* [T][D]: the embeddings, where there are loops; [T][inner] where columns are rounded whole */
    int32_t *gate, *slot, *span;              /* [T]: number among the drafts or -1; the column of a draft; below */
    Rounded h, drafted, o, inner, low;        /* inputs: all columns, drafts alone, heads, the MLP's, the adapter's */
    Routed routed;
    int drafts, spans, heads, room_score; /* spans: columns that attend together, given by their first; of `heads` heads */
} Pass;

/* Whether a column may attend together with the one before it: both read the same request's keys. */
static int goes_with(const Batch *b, int t) {
    return b->place[t] == b->place[t - 1] && b->drafts[t] == b->drafts[t - 1] && b->first[t] == b->first[t - 1] &&
           b->last[t] == b->last[t - 1] && b->after[t] == b->after[t - 1] && b->until[t] == b->until[t - 1];
}

static void plan(Pass *pass) {
    const Batch *b = pass->b;
    const int share = pass->net->heads / pass->net->kv_heads, T = b->columns;
    const int few = T * pass->net->kv_heads < 4 * b->threads; /* then in as many pieces as there are */
    pass->heads = few ? 1 : share < ROWS ? share : ROWS;
    const int width = few ? 1 : ROWS / pass->heads;
    for (int t = 0; t < T; t++) {
        pass->gate[t] = b->drafts[t] && pass->net->adapter ? pass->drafts : -1;
        if (pass->gate[t] >= 0) pass->slot[pass->drafts++] = t;
        if (t && t - pass->span[pass->spans - 1] < width && goes_with(b, t)) continue;
        pass->span[pass->spans++] = t;
    }
    pass->span[pass->spans] = T;
}

static void begin(const Pass *pass, int t) { /* a column's embedding */
    const Network *net = pass->net;
    const Batch *b = pass->b;
    float *x = pass->x + (size_t)t * net->hidden;
    if (b->drafts[t] && b->id[t] == net->mask_id && net->mask_embedding)
        memcpy(x, net->mask_embedding, net->hidden * sizeof(float));
    else embed(&net->embedding, b->id[t], x);
    for (int i = 0; i < net->hidden && net->positions; i += WIDE)
        store(x + i, load(x + i) + load(net->positions + (size_t)b->position[t] * net->hidden + i));
    if (net->loops > 1) memcpy(pass->given + (size_t)t * net->hidden, x, net->hidden * sizeof(float));
}

/* Norms and rotation of a column's queries and keys; text's keys and values go into the cache. */
static void place(const Pass *pass, const Layer *layer, int t, char *keys, char *values) {
    const Network *net = pass->net;
    const Batch *b = pass->b;
    const int K = net->head_dim, H = net->heads, G = net->kv_heads, half = net->rotated / 2, slot = b->position[t];
    const float scale = (net->query ? net->query[slot] : 1.f) / sqrtf((float)K);
    float *row = pass->qkv + (size_t)t * (H + 2 * G) * K;
    for (int n = 0; n < H + G; n++) {
        float *head = row + n * K;
        if (net->qk_norm) normalise(head, n < H ? layer->q_norm : layer->k_norm, K, net->eps, net->centred, head);
        rotate(head, net->cos + (size_t)slot * half, net->sin + (size_t)slot * half, net->rotated);
    }
    for (int i = 0; i < H * K; i += WIDE) store(row + i, load(row + i) * scale);
    for (int n = 0; n < G && !b->drafts[t]; n++) {
        const float *key = row + (H + n) * K, *value = key + G * K;
        const size_t head = ((size_t)b->place[t] * G + n) * b->blocks;
        const size_t k = (head + slot / LANES) * K * LANES + slot % LANES, v = (head * LANES + slot) * K;
        if (net->exact) {
            for (int i = 0; i < K; i++) ((float *)keys)[k + i * LANES] = key[i];
            memcpy((float *)values + v, value, K * sizeof(float));
        } else {
            for (int i = 0; i < K; i++) ((uint16_t *)keys)[k + i * LANES] = to_half(key[i]);
            for (int i = 0; i < K; i++) ((uint16_t *)values)[v + i] = to_half(value[i]);
        }
    }
}

/* Attention of the columns of a span, by up to `heads` heads that share keys. */
static void look(const Pass *pass, int span, int head, int heads, const char *keys, const char *values, float *score) {
    const Network *net = pass->net;
    const Batch *b = pass->b;
    const int K = net->head_dim, H = net->heads, G = net->kv_heads, group = head / (H / G), wide = (H + 2 * G) * K;
    const int from = pass->span[span], columns = pass->span[span + 1] - from;
    const size_t at = ((size_t)b->place[from] * G + group) * b->blocks * LANES * K * (net->exact ? 4 : 2);
    View v = {.own = pass->qkv + (size_t)b->first[from] * wide + (H + group) * K, .keys = keys + at, .values = values + at,
              .low = {0, b->after[from]}, .high = {0, b->until[from]}, .own_count = b->last[from] - b->first[from],
              .own_stride = wide, .to_values = G * K, .size = K};
    for (int r = 0; r < columns * heads; r++) {
        const int t = from + r / heads, n = head + r % heads;
        v.q[r] = pass->qkv + (size_t)t * wide + n * K, v.out[r] = pass->mixed + (size_t)t * H * K + n * K;
        v.bias[r] = net->grid ? net->grid + ((size_t)n * net->cells + b->position[t]) * net->cells : NULL;
        v.seen[r] = b->seen[t];
        if (v.seen[r] > v.high[0]) v.high[0] = v.seen[r];
    }
    attend(&v, columns * heads, score, pass->room_score, net->exact);
    for (int t = from; t < from + columns && K % GROUP == 0 && !net->by_row; t++)
        round_off(pass->mixed + (size_t)t * H * K + head * K, &pass->o, t, head * K, heads * K);
}

/* Of a noise level's parts of a layer (or behind the last norm), one by number; none where there is no modulation. */
static const float *modulation(const Pass *pass, int layer, int part) {
    return pass->b->modulation ? pass->b->modulation + (size_t)(layer * PARTS + part) * pass->net->hidden : NULL;
}

static size_t modulation_step(const Pass *pass) { return (size_t)(pass->net->layers * PARTS + 2) * pass->net->hidden; }

/* A column behind a norm: shifted and scaled by parts of its noise level, from `part` on. */
static void normalise_column(const Pass *pass, int t, Norm norm, int layer, int part, float *out) {
    const Network *net = pass->net;
    const float *shift = modulation(pass, layer, part + SHIFT), *scale = modulation(pass, layer, part + SCALE);
    const size_t at = shift ? pass->b->told[t] * modulation_step(pass) : 0;
    normalise(pass->x + (size_t)t * net->hidden, norm, net->hidden, net->eps, net->centred, out);
    for (int i = 0; i < net->hidden && shift; i += WIDE)
        store(out + i, load(out + i) * (1.f + load(scale + at + i)) + load(shift + at + i));
}

/* What is added to columns by a half of a layer whose parts begin with `part`. */
static Target added(const Pass *pass, int layer, int part) {
    return (Target){pass->x, pass->net->hidden, .add = 1, .gate = modulation(pass, layer, part + GATE),
                    .told = pass->b->told, .step = modulation_step(pass)};
}

/* A layer's first half, up to what its attention adds to columns. Whether this thread is to leave. */
static int mix_positions(const Pass *pass, const Layer *layer, char *keys, char *values, int again) {
    const Network *net = pass->net;
    const int T = pass->b->columns, D = net->hidden, K = net->head_dim, H = net->heads, G = net->kv_heads, heads = pass->heads;
    const int parts = (H / G + heads - 1) / heads; /* of a group of heads that share keys */
    const int number = layer - net->layer;
    float *own_score = pass->scores + (size_t)crew.id * pass->room_score * ROWS, *own_norm = pass->normed + (size_t)crew.id * D;
    { /* by the thread that made the column or added to it: shares of columns and of tiles differ, so all wait */
        MEET EACH(t, T) {
            float *own = pass->x + (size_t)t * D;
            for (int i = 0; i < D && again; i += WIDE) store(own + i, load(own + i) + load(pass->given + (size_t)t * D + i));
            normalise_column(pass, t, layer->norm1, number, 0, own_norm);
            round_column(own_norm, &pass->h, t, D);
        }
    }
    MEET project(&layer->qkv, &pass->h, 0, T, (Target){pass->qkv, (H + 2 * G) * K});
    MEET {
        EACH(t, T) place(pass, layer, t, keys, values);
    }
    MEET {
        EACH(item, pass->spans * G * parts) { /* spans of one request follow each other: they read the same keys */
            const int group = item / pass->spans / parts, from = item / pass->spans % parts * heads;
            const int count = H / G - from < heads ? H / G - from : heads;
            look(pass, item % pass->spans, group * (H / G) + from, count, keys, values, own_score);
        }
    }
    if (K % GROUP || net->by_row) {
        MEET EACH(t, T) round_column(pass->mixed + (size_t)t * H * K, &pass->o, t, H * K);
    }
    MEET project(&layer->out, &pass->o, 0, T, added(pass, number, 0));
    return 0;
}

/* The index of the greatest, the first of equals, which is taken out. */
static int take_best(float *values, int count) {
    int best = 0;
    for (int i = 1; i < count; i++) best = values[i] > values[best] ? i : best;
    values[best] = -INFINITY;
    return best;
}

/* Leaves the best groups of experts, each judged by the sum of its best two; takes the others out. */
static void keep_best_groups(const Experts *e, float *choice, float *judged) {
    const int size = e->count / e->groups;
    for (int g = 0; g < e->groups; g++) {
        float one = choice[g * size], two = -INFINITY;
        for (int i = 1; i < size; i++) {
            const float v = choice[g * size + i];
            if (v > one) two = one, one = v;
            else if (v > two) two = v;
        }
        judged[g] = size > 1 ? one + two : one;
    }
    for (int n = 0; n < e->groups_kept; n++) take_best(judged, e->groups);
    for (int i = 0; i < e->count; i++) choice[i] = judged[i / size] > -INFINITY ? -INFINITY : choice[i];
}

/* The experts that a column asks, the best first, and their weights; `Router` of models/layers.py says the same. */
static void choose_experts(const Pass *pass, const Layer *layer, int t) {
    const Experts *e = &pass->net->experts;
    const Routed *r = &pass->routed;
    float *score = r->scores + (size_t)t * 3 * e->count, *choice = score + e->count, *judged = choice + e->count;
    float most = score[0], sum = 0.f, chosen = 0.f;
    for (int i = 1; i < e->count; i++) most = score[i] > most ? score[i] : most;
    for (int i = 0; i < e->count; i++) {
        score[i] = e->scores == SIGMOID ? 1.f / (1.f + expf(-score[i])) : expf(score[i] - most);
        sum += score[i];
    }
    for (int i = 0; i < e->count; i++) {
        if (e->scores == SOFTMAX) score[i] /= sum;
        choice[i] = score[i] + (layer->router_bias ? layer->router_bias[i] : 0.f);
    }
    if (e->groups > 1) keep_best_groups(e, choice, judged);
    int32_t *asked = r->asked + (size_t)t * e->per_column;
    float *weight = r->weight + (size_t)t * e->per_column;
    for (int n = 0; n < e->per_column; n++) {
        asked[n] = take_best(choice, e->count);
        chosen += weight[n] = score[asked[n]];
    }
    for (int n = 0; n < e->per_column; n++) weight[n] = weight[n] / (e->normalised ? chosen + 1e-20f : 1.f) * e->scale;
}

static void copy_column(const Rounded *from, int column, const Rounded *to, int line) {
    if (from->whole) {
        const float *a = from->whole + (size_t)(column / MOST) * from->columns * MOST + column % MOST;
        float *b = to->whole + (size_t)(line / MOST) * to->columns * MOST + line % MOST;
        for (int i = 0; i < from->columns * MOST; i += MOST) b[i] = a[i];
        return;
    }
    if (from->by_row) {
        const size_t size = (size_t)2 * PADDED(from->columns);
        memcpy(to->code + line * size, from->code + column * size, size);
        to->scale[line] = from->scale[column];
        return;
    }
    size_t a = column, b = line;
    for (int g = 0; g < from->columns / GROUP; g++, a += from->lines, b += to->lines) {
        memcpy(to->code + b * GROUP, from->code + a * GROUP, GROUP);
        to->scale[b] = from->scale[a], to->sum[b] = from->sum[a], to->offset[b] = from->offset[a];
    }
}

/* Sorts pairs by expert, so that an expert's columns stand together: each thread counts all, and copies those of its own
   columns. starts [E + 2]: becomes the first pair of each expert. */
static void gather(const Pass *pass, int32_t *starts) {
    const Routed *r = &pass->routed;
    const int E = pass->net->experts.count, k = pass->net->experts.per_column, T = pass->b->columns;
    memset(starts, 0, (E + 2) * sizeof(int32_t));
    for (int n = 0; n < T * k; n++) starts[r->asked[n] + 2]++;
    for (int e = 2; e < E + 2; e++) starts[e] += starts[e - 1];
    int first, last;
    share_of(T, &first, &last);
    for (int n = 0; n < T * k; n++) {
        const int t = n / k, line = starts[r->asked[n] + 1]++;
        if (t < first || t >= last) continue;
        copy_column(&pass->h, t, &r->h, line);
        r->column[line] = t, r->share[line] = r->weight[n];
    }
}

/* One expert's matrix of those that follow the first. */
static Matrix expert(const Matrix *first, int number) {
    Matrix m = *first;
    const size_t tile = m.by_row ? ROW_TILE(m.columns)
                        : m.bits == 32 ? (size_t)m.columns * GROUP * sizeof(float)
                                       : (size_t)m.columns / GROUP * BLOCK(m.bits);
    m.blocks += number * (m.rows / GROUP) * tile;
    if (m.bias) m.bias += (size_t)number * m.rows;
    return m;
}

/* A layer's second half, dense or with experts: what is added to columns behind the second norm, by the MLP that all of
   them pass, by the experts that each asks for, and by the adapter. Whether this thread is to leave. */
static int feed_forward(const Pass *pass, const Layer *layer) {
    const Network *net = pass->net;
    const Routed *r = &pass->routed;
    const int T = pass->b->columns, D = net->hidden, E = layer->router.rows, pairs = T * net->experts.per_column;
    const int number = layer - net->layer;
    const Target out = added(pass, number, PARTS / 2);
    float *own_norm = pass->normed + (size_t)crew.id * D;
    int32_t *starts = r->starts + (size_t)crew.id * (net->experts.count + 2);
    Rounded inner = pass->inner;
    inner.columns = layer->down.columns;
    {
        MEET EACH(t, T) {
            normalise_column(pass, t, layer->norm2, number, PARTS / 2, own_norm);
            round_column(own_norm, &pass->h, t, D);
            if (E && !net->exact) round_off(own_norm, &r->whole, t, 0, D);
            if (pass->gate[t] >= 0) round_off(own_norm, &pass->drafted, pass->gate[t], 0, D);
        }
    }
    MEET if (layer->gate_up.rows) activate(&layer->gate_up, &pass->h, 0, T, &inner, pass->active, net->gated, net->activation);
    if (pass->drafts) activate(&layer->adapter_down, &pass->drafted, 0, pass->drafts, &pass->low, 0, 0, SWISH);
    if (E) {
        project(&layer->router, net->exact ? &pass->h : &r->whole, 0, T, (Target){r->scores, 3 * E});
        MEET {
            EACH(t, T) choose_experts(pass, layer, t);
        }
        MEET gather(pass, starts);
        MEET for (int e = 0; e < E; e++) {
            const Matrix m = expert(&layer->expert_gate_up, e);
            if (starts[e] < starts[e + 1])
                activate(&m, &r->h, starts[e], starts[e + 1], &r->inner, r->active, net->gated, net->activation);
        }
    }
    if (net->by_row) {
        MEET EACH(t, layer->down.rows ? T : 0) round_row(pass->active + (size_t)t * inner.columns, &inner, t, inner.columns);
        EACH(n, E ? pairs : 0) round_row(r->active + (size_t)n * r->inner.columns, &r->inner, n, r->inner.columns);
    }
    MEET if (layer->down.rows) project(&layer->down, &inner, 0, T, out);
    /* same tiles, same threads: */
    if (pass->drafts) project(&layer->adapter_up, &pass->low, 0, pass->drafts, (Target){pass->x, D, 1, pass->slot});
    Target to_experts = out;
    to_experts.row = r->column, to_experts.share = r->share;
    for (int e = 0; e < E; e++) {
        const Matrix m = expert(&layer->expert_down, e);
        if (starts[e] < starts[e + 1])
            project(&m, &r->inner, starts[e], starts[e + 1], to_experts);
    }
    return 0;
}

/* Logits and states of the columns that are asked for. Whether this thread is to leave. */
static int score(const Pass *pass) {
    const Network *net = pass->net;
    const Batch *b = pass->b;
    const int D = net->hidden, scored = b->text_rows + b->draft_rows;
    float *own_norm = pass->normed + (size_t)crew.id * D;
    MEET {
        EACH(n, scored + b->slot_rows) {
            const int draft = n - b->text_rows, slot = n - scored;
            int t = draft < 0 ? b->text[n] : slot < 0 ? b->draft[draft] : b->slot[slot];
            float *to = draft < 0 ? b->text_states + (size_t)n * D : slot < 0 ? own_norm : b->slot_states + (size_t)slot * D;
            normalise_column(pass, t, net->norm, net->layers, 0, to);
            if (draft < 0) round_column(to, &pass->h, n, D);
            else if (slot < 0) round_off(to, &pass->drafted, draft, 0, D);
        }
    }
    MEET project(&net->head, &pass->h, 0, b->text_rows, (Target){b->text_logits, net->head.rows});
    if (b->draft_rows) project(&net->draft_head, &pass->drafted, 0, b->draft_rows, (Target){b->draft_logits, net->draft_head.rows});
    if (net->cap > 0) {
        MEET EACH(n, b->text_rows) {
            float *row = b->text_logits + (size_t)n * net->head.rows;
            for (int i = 0; i < net->head.rows; i++) row[i] = tanhf(row[i] / net->cap) * net->cap;
        }
    }
    return 0;
}

static void compute(void *job) {
    const Pass *pass = job;
    const Network *net = pass->net;
    const Batch *b = pass->b;
    const size_t per_layer = (size_t)b->places * net->kv_heads * b->blocks * LANES * net->head_dim * (net->exact ? 4 : 2);
    {
        EACH(t, b->columns) begin(pass, t);
    }
    for (int l = 0; l < net->loops * net->layers; l++) {
        const Layer *layer = net->layer + l % net->layers;
        char *keys = (char *)b->keys + l * per_layer, *values = (char *)b->values + l * per_layer;
        if (mix_positions(pass, layer, keys, values, l && l % net->layers == 0) || feed_forward(pass, layer)) return;
    }
    if (score(pass)) return;
#ifdef __AMX_INT8__
    _tile_release(); /* others in this thread shape tiles too; and a switch of threads need not keep them */
    shaped = 0;
#endif
}

static char *lay_out_experts(Pass *pass, char *room) {
    const Network *net = pass->net;
    const Experts *e = &net->experts;
    const int T = pass->b->columns, pairs = T * e->per_column;
    Routed *r = &pass->routed;
    r->scores = room_for(&room, (size_t)T * 3 * e->count * sizeof(float));
    r->weight = room_for(&room, pairs * sizeof(float)), r->asked = room_for(&room, pairs * sizeof(int32_t));
    r->starts = room_for(&room, (size_t)pass->b->threads * (e->count + 2) * sizeof(int32_t));
    r->column = room_for(&room, pairs * sizeof(int32_t)), r->share = room_for(&room, pairs * sizeof(float));
    if (net->by_row) r->active = room_for(&room, (size_t)pairs * e->inner * sizeof(float));
    if (!net->exact) r->whole = rounded(&room, T, net->hidden, 1, 0);
    r->h = rounded(&room, pairs, net->hidden, net->exact, net->by_row);
    r->inner = rounded(&room, pairs, e->inner, net->exact, net->by_row);
    return room;
}

/* Lays out the room of a pass from `room` on; returns its end. */
static char *lay_out(Pass *pass, char *room) {
    const Network *net = pass->net;
    const Batch *b = pass->b;
    const int T = b->columns, D = net->hidden, heads = net->heads * net->head_dim;
    const int wide = heads + 2 * net->kv_heads * net->head_dim, scored = b->text_rows + b->draft_rows;
    const int lines = T > scored ? T : scored;
    pass->room_score = (b->blocks + 3) * LANES + T;
    pass->x = room_for(&room, (size_t)T * D * sizeof(float)), pass->qkv = room_for(&room, (size_t)T * wide * sizeof(float));
    pass->mixed = room_for(&room, (size_t)T * heads * sizeof(float));
    pass->given = room_for(&room, net->loops > 1 ? (size_t)T * D * sizeof(float) : 0);
    pass->normed = room_for(&room, (size_t)b->threads * D * sizeof(float));
    pass->scores = room_for(&room, (size_t)b->threads * pass->room_score * ROWS * sizeof(float));
    pass->gate = room_for(&room, T * sizeof(int32_t)), pass->slot = room_for(&room, T * sizeof(int32_t));
    pass->span = room_for(&room, (T + 1) * sizeof(int32_t));
    pass->h = rounded(&room, lines, D, net->exact, net->by_row), pass->drafted = rounded(&room, lines, D, net->exact, 0);
    pass->o = rounded(&room, T, heads, net->exact, net->by_row);
    pass->inner = rounded(&room, T, net->inner, net->exact, net->by_row);
    if (net->by_row) pass->active = room_for(&room, (size_t)T * net->inner * sizeof(float));
    pass->low = rounded(&room, T, net->adapter, net->exact, 0);
    return net->experts.count ? lay_out_experts(pass, room) : room;
}

/* Writes text's keys and values into the cache and logits of the chosen columns. 0, or the bytes of room that it needs
   where there are fewer. */
int64_t unmask_forward(const Network *net, const Batch *b) {
    Pass pass = {.net = net, .b = b};
    char *start = b->room;
    const int64_t needed = lay_out(&pass, start) - start;
    if (needed > b->room_size) return needed;
    plan(&pass);
    static Company company;
    together(compute, &pass, b->threads, &company);
    return 0;
}

typedef struct { /* slots whose token before them is known, and room for it */
    const Network *net;
    const float *state, *before; /* [rows][D] */
    const int32_t *token;        /* [rows] */
    float *made, *logits, *parts; /* [rows][D], [rows][V'], [threads][2 D] */
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
            memcpy(c->made + (size_t)n * D, c->state + (size_t)n * D, D * sizeof(float));
            if (!net->chain_in.rows) continue;
            embed(&net->embedding, c->token[n], embedded);
            const float *parts[] = {c->state + (size_t)n * D, c->before + (size_t)n * D, embedded};
            for (int i = 0; i < 3; i++) {
                normalise(parts[i], (Norm){0}, D, 1e-6f, 0, part);
                round_off(part, &c->x, n, i * D, D);
            }
        }
    }
    if (net->chain_in.rows) {
        WAIT activate(&net->chain_in, &c->x, 0, c->rows, &c->inner, 0, 1, SWISH);
        WAIT project(&net->chain_out, &c->inner, 0, c->rows, (Target){c->made, D, .add = 1});
    }
    WAIT {
        EACH(n, c->rows) round_off(c->made + (size_t)n * D, &c->h, n, 0, D);
    }
    WAIT project(&net->draft_head, &c->h, 0, c->rows, (Target){c->logits, net->draft_head.rows});
}

/* States of slots once the tokens before them are known, and their logits. 0, or the bytes of room that it needs. */
int64_t unmask_chain(const Network *net, int rows, int threads, const float *state, const float *before,
                     const int32_t *token, float *made, float *logits, char *start, int64_t room_size) {
    const int D = net->hidden, C = net->chain_out.columns;
    char *room = start;
    Chain c = {.net = net, .state = state, .before = before, .token = token, .made = made, .logits = logits, .rows = rows};
    c.parts = room_for(&room, (size_t)threads * 2 * D * sizeof(float));
    c.x = rounded(&room, rows, 3 * D, net->exact, 0), c.inner = rounded(&room, rows, C, net->exact, 0);
    c.h = rounded(&room, rows, D, net->exact, 0);
    if (room - start > room_size) return room - start;
    static Company company;
    together(chain, &c, threads, &company);
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
    static Company company;
    together(summarise, &to, rows > 1 ? threads : 1, &company);
}

/* Of the structures above: Python checks that a build is of its own. */
int unmask_interface(void) { return 9; }

/* Whether this CPU has the instructions that this build uses, and the system lets this process use them. */
int unmask_supported(void) {
#ifdef __AMX_INT8__
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & bit_AMX_TILE) || !(d & bit_AMX_INT8)) return 0;
    if (syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_STATE)) return 0;
#endif
#if defined(__AVX512VNNI__)
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return 1;
#endif
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "forward", .m_size = -1};

#if defined(__AMX_INT8__)
PyMODINIT_FUNC PyInit__forward_amx(void) { return PyModule_Create(&module); }
#elif defined(__AVX512VNNI__)
PyMODINIT_FUNC PyInit__forward_vnni(void) { return PyModule_Create(&module); }
#elif defined(__AVX2__)
PyMODINIT_FUNC PyInit__forward_avx2(void) { return PyModule_Create(&module); }
#elif defined(__ARM_FEATURE_DOTPROD)
PyMODINIT_FUNC PyInit__forward_neon(void) { return PyModule_Create(&module); }
#else
PyMODINIT_FUNC PyInit__forward_plain(void) { return PyModule_Create(&module); }
#endif
