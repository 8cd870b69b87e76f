// One vector of floats, as wide as the processor's registers; storage in float32 or bfloat16.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 14;  // ROWS x 2 accumulators leave a few of the 32 registers
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 6;
#else
constexpr int LANES = 4, ROWS = 8;
#endif

using Index = std::ptrdiff_t;
typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef std::int32_t Int __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t Half __attribute__((vector_size(2 * LANES), aligned(2)));
#define INLINE static inline __attribute__((always_inline))

struct Bfloat16 {
    std::uint16_t bits;
};

INLINE Vec load(const float *p) { return *reinterpret_cast<const Vec *>(p); }
INLINE void store(float *p, Vec v) { *reinterpret_cast<Vec *>(p) = v; }
INLINE Vec load(const Bfloat16 *p) {
    Bits wide = __builtin_convertvector(*reinterpret_cast<const Half *>(p), Bits) << 16;
    Vec v;
    std::memcpy(&v, &wide, sizeof v);
    return v;
}
INLINE void store(Bfloat16 *p, Vec v) {
    Bits wide;
    std::memcpy(&wide, &v, sizeof wide);
    wide += 0x7fff + ((wide >> 16) & 1);  // round to nearest, ties to even
    *reinterpret_cast<Half *>(p) = __builtin_convertvector(wide >> 16, Half);
}

INLINE Vec all(float x) { return Vec{} + x; }

// e^x to about two units in the last place, for |x| <= 87; clamped beyond.
INLINE Vec exponential(Vec x) {
    x = x < 87.0f ? x : all(87.0f);
    x = x > -87.0f ? x : all(-87.0f);
    const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    Vec n = (x * 1.44269504f + magic) - magic;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    Vec p = all(1.9875691e-4f);
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    Int scale = (__builtin_convertvector(n, Int) + 127) << 23;
    Vec two_n;
    std::memcpy(&two_n, &scale, sizeof two_n);
    return p * two_n;
}
INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float *scratch(Index floats) {
    return static_cast<float *>(std::aligned_alloc(64, (static_cast<std::size_t>(floats) * 4 + 63) / 64 * 64));
}
