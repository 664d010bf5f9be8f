/* Vectors of floats as wide as a register of the CPU, and what of them the compilers' own vectors do not have. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __aarch64__
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define WIDE 16 /* floats of a register: a wider vector would live in memory */
#elif defined(__AVX2__)
#define WIDE 8
#else
#define WIDE 4
#endif
#define LOW (-1e30f)

typedef float floats __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef uint16_t shorts __attribute__((vector_size(2 * WIDE), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(WIDE), aligned(1), may_alias));

static inline floats load(const float *p) { return *(const floats *)p; }
static inline void store(float *p, floats v) { *(floats *)p = v; }
static inline floats all(float v) { return v - (floats){0}; }
static inline floats choose(ints where, floats a, floats b) { return (floats)(((ints)a & where) | ((ints)b & ~where)); }
static inline floats greater(floats a, floats b) { return choose(a > b, a, b); }

/* The lanes of a register as one value: each half with the other, until one is left. */
#ifdef __AVX2__
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
#else
static inline float total(floats v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static inline float highest(floats v) { return fmaxf(fmaxf(v[0], v[2]), fmaxf(v[1], v[3])); }
#endif

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

/* Floats of 16 bits, rounded to even. Where the CPU has none: numbers below 65,520 alone, without infinities. */
#if defined(__AVX2__)
static inline uint16_t to_half(float v) { return _cvtss_sh(v, 0); }
static inline float of_half(uint16_t v) { return _cvtsh_ss(v); }
static inline floats halves(const uint16_t *p) {
#ifdef __AVX512F__
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#endif
}
#elif defined(__aarch64__)
static inline uint16_t to_half(float v) {
    const __fp16 n = (__fp16)v;
    uint16_t out;
    memcpy(&out, &n, 2);
    return out;
}
static inline floats halves(const uint16_t *p) { return (floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline float of_half(uint16_t v) {
    __fp16 n;
    memcpy(&n, &v, 2);
    return n;
}
#else
static inline uint16_t to_half(float v) {
    uint32_t n;
    memcpy(&n, &v, 4);
    const uint16_t sign = n >> 16 & 0x8000;
    v = fabsf(v);
    memcpy(&n, &v, 4);
    if (n < 113u << 23) { /* a subnormal one: in units of 2^-24 */
        v += 0.5f; /* of which 2^-24 is the last place */
        memcpy(&n, &v, 4);
        return sign | (n - (126u << 23));
    }
    return sign | ((n + 0xfff + (n >> 13 & 1) - (112u << 23)) >> 13);
}
static inline floats halves(const uint16_t *p) {
    const ints n = __builtin_convertvector(*(const shorts *)p, ints);
    const floats most = (floats)((n & 0x7fff) << 13) * 0x1p112f;
    return (floats)((ints)most | (n & 0x8000) << 16);
}
static inline float of_half(uint16_t v) {
    const uint16_t four[WIDE] = {v};
    return halves(four)[0];
}
#endif
