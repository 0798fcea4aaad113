// Matrix instructions of AMD GPUs on the host, from AMD's matrix instruction calculator
// (github.com/ROCm/amd_matrix_instruction_calculator) and the RDNA 3 and 4 manuals: which lane and register holds an element.
// This table is written by formulas of row, column and depth, and shares nothing with the compiler's lane maps.
namespace host {
struct Place {
    int lane, element;
};

/// 16 x 16 MFMA, `each` elements of depth in a lane.
template <int each> struct Mfma {
    static constexpr int depth = 4 * each, lanes = 64, sums = 4;
    static constexpr bool twice = false;
    static Place a(int row, int k) { return {row + 16 * (k / each), k % each}; }
    static Place b(int k, int column) { return {column + 16 * (k / each), k % each}; }
    static Place d(int row, int column) { return {column + 16 * (row / 4), row % 4}; }
};
/// RDNA 3: both halves of the wave hold the operands; sums lie in every second row.
struct Wmma11 {
    static constexpr int depth = 16, lanes = 32, sums = 8;
    static constexpr bool twice = true;
    static Place a(int row, int k) { return {row, k}; }
    static Place b(int k, int column) { return {column, k}; }
    static Place d(int row, int column) { return {column + 16 * (row % 2), row / 2}; }
};
/// RDNA 4: lanes 16 and up hold the upper half of the depth, and of the rows.
struct Wmma12 {
    static constexpr int depth = 16, lanes = 32, sums = 8;
    static constexpr bool twice = false;
    static Place a(int row, int k) { return {row + 16 * (k / 8), k % 8}; }
    static Place b(int k, int column) { return {column + 16 * (k / 8), k % 8}; }
    static Place d(int row, int column) { return {column + 16 * (row / 8), row % 8}; }
};

template <typename Operand, typename Sum> struct Product {
    const Operand* a;
    const Operand* b;
    const Sum* c;
    Sum* d;
};

/// The numbers of an operand: bytes and halves as they come in registers.
struct Half {
    typedef _Float16 raw;
    static double number(raw x) { return double(x); }
};
struct Brain {
    typedef unsigned short raw;
    static double number(raw x) {
        unsigned bits = unsigned(x) << 16;
        float out;
        memcpy(&out, &bits, 4);
        return double(out);
    }
};
struct SignedByte {
    typedef signed char raw;
    static double number(raw x) { return x; }
};
template <int fraction> struct Float8Byte {
    typedef unsigned char raw;
    static double number(raw x) {
        return bitsmith_float8(x, fraction, (fraction == 3 ? 7 : 15) + (bitsmith_fnuz ? 1 : 0), bitsmith_fnuz);
    }
};

template <typename Shape, typename A, typename B, typename Sum>
inline void multiply(Lane** wave, int count) {
    typedef Product<typename A::raw, Sum> Offer;
    if (count != Shape::lanes) fail("a matrix instruction of a wave that is not whole", *wave[0], *wave[count - 1]);
    auto a_at = [&](int lane) { return offer_of<Offer>(wave[lane]).a; };
    auto b_at = [&](int lane) { return reinterpret_cast<const typename B::raw*>(offer_of<Offer>(wave[lane]).b); };
    for (int lane = 0; Shape::twice && lane < 16; lane++) {
        size_t bytes = sizeof(typename A::raw) * Shape::depth;
        if (memcmp(a_at(lane), a_at(lane + 16), bytes) || memcmp(b_at(lane), b_at(lane + 16), bytes))
            fail("the halves of the wave hold different operands", *wave[lane], *wave[lane + 16]);
    }
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 16; column++) {
            Place out = Shape::d(row, column);
            double sum = double(offer_of<Offer>(wave[out.lane]).c[out.element]);
            for (int k = 0; k < Shape::depth; k++) {
                Place left = Shape::a(row, k), right = Shape::b(k, column);
                sum += A::number(a_at(left.lane)[left.element]) * B::number(b_at(right.lane)[right.element]);
            }
            if constexpr (Sum(1) / Sum(2) == Sum(0)) offer_of<Offer>(wave[out.lane]).d[out.element] = Sum(unsigned(int64_t(sum)));
            else offer_of<Offer>(wave[out.lane]).d[out.element] = Sum(sum);
        }
    }
}

/// What every such builtin does: offer the registers, wait for the wave, take the sums.
template <typename Shape, typename A, typename B, typename Sum, typename Operand, typename Sums>
__attribute__((always_inline)) inline Sums matrix(const void* site, const Operand& a, const Operand& b, const Sums& c) {
    Sums out = c;
    Product<typename A::raw, Sum> own = {reinterpret_cast<const typename A::raw*>(&a),
                                         reinterpret_cast<const typename A::raw*>(&b), reinterpret_cast<const Sum*>(&c),
                                         reinterpret_cast<Sum*>(&out)};
    together(site, &own, multiply<Shape, A, B, Sum>);
    return out;
}
template <typename Element, int lanes> using Vector = Element __attribute__((ext_vector_type(lanes)));
} // namespace host

