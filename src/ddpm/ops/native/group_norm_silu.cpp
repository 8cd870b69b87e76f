// y = silu(a * (x + offset - mean) / sigma + d), channels last: every byte is read from memory once a pass.
// x: (B, P, C), P pixels; offset, a, d: (B, C); mean and sigma are those of each image's group of channels.
#include <cmath>
#include <vector>

#include "simd.h"

namespace {

constexpr int WIDE = 4;  // vectors of channels that are summed together in registers

// Shifted sums keep what a plain sum of squares loses where the mean is far from 0.
template <class T, int N>
INLINE void channel_sums(const T *x, Index P, Index C, float *mean, float *square) {
    Vec origin[N], s[N] = {}, q[N] = {};
    for (int n = 0; n < N; n++) origin[n] = load(x + n * LANES);
    for (Index p = 0; p < P; p++)
        for (int n = 0; n < N; n++) {
            Vec v = load(x + p * C + n * LANES) - origin[n];
            s[n] += v;
            q[n] += v * v;
        }
    for (int n = 0; n < N; n++) {
        Vec m = s[n] / static_cast<float>(P);
        store(mean + n * LANES, origin[n] + m);
        // The sum of squared distances from the channel's own mean; one that overflows stays infinite.
        store(square + n * LANES, q[n] <= 3.4e38f ? q[n] - s[n] * m : q[n]);
    }
}

template <class T>
void forward_image(const T *x, const float *offset, const float *a, const float *d, T *y, float *mean, float *rstd, Index P,
                   Index C, Index groups, float eps, float *work) {
    float *m = work, *q = work + C, *scale = m, *shift = q;
    Index c = 0;
    for (; c + WIDE * LANES <= C; c += WIDE * LANES) channel_sums<T, WIDE>(x + c, P, C, m + c, q + c);
    for (; c < C; c += LANES) channel_sums<T, 1>(x + c, P, C, m + c, q + c);
    Index width = C / groups;
    for (Index g = 0; g < groups; g++) {
        double total = 0, spread = 0;
        for (Index k = g * width; k < (g + 1) * width; k++) total += m[k] + (offset ? offset[k] : 0.0f);
        double centre = total / width;
        for (Index k = g * width; k < (g + 1) * width; k++) {
            double away = m[k] + (offset ? offset[k] : 0.0f) - centre;
            spread += q[k] + P * away * away;
        }
        mean[g] = static_cast<float>(centre);
        rstd[g] = static_cast<float>(1 / std::sqrt(spread / (static_cast<double>(P) * width) + eps));
        for (Index k = g * width; k < (g + 1) * width; k++) {
            scale[k] = a[k] * rstd[g];
            shift[k] = d[k] + ((offset ? offset[k] : 0.0f) - mean[g]) * scale[k];
        }
    }
    for (Index p = 0; p < P; p++)
        for (Index k = 0; k < C; k += LANES) {
            Vec z = load(x + p * C + k) * load(scale + k) + load(shift + k);
            store(y + p * C + k, z * sigmoid(z));
        }
}

INLINE Vec slope(Vec z) {  // silu'(z)
    Vec s = sigmoid(z);
    return s * (1.0f + z * (1.0f - s));
}

template <class T, int N>
INLINE void gradient_sums(const T *x, const T *dy, Index P, Index C, const float *r, const float *o, const float *a,
                          const float *d, float *dd, float *da, float *sum) {
    Vec s1[N] = {}, s2[N] = {}, s3[N] = {};
    for (Index p = 0; p < P; p++)
        for (int n = 0; n < N; n++) {
            Vec hat = load(x + p * C + n * LANES) * load(r + n * LANES) + load(o + n * LANES);
            Vec g = load(dy + p * C + n * LANES) * slope(hat * load(a + n * LANES) + load(d + n * LANES));
            s1[n] += g;
            s2[n] += g * hat;
            s3[n] += hat;
        }
    for (int n = 0; n < N; n++) {
        store(dd + n * LANES, s1[n]);
        store(da + n * LANES, s2[n]);
        store(sum + n * LANES, s3[n]);
    }
}

template <class T>
void backward_image(const T *x, const T *dy, const float *offset, const float *a, const float *d, const float *mean,
                    const float *rstd, T *dx, float *doffset, float *da, float *dd, Index P, Index C, Index groups,
                    float *work) {
    float *r = work, *o = work + C, *hats = work + 2 * C, *first = work + 3 * C, *second = work + 4 * C;
    Index width = C / groups;
    for (Index k = 0; k < C; k++) {
        r[k] = rstd[k / width];
        o[k] = ((offset ? offset[k] : 0.0f) - mean[k / width]) * r[k];
    }
    Index c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES)
        gradient_sums<T, 2>(x + c, dy + c, P, C, r + c, o + c, a + c, d + c, dd + c, da + c, hats + c);
    for (; c < C; c += LANES)
        gradient_sums<T, 1>(x + c, dy + c, P, C, r + c, o + c, a + c, d + c, dd + c, da + c, hats + c);
    for (Index g = 0; g < groups; g++) {
        double m1 = 0, m2 = 0, count = static_cast<double>(P) * width;
        for (Index k = g * width; k < (g + 1) * width; k++) {
            m1 += static_cast<double>(a[k]) * dd[k];
            m2 += static_cast<double>(a[k]) * da[k];
        }
        for (Index k = g * width; k < (g + 1) * width; k++) {
            first[k] = static_cast<float>(m1 / count);
            second[k] = static_cast<float>(m2 / count);
            if (doffset) doffset[k] = r[k] * (a[k] * dd[k] - P * first[k] - second[k] * hats[k]);
        }
    }
    for (Index p = 0; p < P; p++)
        for (Index k = 0; k < C; k += LANES) {
            Vec hat = load(x + p * C + k) * load(r + k) + load(o + k);
            Vec g = load(dy + p * C + k) * slope(hat * load(a + k) + load(d + k));
            store(dx + p * C + k, load(r + k) * (g * load(a + k) - load(first + k) - hat * load(second + k)));
        }
}

