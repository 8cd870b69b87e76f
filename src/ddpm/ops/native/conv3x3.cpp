// 3x3 convolution, stride 1, padding 1, float32, channels last, by Winograd's F(4x4, 3x3) as Lavin and Gray use it
// (arXiv 1509.09308): a tile of 4x4 outputs takes 36 multiplications instead of 144, as 36 matrix products over tiles.
#include "simd.h"

namespace {

constexpr int POINTS = 36, PANEL = 2 * LANES;

// c (R, N vectors) = [c +] a (R, K) b (K, N vectors), in registers. a(m, k) is at m * row + k * step.
template <int R, int N>
INLINE void micro(Index K, const float *a, Index row, Index step, const float *b, Index ldb, float *c, Index ldc, bool add) {
    Vec s[R][N];
#pragma GCC unroll 16
    for (int m = 0; m < R; m++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) s[m][n] = add ? load(c + m * ldc + n * LANES) : Vec{};
    for (Index k = 0; k < K; k++) {
        Vec v[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) v[n] = load(b + k * ldb + n * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < R; m++)
#pragma GCC unroll 2
            for (int n = 0; n < N; n++) s[m][n] += a[m * row + k * step] * v[n];
    }
#pragma GCC unroll 16
    for (int m = 0; m < R; m++)
#pragma GCC unroll 2
        for (int n = 0; n < N; n++) store(c + m * ldc + n * LANES, s[m][n]);
}

template <int R, int N>
void rest(Index rows, Index K, const float *a, Index row, Index step, const float *b, Index ldb, float *c, Index ldc, bool add) {
    if (rows == R)
        micro<R, N>(K, a, row, step, b, ldb, c, ldc, add);
    else if constexpr (R > 1)
        rest<R - 1, N>(rows, K, a, row, step, b, ldb, c, ldc, add);
}

template <int N>
INLINE void product(Index M, Index K, const float *a, Index row, Index step, const float *b, Index ldb, float *c, Index ldc, bool add) {
    Index m = 0;
    for (; m + ROWS <= M; m += ROWS) micro<ROWS, N>(K, a + m * row, row, step, b, ldb, c + m * ldc, ldc, add);
    if (m < M) rest<ROWS - 1, N>(M - m, K, a + m * row, row, step, b, ldb, c + m * ldc, ldc, add);
}

void product(Index wide, Index M, Index K, const float *a, Index row, Index step, const float *b, Index ldb, float *c, Index ldc, bool add) {
    if (wide == 2)
        product<2>(M, K, a, row, step, b, ldb, c, ldc, add);
    else
        product<1>(M, K, a, row, step, b, ldb, c, ldc, add);
}

// The transforms for the points 0, 1, -1, 2, -2 and infinity.
INLINE void times_Bt(Vec out[6], const Vec in[6]) {
    Vec p = in[4] - 4.0f * in[2], q = in[3] - 4.0f * in[1], r = in[4] - in[2], s = 2.0f * (in[3] - in[1]);
    out[0] = 4.0f * in[0] - 5.0f * in[2] + in[4];
    out[1] = p + q;
    out[2] = p - q;
    out[3] = r + s;
    out[4] = r - s;
    out[5] = 4.0f * in[1] - 5.0f * in[3] + in[5];
}
INLINE void times_At(Vec out[4], const Vec in[6]) {
    Vec p = in[1] + in[2], q = in[1] - in[2], r = in[3] + in[4], s = in[3] - in[4];
    out[0] = in[0] + p + r;
    out[1] = q + 2.0f * s;
    out[2] = p + 4.0f * r;
    out[3] = q + 8.0f * s + in[5];
}
INLINE void times_A(Vec out[6], const Vec in[4]) {
    Vec p = in[0] + in[2], q = in[1] + in[3], r = in[0] + 4.0f * in[2], s = 2.0f * in[1] + 8.0f * in[3];
    out[0] = in[0];
    out[1] = p + q;
    out[2] = p - q;
    out[3] = r + s;
    out[4] = r - s;
    out[5] = in[3];
}
constexpr float G[6][3] = {{1.0f / 4, 0, 0},
                           {-1.0f / 6, -1.0f / 6, -1.0f / 6},
                           {-1.0f / 6, 1.0f / 6, -1.0f / 6},
                           {1.0f / 24, 1.0f / 12, 1.0f / 6},
                           {1.0f / 24, -1.0f / 12, 1.0f / 6},
                           {0, 0, 1}};

// Images cut into tiles of 4x4 pixels; those at the lower and right edges may stick out.
struct Map {
    Index H, W, down, across, tiles;
    Map(Index B, Index H, Index W) : H(H), W(W), down((H + 3) / 4), across((W + 3) / 4), tiles(B * down * across) {}
};
struct Tile {
    Index image, h, w;
    Tile(const Map &map, Index number)
        : image(number / (map.down * map.across)), h(number / map.across % map.down * 4), w(number % map.across * 4) {}
};

// v[point][n][C] = B^T x B of the tiles first, first + 1, ...
void transform_input(const Map &map, const float *x, Index C, Index first, Index count, float *v, Index plane) {
    for (Index n = 0; n < count; n++) {
        Tile tile(map, first + n);
        Index h0 = tile.h - 1, w0 = tile.w - 1;
        const float *image = x + tile.image * map.H * map.W * C;
        bool inside = h0 >= 0 && w0 >= 0 && h0 + 6 <= map.H && w0 + 6 <= map.W;
        for (Index c = 0; c < C; c += LANES) {
            Vec half[6][6];
            for (int j = 0; j < 6; j++) {
                Vec in[6], out[6];
                for (int i = 0; i < 6; i++) {
                    Index h = h0 + i, w = w0 + j;
                    bool there = inside || (h >= 0 && h < map.H && w >= 0 && w < map.W);
                    in[i] = there ? load(image + (h * map.W + w) * C + c) : Vec{};
                }
                times_Bt(out, in);
                for (int i = 0; i < 6; i++) half[i][j] = out[i];
            }
            for (int i = 0; i < 6; i++) {
                Vec out[6];
                times_Bt(out, half[i]);
                for (int j = 0; j < 6; j++) store(v + (i * 6 + j) * plane + n * C + c, out[j]);
            }
        }
    }
}

// z[point][C] = A dy A^T of one tile
void transform_gradient(const Map &map, const float *dy, Index C, Index number, float *z, Index plane) {
    Tile tile(map, number);
    const float *image = dy + tile.image * map.H * map.W * C;
    for (Index c = 0; c < C; c += LANES) {
        Vec half[6][4];
        for (int j = 0; j < 4; j++) {
            Vec in[4], out[6];
            for (int i = 0; i < 4; i++) {
                Index h = tile.h + i, w = tile.w + j;
                in[i] = h < map.H && w < map.W ? load(image + (h * map.W + w) * C + c) : Vec{};
            }
            times_A(out, in);
            for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        for (int i = 0; i < 6; i++) {
            Vec out[6];
            times_A(out, half[i]);
            for (int j = 0; j < 6; j++) store(z + (i * 6 + j) * plane + c, out[j]);
        }
    }
}

// y = A^T p A + bias + added for `wide` vectors of channels from c0 on; p[point][n][PANEL]
void transform_output(const Map &map, const float *p, Index plane, const float *bias, const float *added, float *y, Index C,
                      Index c0, Index wide, Index first, Index count) {
    for (Index n = 0; n < count; n++) {
        Tile tile(map, first + n);
        Index corner = tile.image * map.H * map.W * C + c0;
        for (Index q = 0; q < wide; q++) {
            Vec half[4][6], b = bias ? load(bias + c0 + q * LANES) : Vec{};
            for (int j = 0; j < 6; j++) {
                Vec in[6], out[4];
                for (int i = 0; i < 6; i++) in[i] = load(p + (i * 6 + j) * plane + n * PANEL + q * LANES);
                times_At(out, in);
                for (int i = 0; i < 4; i++) half[i][j] = out[i];
            }
            for (int i = 0; i < 4 && tile.h + i < map.H; i++) {
                Vec out[4];
                times_At(out, half[i]);
                for (int j = 0; j < 4 && tile.w + j < map.W; j++) {
                    Index at = corner + ((tile.h + i) * map.W + tile.w + j) * C + q * LANES;
                    store(y + at, out[j] + b + (added ? load(added + at) : Vec{}));
                }
            }
        }
    }
}

Index tiles_a_block(Index channels) {
    constexpr Index cache = 1200000;  // bytes of a core's second-level cache that the transformed input may take
    Index n = cache / (POINTS * 4 * channels) / ROWS * ROWS;
    return n < 2 * ROWS ? 2 * ROWS : n > 8 * ROWS ? 8 * ROWS : n;
}

}  // namespace

extern "C" int ddpm_lanes() { return LANES; }

// u[panel][point][into][PANEL] = G w G^T. w(o, i, r, s) is at o*so + i*si + r*sr + s*ss: any layout, and the turned
// kernel of the gradient, are a matter of strides.
extern "C" void ddpm_conv3x3_weights(const float *w, Index so, Index si, Index sr, Index ss, Index into, Index out, float *u) {
    Index panels = (out + PANEL - 1) / PANEL;
#pragma omp parallel for collapse(2) schedule(static)
    for (Index p = 0; p < panels; p++)
        for (Index i = 0; i < into; i++) {
            float g[9][PANEL], half[6][3][PANEL];
            for (int k = 0; k < 9; k++)
                for (Index n = 0; n < PANEL; n++)
                    g[k][n] = p * PANEL + n < out ? w[(p * PANEL + n) * so + i * si + k / 3 * sr + k % 3 * ss] : 0;
            for (int a = 0; a < 6; a++)
                for (int s = 0; s < 3; s++)
                    for (int n = 0; n < PANEL; n++)
                        half[a][s][n] = G[a][0] * g[s][n] + G[a][1] * g[3 + s][n] + G[a][2] * g[6 + s][n];
            for (int a = 0; a < 6; a++)
                for (int b = 0; b < 6; b++) {
                    float *to = u + ((p * POINTS + a * 6 + b) * into + i) * PANEL;
                    for (int n = 0; n < PANEL; n++)
                        to[n] = half[a][0][n] * G[b][0] + half[a][1][n] * G[b][1] + half[a][2][n] * G[b][2];
                }
        }
}

// y = conv(x) + bias + added, from transformed weights. Returns 0, or 1 where there is no memory.
extern "C" int ddpm_conv3x3(const float *x, const float *u, const float *bias, const float *added, float *y, Index B, Index H,
                            Index W, Index into, Index out) {
    Map map(B, H, W);
    Index block = tiles_a_block(into), blocks = (map.tiles + block - 1) / block;
    Index plane = block * into + LANES, plane_p = block * PANEL + LANES;
    int failed = 0;
#pragma omp parallel
    {
        float *v = scratch(POINTS * (plane + plane_p)), *p = v + POINTS * plane;
        if (!v) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (Index k = 0; k < blocks; k++) {
            if (!v) continue;
            Index first = k * block, count = map.tiles - first < block ? map.tiles - first : block;
            transform_input(map, x, into, first, count, v, plane);
            for (Index c0 = 0; c0 < out; c0 += PANEL) {
                Index wide = out - c0 >= PANEL ? 2 : 1;
                const float *panel = u + c0 / PANEL * POINTS * into * PANEL;
                for (int q = 0; q < POINTS; q++)
                    product(wide, count, into, v + q * plane, into, 1, panel + q * into * PANEL, PANEL, p + q * plane_p,
                            PANEL, false);
                transform_output(map, p, plane_p, bias, added, y, out, c0, wide, first, count);
            }
        }
        std::free(v);
    }
    return failed;
}

// dw(o, i, r, s), at its strides, and db (out) from x and dy. The sums run in one order whatever the number of threads.
// Returns 0, or 1 where there is no memory.
extern "C" int ddpm_conv3x3_weight_gradient(const float *x, const float *dy, float *dw, Index so, Index si, Index sr, Index ss,
                                            float *db, Index B, Index H, Index W, Index into, Index out) {
    Map map(B, H, W);
    // Where few channels make du small, each of a fixed number of shares of the tiles has its own du and stays in a
    // core's cache; otherwise all threads work on one share, point by point.
    Index size = POINTS * into * out, shares = size * 4 > 800000 ? 1 : map.tiles >= 512 ? 8 : map.tiles / 64 + 1;
    Index bytes = shares > 1 ? 1000000 : 6000000;
    Index share = (map.tiles + shares - 1) / shares, chunk = bytes / (POINTS * 4 * (into + out));
    chunk = share < chunk ? share : chunk < 128 && shares == 1 ? 128 : chunk;
    Index plane = chunk * into + LANES, plane_z = chunk * out + LANES, parts = (B * H * W + 1023) / 1024;
    float *du = scratch(shares * size), *sums = scratch(parts * out), *all = nullptr;
    if (shares == 1) all = scratch(POINTS * (plane + plane_z));
    int failed = !du || !sums || (shares == 1 && !all);
    auto multiply = [&](Index q, Index count, const float *v, const float *z, float *to, bool add) {
        for (Index c0 = 0; c0 < out; c0 += PANEL)
            product(out - c0 >= PANEL ? 2 : 1, into, count, v + q * plane, 1, into, z + q * plane_z + c0, out,
                    to + q * into * out + c0, out, add);
    };
    auto transform = [&](Index first, Index n, float *v, float *z) {
        transform_input(map, x, into, first + n, 1, v + n * into, plane);
        transform_gradient(map, dy, out, first + n, z + n * out, plane_z);
    };
    if (!failed) {
#pragma omp parallel
        {
            if (shares > 1) {
                float *v = scratch(POINTS * (plane + plane_z)), *z = v + POINTS * plane;
                if (!v) {
#pragma omp atomic write
                    failed = 1;
                }
#pragma omp for schedule(dynamic, 1)
                for (Index k = 0; k < shares; k++) {
                    float *own = du + k * size;
                    Index end = (k + 1) * share < map.tiles ? (k + 1) * share : map.tiles;
                    if (k * share >= end || !v) std::memset(own, 0, size * 4);
                    for (Index first = k * share; first < end && v; first += chunk) {
                        Index count = end - first < chunk ? end - first : chunk;
                        for (Index n = 0; n < count; n++) transform(first, n, v, z);
                        for (Index q = 0; q < POINTS; q++) multiply(q, count, v, z, own, first > k * share);
                    }
                }
                std::free(v);
            } else {
                float *v = all, *z = all + POINTS * plane;
                for (Index first = 0; first < map.tiles; first += chunk) {
                    Index count = map.tiles - first < chunk ? map.tiles - first : chunk;
#pragma omp for schedule(static)
                    for (Index n = 0; n < count; n++) transform(first, n, v, z);
#pragma omp for schedule(dynamic, 1)
                    for (Index q = 0; q < POINTS; q++) multiply(q, count, v, z, du, first > 0);
                }
            }
#pragma omp for schedule(static)
            for (Index part = 0; part < parts; part++) {
                Index end = (part + 1) * 1024 < B * H * W ? (part + 1) * 1024 : B * H * W;
                float *sum = sums + part * out;
                std::memset(sum, 0, out * 4);
                for (Index p = part * 1024; p < end; p++)
                    for (Index c = 0; c < out; c += LANES) store(sum + c, load(sum + c) + load(dy + p * out + c));
            }
#pragma omp for schedule(static)
            for (Index i = 0; i < into; i++)
                for (Index o = 0; o < out; o += LANES) {
                    Vec half[3][6];
                    for (int r = 0; r < 3; r++)
                        for (int b = 0; b < 6; b++) {
                            Vec sum = {};
                            for (int a = 0; a < 6; a++) {
                                const float *from = du + ((a * 6 + b) * into + i) * out + o;
                                Vec point = load(from);
                                for (Index k = 1; k < shares; k++) point += load(from + k * size);
                                sum += G[a][r] * point;
                            }
                            half[r][b] = sum;
                        }
                    for (int r = 0; r < 3; r++)
                        for (int s = 0; s < 3; s++) {
                            Vec sum = {};
                            for (int b = 0; b < 6; b++) sum += G[b][s] * half[r][b];
                            for (int n = 0; n < LANES; n++) dw[(o + n) * so + i * si + r * sr + s * ss] = sum[n];
                        }
                }
        }
        for (Index o = 0; o < out; o++) {
            double sum = 0;
            for (Index part = 0; part < parts; part++) sum += sums[part * out + o];
            db[o] = static_cast<float>(sum);
        }
    }
    std::free(all);
    std::free(du);
    std::free(sums);
    return failed;
}