#define BITSMITH_MFMA(name, operand, shape, a_kind, b_kind, sum)                                                          \
    __attribute__((noinline, convergent)) inline host::Vector<sum, 4> name(operand a, operand b, host::Vector<sum, 4> c,   \
                                                                           int, int, int) {                               \
        return host::matrix<host::shape, host::a_kind, host::b_kind, sum>(__builtin_return_address(0), a, b, c);          \
    }
typedef host::Vector<_Float16, 4> bitsmith_half4;
typedef host::Vector<_Float16, 8> bitsmith_half8;
typedef host::Vector<_Float16, 16> bitsmith_half16;
typedef host::Vector<short, 4> bitsmith_short4;
typedef host::Vector<short, 8> bitsmith_short8;
typedef host::Vector<short, 16> bitsmith_short16;
typedef host::Vector<int, 2> bitsmith_int2;
typedef host::Vector<int, 4> bitsmith_int4;
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x16f16, bitsmith_half4, Mfma<4>, Half, Half, float)
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x16bf16_1k, bitsmith_short4, Mfma<4>, Brain, Brain, float)
BITSMITH_MFMA(__builtin_amdgcn_mfma_i32_16x16x16i8, int, Mfma<4>, SignedByte, SignedByte, int)
BITSMITH_MFMA(__builtin_amdgcn_mfma_i32_16x16x32_i8, long, Mfma<8>, SignedByte, SignedByte, int)
BITSMITH_MFMA(__builtin_amdgcn_mfma_i32_16x16x64_i8, bitsmith_int4, Mfma<16>, SignedByte, SignedByte, int)
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x32_fp8_fp8, long, Mfma<8>, Float8Byte<3>, Float8Byte<3>, float)
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x32_fp8_bf8, long, Mfma<8>, Float8Byte<3>, Float8Byte<2>, float)
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x32_bf8_fp8, long, Mfma<8>, Float8Byte<2>, Float8Byte<3>, float)
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x32_bf8_bf8, long, Mfma<8>, Float8Byte<2>, Float8Byte<2>, float)
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x32_f16, bitsmith_half8, Mfma<8>, Half, Half, float)
typedef host::Vector<__bf16, 8> bitsmith_brain8;
BITSMITH_MFMA(__builtin_amdgcn_mfma_f32_16x16x32_bf16, bitsmith_brain8, Mfma<8>, Brain, Brain, float)

#define BITSMITH_WMMA(name, operand, shape, a_kind, b_kind)                                                                \
    __attribute__((noinline, convergent)) inline host::Vector<float, 8> name(operand a, operand b, host::Vector<float, 8> c) { \
        return host::matrix<host::shape, host::a_kind, host::b_kind, float>(__builtin_return_address(0), a, b, c);        \
    }
#define BITSMITH_WMMA_BYTES(name, operand, shape)                                                                          \
    __attribute__((noinline, convergent)) inline host::Vector<int, 8> name(bool a_signed, operand a, bool b_signed, operand b, \
                                                                           host::Vector<int, 8> c, bool) {                \
        if (!a_signed || !b_signed) abort();                                                                               \
        return host::matrix<host::shape, host::SignedByte, host::SignedByte, int>(__builtin_return_address(0), a, b, c);   \
    }
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_f16_w32, bitsmith_half16, Wmma11, Half, Half)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_bf16_w32, bitsmith_short16, Wmma11, Brain, Brain)
BITSMITH_WMMA_BYTES(__builtin_amdgcn_wmma_i32_16x16x16_iu8_w32, bitsmith_int4, Wmma11)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12, bitsmith_half8, Wmma12, Half, Half)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12, bitsmith_short8, Wmma12, Brain, Brain)
BITSMITH_WMMA_BYTES(__builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12, bitsmith_int2, Wmma12)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_fp8_fp8_w32_gfx12, bitsmith_int2, Wmma12, Float8Byte<3>, Float8Byte<3>)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_fp8_bf8_w32_gfx12, bitsmith_int2, Wmma12, Float8Byte<3>, Float8Byte<2>)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_bf8_fp8_w32_gfx12, bitsmith_int2, Wmma12, Float8Byte<2>, Float8Byte<3>)
BITSMITH_WMMA(__builtin_amdgcn_wmma_f32_16x16x16_bf8_bf8_w32_gfx12, bitsmith_int2, Wmma12, Float8Byte<2>, Float8Byte<2>)

// v_permlanex16_b32 with the identity selection: the lane of the same number in the other row of sixteen.
__attribute__((noinline, convergent)) inline unsigned __builtin_amdgcn_permlanex16(unsigned, unsigned value, unsigned low, unsigned high,
                                                                                   bool, bool) {
    BitsmithWord own = {value, 0, 0};
    if (low != 0x76543210u || high != 0xfedcba98u) abort();
    host::together(__builtin_return_address(0), &own, [](host::Lane** wave, int count) {
        if (count != 32) host::fail("a wave that is not whole", *wave[0], *wave[count - 1]);
        for (int i = 0; i < count; i++) {
            host::offer_of<BitsmithWord>(wave[i]).result = host::offer_of<BitsmithWord>(wave[i ^ 16]).value;
        }
    });
    return own.result;
}
