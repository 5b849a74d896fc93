/* The forward pass, the backward pass and the update of one network on a CPU, each in one call for many layers.

   PyTorch makes some eight passes over the signals of a layer and three over each matrix, and its library copies the
   matrices before it multiplies. Here a product is a sum of outer products in registers, over matrices as they are in
   memory, and its result is processed while it is still in the core's cache. A matrix passes through a core once in the
   forward pass, once in the backward pass, and once with its momentum in the update.

   Matrices (n, n) are contiguous. Of signals, the samples of a unit are contiguous. Then both products of the passes have
   samples in their vectors, and beside them values of V, of rows or of columns. Cores that share a network share the units
   of each layer. A core takes some of them with all samples, so that the statistics of batch normalisation need no other
   core, and no digit depends on how many cores there are, or on which of them computes what.

   `native.py` compiles this file for the machine that it runs on, and `c_engine.py` calls it. */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#ifdef DOUBLE
typedef double real;
typedef int64_t integer;
#else
typedef float real;
typedef int32_t integer;
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

/* Most units of a layer that a core claims at a time, whole tiles of ROWS. */
enum { UNITS = 14 * ROWS };

/* What the caches hold: rows of a matrix that are multiplied at a time in the backward pass, samples in the update. */
enum { DEEP = 32, SAMPLES = 128 };

/* Terms of a sum after which the memory that is needed next is fetched: often, and only a few lines each time. */
enum { CHUNK = 16 };

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
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define EACH_SUM(cols) \
    UNROLL for (int i = 0; i < ROWS; i++) \
        UNROLL for (int c = 0; c < (cols); c++)

enum { TANH, RECTIFIER, ELU, SWISH, SOFTPLUS, SIGMOID, MISH };

/* The constants of an activation, see `KernelForm`. */
typedef struct { real p, q, gain, share; } constants;

/* One network. claim: units that a core claims at a time. Lengths in values from one layer to the next: of matrices, signals, and values of a unit.
   x, h, d, g: signals (n, stride), with zeros beyond the samples. The stride is a multiple of LANES. After each layer
   there is room for ROWS more units.
   x and h of layer l are at l % kept: of all layers in training, of two in an evaluation.
   g: ∂E/∂x of each layer, or of the lowest one only, where `signal_below` is 0.
   s, inverse_norm, scale and the statistics of batch normalisation: (n,) of each layer. So are the sums of x² and d²
   over the samples.
   gain is null without batch normalisation. top: ∂E/∂x above the highest layer. */
typedef struct {
    size depth, units, claim, samples, stride, kept, matrix, signal, signal_below, row, parameters;
    int64_t family, unit_rows, evaluating;
    real a, b;
    constants form;
    real eps;
    real *V, *M, *x, *h, *d, *g, *s, *norm;
    const real *inverse_norm, *scale, *gain, *shift;
    real *mean, *variance, *inverse_std, *gain_gradient, *shift_gradient, *x_squares, *d_squares;
    const real *top;
} network;

INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size panels(size n) { return (n + PANEL - 1) / PANEL; }
INLINE size claims_of(size n, size claim) { return (n + claim - 1) / claim; }

/* Lines of memory to be fetched during a product, `count` of them for every CHUNK of terms. */
typedef struct {
    const real *line;
    size step;
    int count;
} ahead;

/* A factor of a product: its rows or columns, as they are in memory. */
typedef struct {
    const real *at;
    size row, step;
} factor;

/* Add the sum over k of left.at[i * left.row + k * left.step] * right[k * right_step ...] to each row i. */
INLINE void multiply(vec sum[ROWS][COLS], int cols, size terms, factor left, const real *right, size right_step,
                     ahead next)
{
    for (size begin = 0; begin < terms; begin += CHUNK) {
        for (int i = 0; i < next.count; i++, next.line += next.step) __builtin_prefetch(next.line, 0, 2);
        for (size k = begin; k < least(terms, begin + CHUNK); k++) {
            vec both[COLS];
            UNROLL for (int c = 0; c < cols; c++) both[c] = *(const vec *)(right + k * right_step + c * LANES);
            UNROLL for (int i = 0; i < ROWS; i++) {
                real other = left.at[i * left.row + k * left.step];
                UNROLL for (int c = 0; c < cols; c++) sum[i][c] += other * both[c];
            }
        }
    }
}

