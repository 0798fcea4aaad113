// Runs launches from a file on the kernels of `bitsmith_kernels`; comes after the kernels.
//
// Arguments: the file of launches, the file of results, the order of waves (0 forward, 1 reversed, 2 random), a seed.
// A launch is: kernel, grid, workgroup, wave size, number of arguments (u32 each); an argument is its kind (0 a buffer, 1 a
// number), its size in bytes, its bytes. The results are the bytes of all buffers after their launches, in order.
template <typename T> static T take(FILE* file) {
    T value;
    if (fread(&value, sizeof value, 1, file) != 1) abort();
    return value;
}

int main(int, char** argv) {
    FILE* in = fopen(argv[1], "rb");
    FILE* out = fopen(argv[2], "wb");
    if (!in || !out) return 71;
    host::Order order = host::Order(atoi(argv[3]));
    host::random_state = strtoull(argv[4], nullptr, 10) * 2 + 1;
    uint32_t launches = take<uint32_t>(in);
    for (uint32_t launch = 0; launch < launches; launch++) {
        host::kernel = bitsmith_kernels[take<uint32_t>(in)];
        for (unsigned& n : host::grid) n = take<uint32_t>(in);
        for (unsigned& n : host::workgroup) n = take<uint32_t>(in);
        host::wave_size = take<uint32_t>(in);
        uint32_t count = take<uint32_t>(in);
        std::vector<void*> args(count);
        std::vector<void*> buffers(count);
        std::vector<size_t> sizes(count);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t kind = take<uint32_t>(in);
            uint64_t size = take<uint64_t>(in);
            // Exactly as long as the argument, so that a sanitizer sees what passes its end.
            void* bytes = nullptr;
            if (posix_memalign(&bytes, 256, size ? size : 1)) abort();
            if (size && fread(bytes, size, 1, in) != 1) abort();
            buffers[i] = bytes;
            sizes[i] = kind == 0 ? size : 0;
            args[i] = kind == 0 ? &buffers[i] : bytes;
        }
        host::arguments = args.data();
        unsigned blocks = host::grid[0] * host::grid[1] * host::grid[2];
        for (unsigned i = 0; i < blocks; i++) {
            unsigned block = order == host::Reversed ? blocks - 1 - i : i;
            host::block_id[0] = block % host::grid[0];
            host::block_id[1] = block / host::grid[0] % host::grid[1];
            host::block_id[2] = block / host::grid[0] / host::grid[1];
            host::run_block(order);
        }
        for (uint32_t i = 0; i < count; i++) {
            if (sizes[i] && fwrite(buffers[i], sizes[i], 1, out) != 1) abort();
            free(buffers[i]);
        }
    }
    return fclose(out) ? 71 : 0;
}
