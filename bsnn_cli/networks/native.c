/* The forward pass, the backward pass and the update of one network on a CPU, each in one call for many layers.

   PyTorch makes some eight passes over the signals of a layer and three over each matrix, and its library copies the
   matrices before it multiplies. Here a product is a sum of outer products in registers, over matrices as they are in
   memory, and its result is processed while it is still in the core's cache. A matrix passes through a core once in the
   forward pass, once in the backward pass, and once with its momentum in the update.

   Matrices (n, n) and signals (B, n) are contiguous. Cores that share a network share the units of each layer. A core
   takes some of them with all samples, so that the statistics of batch normalisation need no other core, and no digit
   depends on how many cores there are, or on which of them computes what.

   `native.py` compiles this file for the machine that it runs on, and `c_engine.py` calls it. */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#ifdef DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* What fits into the vector registers: ROWS * COLS sums, COLS vectors of one factor, a value of the other. */
#if defined(__AVX512F__)
enum { BYTES = 64, ROWS = 6, COLS = 4 };
#elif defined(__AVX__)
enum { BYTES = 32, ROWS = 6, COLS = 2 };
#else
enum { BYTES = 16, ROWS = 6, COLS = 4 };
#endif
enum { LANES = BYTES / sizeof(real), PANEL = LANES * COLS, LINE = 64 / sizeof(real) };

/* Units of a layer that a core claims at a time, whole panels of them. */
enum { UNITS = 64 };

/* Rows of a matrix that are multiplied at a time in the backward pass, and samples in the update: what caches hold. */
enum { DEEP = 128 };

/* How often a core checks one that has claimed units and not finished: 30 microseconds, as long as the units take. */
enum { PATIENCE = 1000 };
#if defined(__x86_64__) || defined(__i386__)
#define PAUSE __builtin_ia32_pause()
#else
#define PAUSE (void)0
#endif

typedef int64_t size;
typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define EACH_SUM \
    UNROLL for (int i = 0; i < ROWS; i++) \
        UNROLL for (int c = 0; c < COLS; c++)

enum { TANH, RECTIFIER, ELU, SWISH };

/* The constants of an activation, see `KernelForm`. */
typedef struct { real p, q, gain, share; } constants;

/* One network. Lengths in values from one layer to the next: of matrices, signals, ∂E/∂x, and values of a unit.
   x, h, d, g: signals; s, inverse_norm, scale and the statistics of batch normalisation: (n,) of each layer.
   gain is null without batch normalisation. top: ∂E/∂x above the highest layer.
   transposed: the last `kept` signals x as (n, B), for products. */
typedef struct {
    size depth, units, samples, kept, matrix, signal, signal_below, row, parameters;
    int64_t family, unit_rows;
    real a, b;
    constants form;
    real eps;
    real *V, *M, *x, *h, *d, *g, *s, *norm;
    const real *inverse_norm, *scale, *gain, *shift;
    real *mean, *variance, *inverse_std, *gain_gradient, *shift_gradient;
    real *transposed;
    const real *top;
} network;

INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size panels(size n) { return (n + PANEL - 1) / PANEL; }
INLINE size shares(size n) { return (n + UNITS - 1) / UNITS; }

/* Add sum over k of left[row[i] + k * left_step] * right[k * right_step ...] to each row i. */
INLINE void multiply(vec sum[ROWS][COLS], size inner, const real *left, const size row[ROWS], size left_step,
                     const real *right, size right_step)
{
    for (size k = 0; k < inner; k++) {
        vec factor[COLS];
        UNROLL for (int c = 0; c < COLS; c++) factor[c] = *(const vec *)(right + k * right_step + c * LANES);
        UNROLL for (int i = 0; i < ROWS; i++) {
            real other = left[row[i] + k * left_step];
            UNROLL for (int c = 0; c < COLS; c++) sum[i][c] += other * factor[c];
        }
    }
}

/* Copy (rows, cols) of a matrix side by side, times a factor, with zeros up to the width of a panel. */
INLINE void pack(real *to, const real *from, size step, size rows, size cols, real factor)
{
    for (size k = 0; k < rows; k++, to += PANEL, from += step) {
        if (cols >= PANEL)
            UNROLL for (int c = 0; c < COLS; c++) *(vec *)(to + c * LANES) = factor * *(const vec *)(from + c * LANES);
        else
            for (size j = 0; j < PANEL; j++) to[j] = j < cols ? factor * from[j] : 0;
    }
}

