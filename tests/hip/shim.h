// A host that runs HIP kernels as the compiler emits them: every lane is a fiber.
//
// A kernel's source comes after this header and sees the device's builtins as functions. A lane runs until it must meet
// others: what the lanes of a wave do together waits for all of them at the same place, a barrier for all of the workgroup.
// Anything else that would hang or mix up lanes on a GPU ends the program with a message. Waves run in an order that the
// caller chooses. What the builtins do is written from AMD's instruction set manuals, not from the compiler.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace host {
enum State { Running, InWave, InBlock, Done };
enum Order { Forward, Reversed, Random };

struct Lane {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    State state = Done;
    const void* site = nullptr;
    void* offer = nullptr;                     // operands of a collective, on the lane's own stack
    void (*meet)(struct Lane** wave, int count) = nullptr;
    unsigned number = 0, thread[3] = {0, 0, 0};
};

inline std::vector<Lane> lanes;
inline Lane* current = nullptr;
inline void* scheduler = nullptr;
inline unsigned block_id[3], grid[3], workgroup[3], wave_size = 64;
inline void (*kernel)(void** args) = nullptr;
inline void** arguments = nullptr;
inline uint64_t random_state = 1;
constexpr size_t STACK = 256 << 10;

[[noreturn]] inline void fail(const char* what, const Lane& a, const Lane& b) {
    fprintf(stderr, "%s: block %u %u %u, thread %u (state %d, site %p), thread %u (state %d, site %p)\n", what, block_id[0],
            block_id[1], block_id[2], a.number, a.state, a.site, b.number, b.state, b.site);
    exit(70);
}

inline unsigned random_below(unsigned bound) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return unsigned((random_state >> 33) % bound);
}

// Saves what a call must preserve, changes the stack, goes on where that one stopped.
extern "C" void bitsmith_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(.text
.globl bitsmith_switch
.type bitsmith_switch, @function
bitsmith_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");
#else
#error "the fibers are written for x86-64"
#endif

inline void leave(State state) {
    current->state = state;
    bitsmith_switch(&current->stack_pointer, scheduler);
}

inline void lane_main() {
    kernel(arguments);
    leave(Done);
    abort();
}

inline void start(Lane& lane) {
    if (!lane.stack) lane.stack = static_cast<char*>(aligned_alloc(64, STACK));
    void** top = reinterpret_cast<void**>(lane.stack + STACK - 64);
    *--top = nullptr; // where a caller's address would lie: the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(&lane_main);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    lane.stack_pointer = top;
    lane.state = Running;
}

/// The lanes of the wave meet here; `meet` sees all of their offers and writes the results into them.
__attribute__((noinline)) inline void together(const void* site, void* offer, void (*meet)(Lane**, int)) {
    current->site = site;
    current->offer = offer;
    current->meet = meet;
    leave(InWave);
}

inline void run_wave(unsigned first, unsigned count, Order order) {
    std::vector<unsigned> turn(count);
    for (unsigned i = 0; i < count; i++) turn[i] = first + (order == Reversed ? count - 1 - i : i);
    for (unsigned i = count; order == Random && i > 1; i--) std::swap(turn[i - 1], turn[random_below(i)]);
    for (unsigned number : turn) {
        if (lanes[number].state != Running) continue;
        current = &lanes[number];
        bitsmith_switch(&scheduler, current->stack_pointer);
    }
    Lane& model = lanes[first];
    bool any = false;
    for (unsigned i = first; i < first + count; i++) any |= lanes[i].state == InWave;
    if (!any) return;
    Lane* wave[64];
    for (unsigned i = 0; i < count; i++) {
        Lane& lane = lanes[first + i];
        if (lane.state != InWave || lane.site != model.site) fail("divergent collective", model, lane);
        wave[i] = &lane;
    }
    model.meet(wave, int(count));
    for (unsigned i = 0; i < count; i++) wave[i]->state = Running;
}

#if !defined(__SANITIZE_ADDRESS__) && !__has_feature(address_sanitizer)
#define BITSMITH_POISON_LDS
extern "C" char __start_bitsmith_lds[] __attribute__((weak));
extern "C" char __stop_bitsmith_lds[] __attribute__((weak));
#endif

inline void run_block(Order order) {
#ifdef BITSMITH_POISON_LDS
    if (__start_bitsmith_lds) memset(__start_bitsmith_lds, 0xa5, size_t(__stop_bitsmith_lds - __start_bitsmith_lds));
#endif
    unsigned threads = workgroup[0] * workgroup[1] * workgroup[2];
    if (lanes.size() < threads) lanes.resize(threads);
    for (unsigned i = 0; i < threads; i++) {
        lanes[i].number = i;
        lanes[i].thread[0] = i % workgroup[0];
        lanes[i].thread[1] = i / workgroup[0] % workgroup[1];
        lanes[i].thread[2] = i / workgroup[0] / workgroup[1];
        start(lanes[i]);
    }
    unsigned waves = (threads + wave_size - 1) / wave_size;
    for (;;) {
        std::vector<unsigned> ready;
        for (unsigned wave = 0; wave < waves; wave++) {
            unsigned first = wave * wave_size, last = first + wave_size < threads ? first + wave_size : threads;
            for (unsigned i = first; i < last; i++) {
                if (lanes[i].state == Running) {
                    ready.push_back(wave);
                    break;
                }
            }
        }
        if (!ready.empty()) {
            unsigned pick = order == Forward ? 0 : order == Reversed ? unsigned(ready.size()) - 1 : random_below(unsigned(ready.size()));
            unsigned first = ready[pick] * wave_size;
            run_wave(first, first + wave_size < threads ? wave_size : threads - first, order);
            continue;
        }
        bool all_done = true;
        for (unsigned i = 0; i < threads; i++) all_done &= lanes[i].state == Done;
        if (all_done) return;
        for (unsigned i = 0; i < threads; i++) {
            if (lanes[i].state != InBlock || lanes[i].site != lanes[0].site) fail("divergent barrier", lanes[0], lanes[i]);
        }
        for (unsigned i = 0; i < threads; i++) lanes[i].state = Running;
    }
}

template <typename Offer> inline Offer& offer_of(Lane* lane) { return *static_cast<Offer*>(lane->offer); }
} // namespace host

