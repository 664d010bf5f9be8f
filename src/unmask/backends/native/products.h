/* Products of a tile of 32 outputs and a few rounded columns, for each kind of CPU. */

static inline floats scaled(floats sum, floats dots, const uint16_t *scale, const Rounded *x, size_t at, int bits) {
    sum += dots * (halves(scale) * x->scale[at]);
    if (bits == 4) sum += halves(scale + LANES) * x->sum[at];
    return sum;
}

#define KEEP(v) __asm__("" : "+v"(v)) /* in its register: sums that the compiler reorders fall out of them */

/* 32 outputs from 32 tile on, of up to FEW columns of x from `from` on. With the last columns, the weights of the next
   tile are sent for. */
#if defined(__AVX512VNNI__)
static inline __attribute__((always_inline)) void multiply(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], int last, const int count,
    const int bits) {
    const int groups = m->columns / GROUP;
    const uint8_t *code = m->blocks + (size_t)tile * groups * BLOCK(bits);
    const __m512i low = _mm512_set1_epi8(15);
    const size_t next = (size_t)groups * BLOCK(bits); /* the tile after this one is on its way meanwhile */
    size_t at = from;
    floats sum[2][FEW];
#pragma GCC unroll 8
    for (int t = 0; t < count; t++) sum[0][t] = sum[1][t] = (floats){0};
    for (int g = 0; g < groups; g++, code += BLOCK(bits), at += x->lines) {
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
    for (int t = 0; t < count; t++) store(out[0][t], sum[0][t]), store(out[1][t], sum[1][t]);
}
#elif defined(__AVX2__) /* codes of 4 bits times bytes, whose sums over a group fit 16 bits; codes of 8 bits are split in two */
static inline __attribute__((always_inline)) void multiply(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], int last, const int count,
    const int bits) {
    const int groups = m->columns / GROUP;
    const uint8_t *code = m->blocks + (size_t)tile * groups * BLOCK(bits);
    const __m256i low = _mm256_set1_epi8(15);
    const size_t next = (size_t)groups * BLOCK(bits); /* the tile after this one is on its way meanwhile */
    size_t at = from;
    floats sum[4][FEW];
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < count; t++) sum[i][t] = (floats){0};
    for (int g = 0; g < groups; g++, code += BLOCK(bits), at += x->lines) {
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
        for (int t = 0; t < count; t++) store(out[i / 2][t] + i % 2 * WIDE, sum[i][t]);
}
#else /* sums of four products in each lane: NEON's dot products, or what stands for them */
typedef int32_t four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int8_t codes __attribute__((vector_size(16), aligned(1), may_alias));

static inline four dot(four sum, codes a, codes b) {
#ifdef __ARM_FEATURE_DOTPROD
    return (four)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#elif defined(__aarch64__)
    const int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)a), vget_low_s8((int8x16_t)b));
    const int16x8_t high = vmull_high_s8((int8x16_t)a, (int8x16_t)b);
    return sum + (four)vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#else
    for (int i = 0; i < 16; i++) sum[i / 4] += a[i] * b[i];
    return sum;
#endif
}

static inline codes same_four(const int8_t *p) { return (codes)(*(const quad *)p - (four){0}); }