/* Compute a product of (ROWS, cols * LANES), or add it to what is there. */
INLINE void multiply_tile(int cols, real *to, size row, int add, size terms, factor left, const real *right,
                          size right_step, ahead next)
{
    vec sum[ROWS][COLS] = {0};
    if (add)
        EACH_SUM(cols) sum[i][c] = *(vec *)(to + i * row + c * LANES);
    multiply(sum, cols, terms, left, right, right_step, next);
    EACH_SUM(cols) *(vec *)(to + i * row + c * LANES) = sum[i][c];
}

/* The same for as many columns as there are, at most COLS. */
static void product(size cols, real *to, size row, int add, size terms, factor left, const real *right, size right_step,
                    ahead next)
{
#define CASE(count) \
    case count: multiply_tile(least(count, COLS), to, row, add, terms, left, right, right_step, next); break;
    switch (cols) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

/* Have a PANEL of values brought into the cache. */
#define fetch(from) UNROLL for (int c = 0; c < PANEL; c += LINE) __builtin_prefetch((from) + c, 0, 2)

#ifdef DOUBLE
#define exponential exp
#define exponential_less_one expm1
#define logarithm_of_one_more log1p
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

/* log(1 + x) for x from 0 to 1: 2 artanh(x / (2 + x)), by its series. */
INLINE float logarithm_of_one_more(float x)
{
    float s = x / (2 + x), square = s * s, sum = 1.0f / 15;
    UNROLL for (int odd = 13; odd > 0; odd -= 2) sum = sum * square + 1.0f / odd;
    return 2 * s * sum;
}
#endif

/* 1 / (1 + exp(-h)), with all digits on both sides, from exp(-|h|). */
INLINE real sigmoid(real h, real e) { return (h > 0 ? 1 : e) / (1 + e); }

INLINE real value_of_family(int64_t family, real p, real q, real h)
{
    if (family == TANH) {
        real e = exponential_less_one(-2 * fabs(h));
        return copysign(-e / (e + 2), h);
    }
    if (family == RECTIFIER) return h > 0 ? h : p * h;
    if (family == ELU) return q * (h > 0 ? h : p * exponential_less_one(h > 0 ? 0 : h));
    if (family == SOFTPLUS) return (h > 0 ? h : 0) + logarithm_of_one_more(exponential(-fabs(h)));
    if (family == SIGMOID) return sigmoid(h, exponential(-fabs(h)));
    if (family == MISH) { /* tanh(log(1 + exp(h))) = r / (r + 2), which is 1 long before h is 25 */
        real e = exponential(h > 25 ? 25 : h), r = e * (e + 2);
        return h * (r / (r + 2));
    }
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
    if (family == SOFTPLUS) return sigmoid(h, exponential(-fabs(h)));
    if (family == SIGMOID) {
        real e = exponential(-fabs(h));
        return e / ((1 + e) * (1 + e));
    }
    if (family == MISH) {
        real e = exponential(h > 25 ? 25 : h), r = e * (e + 2), steep = 4 * e / (r + 2) * ((1 + e) / (r + 2));
        return r / (r + 2) + h * steep;
    }
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

/* The following functions process the signals of some units of a layer. */

#define AT(signal) (*(vec *)((signal) + t))
#define EACH_VECTOR for (size t = 0; t < S; t += LANES)

/* A vector from sample t on, with zeros beyond the last sample. */
INLINE vec padded(vec values, size t, size samples)
{
    if (t + LANES > samples)
        for (size k = samples - t; k < LANES; k++) values[k] = 0;
    return values;
}

INLINE real total(vec lanes)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int k = 0; k < half; k++) lanes[k] += lanes[k + half];
    return lanes[0];
}

