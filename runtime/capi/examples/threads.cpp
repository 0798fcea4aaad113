// Eight threads share a device, a bundle, a kernel and packed weights; each multiplies its own rows and must get what a single thread
// got.
//
//     threads BUNDLE FORMAT N K
#include <bitsmith.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

static void check(int32_t status, const char *what)
{
    if (status == BITSMITH_OK)
        return;
    std::string text(bitsmith_last_error(nullptr, 0), '\0');
    bitsmith_last_error(&text[0], text.size());
    throw std::runtime_error(std::string(what) + ": " + text);
}

// A handle that closes itself.
class Handle {
public:
    explicit Handle(uint64_t value) : value_(value) {}
    Handle(Handle &&other) noexcept : value_(std::exchange(other.value_, 0)) {}
    Handle &operator=(Handle &&) = delete;
    ~Handle()
    {
        if (value_)
            bitsmith_close(value_);
    }
    uint64_t get() const { return value_; }

private:
    uint64_t value_;
};

template <typename Make> static Handle made(const char *what, Make make)
{
    uint64_t handle = 0;
    check(make(&handle), what);
    return Handle(handle);
}

static std::vector<uint16_t> multiply(const Handle &device, const Handle &kernel, const Handle &weights, size_t n,
                                      size_t k, size_t m, unsigned seed)
{
    std::vector<uint16_t> x(m * k), y(m * n);
    for (size_t i = 0; i < x.size(); i++)
        // Numbers of binary16 between 1 and 2.
        x[i] = static_cast<uint16_t>(0x3c00 | ((i * 31 + seed * 97) & 0x3ff));
    auto buffer = [&](size_t bytes) {
        return made("buffer", [&](uint64_t *out) { return bitsmith_buffer_create(device.get(), bytes, out); });
    };
    Handle in = buffer(x.size() * 2), out = buffer(y.size() * 2);
    check(bitsmith_buffer_upload(in.get(), 0, x.data(), x.size() * 2), "upload");
    bitsmith_view views[] = {{in.get(), 0, 0}, {weights.get(), 0, 0}, {out.get(), 0, 0}};
    check(bitsmith_launch(kernel.get(), m, views, 3), "launch");
    check(bitsmith_buffer_download(out.get(), 0, y.data(), y.size() * 2), "download");
    return y;
}

int main(int count, char **args)
try {
    if (count != 5) {
        std::fprintf(stderr, "usage: %s BUNDLE FORMAT N K\n", args[0]);
        return 2;
    }
    const char *format = args[2];
    size_t n = std::stoul(args[3]), k = std::stoul(args[4]);
    Handle device =
        made("open", [&](uint64_t *out) { return bitsmith_open(BITSMITH_ABI_VERSION, "cpu:4", out); });
    Handle bundle =
        made("bundle", [&](uint64_t *out) { return bitsmith_bundle_open(device.get(), args[1], out); });
    bitsmith_want want = {};
    want.op = "matmul", want.format = format, want.n = n, want.k = k;
    Handle kernel =
        made("kernel", [&](uint64_t *out) { return bitsmith_kernel_choose(bundle.get(), &want, 5, out); });
    std::vector<float> values(n * k);
    for (size_t i = 0; i < values.size(); i++)
        values[i] = static_cast<float>(static_cast<int>(i * 13 % 29) - 14) / 64;
    Handle quantized = made("quantize", [&](uint64_t *out) {
        return bitsmith_quantize(format, n, k, values.data(), nullptr, out);
    });
    size_t bytes = 0;
    check(bitsmith_weights_pack(quantized.get(), "n16", nullptr, 0, &bytes), "size");
    std::vector<char> packed(bytes);
    check(bitsmith_weights_pack(quantized.get(), "n16", packed.data(), bytes, &bytes), "pack");
    Handle weights =
        made("weights", [&](uint64_t *out) { return bitsmith_buffer_create(device.get(), bytes, out); });
    check(bitsmith_buffer_upload(weights.get(), 0, packed.data(), bytes), "upload");

    std::vector<std::vector<uint16_t>> expected;
    for (unsigned seed = 0; seed < 8; seed++)
        expected.push_back(multiply(device, kernel, weights, n, k, 5, seed));
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 8; seed++)
        threads.emplace_back([&, seed] {
            for (int turn = 0; turn < 50; turn++) {
                // Some calls fail on purpose: each thread has its own last error.
                if (turn % 10 == 0 && bitsmith_synchronize(seed + 1) != BITSMITH_INVALID)
                    wrong++;
                if (multiply(device, kernel, weights, n, k, 5, seed) != expected[seed])
                    wrong++;
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    std::printf("8 threads, 50 launches each: %d wrong\n", wrong.load());
    return wrong == 0 ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