/* Have the width of a panel brought into the cache, to be read or to be written. */
#define fetch(from, write) UNROLL for (int c = 0; c < PANEL; c += LINE) __builtin_prefetch((from) + c, write, 2)

#ifdef DOUBLE
#define exponential exp
#define exponential_less_one expm1
#else
/* exp(x) is a power of two and exp of a rest, of which exp - 1 is a polynomial. x beyond +-88.3 counts as that. */
INLINE void split(float x, float *power, float *rest_less_one)
{
    x = x > 88.3f ? 88.3f : x;
    x = x < -88.3f ? -88.3f : x;
    float k = rintf(x * 1.44269504f), rest = x - k * 0.693145752f, sum = 1.0f / 5040;
    rest -= k * 1.42860677e-6f; /* log 2 in two parts: k times the first has no rounding */
    sum = sum * rest + 1.0f / 720;
    sum = sum * rest + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    int32_t bits = ((int32_t)k + 127) << 23;
    memcpy(power, &bits, sizeof bits);
    *rest_less_one = sum * rest * rest + rest;
}

INLINE float exponential(float x)
{
    float power, rest;
    split(x, &power, &rest);
    return power * rest + power;
}

INLINE float exponential_less_one(float x)
{
    float power, rest;
    split(x, &power, &rest);
    return power * rest + (power - 1);
}
#endif

INLINE real value_of_family(int64_t family, real p, real q, real h)
{
    if (family == TANH) {
        real e = exponential_less_one(-2 * fabs(h));
        return copysign(-e / (e + 2), h);
    }
    if (family == RECTIFIER) return h > 0 ? h : p * h;
    if (family == ELU) return q * (h > 0 ? h : p * exponential_less_one(h > 0 ? 0 : h));
    return h / (1 + exponential(-p * h));
}

INLINE real slope_of_family(int64_t family, real p, real q, real h)
{
    if (family == TANH) {
        real e = exponential(-2 * fabs(h));
        return 4 * e / ((1 + e) * (1 + e));
    }
    if (family == RECTIFIER) return h > 0 ? 1 : p;
    if (family == ELU) return q * (h > 0 ? 1 : p * exponential(h > 0 ? 0 : h));
    real e = exponential(-p * h), gate = 1 / (1 + e);
    return gate * (1 + p * h * (e * gate));
}

INLINE real phi(int64_t family, constants form, real h)
{
    real value = value_of_family(family, form.p, form.q, form.gain * h);
    return form.share != 0 ? value + form.share * (h - value) : value;
}

INLINE real slope(int64_t family, constants form, real h)
{
    real value = form.gain * slope_of_family(family, form.p, form.q, form.gain * h);
    return form.share != 0 ? value + form.share * (1 - value) : value;
}

/* The following functions process some units of a layer, at most UNITS. The statistics of each unit are in local arrays:
   the compiler knows that nothing else writes there. */

INLINE void activate(int64_t family, const network *net, size layer, size first, size width)
{
    size n = net->units, B = net->samples, own = layer * net->row + first;
    const real *restrict h = net->h + layer * net->signal + first;
    real *restrict above = net->x + (layer + 1) * net->signal + first, a = net->a, b = net->b;
    const constants form = net->form;
    if (net->gain == NULL) {
        for (size t = 0; t < B; t++)
            for (size j = 0; j < width; j++) above[t * n + j] = a * phi(family, form, h[t * n + j]) + b;
        return;
    }
    const real *gain = net->gain + layer * net->parameters + first, *shift = net->shift + layer * net->parameters + first;
    real mean[UNITS] = {0}, squares[UNITS] = {0}, steep[UNITS], offset[UNITS];
    for (size t = 0; t < B; t++)
        for (size j = 0; j < width; j++) mean[j] += h[t * n + j];
    for (size j = 0; j < width; j++) mean[j] /= B;
    for (size t = 0; t < B; t++)
        for (size j = 0; j < width; j++) squares[j] += (h[t * n + j] - mean[j]) * (h[t * n + j] - mean[j]);
    for (size j = 0; j < width; j++) {
        real inverse_std = 1 / sqrt(squares[j] / B + net->eps);
        net->mean[own + j] = mean[j];
        net->variance[own + j] = squares[j] / (B - 1);
        net->inverse_std[own + j] = inverse_std;
        steep[j] = gain[j] * inverse_std;
        offset[j] = shift[j];
    }
    for (size t = 0; t < B; t++)
        for (size j = 0; j < width; j++)
            above[t * n + j] = a * phi(family, form, steep[j] * (h[t * n + j] - mean[j]) + offset[j]) + b;
}