/* Compute the statistics of a unit for batch normalisation. */
INLINE void normalise(const network *net, const real *h, size unit)
{
    size B = net->samples, S = net->stride;
    vec sums = {0}, squares = {0};
    EACH_VECTOR sums += AT(h);
    real mean = total(sums) / B;
    EACH_VECTOR {
        vec away = padded(AT(h) - mean, t, B);
        squares += away * away;
    }
    real square = total(squares);
    net->mean[unit] = mean;
    net->variance[unit] = square / (B - 1);
    net->inverse_std[unit] = 1 / sqrt(square / B + net->eps);
}

/* Compute x above a layer from h. Like all functions that `share_units` calls, this one and the next write only final
   values to memory that other cores read. */
INLINE void activate(int64_t family, const network *net, size layer, size first, size width)
{
    size B = net->samples, S = net->stride;
    const real *restrict h = net->h + layer % net->kept * net->signal + first * S;
    real *restrict above = net->x + (layer + 1) % net->kept * net->signal + first * S, a = net->a, b = net->b;
    const constants form = net->form;
    for (size j = first; j < first + width; j++, h += S, above += S) {
        size unit = layer * net->row + j;
        real mean = 0, steep = 1, offset = 0;
        vec length = {0};
        if (net->gain != NULL) {
            if (!net->evaluating) normalise(net, h, unit);
            mean = net->mean[unit];
            steep = net->gain[layer * net->parameters + j] * net->inverse_std[unit];
            offset = net->shift[layer * net->parameters + j];
        }
        EACH_VECTOR {
            real values[LANES];
            for (int k = 0; k < LANES; k++) {
                real y = net->gain == NULL ? h[t + k] : steep * (h[t + k] - mean) + offset;
                values[k] = a * phi(family, form, y) + b;
            }
            vec x = padded(*(vec *)values, t, B);
            AT(above) = x;
            length += x * x;
        }
        if (!net->evaluating) net->x_squares[unit + net->row] = total(length);
    }
}

/* Compute d from g, ∂E/∂x above a layer, and s or the gradients of batch normalisation. g is replaced. */
INLINE void pull_back(int64_t family, const network *net, size layer, size first, size width, real *restrict g)
{
    size B = net->samples, S = net->stride;
    const real *restrict h = net->h + layer * net->signal + first * S;
    real *restrict d = net->d + layer * net->signal + first * S;
    const constants form = net->form;
    for (size j = first; j < first + width; j++, h += S, d += S, g += S) {
        size unit = layer * net->row + j, parameter = layer * net->parameters + j;
        real scale = net->scale[unit];
        vec along = {0}, sums = {0}, length = {0};
        if (net->gain == NULL) {
            for (size t = 0; t < S; t++) g[t] *= slope(family, form, h[t]);
            EACH_VECTOR {
                along += AT(g) * AT(h);
                AT(d) = AT(g) * scale;
                length += AT(d) * AT(d);
            }
            net->s[unit] = total(along);
            net->d_squares[unit] = total(length);
            continue;
        }
        real mean = net->mean[unit], inverse_std = net->inverse_std[unit], offset = net->shift[parameter];
        real steep = net->gain[parameter] * inverse_std;
        for (size t = 0; t < S; t++) g[t] *= slope(family, form, steep * (h[t] - mean) + offset);
        EACH_VECTOR {
            sums += AT(g);
            along += AT(g) * (AT(h) - mean);
        }
        real sum = total(sums), product = total(along) * inverse_std;
        net->shift_gradient[unit] = sum;
        net->gain_gradient[unit] = product;
        sum /= B;
        product *= inverse_std / B;
        EACH_VECTOR {
            AT(d) = padded((AT(g) - product * (AT(h) - mean) - sum) * (steep * scale), t, B);
            length += AT(d) * AT(d);
        }
        net->d_squares[unit] = total(length);
    }
}