static inline __attribute__((always_inline)) void multiply(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], int last, const int count,
    const int bits) {
    const int groups = m->columns / GROUP;
    const uint8_t *code = m->blocks + (size_t)tile * groups * BLOCK(bits);
    const size_t next = (size_t)groups * BLOCK(bits); /* the tile after this one is on its way meanwhile */
    size_t at = from;
    floats sum[2 * HALVES][FEW];
    for (int i = 0; i < 2 * HALVES; i++)
        for (int t = 0; t < count; t++) sum[i][t] = (floats){0};
    for (int g = 0; g < groups; g++, code += BLOCK(bits), at += x->lines) {
        for (int i = 0; i < BLOCK(bits) && last; i += 64) __builtin_prefetch(code + next + i, 0, 2);
        for (int side = 0; side < 2; side++) { /* 16 outputs */
            const uint16_t *scale = (const uint16_t *)(code + 2 * CODES(bits)) + side * SCALES(bits);
            four dots[HALVES][FEW];
            for (int i = 0; i < HALVES; i++)
                for (int t = 0; t < count; t++) dots[i][t] = (four){0};
            for (int j = 0; j < GROUP / 4; j++) { /* of 4 bits the second half of the inputs stands above the first */
                const uint8_t *p = code + side * CODES(bits) + (bits == 4 ? j % 4 : j) * 64;
                codes v[FEW];
                for (int t = 0; t < count; t++) v[t] = same_four(x->code + (at + t) * GROUP + 4 * j);
                for (int i = 0; i < HALVES; i++) {
                    codes w = *(const codes *)(p + 16 * i);
                    w = bits == 8 ? w ^ -128 : (j < 4 ? w : w >> 4) & 15;
                    for (int t = 0; t < count; t++) dots[i][t] = dot(dots[i][t], w, v[t]);
                }
            }
            for (int i = 0; i < HALVES; i++)
                for (int t = 0; t < count; t++) {
                    floats *to = &sum[side * HALVES + i][t];
                    *to = scaled(*to, __builtin_convertvector(dots[i][t], floats), scale + i * WIDE, x, at + t, bits);
                }
        }
    }
    for (int i = 0; i < 2 * HALVES; i++)
        for (int t = 0; t < count; t++) store(out[i / HALVES][t] + i % HALVES * WIDE, sum[i][t]);
}
#endif

static inline __attribute__((always_inline)) void multiply_exactly(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], const int count) {
    const float *w = (const float *)m->blocks + (size_t)tile * m->columns * 2 * LANES;
    const float *v = x->whole + (size_t)(from / MOST) * m->columns * MOST + from % MOST;
    floats sum[2 * HALVES][FEW];
    for (int i = 0; i < 2 * HALVES; i++)
        for (int t = 0; t < count; t++) sum[i][t] = (floats){0};
    for (int k = 0; k < m->columns; k++, w += 2 * LANES, v += MOST)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * HALVES; i++) {
            const floats one = load(w + i * WIDE);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++) sum[i][t] += one * v[t];
        }
    for (int i = 0; i < 2 * HALVES; i++)
        for (int t = 0; t < count; t++) store(out[i / HALVES][t] + i % HALVES * WIDE, sum[i][t]);
}

/* Products of matrices by_row. Their sums are of whole numbers, exact in any order: all builds make the same results. */
static inline void finish_row(const float *scale, int half, floats dots, float given, int i, float *out) {
    store(out + i, dots * (given * load(scale + half * LANES + i)));
}

#if defined(__AMX_INT8__)
static __thread int shaped; /* 2 * columns of this thread's tiles, and 1 for groups; or 0 */

/* Tiles: 0 to 3 sums of 16 outputs, 4 and 5 columns, 6 and 7 weights. by_row: 0 and 1 of up to 8 columns, two rows each,
   2 and 3 of the next columns. */
static void shape_tiles(int columns, int by_row) {
    if (shaped == 2 * columns + !by_row) return;
    shaped = 2 * columns + !by_row;
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        const int second = i == 2 || i == 3 || i == 5, own = columns > 8 ? (columns + !second) / 2 : columns;
        const int inputs = by_row ? STEP : GROUP;
        shape.bytes[i] = i == 4 || i == 5 ? inputs : 64;
        shape.rows[i] = i > 5 ? inputs / 4 : by_row ? 2 * own : columns;
    }
    _tile_loadconfig(&shape);
}