/* Compute d from ∂E/∂x above a layer, and s or the gradients of batch normalisation. Like all functions that
   `share_units` calls, it writes only final values to memory that other cores read. */
INLINE void pull_back(int64_t family, const network *net, const real *restrict g, size layer, real *restrict memory,
                      size first, size width)
{
    size n = net->units, B = net->samples, own = layer * net->row + first;
    const real *restrict h = net->h + layer * net->signal + first;
    real *restrict d = net->d + layer * net->signal + first;
    const constants form = net->form;
    real along[UNITS] = {0}, scale[UNITS];
    for (size j = 0; j < width; j++) scale[j] = net->scale[own + j];
    if (net->gain == NULL) {
        for (size t = 0; t < B; t++)
            for (size j = 0; j < width; j++) {
                real u = g[t * n + j] * slope(family, form, h[t * n + j]);
                along[j] += u * h[t * n + j];
                d[t * n + j] = u * scale[j];
            }
        for (size j = 0; j < width; j++) net->s[own + j] = along[j];
        return;
    }
    const real *gain = net->gain + layer * net->parameters + first, *shift = net->shift + layer * net->parameters + first;
    real total[UNITS] = {0}, mean[UNITS], inverse_std[UNITS], steep[UNITS], offset[UNITS];
    for (size j = 0; j < width; j++) {
        mean[j] = net->mean[own + j];
        inverse_std[j] = net->inverse_std[own + j];
        steep[j] = gain[j] * inverse_std[j];
        offset[j] = shift[j];
        scale[j] *= steep[j];
    }
    for (size t = 0; t < B; t++)
        for (size j = 0; j < width; j++) {
            real away = h[t * n + j] - mean[j], u = g[t * n + j] * slope(family, form, steep[j] * away + offset[j]);
            total[j] += u;
            along[j] += u * away;
            memory[t * UNITS + j] = u;
        }
    for (size j = 0; j < width; j++) {
        net->shift_gradient[own + j] = total[j];
        net->gain_gradient[own + j] = along[j] *= inverse_std[j];
        total[j] /= B;
        along[j] *= inverse_std[j] / B;
    }
    for (size t = 0; t < B; t++)
        for (size j = 0; j < width; j++)
            d[t * n + j] = (memory[t * UNITS + j] - along[j] * (h[t * n + j] - mean[j]) - total[j]) * scale[j];
}

/* Call one of these with the family as a constant. */
#define BY_FAMILY(call, ...) \
    switch (net->family) { \
    case TANH: call(TANH, __VA_ARGS__); break; \
    case RECTIFIER: call(RECTIFIER, __VA_ARGS__); break; \
    case ELU: call(ELU, __VA_ARGS__); break; \
    default: call(SWISH, __VA_ARGS__); \
    }

/* Compute h of some units from the transposed signals below: (n, PANEL) for each panel of samples. */
static void multiply_forward(const network *net, size layer, size begin, size width, const real *below)
{
    size n = net->units, B = net->samples;
    const real *V = net->V + layer * net->matrix, *inverse_norm = net->inverse_norm + layer * net->row;
    for (size first = 0; first < B; first += PANEL, below += n * PANEL)
        for (size j = begin; j < begin + width; j += ROWS) {
            size rows = least(ROWS, begin + width - j), row[ROWS];
            real block[ROWS][PANEL], *h = net->h + layer * net->signal + first * n + j;
            vec sum[ROWS][COLS] = {0};
            for (int i = 0; i < ROWS; i++) row[i] = least(i, rows - 1) * n;
            for (size k = 0; k < n; k += PANEL) { /* fetch what comes next little by little */
                for (int i = 0; i < ROWS && first == 0 && j + 2 * ROWS <= n; i++) fetch(V + (j + ROWS + i) * n + k, 0);
                multiply(sum, least(PANEL, n - k), V + j * n + k, row, 1, below + k * PANEL, PANEL);
            }
            EACH_SUM *(vec *)(block[i] + c * LANES) = sum[i][c] * inverse_norm[j + least(i, rows - 1)];
            for (size t = 0; t < least(PANEL, B - first); t++, h += n) {
                if (rows == ROWS)
                    UNROLL for (int i = 0; i < ROWS; i++) h[i] = block[i][t];
                else
                    for (size i = 0; i < rows; i++) h[i] = block[i][t];
            }
        }
}