/* Call one of these with the family as a constant. */
#define BY_FAMILY(call, ...) \
    switch (net->family) { \
    case TANH: call(TANH, __VA_ARGS__); break; \
    case RECTIFIER: call(RECTIFIER, __VA_ARGS__); break; \
    case ELU: call(ELU, __VA_ARGS__); break; \
    case SOFTPLUS: call(SOFTPLUS, __VA_ARGS__); break; \
    case SIGMOID: call(SIGMOID, __VA_ARGS__); break; \
    case MISH: call(MISH, __VA_ARGS__); break; \
    default: call(SWISH, __VA_ARGS__); \
    }

/* Compute h of some units, and x above them. Where fewer than ROWS rows are left, those before fill the tile. */
static void forward_units(const network *net, size layer, size first, real *memory)
{
    size n = net->units, S = net->stride, width = least(net->claim, n - first);
    const real *V = net->V + layer * net->matrix, *inverse_norm = net->inverse_norm + layer * net->row + first;
    const real *below = net->x + layer % net->kept * net->signal;
    real *h = net->h + layer % net->kept * net->signal + first * S;
    for (size t = 0; t < S; t += PANEL)
        for (size j = 0; j < width; j += ROWS) {
            size cols = least(COLS, (S - t) / LANES), top = n < ROWS ? 0 : least(first + j, n - ROWS);
            factor rows = {V + top * n, n < ROWS ? 0 : n, 1};
            for (size i = 0; i < (n < ROWS ? n : 1); i++, rows.at += n) {
                ahead next = {rows.at + 2 * ROWS * n, LINE, t == 0 ? ROWS : 0};
                product(cols, memory + i * PANEL, PANEL, 0, n, rows, below + t, S, next);
            }
            for (size i = 0; i < least(ROWS, width - j); i++)
                for (size c = 0; c < cols * LANES; c += LANES)
                    *(vec *)(h + (j + i) * S + t + c) = inverse_norm[j + i]
                                                        * *(vec *)(memory + (first + j + i - top) * PANEL + c);
        }
    BY_FAMILY(activate, net, layer, first, width)
}

/* Compute ∂E/∂x of some units below a layer into g, (UNITS, stride): a few rows of V at a time, by all units. */
static void multiply_backward(const network *net, size layer, size first, size width, real *g)
{
    size n = net->units, S = net->stride;
    const real *V = net->V + layer * net->matrix + first, *d = net->d + layer * net->signal;
    real edge[DEEP][ROWS]; /* of V, with zeros beyond it */
    for (size t = 0; t < S; t += PANEL)
        for (size k = 0, terms; k < n; k += terms) {
            terms = least(DEEP, n - k);
            for (size j = 0, tile = 0; j < width; j += ROWS, tile++) {
                factor left = {V + k * n + j, 1, n};
                if (first + j + ROWS > n) {
                    for (size r = 0; r < terms; r++)
                        for (size i = 0; i < ROWS; i++) edge[r][i] = first + j + i < n ? left.at[r * n + i] : 0;
                    left = (factor){edge[0], 1, ROWS};
                }
                /* Two tiles fetch the even and the odd rows of what is next, a line wide. */
                const real *rows = k + terms < n ? V + (k + terms) * n : V + net->claim;
                ahead next = {rows + tile % 2 * n + tile / 2 * LINE, 2 * n, t == 0 ? CHUNK / 2 : 0};
                product(least(COLS, (S - t) / LANES), g + j * S + t, S, k > 0, terms, left, d + k * S + t, S, next);
            }
        }
}