#define __global__
#define BITSMITH_WORKGROUP(threads, registers)
#define __device__ __attribute__((always_inline))
#ifdef BITSMITH_POISON_LDS
#define __shared__ static __attribute__((section("bitsmith_lds")))
#else
#define __shared__ static
#endif

inline unsigned __builtin_amdgcn_workitem_id_x() { return host::current->thread[0]; }
inline unsigned __builtin_amdgcn_workitem_id_y() { return host::current->thread[1]; }
inline unsigned __builtin_amdgcn_workitem_id_z() { return host::current->thread[2]; }
inline unsigned __builtin_amdgcn_workgroup_id_x() { return host::block_id[0]; }
inline unsigned __builtin_amdgcn_workgroup_id_y() { return host::block_id[1]; }
inline unsigned __builtin_amdgcn_workgroup_id_z() { return host::block_id[2]; }
inline unsigned __builtin_amdgcn_grid_size_x() { return host::grid[0] * host::workgroup[0]; }
inline unsigned __builtin_amdgcn_grid_size_y() { return host::grid[1] * host::workgroup[1]; }
inline unsigned __builtin_amdgcn_grid_size_z() { return host::grid[2] * host::workgroup[2]; }

inline void __builtin_amdgcn_fence(int, const char*) {}
/// Binds the compiler of the device alone.
inline void __builtin_amdgcn_sched_barrier(int) {}

__attribute__((noinline, convergent)) inline void __builtin_amdgcn_s_barrier() {
    host::current->site = __builtin_return_address(0);
    host::leave(host::InBlock);
}

#define __HIP_MEMORY_SCOPE_AGENT 4
#define __hip_atomic_fetch_add bitsmith_fetch_add
inline unsigned bitsmith_fetch_add(unsigned* to, unsigned number, int, int) {
    unsigned before = *to;
    *to = before + number;
    return before;
}