/* Up to 16 columns at a time, shared out evenly; where that does not come out even, some are computed twice. */
static void multiply_rows(const Matrix *m, int tile, const Rounded *x, int from, int count, float out[2][MANY][LANES]) {
    const int steps = PADDED(m->columns) / STEP, wide = steps * STEP;
    const int pieces = (count + LANES - 1) / LANES, n = (count + pieces - 1) / pieces, second = (n + 1) / 2;
    const uint8_t *w = m->blocks + tile * ROW_TILE(m->columns);
    const float *scale = (const float *)(w + (size_t)wide * 2 * LANES);
    int32_t dots[2][2 * LANES][LANES] __attribute__((aligned(64)));
    shape_tiles(n, 1);
    for (int i = 0; i < pieces; i++) {
        const int begin = i * n + n < count ? i * n : count - n;
        const int8_t *a = x->code + (size_t)(from + begin) * 2 * wide, *b = a + (size_t)second * 2 * wide;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < wide; k += STEP) {
            const uint8_t *p = w + (size_t)k * 2 * LANES;
            for (int j = 0; j < STEP * 2 * LANES && i + 1 == pieces; j += 64)
                _mm_prefetch(p + ROW_TILE(m->columns) + j, _MM_HINT_T1);
            _tile_loadd(6, p, STEP);
            _tile_loadd(7, p + STEP * LANES, STEP);
            _tile_loadd(4, a + k, wide);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            if (n <= 8) continue;
            _tile_loadd(5, b + k, wide);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        _tile_stored(0, dots[0], 64);
        _tile_stored(1, dots[1], 64);
        if (n > 8) {
            _tile_stored(2, dots[0][2 * second], 64);
            _tile_stored(3, dots[1][2 * second], 64);
        }
        for (int half = 0; half < 2; half++)
            for (int t = 0; t < n; t++) {
                const __m512i high = _mm512_load_si512(dots[half][2 * t]), low = _mm512_load_si512(dots[half][2 * t + 1]);
                const floats sum = (floats)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, PART_BITS), low));
                finish_row(scale, half, sum, x->scale[from + begin + t], 0, out[half][begin + t]);
            }
    }
}

#define LEAST 9 /* columns up to which registers are faster than tiles */
#define DEEP 4  /* groups that are unpacked, and their dots computed, before these are scaled */

/* What `multiply` does, for 16 columns at a time, or for up to 16 where there are no more. Each tile's dots go through
   memory, and the registers hold the sums of half its columns, `wide` of them: of an odd number one is computed twice. */