/* Compute some units of the signal above a layer, and transpose them; `layer` is -1 for x^1, which is computed already. */
static void forward_units(const network *net, size layer, size first, real *memory)
{
    (void)memory;
    size n = net->units, B = net->samples, signal = panels(B) * PANEL * n, width = least(UNITS, n - first);
    if (layer >= 0) {
        multiply_forward(net, layer, first, width, net->transposed + layer % net->kept * signal);
        BY_FAMILY(activate, net, layer, first, width)
    }
    const real *x = net->x + (layer + 1) * net->signal + first;
    real *transposed = net->transposed + (layer + 1) % net->kept * signal + first * PANEL;
    for (size t = 0; t < panels(B) * PANEL; t++) {
        real *to = transposed + t / PANEL * n * PANEL + t % PANEL;
        for (size j = 0; j < width; j++) to[j * PANEL] = t < B ? x[t * n + j] : 0;
    }
}

/* Compute some units of dV into `below`. A few rows of V at a time are multiplied by all samples; `memory` holds the sums. */
static void multiply_backward(const network *net, size layer, size begin, size width, real *below, real *memory)
{
    size n = net->units, B = net->samples, tiles = (B + ROWS - 1) / ROWS;
    const real *V = net->V + layer * net->matrix + begin, *d = net->d + layer * net->signal;
    real *packed = memory, *sums = memory + DEEP * UNITS;
    for (size k = 0; k < n; k += DEEP) {
        size inner = least(DEEP, n - k), next = least(DEEP, n - k - inner);
        for (size j = 0; j < width; j += PANEL) pack(packed + j * DEEP, V + k * n + j, n, inner, width - j, 1);
        for (size j = 0; j < width; j += PANEL)
            for (size tile = 0; tile < tiles; tile++) {
                size t = tile * ROWS, row[ROWS];
                vec sum[ROWS][COLS] = {0};
                real *so_far = sums + (j * tiles + tile * PANEL) * ROWS;
                for (int i = 0; i < ROWS; i++) row[i] = least(i, B - 1 - t) * n;
                for (size r = next * tile / tiles; r < next * (tile + 1) / tiles; r++)
                    fetch(V + (k + inner + r) * n + j, 0);
                if (k > 0)
                    EACH_SUM sum[i][c] = *(vec *)(so_far + i * PANEL + c * LANES);
                multiply(sum, inner, d + t * n + k, row, 1, packed + j * DEEP, PANEL);
                EACH_SUM *(vec *)(so_far + i * PANEL + c * LANES) = sum[i][c];
            }
    }
    for (size j = 0; j < width; j += PANEL)
        for (size t = 0; t < B; t++)
            memcpy(below + t * n + begin + j, sums + j * tiles * ROWS + t * PANEL, least(PANEL, width - j) * sizeof *sums);
}

/* Compute some units of ∂E/∂x below a layer, and of d of the next lower one; `layer` is the depth for d of the top. */
static void backward_units(const network *net, size layer, size first, real *memory)
{
    size width = least(UNITS, net->units - first);
    const real *g = net->top + first;
    if (layer < net->depth) {
        real *below = net->g + layer * net->signal_below;
        multiply_backward(net, layer, first, width, below, memory);
        g = below + first;
    }
    if (layer > 0) BY_FAMILY(pull_back, net, g, layer - 1, memory, first, width)
}

/* Compute all units of a layer, UNITS of them by the core that claims them: first a share of its own that is contiguous in
   memory, then what is left. No core waits for one that the system has stopped: the others compute what it has claimed
   and not finished, and when it goes on, it writes the same values to the same place. */