template <class T>
void forward(const T *x, const float *offset, const float *a, const float *d, T *y, float *mean, float *rstd, Index B, Index P,
             Index C, Index groups, float eps) {
#pragma omp parallel for schedule(static)
    for (Index b = 0; b < B; b++) {
        std::vector<float> work(2 * C);
        forward_image(x + b * P * C, offset ? offset + b * C : nullptr, a + b * C, d + b * C, y + b * P * C,
                      mean + b * groups, rstd + b * groups, P, C, groups, eps, work.data());
    }
}

template <class T>
void backward(const T *x, const T *dy, const float *offset, const float *a, const float *d, const float *mean,
              const float *rstd, T *dx, float *doffset, float *da, float *dd, Index B, Index P, Index C, Index groups) {
#pragma omp parallel for schedule(static)
    for (Index b = 0; b < B; b++) {
        std::vector<float> work(5 * C);
        backward_image(x + b * P * C, dy + b * P * C, offset ? offset + b * C : nullptr, a + b * C, d + b * C,
                       mean + b * groups, rstd + b * groups, dx + b * P * C, doffset ? doffset + b * C : nullptr,
                       da + b * C, dd + b * C, P, C, groups, work.data());
    }
}

}  // namespace

#define ENTRY(SUFFIX, T)                                                                                                  \
    extern "C" void ddpm_norm_silu_##SUFFIX(const T *x, const float *offset, const float *a, const float *d, T *y,       \
                                            float *mean, float *rstd, Index B, Index P, Index C, Index groups,           \
                                            float eps) {                                                                  \
        forward(x, offset, a, d, y, mean, rstd, B, P, C, groups, eps);                                                    \
    }                                                                                                                     \
    extern "C" void ddpm_norm_silu_backward_##SUFFIX(const T *x, const T *dy, const float *offset, const float *a,       \
                                                     const float *d, const float *mean, const float *rstd, T *dx,        \
                                                     float *doffset, float *da, float *dd, Index B, Index P, Index C,    \
                                                     Index groups) {                                                      \
        backward(x, dy, offset, a, d, mean, rstd, dx, doffset, da, dd, B, P, C, groups);                                  \
    }
ENTRY(float32, float)
ENTRY(bfloat16, Bfloat16)