static inline __attribute__((always_inline)) void multiply_groups(
    const Matrix *m, int tile, const Rounded *x, int from, int count, float (*out)[MANY][LANES], int last, const int wide,
    const int bits) {
    const int groups = m->columns / GROUP, n = count < LANES ? count : LANES, pieces = count / n;
    const uint8_t *block = m->blocks + (size_t)tile * groups * BLOCK(bits);
    const uint8_t *next = block + (size_t)groups * BLOCK(bits); /* the tile after this one is on its way meanwhile */
    const int lines = last ? (BLOCK(bits) / 64 + 2 * pieces - 1) / (2 * pieces) : 0;
    const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
    uint8_t code[DEEP][2][LANES * GROUP] __attribute__((aligned(64)));
    int32_t dots[DEEP][2][LANES][LANES] __attribute__((aligned(64)));
    float sums[MANY / LANES][2][2][LANES / 2][LANES] __attribute__((aligned(64)));
    shape_tiles(n, 0);
    for (int first = 0; first < groups; first += DEEP, block += DEEP * BLOCK(bits)) {
        const int deep = groups - first < DEEP ? groups - first : DEEP;
        for (int g = 0; g < deep; g++)
            for (int i = 0; i < 2 * CODES(bits) / 64; i++) {
                const __m512i w = _mm512_loadu_si512(block + g * BLOCK(bits) + 64 * i);
                uint8_t *to = code[g][0] + (bits == 4 ? i / 4 * 8 + i % 4 : i) * 64;
                _mm512_store_si512(to, bits == 4 ? _mm512_and_si512(w, low) : _mm512_xor_si512(w, sign));
                if (bits == 4) _mm512_store_si512(to + 4 * 64, _mm512_and_si512(_mm512_srli_epi16(w, 4), low));
            }
        for (int i = 0; i < pieces; i++) {
            const size_t column = (size_t)first * x->lines + from + i * n;
            for (int g = 0; g < deep; g++) {
                _tile_loadd(4, x->code + (column + (size_t)g * x->lines) * GROUP, GROUP);
                _tile_loadd(6, code[g][0], 64);
                _tile_loadd(7, code[g][1], 64);
                _tile_zero(0);
                _tile_zero(1);
                _tile_dpbssd(0, 4, 6);
                _tile_dpbssd(1, 4, 7);
                _tile_stored(0, dots[g][0], 64);
                _tile_stored(1, dots[g][1], 64);
            }
            for (int part = 0; part < 2; part++) {
                const int begin = part ? n - wide : 0;
                size_t at = column + begin;
                floats sum[2][LANES / 2];
#pragma GCC unroll 8
                for (int t = 0; t < wide; t++)
#pragma GCC unroll 2
                    for (int half = 0; half < 2; half++) sum[half][t] = first ? load(sums[i][part][half][t]) : (floats){0};
                for (int g = 0; g < deep; g++, at += x->lines) {
                    const uint16_t *scale = (const uint16_t *)(block + g * BLOCK(bits) + 2 * CODES(bits));
                    const size_t soon = at + (size_t)DEEP * x->lines;
                    for (int j = 0; j < wide; j += 64 / GROUP) _mm_prefetch(x->code + (soon + j) * GROUP, _MM_HINT_T0);
                    _mm_prefetch(x->scale + soon, _MM_HINT_T0);
                    _mm_prefetch(x->sum + soon, _MM_HINT_T0);
                    for (int j = 0; j < lines; j++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 8
                    for (int t = 0; t < wide; t++)
#pragma GCC unroll 2
                        for (int half = 0; half < 2; half++) {
                            const floats dot = (floats)_mm512_cvtepi32_ps(_mm512_load_si512(dots[g][half][begin + t]));
                            sum[half][t] = scaled(sum[half][t], dot, scale + half * SCALES(bits), x, at + t, bits);
                            KEEP(sum[half][t]);
                        }
                }
#pragma GCC unroll 8
                for (int t = 0; t < wide; t++)
#pragma GCC unroll 2
                    for (int half = 0; half < 2; half++)
                        store(first + DEEP < groups ? sums[i][part][half][t] : out[half][i * n + begin + t], sum[half][t]);
            }
        }
    }
}

/* As many columns as tiles are faster for than registers: all 16s, and of what is left more than LEAST. Returns how many. */
static int multiply_many(const Matrix *m, int tile, const Rounded *x, int from, int count, float (*out)[MANY][LANES], int last) {
    int done = 0;
#define CASE(k) \
    case k: \
        if (m->bits == 4) multiply_groups(m, tile, x, from + done, n, to, last, k, 4); \
        else multiply_groups(m, tile, x, from + done, n, to, last, k, 8); \
        break;
    for (int n; count - done > LEAST; done += n) {
        float (*to)[MANY][LANES] = (void *)out[0][done];
        n = count - done < LANES ? count - done : (count - done) / LANES * LANES;
        switch (n < LANES ? (n + 1) / 2 : LANES / 2) {
            CASE(5) CASE(6) CASE(7) CASE(8)
        }
    }
#undef CASE
    return done;
}
#endif

#if defined(__AVX512VNNI__)
static inline __attribute__((always_inline)) void multiply_row_tile(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], int last, const int count) {
    const int wide = PADDED(m->columns);
    const uint8_t *w = m->blocks + tile * ROW_TILE(m->columns);
    const float *scale = (const float *)(w + (size_t)wide * 2 * LANES);
    __m512i dots[2][2][FEW]; /* [high and low parts][halves of the tile] */
#pragma GCC unroll 8
    for (int t = 0; t < count; t++)
        for (int i = 0; i < 2; i++) dots[i][0][t] = dots[i][1][t] = _mm512_setzero_si512();
    for (int k = 0; k < wide; k += STEP)
        for (int j = 0; j < STEP / 4; j++) {
            const uint8_t *p = w + (size_t)k * 2 * LANES + 64 * j;
            const __m512i one = _mm512_loadu_si512(p), two = _mm512_loadu_si512(p + STEP * LANES);
            if (last) _mm_prefetch(p + ROW_TILE(m->columns), _MM_HINT_T1);
            if (last) _mm_prefetch(p + ROW_TILE(m->columns) + STEP * LANES, _MM_HINT_T1);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++)
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    __m512i v = _mm512_set1_epi32(*(const quad *)(x->code + ((size_t)(from + t) * 2 + i) * wide + k + 4 * j));
                    if (TILED) v = _mm512_xor_si512(v, _mm512_set1_epi8(-128)); /* what tiles read, with 128 added */
                    dots[i][0][t] = _mm512_dpbusd_epi32(dots[i][0][t], v, one);
                    dots[i][1][t] = _mm512_dpbusd_epi32(dots[i][1][t], v, two);
                }
        }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) { /* parts are 128 too great: unsigned */
        const __m512i sums = _mm512_loadu_si512(scale + 2 * LANES + half * LANES);
        const __m512i much = _mm512_slli_epi32(_mm512_add_epi32(_mm512_slli_epi32(sums, PART_BITS), sums), 7);
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) {
            const __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(dots[0][half][t], PART_BITS), dots[1][half][t]);
            finish_row(scale, half, (floats)_mm512_cvtepi32_ps(_mm512_sub_epi32(dot, much)), x->scale[from + t], 0, out[half][t]);
        }
    }
}
#elif defined(__AVX2__)
static inline __attribute__((always_inline)) void multiply_row_tile(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], int last, const int count) {
    const int wide = PADDED(m->columns);
    const uint8_t *w = m->blocks + tile * ROW_TILE(m->columns);
    const float *scale = (const float *)(w + (size_t)wide * 2 * LANES);
#pragma GCC unroll 1
    for (int half = 0; half < 2; half++) {
        __m256i dots[2][FEW];
#pragma GCC unroll 4
        for (int t = 0; t < count; t++) dots[0][t] = dots[1][t] = _mm256_setzero_si256();
        for (int k = 0; k < wide; k += STEP)
            for (int j = 0; j < STEP / 4; j++) {
                const uint8_t *p = w + (size_t)k * 2 * LANES + half * STEP * LANES + 64 * j;
                if (last) _mm_prefetch(p + ROW_TILE(m->columns), _MM_HINT_T1);
                const __m256i one = _mm256_loadu_si256((const __m256i *)p), two = _mm256_loadu_si256((const __m256i *)(p + 32));
                const __m256i a[2] = {_mm256_srai_epi16(_mm256_slli_epi16(one, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(two, 8), 8)};
                const __m256i b[2] = {_mm256_srai_epi16(one, 8), _mm256_srai_epi16(two, 8)};
#pragma GCC unroll 4
                for (int t = 0; t < count; t++) {
                    const quad *four = (const quad *)(x->code + (size_t)(from + t) * 2 * wide + 2 * (k + 4 * j));
                    const __m256i even = _mm256_set1_epi32(four[0]), odd = _mm256_set1_epi32(four[1]);
#pragma GCC unroll 2
                    for (int i = 0; i < 2; i++) {
                        dots[i][t] = _mm256_add_epi32(dots[i][t], _mm256_madd_epi16(a[i], even));
                        KEEP(dots[i][t]);
                        dots[i][t] = _mm256_add_epi32(dots[i][t], _mm256_madd_epi16(b[i], odd));
                        KEEP(dots[i][t]);
                    }
                }
            }
#pragma GCC unroll 4
        for (int t = 0; t < count; t++)
            for (int i = 0; i < 2; i++)
                finish_row(scale, half, (floats)_mm256_cvtepi32_ps(dots[i][t]), x->scale[from + t], i * WIDE, out[half][t]);
    }
}
#else
static inline __attribute__((always_inline)) void multiply_row_tile(
    const Matrix *m, int tile, const Rounded *x, int from, float (*out)[MANY][LANES], int last, const int count) {
    const int wide = PADDED(m->columns);
    const uint8_t *w = m->blocks + tile * ROW_TILE(m->columns);
    const float *scale = (const float *)(w + (size_t)wide * 2 * LANES);
    for (int i = 0; i < 2 * HALVES; i++) { /* registers of outputs */
        four high[FEW], low[FEW];
        for (int t = 0; t < count; t++) high[t] = low[t] = (four){0};
        for (int k = 0; k < wide; k += STEP)
            for (int j = 0; j < STEP; j += 4) {
                const uint8_t *p = w + (size_t)k * 2 * LANES + i / HALVES * STEP * LANES + j * LANES + i % HALVES * 16;
                const codes one = *(const codes *)p;
                if (last && i % HALVES == 0) __builtin_prefetch(p + ROW_TILE(m->columns), 0, 2);
                for (int t = 0; t < count; t++) {
                    const int8_t *part = x->code + (size_t)(from + t) * 2 * wide + k + j;
                    high[t] = dot(high[t], one, same_four(part));
                    low[t] = dot(low[t], one, same_four(part + wide));
                }
            }
        for (int t = 0; t < count; t++) {
            const floats sum = __builtin_convertvector((high[t] << PART_BITS) + low[t], floats);
            finish_row(scale, i / HALVES, sum, x->scale[from + t], i % HALVES * WIDE, out[i / HALVES][t]);
        }
    }
}
#endif

/* The same for any number of columns up to MANY, with the bias. */
static void product(const Matrix *m, int tile, const Rounded *x, int from, int count, float out[2][MANY][LANES], int last) {
    int done = 0;
#if TILED
    if (m->by_row && count > FEW) multiply_rows(m, tile, x, from, done = count, out);
    if (!m->by_row && m->bits < 32) done = multiply_many(m, tile, x, from, count, out, last);
#endif
#define CASE(k) \
    case k: \
        if (m->by_row) multiply_row_tile(m, tile, x, from + done, to, last && done + n >= count, k); \
        else if (m->bits == 32) multiply_exactly(m, tile, x, from + done, to, k); \
        else if (m->bits == 4) multiply(m, tile, x, from + done, to, last && done + n >= count, k, 4); \
        else multiply(m, tile, x, from + done, to, last && done + n >= count, k, 8); \
        break;
    for (int n; done < count; done += n) {
        float (*to)[MANY][LANES] = (void *)out[0][done];
        n = count - done;
        if (x->whole && n > MOST - (from + done) % MOST) n = MOST - (from + done) % MOST; /* of one block */
        n = (n + (n + FEW - 1) / FEW - 1) / ((n + FEW - 1) / FEW); /* about as many each time */
        switch (n) {
            CASE(1) CASE(2) CASE(3) CASE(4)
#if FEW > 4
            CASE(5) CASE(6)
#endif
        }
    }
#undef CASE
    for (int i = 0; i < 2 && m->bias; i++) {
        const float *bias = m->bias + (2 * tile + i) * LANES;
        for (int t = 0; t < count; t++)
            for (int j = 0; j < LANES; j += WIDE) store(out[i][t] + j, load(out[i][t] + j) + load(bias + j));
    }
}

