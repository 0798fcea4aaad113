/* Runs kernels of another processor under an emulator of it: reads launches from one file, writes outputs to another.
 *
 * A launch is a row of little-endian u64: the kernel's index, bytes of scratch, workgroups along x, y and z, the number of
 * parameters; then per parameter its kind (0: a scalar, 1: a buffer that is read, 2: a buffer that is written), a size
 * in bytes, an alignment, and the bytes themselves, for a scalar 8 of them. Each buffer ends where a page begins that
 * nobody may touch. `KERNELS` and `TABLE` come from the command line's header.
 */
#include "table.h"
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST = 32 };

static size_t page;

/* The launch under way, for whoever asks why the program ended. */
static uint64_t head[6], args[MOST + 3], sizes[MOST], kinds[MOST];

static void fault(int number, siginfo_t *info, void *context)
{
    uint64_t at = (uint64_t)(uintptr_t)info->si_addr;
    (void)context;
    fprintf(stderr, "signal %d in case_%llu at %#llx\n", number, (unsigned long long)head[0], (unsigned long long)at);
    for (uint64_t i = 0; i < head[5]; i++)
        if (kinds[i] != 0)
            fprintf(stderr, "  parameter %llu has %llu bytes, and this is its byte %lld\n", (unsigned long long)i,
                    (unsigned long long)sizes[i], (long long)(at - args[i]));
    _Exit(1);
}

static void *fenced(size_t bytes, size_t align)
{
    size_t inside = (bytes + page - 1) / page * page;
    char *all = mmap(0, inside + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all, page, PROT_NONE) || mprotect(all + page + inside, page, PROT_NONE)) {
        perror("memory");
        exit(1);
    }
    return all + page + (inside - bytes) / align * align;
}

static void release(void *memory, size_t bytes)
{
    size_t inside = (bytes + page - 1) / page * page;
    char *start = (char *)((uintptr_t)memory / page * page);
    munmap((bytes ? start : start - inside) - page, inside + 2 * page);
}

static int numbers(FILE *file, uint64_t *list, size_t count)
{
    size_t got = fread(list, 8, count, file);
    if (got != 0 && got != count) {
        fprintf(stderr, "the file of launches is cut short\n");
        exit(1);
    }
    return got == count;
}

int main(int count, char **paths)
{
    FILE *in = count == 3 ? fopen(paths[1], "rb") : NULL, *out = count == 3 ? fopen(paths[2], "wb") : NULL;
    page = (size_t)sysconf(_SC_PAGESIZE);
    /* A fault may come from a lost stack pointer, so the handler has a stack of its own. */
    static char handler[65536];
    sigaltstack(&(stack_t){ .ss_sp = handler, .ss_size = sizeof handler }, NULL);
    struct sigaction action = { .sa_sigaction = fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    if (!in || !out)
        return 1;
    while (numbers(in, head, 6)) {
        if (head[0] >= KERNELS || head[5] > MOST)
            return 1;
        for (uint64_t i = 0; i < head[5]; i++) {
            uint64_t what[3];
            if (!numbers(in, what, 3))
                return 1;
            kinds[i] = what[0];
            sizes[i] = what[1];
            if (what[0] == 0) {
                if (!numbers(in, &args[i], 1))
                    return 1;
                continue;
            }
            void *memory = fenced(what[1], what[2]);
            if (fread(memory, 1, what[1], in) != what[1])
                return 1;
            args[i] = (uint64_t)(uintptr_t)memory;
        }
        for (int axis = 0; axis < 3; axis++)
            args[head[5] + axis] = head[2 + axis];
        uint64_t total = head[2] * head[3] * head[4];
        void *scratch = fenced((head[1] + 63) / 64 * 64, 64);
        /* In two parts, the second first, as two threads may. */
        TABLE[head[0]](args, scratch, total / 2, total);
        TABLE[head[0]](args, scratch, 0, total / 2);
        release(scratch, (head[1] + 63) / 64 * 64);
        for (uint64_t i = 0; i < head[5]; i++) {
            if (kinds[i] == 2 && fwrite((void *)(uintptr_t)args[i], 1, sizes[i], out) != sizes[i])
                return 1;
            if (kinds[i] != 0)
                release((void *)(uintptr_t)args[i], sizes[i]);
        }
    }
    return fclose(out) != 0;
}
