/* A stand-in for NVIDIA's driver: the functions that runtime/src/cuda calls, over the host's memory.
 *
 * It knows two kernels by name, keeps count of everything that is alive, and checks what the real driver would: a current
 * context, a stream of its own, shared memory within the function's limit, a capture that is ended. Types and numbers are
 * those of the CUDA driver API's documentation. What is still alive when the process ends is printed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_PTX = 218, INVALID_HANDLE = 400, NOT_FOUND = 500 };

typedef struct { char *text; } Module;
typedef struct { Module *module; char name[64]; int limit; } Function;
typedef struct Launch { Function *function; uint64_t values[4]; uint64_t threads; int early; struct Launch *next; } Launch;
typedef struct { Launch *first, **last; } Graph;
typedef struct { Graph *capture; } Stream;
typedef struct {
    unsigned grid[3], block[3], shared;
    Stream *stream;
    struct { int id; char pad[4]; union { char room[64]; int allowed; } value; } *attributes;
    unsigned count;
} Config;

static int contexts, allocations, modules, streams, events, graphs, executables, launches;
static __thread void *current;
static char the_context;
/* Functions live as long as their module; the last few are enough here. */
static Function functions[256];
static int function_count;

__attribute__((destructor)) static void report(void)
{
    fprintf(stderr, "driver: alive: %d contexts, %d allocations, %d modules, %d streams, %d events, %d graphs; %d launches\n",
            contexts, allocations, modules, streams, events, graphs + executables, launches);
}

CUresult cuInit(unsigned flags) { return flags ? INVALID_VALUE : SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = 12080; return SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
CUresult cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal ? INVALID_VALUE : SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, int device)
{
    snprintf(name, length, "NVIDIA H100 80GB HBM3");
    return device == 7 ? SUCCESS : INVALID_VALUE;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case 16: *value = 132; break;      /* multiprocessors */
    case 75: *value = 9; break;        /* compute capability, major */
    case 76: *value = 0; break;        /* compute capability, minor */
    case 97: *value = 232448; break;   /* shared memory per block on request */
    default: return INVALID_VALUE;
    }
    return device == 7 ? SUCCESS : INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult status, const char **text)
{
    *text = status == INVALID_VALUE ? "invalid argument" : "some error";
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = &the_context;
    contexts++;
    return device == 7 ? SUCCESS : INVALID_VALUE;
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return device == 7 ? SUCCESS : INVALID_VALUE; }
CUresult cuCtxSetCurrent(void *context) { current = context; return SUCCESS; }
#define NEEDS_CONTEXT if (current != &the_context) return INVALID_CONTEXT

CUresult cuStreamCreate(Stream **stream, unsigned flags)
{
    NEEDS_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    streams++;
    return flags == 1 ? SUCCESS : INVALID_VALUE; /* non-blocking */
}
CUresult cuStreamDestroy_v2(Stream *stream) { NEEDS_CONTEXT; free(stream); streams--; return SUCCESS; }
CUresult cuStreamSynchronize(Stream *stream)
{
    NEEDS_CONTEXT;
    return stream && !stream->capture ? SUCCESS : INVALID_HANDLE;
}

CUresult cuMemAlloc_v2(uint64_t *address, size_t bytes)
{
    NEEDS_CONTEXT;
    if (!bytes) return INVALID_VALUE;
    *address = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    allocations++;
    return SUCCESS;
}
CUresult cuMemFree_v2(uint64_t address) { NEEDS_CONTEXT; free((void *)address); allocations--; return SUCCESS; }
CUresult cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream)
{
    NEEDS_CONTEXT;
    memcpy((void *)to, from, bytes);
    return stream ? SUCCESS : INVALID_HANDLE;
}
CUresult cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream)
{
    NEEDS_CONTEXT;
    memcpy(to, (void *)from, bytes);
    return stream ? SUCCESS : INVALID_HANDLE;
}

/* Options 5 and 6: a buffer for what the assembler says, and its size. */
CUresult cuModuleLoadDataEx(Module **module, const char *image, unsigned count, int *options, void **values)
{
    NEEDS_CONTEXT;
    char *log = NULL;
    size_t room = 0;
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == 5) log = values[i];
        if (options[i] == 6) room = (size_t)values[i];
    }
    if (strstr(image, "nonsense")) {
        if (log && room) snprintf(log, room, "ptxas application ptx input, line 3; error: nonsense");
        return INVALID_PTX;
    }
    *module = calloc(1, sizeof **module);
    (*module)->text = strdup(image);
    modules++;
    return SUCCESS;
}
CUresult cuModuleUnload(Module *module) { NEEDS_CONTEXT; free(module->text); free(module); modules--; return SUCCESS; }
CUresult cuModuleGetFunction(Function **function, Module *module, const char *name)
{
    NEEDS_CONTEXT;
    char entry[80];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    if (!strstr(module->text, entry) || function_count == 256) return NOT_FOUND;
    *function = &functions[function_count++];
    (*function)->module = module;
    (*function)->limit = 48 << 10;
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    return SUCCESS;
}
CUresult cuFuncSetAttribute(Function *function, int attribute, int value)
{
    NEEDS_CONTEXT;
    if (attribute != 8 || value > 232448) return INVALID_VALUE; /* most dynamic shared memory */
    function->limit = value;
    return SUCCESS;
}

