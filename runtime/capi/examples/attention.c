/* Two requests with quantized keys and values: a prompt each, then a token at a time. Every number that comes out is checked against
 * plain attention in double precision over the numbers that the cache holds, and those against what was put in.
 *
 *     attention BUNDLE FORMAT HEADS KV_HEADS CHANNELS PROMPT STEPS      attention kernels int8-head 4 2 64 50 3
 *
 * FORMAT is f16, int8-head or int4-head: their scales are the caller's, so that the codes can be told from the numbers. */
#include <bitsmith.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS = 2, PAGE = 16 };

static void check(int32_t status, const char *what)
{
    char text[512];
    if (status == BITSMITH_OK)
        return;
    bitsmith_last_error(text, sizeof text);
    fprintf(stderr, "%s: status %d: %s\n", what, (int)status, text);
    exit(1);
}

static void *room(size_t bytes)
{
    void *memory = calloc(bytes ? bytes : 1, 1);
    if (!memory)
        exit(1);
    return memory;
}

/* Bits of a number that binary16 holds exactly. */
static uint16_t half(double x)
{
    int exponent;
    double fraction = frexp(fabs(x), &exponent);
    if (x == 0)
        return 0;
    return (uint16_t)((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | ((int)(fraction * 2048) & 0x3ff));
}

static double number(uint16_t bits)
{
    int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    double x = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits & 0x8000 ? -x : x;
}

/* Numbers between -1 and 1 that binary16 holds exactly; what: 0 for queries, 1 for keys, 2 for values. */
static double input(int what, size_t request, size_t token, size_t i)
{
    uint32_t x = (uint32_t)(what * 7919 + request * 104729 + token * 1299709 + i * 15485863 + 1);
    x ^= x >> 15, x *= 0x2c1b3c6du, x ^= x >> 12, x *= 0x297a2d39u, x ^= x >> 15;
    return (double)((int)(x % 1025) - 512) / 512;
}

typedef struct {
    bitsmith_device device;
    bitsmith_kv cache;
    uint64_t request[REQUESTS], tokens[REQUESTS];
    size_t heads, kv_heads, dim;
    double query_step, weight_step; /* What queries and weights are rounded by, as shares of the largest. */
    double scale;       /* of the scores */
    double code_scale;  /* of the codes; 0 where numbers are stored as they are */
    double worst_store, worst;
} State;

static bitsmith_buffer filled(const State *s, const uint16_t *data, size_t count)
{
    bitsmith_buffer buffer;
    check(bitsmith_buffer_create(s->device, count * 2, &buffer), "buffer");
    if (data)
        check(bitsmith_buffer_upload(buffer, 0, data, count * 2), "upload");
    return buffer;
}

/* The numbers that the cache holds of a request: keys and values, [token][head][channel]. */
static void gather(State *s, size_t request, double *k, double *v)
{
    size_t count = (size_t)s->tokens[request] * s->kv_heads * s->dim;
    uint16_t *bits = room(count * 2);
    bitsmith_buffer buffers[2] = {filled(s, NULL, count), filled(s, NULL, count)};
    bitsmith_view views[2] = {{buffers[0], 0, 0}, {buffers[1], 0, 0}};
    check(bitsmith_kv_dequantize(s->cache, 0, s->request[request], 0, s->tokens[request], &views[0], &views[1]), "gather");
    for (int side = 0; side < 2; side++) {
        double *out = side ? v : k;
        check(bitsmith_buffer_download(buffers[side], 0, bits, count * 2), "download");
        for (size_t i = 0; i < count; i++) {
            size_t row = s->kv_heads * s->dim;
            double put = input(side + 1, request, i / row, i % row), step = s->code_scale;
            out[i] = number(bits[i]);
            if (step > 0)
                out[i] = nearbyint(out[i] / step) * step; /* the number before it was rounded to binary16 */
            double error = fabs(out[i] - put) / (step > 0 ? step * 0.5001 : 1e-9);
            s->worst_store = error > s->worst_store ? error : s->worst_store;
        }
        check(bitsmith_close(buffers[side]), "close");
    }
    free(bits);
}

/* Compares the outputs of the newest tokens of a request with plain attention. */
static void compare(State *s, size_t request, size_t fresh, const uint16_t *y)
{
    size_t tokens = (size_t)s->tokens[request], row = s->kv_heads * s->dim;
    double *k = room(tokens * row * sizeof *k), *v = room(tokens * row * sizeof *v), *p = room(tokens * sizeof *p);
    gather(s, request, k, v);
    for (size_t i = 0; i < fresh; i++)
        for (size_t h = 0; h < s->heads; h++) {
            size_t position = tokens - fresh + i, kv = h / (s->heads / s->kv_heads);
            double most = -1e300, sum = 0, slack = 0, largest = 0;
            for (size_t c = 0; c < s->dim; c++)
                largest = fmax(largest, fabs(input(0, request, position, h * s->dim + c)));
            for (size_t t = 0; t <= position; t++) {
                double score = 0, size = 0, keys = 0;
                for (size_t c = 0; c < s->dim; c++) {
                    double key = k[t * row + kv * s->dim + c], part = input(0, request, position, h * s->dim + c) * key;
                    score += part, size += fabs(part), keys += fabs(key);
                }
                p[t] = score * s->scale;
                most = p[t] > most ? p[t] : most;
                size *= s->scale * (double)(s->dim + 32) / 8388608;
                size += s->scale * s->query_step * largest * keys;
                slack = size > slack ? size : slack;
            }
            for (size_t t = 0; t <= position; t++)
                sum += p[t] = exp(p[t] - most);
            for (size_t c = 0; c < s->dim; c++) {
                double exact = 0, size = 0, values = 0;
                for (size_t t = 0; t <= position; t++) {
                    exact += p[t] / sum * v[t * row + kv * s->dim + c];
                    size += p[t] / sum * fabs(v[t * row + kv * s->dim + c]);
                    values += fabs(v[t * row + kv * s->dim + c]);
                }
                /* Rounding to binary16, sums in single precision, what the scores' own errors do to the weights, and steps. */
                double bound = fabs(exact) / 2048 + size * ((double)(position + 64) / 4194304 + 3 * slack) + 1e-7;
                bound += s->weight_step / sum * values;
                double error = fabs(number(y[(i * s->heads + h) * s->dim + c]) - exact) / bound;
                s->worst = error > s->worst ? error : s->worst;
            }
        }
    free(k), free(v), free(p);
}

/* A step of an engine: so many new tokens of each request. */
static void step(State *s, const uint64_t fresh[REQUESTS])
{
    size_t rows = 0, row = s->kv_heads * s->dim, wide = s->heads * s->dim;
    for (size_t r = 0; r < REQUESTS; r++)
        rows += (size_t)fresh[r];
    uint16_t *q = room(rows * wide * 2), *k = room(rows * row * 2), *v = room(rows * row * 2), *y = room(rows * wide * 2);
    for (size_t r = 0, at = 0; r < REQUESTS; r++)
        for (size_t i = 0; i < fresh[r]; i++, at++) {
            size_t token = (size_t)s->tokens[r] + i;
            for (size_t c = 0; c < wide; c++)
                q[at * wide + c] = half(input(0, r, token, c));
            for (size_t c = 0; c < row; c++) {
                k[at * row + c] = half(input(1, r, token, c));
                v[at * row + c] = half(input(2, r, token, c));
            }
        }
    check(bitsmith_kv_grow(s->cache, s->request, fresh, REQUESTS), "grow");
    bitsmith_buffer buffers[4] = {filled(s, q, rows * wide), filled(s, k, rows * row), filled(s, v, rows * row),
                                  filled(s, NULL, rows * wide)};
    bitsmith_view views[4];
    for (int i = 0; i < 4; i++)
        views[i] = (bitsmith_view){buffers[i], 0, 0};
    check(bitsmith_kv_append(s->cache, 0, &views[1], &views[2]), "append");
    check(bitsmith_kv_attend(s->cache, 0, &views[0], &views[3], NULL), "attend");
    check(bitsmith_buffer_download(buffers[3], 0, y, rows * wide * 2), "download");
    for (size_t r = 0, at = 0; r < REQUESTS; at += (size_t)fresh[r], r++) {
        s->tokens[r] += fresh[r];
        compare(s, r, (size_t)fresh[r], y + at * wide);
    }
    for (int i = 0; i < 4; i++)
        check(bitsmith_close(buffers[i]), "close");
    free(q), free(k), free(v), free(y);
}

int main(int count, char **args)
{
    if (count != 8) {
        fprintf(stderr, "usage: %s BUNDLE FORMAT HEADS KV_HEADS CHANNELS PROMPT STEPS\n", args[0]);
        return 2;
    }
    const char *format = args[2];
    State s = {.heads = strtoul(args[3], NULL, 10), .kv_heads = strtoul(args[4], NULL, 10), .dim = strtoul(args[5], NULL, 10)};
    uint64_t prompt = strtoul(args[6], NULL, 10), steps = strtoul(args[7], NULL, 10), found;
    bitsmith_bundle bundle;
    check(bitsmith_open(BITSMITH_ABI_VERSION, "cpu:2", &s.device), "open");
    check(bitsmith_bundle_open(s.device, args[1], &bundle), "bundle");
    bitsmith_kv_shape shape = {"f16", (uint32_t)s.heads, (uint32_t)s.kv_heads, (uint32_t)s.dim, (uint32_t)s.dim, PAGE};
    uint64_t pages = REQUESTS * ((prompt + steps) / PAGE + 1);
    check(bitsmith_kv_create(bundle, &shape, &format, 1, pages, REQUESTS, &s.cache), "cache");
    s.scale = (double)(1 / sqrtf((float)s.dim));
    if (strcmp(format, "f16")) {
        float scale = 1.0f / (strcmp(format, "int8-head") ? 7 : 127);
        float *scales = room(s.kv_heads * 4 * sizeof *scales);
        for (size_t i = 0; i < s.kv_heads * 4; i += 2)
            scales[i] = scale;
        check(bitsmith_kv_scales(s.cache, 0, scales, s.kv_heads * 4), "scales");
        s.code_scale = scale;
        if (!strncmp(format, "int4", 4)) /* Multiplied by 8 bits: half a step of 127 and, carried on, a whole one of 126. */
            s.query_step = 0.51 / 127, s.weight_step = 1.02 / 126;
        free(scales);
    }
    for (size_t r = 0; r < REQUESTS; r++)
        check(bitsmith_kv_open(s.cache, &s.request[r]), "request");
    uint64_t fresh[REQUESTS] = {prompt, prompt / 2 + 1};
    step(&s, fresh);
    for (uint64_t i = 0; i < steps; i++) {
        /* The second request pauses for a step. */
        fresh[0] = 1, fresh[1] = i != 1;
        step(&s, fresh);
    }
    printf("%s, %zu heads over %zu of %zu, %d and %d tokens: what is stored is %.3f of its bound off, attention %.3f\n", format,
           s.heads, s.kv_heads, s.dim, (int)s.tokens[0], (int)s.tokens[1], s.worst_store, s.worst);
    check(bitsmith_kv_end(s.cache, s.request[0]), "end");
    if (bitsmith_kv_tokens(s.cache, s.request[0], &found) != BITSMITH_INVALID)
        return 1;
    check(bitsmith_close(s.cache), "close cache");
    check(bitsmith_close(bundle), "close bundle");
    check(bitsmith_close(s.device), "close device");
    if (bitsmith_kv_open(s.cache, &found) != BITSMITH_CLOSED)
        return 1;
    return s.worst <= 1 && s.worst_store <= 1 ? 0 : 1;
}