static void share_units(void (*compute)(const network *, size, size, real *), const network *net, size layer, size part,
                     size parts, real *memory, atomic_int *claims)
{
    enum { FREE, CLAIMED, DONE };
    size count = shares(net->units);
    for (int again = 0; again < 2; again++)
        for (size k = 0; k < count; k++) {
            size share = (part * count / parts + k) % count;
            int state = FREE;
            if (!again && !atomic_compare_exchange_strong(claims + share, &state, CLAIMED)) continue;
            for (int tries = 0; again && tries < PATIENCE && atomic_load(claims + share) != DONE; tries++) PAUSE;
            if (atomic_load(claims + share) == DONE) continue;
            compute(net, layer, share * UNITS, memory);
            atomic_store(claims + share, DONE);
        }
}

/* Fill h and x upwards from x^1. Every core that takes part calls it, with its number.
   memory: of the core, see `size_of_memory`. claims: of all, (depth + 1) * shares(n), 0 before. */
void forward(const network *net, size part, size parts, real *memory, atomic_int *claims)
{
    for (size layer = -1; layer < net->depth; layer++, claims += shares(net->units))
        share_units(forward_units, net, layer, part, parts, memory, claims);
}

/* Fill d, g and s downwards from `top`; otherwise as `forward`. */
void backward(const network *net, size part, size parts, real *memory, atomic_int *claims)
{
    for (size layer = net->depth; layer >= 0; layer--, claims += shares(net->units))
        share_units(backward_units, net, layer, part, parts, memory, claims);
}

/* A block of a matrix, at most ROWS rows of a panel; a smaller one is copied and padded with zeros. */
typedef struct {
    real *at;
    size rows, cols, step, row[ROWS];
    real copy[ROWS][PANEL];
} block;

INLINE void take(block *one, real *matrix, size n, size r, size j)
{
    one->rows = least(ROWS, n - r), one->cols = least(PANEL, n - j), one->step = n, one->at = matrix + r * n + j;
    UNROLL for (int i = 0; i < ROWS; i++) one->row[i] = least(i, one->rows - 1);
    if (one->rows == ROWS && one->cols == PANEL) return;
    memset(one->copy, 0, sizeof one->copy);
    for (size i = 0; i < one->rows; i++) memcpy(one->copy[i], one->at + i * n, one->cols * sizeof *matrix);
    one->at = one->copy[0], one->step = PANEL;
}

INLINE void put_back(const block *one, real *matrix, size n, size r, size j)
{
    for (size i = 0; one->at == one->copy[0] && i < one->rows; i++)
        memcpy(matrix + (r + i) * n + j, one->copy[i], one->cols * sizeof *matrix);
}

/* The vectors of a block. */
#define PART(block) (*(vec *)((block).at + i * (block).step + c * LANES))

/* Add a vector of a row to its squared length. */
INLINE vec longer(vec squares, vec weight) { return squares + weight * weight; }

INLINE real length(vec squares)
{
    real total = 0;
    for (int k = 0; k < LANES; k++) total += squares[k];
    return sqrt(total);
}

/* Measure the lengths of the rows of V to the digit as `update` does, so that a resumed run computes the same. */
void measure(const real *V, real *norm, size n)
{
    for (size r = 0; r < n; r += ROWS) {
        vec squares[ROWS] = {0};
        block v;
        for (size j = 0; j < n; j += PANEL) {
            take(&v, (real *)V, n, r, j);
            EACH_SUM squares[i] = longer(squares[i], PART(v));
        }
        for (size i = 0; i < v.rows; i++) norm[r + i] = length(squares[i]);
    }
}

/* M <- momentum * M + dᵀx - tangent * V and V <- V - lr * M for some layers, and the lengths of the rows of V.
   tangent: (n,) of each layer; unused, as the lengths are, unless rows are kept at length 1.
   packed: memory of the core, see `size_of_update`. */