inline unsigned bitsmith_own() { return host::current->number % host::wave_size; }
inline unsigned __builtin_amdgcn_mbcnt_lo(unsigned mask, unsigned base) {
    unsigned own = bitsmith_own();
    return base + unsigned(__builtin_popcount(own >= 32 ? mask : mask & ((1u << own) - 1)));
}
inline unsigned __builtin_amdgcn_mbcnt_hi(unsigned mask, unsigned base) {
    unsigned own = bitsmith_own();
    return base + (own < 32 ? 0u : unsigned(__builtin_popcount(mask & ((1u << (own - 32)) - 1))));
}

struct BitsmithWord {
    unsigned value, argument, result;
};

// Reading the first lane's value stands for "every lane has this value", so lanes that differ are a fault.
__attribute__((noinline, convergent)) inline unsigned __builtin_amdgcn_readfirstlane(unsigned value) {
    BitsmithWord own = {value, 0, 0};
    host::together(__builtin_return_address(0), &own, [](host::Lane** wave, int count) {
        unsigned first = host::offer_of<BitsmithWord>(wave[0]).value;
        for (int i = 0; i < count; i++) {
            BitsmithWord& word = host::offer_of<BitsmithWord>(wave[i]);
            if (word.value != first) host::fail("a value that should be uniform differs", *wave[0], *wave[i]);
            word.result = first;
        }
    });
    return own.result;
}

// ds_bpermute_b32: the address is four times the lane, modulo the wave.
__attribute__((noinline, convergent)) inline unsigned __builtin_amdgcn_ds_bpermute(unsigned address, unsigned value) {
    BitsmithWord own = {value, address, 0};
    host::together(__builtin_return_address(0), &own, [](host::Lane** wave, int count) {
        for (int i = 0; i < count; i++) {
            BitsmithWord& word = host::offer_of<BitsmithWord>(wave[i]);
            unsigned from = word.argument / 4 % host::wave_size;
            if (from >= unsigned(count)) host::fail("reads a lane that does not exist", *wave[0], *wave[i]);
            word.result = host::offer_of<BitsmithWord>(wave[from]).value;
        }
    });
    return own.result;
}

// ds_swizzle_b32 in bit mode: within 32 lanes, from ((lane & and) | or) ^ xor; five bits of the pattern each.
__attribute__((noinline, convergent)) inline unsigned __builtin_amdgcn_ds_swizzle(unsigned value, unsigned pattern) {
    BitsmithWord own = {value, pattern, 0};
    host::together(__builtin_return_address(0), &own, [](host::Lane** wave, int count) {
        for (int i = 0; i < count; i++) {
            BitsmithWord& word = host::offer_of<BitsmithWord>(wave[i]);
            unsigned p = word.argument, lane = unsigned(i) % 32;
            unsigned from = unsigned(i) / 32 * 32 + (((lane & (p & 31)) | (p >> 5 & 31)) ^ (p >> 10 & 31));
            if (p >> 15 || from >= unsigned(count)) host::fail("swizzles from a lane that does not exist", *wave[0], *wave[i]);
            word.result = host::offer_of<BitsmithWord>(wave[from]).value;
        }
    });
    return own.result;
}

// v_perm_b32: selectors 0 to 3 are the bytes of the second operand, 4 to 7 those of the first, 12 is zero.
inline unsigned __builtin_amdgcn_perm(unsigned high, unsigned low, unsigned selector) {
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> 8 * i & 0xff;
        if (pick > 7 && pick != 12) abort();
        unsigned byte = pick == 12 ? 0 : (pick < 4 ? low >> 8 * pick : high >> 8 * (pick - 4)) & 0xff;
        out |= byte << 8 * i;
    }
    return out;
}