/* Compute some units of ∂E/∂x below a layer, and of d of the next lower one; `layer` is the depth for d of the top. */
static void backward_units(const network *net, size layer, size first, real *memory)
{
    size S = net->stride, width = least(net->claim, net->units - first), bytes = width * S * sizeof *memory;
    if (layer < net->depth) multiply_backward(net, layer, first, width, memory);
    else memcpy(memory, net->top + first * S, bytes);
    if (layer == 0 || (net->signal_below > 0 && layer < net->depth))
        memcpy(net->g + layer * net->signal_below + first * S, memory, bytes);
    if (layer > 0) BY_FAMILY(pull_back, net, layer - 1, first, width, memory)
}

/* Compute all units of a layer, a share of them by the core that claims it: first shares of its own that are contiguous
   in memory, then what is left. No core waits for one that the system has stopped: the others compute what it has claimed
   and not finished, and when it goes on, it writes the same values to the same place. */
static void share_units(void (*compute)(const network *, size, size, real *), const network *net, size layer, size part,
                     size parts, real *memory, atomic_int *claims)
{
    enum { FREE, CLAIMED, DONE };
    size count = claims_of(net->units, net->claim);
    for (int again = 0; again < 2; again++)
        for (size k = 0; k < count; k++) {
            size share = (part * count / parts + k) % count;
            int state = FREE;
            if (!again && !atomic_compare_exchange_strong(claims + share, &state, CLAIMED)) continue;
            for (int tries = 0; again && tries < PATIENCE && atomic_load(claims + share) != DONE; tries++) PAUSE;
            if (atomic_load(claims + share) == DONE) continue;
            compute(net, layer, share * net->claim, memory);
            atomic_store(claims + share, DONE);
        }
}

/* Fill h and x upwards from x^1. Every core that takes part calls it, with its number.
   memory: of the core, see `size_of_memory`. claims: of all, see `count_of_claims`, 0 before. */
void forward(const network *net, size part, size parts, real *memory, atomic_int *claims)
{
    for (size layer = 0; layer < net->depth; layer++, claims += claims_of(net->units, net->claim))
        share_units(forward_units, net, layer, part, parts, memory, claims);
}

/* The same by one core in an evaluation, where batch normalisation has given statistics. The last x is at depth % kept. */
void evaluate(const network *net, real *memory)
{
    for (size layer = 0; layer < net->depth; layer++)
        for (size first = 0; first < net->units; first += net->claim) forward_units(net, layer, first, memory);
}

/* Fill d, g and s downwards from `top`; otherwise as `forward`. */
void backward(const network *net, size part, size parts, real *memory, atomic_int *claims)
{
    for (size layer = net->depth; layer >= 0; layer--, claims += claims_of(net->units, net->claim))
        share_units(backward_units, net, layer, part, parts, memory, claims);
}

/* a[0], b[0], a[1], b[1] ... of the first half of two vectors, or of the second one. */
INLINE vec interleave(vec a, vec b, int second)
{
#ifdef __clang__
    vec both;
    UNROLL for (int k = 0; k < LANES; k++) both[k] = (k % 2 ? b : a)[k / 2 + second * LANES / 2];
    return both;
#else
    integer from __attribute__((vector_size(BYTES)));
    UNROLL for (int k = 0; k < LANES; k++) from[k] = k / 2 + second * LANES / 2 + k % 2 * LANES;
    return __builtin_shuffle(a, b, from);
#endif
}

/* Transpose the signals of PANEL units into (samples, PANEL), times a factor, with zeros in place of units beyond the
   last. Rows are interleaved in pairs, the first of the one half with the first of the other, until all are columns. */
