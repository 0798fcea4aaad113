/* Quantizes a matrix, packs it, multiplies by it on the CPU and checks every number.
 *
 *     matmul BUNDLE FORMAT ACTIVATION N K M          matmul kernels int4-g128 f16 64 256 7
 *
 * With ACTIVATION int8-token the activations are quantized by a kernel of the bundle first. */
#include <bitsmith.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory)
        exit(1);
    return memory;
}

/* Bits of a number that binary16 holds exactly. */
static uint16_t half(float x)
{
    int exponent;
    float fraction = frexpf(fabsf(x), &exponent);
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

/* The buffers of a kernel for m rows, in order; `of` finds one by name. */
typedef struct {
    bitsmith_kernel kernel;
    size_t count;
    bitsmith_argument arguments[8];
    bitsmith_buffer buffers[8];
} Bound;

static Bound bind(bitsmith_device device, bitsmith_bundle bundle, const bitsmith_want *want, uint64_t m)
{
    Bound bound;
    check(bitsmith_kernel_choose(bundle, want, m, &bound.kernel), "kernel");
    check(bitsmith_kernel_arguments(bound.kernel, &bound.count), "arguments");
    if (bound.count > 8)
        exit(1);
    for (size_t i = 0; i < bound.count; i++) {
        check(bitsmith_kernel_argument(bound.kernel, i, m, &bound.arguments[i]), "argument");
        check(bitsmith_buffer_create(device, bound.arguments[i].bytes, &bound.buffers[i]), "buffer");
    }
    return bound;
}

static size_t of(const Bound *bound, const char *name)
{
    for (size_t i = 0; i < bound->count; i++)
        if (!strcmp(bound->arguments[i].name, name))
            return i;
    fprintf(stderr, "the kernel has no argument %s\n", name);
    exit(1);
}

static void launch(bitsmith_device device, const Bound *bound, uint64_t m)
{
    bitsmith_view views[8];
    for (size_t i = 0; i < bound->count; i++)
        views[i] = (bitsmith_view){bound->buffers[i], 0, 0};
    check(bitsmith_launch(bound->kernel, m, views, bound->count), "launch");
    check(bitsmith_synchronize(device), "synchronize");
}

static void close_all(const Bound *bound)
{
    for (size_t i = 0; i < bound->count; i++)
        check(bitsmith_close(bound->buffers[i]), "close buffer");
    check(bitsmith_close(bound->kernel), "close kernel");
}

/* Copies a result of one kernel to an argument of another. */
static void hand_over(const Bound *from, const char *name, const Bound *to, const char *other)
{
    size_t a = of(from, name), b = of(to, other), bytes = (size_t)to->arguments[b].bytes;
    void *data = room(bytes);
    check(bitsmith_buffer_download(from->buffers[a], 0, data, bytes), name);
    check(bitsmith_buffer_upload(to->buffers[b], 0, data, bytes), other);
    free(data);
}

int main(int count, char **args)
{
    if (count != 7) {
        fprintf(stderr, "usage: %s BUNDLE FORMAT ACTIVATION N K M\n", args[0]);
        return 2;
    }
    const char *format = args[2], *activation = args[3];
    size_t n = strtoul(args[4], NULL, 10), k = strtoul(args[5], NULL, 10), m = strtoul(args[6], NULL, 10);
    bitsmith_device device;
    bitsmith_bundle bundle;
    bitsmith_weights weights;
    check(bitsmith_open(BITSMITH_ABI_VERSION, "cpu:2", &device), "open");
    check(bitsmith_bundle_open(device, args[1], &bundle), "bundle");

    float *w = room(n * k * sizeof *w);
    for (size_t i = 0; i < n * k; i++)
        w[i] = sinf((float)i * 0.37f) * 0.05f;
    check(bitsmith_quantize(format, n, k, w, NULL, &weights), "quantize");
    check(bitsmith_weights_dequantize(weights, w, n * k), "dequantize");

    bitsmith_want want = {.op = "matmul", .format = format, .activation = activation, .n = n, .k = k};
    Bound matmul = bind(device, bundle, &want, m);
    size_t packed;
    check(bitsmith_weights_pack(weights, "n16", NULL, 0, &packed), "size of the packed weights");
    void *bytes = room(packed);
    check(bitsmith_weights_pack(weights, "n16", bytes, packed, &packed), "pack");
    check(bitsmith_buffer_upload(matmul.buffers[of(&matmul, "w")], 0, bytes, packed), "upload weights");

    uint16_t *x = room(m * k * sizeof *x);
    double *value = room(m * k * sizeof *value);
    for (size_t i = 0; i < m * k; i++) {
        value[i] = (double)((int)(i * 7 % 33) - 16) / 8;
        x[i] = half((float)value[i]);
    }
    if (strcmp(activation, "f16")) {
        bitsmith_want quantize = {.op = "quantize", .activation = activation, .k = k};
        Bound rows = bind(device, bundle, &quantize, m);
        check(bitsmith_buffer_upload(rows.buffers[of(&rows, "x")], 0, x, m * k * 2), "upload activations");
        launch(device, &rows, m);
        hand_over(&rows, "codes", &matmul, "x");
        hand_over(&rows, "scale", &matmul, "x_scale");
        hand_over(&rows, "sum", &matmul, "x_sum");
        /* The reference takes the codes as they came out. */
        int8_t *codes = room(m * k);
        float *scales = room(m * sizeof *scales);
        check(bitsmith_buffer_download(rows.buffers[of(&rows, "codes")], 0, codes, m * k), "codes");
        check(bitsmith_buffer_download(rows.buffers[of(&rows, "scale")], 0, scales, m * sizeof *scales), "scales");
        for (size_t i = 0; i < m * k; i++) {
            double exact = value[i];
            value[i] = codes[i] * (double)scales[i / k];
            if (fabs(value[i] - exact) > 0.51 * scales[i / k]) {
                fprintf(stderr, "activation %zu is %g, not %g\n", i, value[i], exact);
                return 1;
            }
        }
        free(codes);
        free(scales);
        close_all(&rows);
    } else {
        check(bitsmith_buffer_upload(matmul.buffers[of(&matmul, "x")], 0, x, m * k * 2), "upload activations");
    }
    launch(device, &matmul, m);
    uint16_t *y = room(m * n * sizeof *y);
    check(bitsmith_buffer_download(matmul.buffers[of(&matmul, "y")], 0, y, m * n * 2), "download");

    double worst = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0, magnitude = 0;
            for (size_t l = 0; l < k; l++) {
                sum += value[i * k + l] * w[j * k + l];
                magnitude += fabs(value[i * k + l] * w[j * k + l]);
            }
            /* Rounding to binary16, and k sums in single precision. */
            double bound = fabs(sum) / 2048 + magnitude * (double)k / 8388608 + 1e-7;
            double error = fabs(number(y[i * n + j]) - sum) / bound;
            worst = error > worst ? error : worst;
        }
    printf("%s %s %zu x %zu, m = %zu: worst error is %.3f of its bound\n", format, activation, n, k, m, worst);
    free(w), free(bytes), free(x), free(value), free(y);
    close_all(&matmul);
    check(bitsmith_close(weights), "close weights");
    check(bitsmith_close(bundle), "close bundle");
    check(bitsmith_close(device), "close device");
    if (bitsmith_synchronize(device) != BITSMITH_CLOSED)
        return 1;
    return worst <= 1 ? 0 : 1;
}