inline unsigned __builtin_amdgcn_sudot4(bool a_signed, unsigned a, bool b_signed, unsigned b, unsigned sum, bool) {
    for (int i = 0; i < 4; i++) {
        int x = a_signed ? int8_t(a >> 8 * i) : int(a >> 8 * i & 0xff);
        int y = b_signed ? int8_t(b >> 8 * i) : int(b >> 8 * i & 0xff);
        sum += unsigned(x * y);
    }
    return sum;
}
inline unsigned __builtin_amdgcn_sdot4(unsigned a, unsigned b, unsigned sum, bool) {
    return __builtin_amdgcn_sudot4(true, a, true, b, sum, false);
}

inline float __builtin_amdgcn_exp2f(float x) { return float(std::exp2(double(x))); }
// The product of two halves is exact in double, and the sum is rounded far from a tie of halves or exactly.
#define __builtin_fmaf16(a, b, c) ((_Float16)((double)(a) * (double)(b) + (double)(c)))

/// The number behind an 8-bit float: `fraction` bits, this bias; `fnuz` has one zero and its NaN at 0x80.
inline double bitsmith_float8(unsigned code, int fraction, int bias, bool fnuz) {
    unsigned magnitude = code & 0x7f;
    if (fnuz ? code == 0x80 : fraction == 3 ? magnitude == 0x7f : magnitude > 0x7c) return NAN;
    if (!fnuz && fraction == 2 && magnitude == 0x7c) return code & 0x80 ? -INFINITY : INFINITY;
    int exponent = int(magnitude >> fraction), rest = int(magnitude & ((1u << fraction) - 1));
    double number = exponent ? std::ldexp(rest + (1 << fraction), exponent - bias - fraction) : std::ldexp(rest, 1 - bias - fraction);
    return code & 0x80 ? -number : number;
}
/// The nearest code, of two as near the even one.
inline unsigned bitsmith_to_float8(float number, int fraction, int bias, bool fnuz) {
    if (number != number) return fnuz ? 0x80 : 0x7f;
    unsigned best = 0;
    for (unsigned code = 0; code < 0x80; code++) {
        double here = bitsmith_float8(code, fraction, bias, fnuz), there = bitsmith_float8(best, fraction, bias, fnuz);
        if (!std::isfinite(here)) continue;
        double near = std::fabs(here - std::fabs(double(number))), far = std::fabs(there - std::fabs(double(number)));
        if (near < far || (near == far && code % 2 == 0)) best = code;
    }
    bool sign = std::signbit(number) && !(fnuz && best == 0);
    return best | (sign ? 0x80u : 0u);
}
#ifdef BITSMITH_FNUZ
constexpr bool bitsmith_fnuz = true;
#else
constexpr bool bitsmith_fnuz = false;
#endif
inline float __builtin_amdgcn_cvt_f32_fp8(unsigned word, int byte) {
    return float(bitsmith_float8(word >> 8 * byte & 0xff, 3, bitsmith_fnuz ? 8 : 7, bitsmith_fnuz));
}
inline float __builtin_amdgcn_cvt_f32_bf8(unsigned word, int byte) {
    return float(bitsmith_float8(word >> 8 * byte & 0xff, 2, bitsmith_fnuz ? 16 : 15, bitsmith_fnuz));
}
inline unsigned bitsmith_pack(unsigned low, unsigned high, unsigned old, bool upper) {
    unsigned pair = low | high << 8;
    return upper ? (old & 0xffffu) | pair << 16 : (old & 0xffff0000u) | pair;
}
inline unsigned __builtin_amdgcn_cvt_pk_fp8_f32(float a, float b, unsigned old, bool upper) {
    int bias = bitsmith_fnuz ? 8 : 7;
    return bitsmith_pack(bitsmith_to_float8(a, 3, bias, bitsmith_fnuz), bitsmith_to_float8(b, 3, bias, bitsmith_fnuz), old, upper);
}
inline unsigned __builtin_amdgcn_cvt_pk_bf8_f32(float a, float b, unsigned old, bool upper) {
    int bias = bitsmith_fnuz ? 16 : 15;
    return bitsmith_pack(bitsmith_to_float8(a, 2, bias, bitsmith_fnuz), bitsmith_to_float8(b, 2, bias, bitsmith_fnuz), old, upper);
}
#include "matrix.h"