static void transpose(real *to, const real *from, size stride, size units, size samples, real times)
{
    static const real zeros[LANES];
    for (size t = 0; t < samples; t += LANES)
        for (size j = 0; j < PANEL; j += LANES) {
            vec rows[LANES], pairs[LANES];
            UNROLL for (int i = 0; i < LANES; i++)
                rows[i] = times * *(const vec *)(j + i < units ? from + (j + i) * stride + t : zeros);
            for (int round = 1; round < LANES; round *= 2) {
                UNROLL for (int i = 0; i < LANES; i++) pairs[i] = interleave(rows[i / 2], rows[(i + LANES) / 2], i % 2);
                UNROLL for (int i = 0; i < LANES; i++) rows[i] = pairs[i];
            }
            UNROLL for (int i = 0; i < LANES; i++) *(vec *)(to + (t + i) * PANEL + j) = rows[i];
        }
}

/* A block of a matrix, at most ROWS rows of a panel; a smaller one is copied and padded with zeros. */
typedef struct {
    real *at;
    size rows, cols, step;
    real copy[ROWS][PANEL];
} block;

INLINE void take(block *one, real *matrix, size n, size r, size j)
{
    one->rows = least(ROWS, n - r), one->cols = least(PANEL, n - j), one->step = n, one->at = matrix + r * n + j;
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

/* Measure the lengths of the rows of V to the digit as `update` does, so that a resumed run computes the same. */
void measure(const real *V, real *norm, size n)
{
    for (size r = 0; r < n; r += ROWS) {
        vec squares[ROWS] = {0};
        block v;
        for (size j = 0; j < n; j += PANEL) {
            take(&v, (real *)V, n, r, j);
            EACH_SUM(COLS) squares[i] = longer(squares[i], PART(v));
        }
        for (size i = 0; i < v.rows; i++) norm[r + i] = sqrt(total(squares[i]));
    }
}

/* M <- momentum * M + dᵀx - tangent * V and V <- V - lr * M for some layers, and the lengths of the rows of V.
   tangent: (n,) of each layer; unused, as the lengths are, unless rows are kept at length 1.
   packed: memory of the core, see `size_of_update`. */
void update(const network *net, const real *tangent, real momentum, real lr, size begin, size end, real *packed)
{
    size n = net->units, S = net->stride;
    for (size layer = begin; layer < end; layer++)
        for (size top = 0, samples; top < net->samples; top += samples) {
            real *V = net->V + layer * net->matrix, *M = net->M + layer * net->matrix, keep = top > 0 ? 1 : momentum;
            const real *x = net->x + layer * net->signal + top, *d = net->d + layer * net->signal + top;
            samples = least(SAMPLES, net->samples - top);
            for (size j = 0; j < n; j += PANEL) transpose(packed + j * SAMPLES, x + j * S, S, n - j, samples, 1);
            for (size r = 0; r < n; r += ROWS) {
                vec squares[ROWS] = {0};
                block v, m;
                for (size j = 0; j < n; j += PANEL) {
                    vec sum[ROWS][COLS];
                    take(&v, V, n, r, j);
                    take(&m, M, n, r, j);
                    EACH_SUM(COLS) sum[i][c] = keep * PART(m);
                    for (int i = 0; i < ROWS; i++) { /* fetch what comes next little by little */
                        size first = samples * i / ROWS, last = samples * (i + 1) / ROWS;
                        size next = (r + ROWS) * n + ROWS * j + i * PANEL;
                        if (r + 2 * ROWS <= n) {
                            fetch(V + next);
                            fetch(M + next);
                        }
                        multiply(sum, COLS, last - first, (factor){d + r * S + first, S, 1},
                                 packed + j * SAMPLES + first * PANEL, PANEL, (ahead){0});
                    }
                    if (top + samples < net->samples)
                        EACH_SUM(COLS) PART(m) = sum[i][c];
                    else {
                        EACH_SUM(COLS) {
                            size unit = layer * net->row + r + least(i, m.rows - 1);
                            if (net->unit_rows) sum[i][c] -= tangent[unit] * PART(v);
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
                    net->norm[layer * net->row + r + i] = sqrt(total(squares[i]));
            }
        }
}

/* M <- momentum * M + (dᵀx - hᵀg) / 2 for some layers, with g below them.
   longest: of each, filled with the largest squared length of a column. */
void update_orthogonal(const network *net, real *longest, real momentum, size begin, size end, real *packed)
{
    size n = net->units, S = net->stride;
    for (size layer = begin; layer < end; layer++, longest++) {
        real *M = net->M + layer * net->matrix, *columns = packed + panels(n) * PANEL * 2 * SAMPLES;
        memset(columns, 0, panels(n) * PANEL * sizeof *columns);
        for (size top = 0, samples; top < net->samples; top += samples) {
            const real *x = net->x + layer * net->signal + top, *g = net->g + layer * net->signal_below + top;
            const real *d = net->d + layer * net->signal + top, *h = net->h + layer * net->signal + top;
            samples = least(SAMPLES, net->samples - top);
            for (size j = 0; j < n; j += PANEL) {
                transpose(packed + 2 * j * SAMPLES, x + j * S, S, n - j, samples, (real)0.5);
                transpose(packed + (2 * j + PANEL) * SAMPLES, g + j * S, S, n - j, samples, (real)-0.5);
            }
            for (size r = 0; r < n; r += ROWS)
                for (size j = 0; j < n; j += PANEL) {
                    const real *right = packed + 2 * j * SAMPLES;
                    vec sum[ROWS][COLS];
                    block m;
                    take(&m, M, n, r, j);
                    EACH_SUM(COLS) sum[i][c] = (top > 0 ? 1 : momentum) * PART(m);
                    multiply(sum, COLS, samples, (factor){d + r * S, S, 1}, right, PANEL, (ahead){0});
                    multiply(sum, COLS, samples, (factor){h + r * S, S, 1}, right + SAMPLES * PANEL, PANEL, (ahead){0});
                    EACH_SUM(COLS) {
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

/* The limit of a processor: products are added in registers, 4 * ROWS * LANES operations in each of some rounds. */
void arithmetic(size rounds, real *values)
{
    vec sum[2 * ROWS], half = {0};
    half += (real)0.5;
    UNROLL for (int i = 0; i < 2 * ROWS; i++) sum[i] = *(vec *)(values + i * LANES);
    for (size k = 0; k < rounds; k++)
        UNROLL for (int i = 0; i < 2 * ROWS; i++) sum[i] = sum[i] * half + half;
    UNROLL for (int i = 0; i < 2 * ROWS; i++) *(vec *)(values + i * LANES) = sum[i];
}
size operations_of_round(void) { return 4 * ROWS * LANES; }

/* Read values, or read and write them; what is returned depends on all that are only read. */
real traffic(real *values, size count, int64_t write)
{
    vec sum[COLS] = {0};
    for (size k = 0; k + PANEL <= count; k += PANEL)
        UNROLL for (int c = 0; c < COLS; c++) {
            vec *at = (vec *)(values + k + c * LANES);
            if (write) *at = 1 - *at;
            else sum[c] += *at;
        }
    for (int c = 1; c < COLS; c++) sum[0] += sum[c];
    return total(sum[0]);
}

/* The stride of signals; how many units each layer of them has room for; values of the memory of a core in a pass, and
   in an update; the number of claims in a pass. */
size stride_of_signals(size B) { return (B + LANES - 1) / LANES * LANES; }
size room_for_units(size n) { return n + ROWS; }
size size_of_memory(size stride) { return (UNITS + ROWS) * (stride < PANEL ? PANEL : stride); }
size size_of_update(size n) { return panels(n) * PANEL * (2 * SAMPLES + 1); }
size count_of_claims(size n, size claim, size depth) { return (depth + 1) * claims_of(n, claim); }

/* How many units a core shall claim at a time, for some cores to get equally many. No digit depends on it. */
size units_of_claim(size n, size cores)
{
    size tiles = (n + ROWS - 1) / ROWS, each = (tiles * ROWS + UNITS * cores - 1) / (UNITS * cores);
    return (tiles + each * cores - 1) / (each * cores) * ROWS;
}
