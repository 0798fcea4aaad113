// Eight threads share a device, a bundle, a kernel, packed weights and a KV cache; each multiplies its own rows, and attends in a
// cache of its own and to requests of its own in the shared one, and must get what a single thread got.
//
//     threads BUNDLE FORMAT N K KV_FORMAT          the bundle has kernels for 4 heads over 2 of 64 channels, pages of 16
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

// Two prompts and two tokens in a cache of one's own: the outputs, one step after the other.
static std::vector<uint16_t> attend(const Handle &device, const Handle &bundle, const char *format, unsigned seed)
{
    const bitsmith_kv_shape shape = {"f16", 4, 2, 64, 64, 16};
    Handle cache = made("cache", [&](uint64_t *out) {
        return bitsmith_kv_create(bundle.get(), &shape, &format, 1, 16, 2, out);
    });
    uint64_t requests[2];
    for (uint64_t &request : requests)
        check(bitsmith_kv_open(cache.get(), &request), "request");
    std::vector<uint16_t> all;
    const uint64_t steps[][2] = {{37, 20}, {1, 1}, {1, 0}};
    for (const auto &step : steps) {
        size_t rows = step[0] + step[1];
        std::vector<uint16_t> q(rows * 256), k(rows * 128), v(rows * 128), y(rows * 256);
        unsigned turn = seed + 11 * static_cast<unsigned>(all.size() % 97);
        auto fill = [&](std::vector<uint16_t> &list, unsigned what) {
            // Between 1 and 2, every third one negative.
            for (size_t i = 0; i < list.size(); i++)
                list[i] = static_cast<uint16_t>((i % 3 ? 0x3c00 : 0xbc00) | ((i * 37 + turn * 89 + what * 53) & 0x3ff));
        };
        fill(q, 0), fill(k, 1), fill(v, 2);
        auto buffer = [&](std::vector<uint16_t> &list) {
            Handle made_ = made("buffer", [&](uint64_t *out) {
                return bitsmith_buffer_create(device.get(), list.size() * 2, out);
            });
            check(bitsmith_buffer_upload(made_.get(), 0, list.data(), list.size() * 2), "upload");
            return made_;
        };
        Handle in = buffer(q), keys = buffer(k), values = buffer(v), out = buffer(y);
        bitsmith_view views[] = {{in.get(), 0, 0}, {keys.get(), 0, 0}, {values.get(), 0, 0}, {out.get(), 0, 0}};
        check(bitsmith_kv_grow(cache.get(), requests, step, 2), "grow");
        check(bitsmith_kv_append(cache.get(), 0, &views[1], &views[2]), "append");
        check(bitsmith_kv_attend(cache.get(), 0, &views[0], &views[3], nullptr), "attend");
        check(bitsmith_buffer_download(out.get(), 0, y.data(), y.size() * 2), "download");
        all.insert(all.end(), y.begin(), y.end());
    }
    return all;
}

int main(int count, char **args)
try {
    if (count != 6) {
        std::fprintf(stderr, "usage: %s BUNDLE FORMAT N K KV_FORMAT\n", args[0]);
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

    std::vector<std::vector<uint16_t>> expected, attended;
    for (unsigned seed = 0; seed < 8; seed++) {
        expected.push_back(multiply(device, kernel, weights, n, k, 5, seed));
        attended.push_back(attend(device, bundle, args[5], seed));
    }
    const bitsmith_kv_shape shape = {"f16", 4, 2, 64, 64, 16};
    Handle shared = made("cache", [&](uint64_t *out) {
        return bitsmith_kv_create(bundle.get(), &shape, &args[5], 1, 16, 8, out);
    });
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
                if (turn % 10 == 0 && attend(device, bundle, args[5], seed) != attended[seed])
                    wrong++;
                // Everybody opens, grows and ends requests of the same cache.
                uint64_t request = 0, tokens = seed % 3 + 1, found = 0;
                check(bitsmith_kv_open(shared.get(), &request), "request");
                check(bitsmith_kv_grow(shared.get(), &request, &tokens, 1), "grow");
                check(bitsmith_kv_tokens(shared.get(), request, &found), "tokens");
                if (found != tokens)
                    wrong++;
                check(bitsmith_kv_end(shared.get(), request), "end");
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
