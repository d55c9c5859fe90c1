// Elementwise kernels: one work item does eight elements of flat arrays of n.

#include "vector.cl"
#include "random.cl"

__kernel void add(floats x, floats y, results out, ulong n) {
    size_t i = WIDTH * get_global_id(0);
    if (i < n) {
        store(load(x, i, n, 0.0f) + load(y, i, n, 0.0f), out, i, n);
    }
}

// scale = 2 sqrt(2 / pi): x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
__kernel void gelu(floats x, results out, ulong n, float scale, float cubic) {
    size_t i = WIDTH * get_global_id(0);
    if (i < n) {
        float8 row = load(x, i, n, 0.0f);
        float8 u = scale * (row + cubic * row * row * row);
        store(row / (1.0f + exp(-u)), out, i, n);
    }
}

__kernel void gelu_backward(
    floats x, floats dy, results dx, ulong n, float scale, float cubic
) {
    size_t i = WIDTH * get_global_id(0);
    if (i < n) {
        float8 row = load(x, i, n, 0.0f);
        float8 square = row * row;
        float8 share = 1.0f / (1.0f + exp(-scale * (row + cubic * square * row)));
        float8 slope = scale * (1.0f + 3.0f * cubic * square);
        float8 factor = share * (1.0f + row * (1.0f - share) * slope);
        store(load(dy, i, n, 0.0f) * factor, dx, i, n);
    }
}

__kernel void dropout(
    floats x, __global const ulong *key, floats addend, results out, ulong n,
    ulong stream, uint threshold, float keep_scale, int has_addend
) {
    size_t i = WIDTH * get_global_id(0);
    if (i < n) {
        float8 factor = keep(key[0] + stream, i, 1, threshold, keep_scale);
        float8 kept = load(x, i, n, 0.0f) * factor;
        store(has_addend ? kept + load(addend, i, n, 0.0f) : kept, out, i, n);
    }
}