/* scale(in, out, n, factor): out[i] = in[i] * factor. count(out): out += 1, or 100 where it may start early. */
static void execute(const Launch *launch)
{
    launches++;
    if (!strcmp(launch->function->name, "scale")) {
        const float *in = (const float *)launch->values[0];
        float *out = (float *)launch->values[1], factor;
        int n = (int)(uint32_t)launch->values[2];
        memcpy(&factor, &launch->values[3], 4);
        for (uint64_t i = 0; i < launch->threads && (int)i < n; i++) out[i] = in[i] * factor;
    } else {
        *(int *)launch->values[0] += launch->early ? 100 : 1;
    }
}
CUresult cuLaunchKernelEx(const Config *config, Function *function, void **parameters, void **extra)
{
    NEEDS_CONTEXT;
    if (extra || !config->stream || (int)config->shared > function->limit) return INVALID_VALUE;
    Launch launch = { .function = function, .threads = 1 };
    for (int i = 0; i < 3; i++) launch.threads *= (uint64_t)config->grid[i] * config->block[i];
    if (!launch.threads) return INVALID_VALUE;
    for (unsigned i = 0; i < config->count; i++) {
        /* Programmatic stream serialization. */
        if (config->attributes[i].id == 6) launch.early = config->attributes[i].value.allowed;
    }
    int count = strcmp(function->name, "scale") ? 1 : 4;
    for (int i = 0; i < count; i++) memcpy(&launch.values[i], parameters[i], i < 2 ? 8 : 4);
    Graph *capture = config->stream->capture;
    if (!capture) {
        execute(&launch);
        return SUCCESS;
    }
    *capture->last = malloc(sizeof launch);
    **capture->last = launch;
    capture->last = &(*capture->last)->next;
    return SUCCESS;
}

CUresult cuStreamBeginCapture_v2(Stream *stream, int mode)
{
    NEEDS_CONTEXT;
    if (stream->capture || mode != 1) return INVALID_VALUE; /* this thread's */
    stream->capture = calloc(1, sizeof(Graph));
    stream->capture->last = &stream->capture->first;
    return SUCCESS;
}
CUresult cuStreamEndCapture(Stream *stream, Graph **graph)
{
    NEEDS_CONTEXT;
    if (!stream->capture) return INVALID_VALUE;
    *graph = stream->capture;
    stream->capture = NULL;
    graphs++;
    return SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags)
{
    NEEDS_CONTEXT;
    *executable = malloc(sizeof(Graph));
    (*executable)->first = graph->first; /* kept: the graph is small, and its owner destroys it now */
    executables++;
    return flags ? INVALID_VALUE : SUCCESS;
}
CUresult cuGraphDestroy(Graph *graph) { NEEDS_CONTEXT; free(graph); graphs--; return SUCCESS; }
CUresult cuGraphLaunch(Graph *executable, Stream *stream)
{
    NEEDS_CONTEXT;
    if (stream->capture) return INVALID_VALUE;
    for (Launch *launch = executable->first; launch; launch = launch->next) execute(launch);
    return SUCCESS;
}
CUresult cuGraphExecDestroy(Graph *executable) { NEEDS_CONTEXT; free(executable); executables--; return SUCCESS; }

CUresult cuEventCreate(int **event, unsigned flags)
{
    NEEDS_CONTEXT;
    *event = calloc(1, sizeof **event);
    events++;
    return flags ? INVALID_VALUE : SUCCESS;
}
CUresult cuEventRecord(int *event, Stream *stream) { NEEDS_CONTEXT; *event = 1 + launches; return stream ? SUCCESS : INVALID_HANDLE; }
CUresult cuEventSynchronize(int *event) { NEEDS_CONTEXT; return *event ? SUCCESS : INVALID_HANDLE; }
/* Half a millisecond per launch. */
CUresult cuEventElapsedTime(float *milliseconds, int *start, int *end)
{
    NEEDS_CONTEXT;
    *milliseconds = 0.5f * (float)(*end - *start);
    return SUCCESS;
}
CUresult cuEventDestroy_v2(int *event) { NEEDS_CONTEXT; free(event); events--; return SUCCESS; }