void update(const network *net, const real *tangent, real momentum, real lr, size begin, size end, real *packed)
{
    size n = net->units;
    for (size layer = begin; layer < end; layer++)
        for (size top = 0, samples; top < net->samples; top += samples) {
            real *V = net->V + layer * net->matrix, *M = net->M + layer * net->matrix, keep = top > 0 ? 1 : momentum;
            const real *x = net->x + layer * net->signal + top * n, *d = net->d + layer * net->signal + top * n;
            samples = least(DEEP, net->samples - top);
            for (size j = 0; j < n; j += PANEL) pack(packed + j * samples, x + j, n, samples, n - j, 1);
            for (size r = 0; r < n; r += ROWS) {
                vec squares[ROWS] = {0};
                block v, m;
                for (size j = 0; j < n; j += PANEL) {
                    vec sum[ROWS][COLS];
                    take(&v, V, n, r, j);
                    take(&m, M, n, r, j);
                    EACH_SUM sum[i][c] = keep * PART(m);
                    for (int i = 0; i < ROWS; i++) { /* fetch what comes next little by little */
                        size first = samples * i / ROWS, last = samples * (i + 1) / ROWS, next = (r + ROWS + i) * n + j;
                        if (r + 2 * ROWS <= n) {
                            fetch(V + next, 1);
                            fetch(M + next, 1);
                        }
                        multiply(sum, last - first, d + first * n + r, m.row, n, packed + j * samples + first * PANEL,
                                 PANEL);
                    }
                    if (top + samples < net->samples)
                        EACH_SUM PART(m) = sum[i][c];
                    else {
                        EACH_SUM {
                            if (net->unit_rows) sum[i][c] -= tangent[layer * net->row + r + m.row[i]] * PART(v);
                            vec weight = PART(v) - lr * sum[i][c];
                            PART(m) = sum[i][c];
                            PART(v) = weight;
                            squares[i] = longer(squares[i], weight);
                        }
                        put_back(&v, V, n, r, j);
                    }
                    put_back(&m, M, n, r, j);
                }
                for (size i = 0; net->unit_rows && top + samples == net->samples && i < m.rows; i++)
                    net->norm[layer * net->row + r + i] = length(squares[i]);
            }
        }
}

/* M <- momentum * M + (dᵀx - hᵀg) / 2 for some layers, with g below them.
   longest: of each, filled with the largest squared length of a column. */
void update_orthogonal(const network *net, real *longest, real momentum, size begin, size end, real *packed)
{
    size n = net->units;
    for (size layer = begin; layer < end; layer++, longest++) {
        real *M = net->M + layer * net->matrix, *columns = packed + panels(n) * PANEL * 2 * DEEP;
        memset(columns, 0, panels(n) * PANEL * sizeof *columns);
        for (size top = 0, samples; top < net->samples; top += samples) {
            size own = layer * net->signal + top * n, below = layer * net->signal_below + top * n;
            samples = least(DEEP, net->samples - top);
            for (size j = 0; j < n; j += PANEL) {
                real *to = packed + j * 2 * samples;
                pack(to, net->x + own + j, n, samples, n - j, (real)0.5);
                pack(to + samples * PANEL, net->g + below + j, n, samples, n - j, (real)-0.5);
            }
            for (size r = 0; r < n; r += ROWS)
                for (size j = 0; j < n; j += PANEL) {
                    const real *right = packed + j * 2 * samples;
                    vec sum[ROWS][COLS];
                    block m;
                    take(&m, M, n, r, j);
                    EACH_SUM sum[i][c] = (top > 0 ? 1 : momentum) * PART(m);
                    multiply(sum, samples, net->d + own + r, m.row, n, right, PANEL);
                    multiply(sum, samples, net->h + own + r, m.row, n, right + samples * PANEL, PANEL);
                    EACH_SUM {
                        PART(m) = sum[i][c];
                        if (top + samples == net->samples && i < m.rows)
                            *(vec *)(columns + j + c * LANES) += sum[i][c] * sum[i][c];
                    }
                    put_back(&m, M, n, r, j);
                }
        }
        *longest = 0;
        for (size j = 0; j < n; j++)
            if (columns[j] > *longest || columns[j] != columns[j]) *longest = columns[j]; /* not a number: it stays */
    }
}

/* Values of `transposed` for each signal that is kept; of the memory of a core in a pass, and in an update; and the number
   of claims in a pass. */
size size_of_transposed(size n, size B) { return n * panels(B) * PANEL; }
size size_of_memory(size B) { return (DEEP + B + ROWS) * UNITS; }
size size_of_update(size n) { return panels(n) * PANEL * (2 * DEEP + 1); }
size count_of_claims(size n, size depth) { return (depth + 1) * shares(n); }
