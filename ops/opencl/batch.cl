// Copies of some sequences of a batch, and the sum that is their gradient.

#include "vector.cl"

__kernel void copy_words(__global const uint *x, __global uint *out, ulong first, ulong n) {
    size_t i = get_global_id(0);
    if (i < n) {
        out[i] = x[first + i];
    }
}

__kernel void copy_halves(__global const ushort *x, __global ushort *out, ulong first, ulong n) {
    size_t i = get_global_id(0);
    if (i < n) {
        out[i] = x[first + i];
    }
}

// out (n,) = addend or 0; elements first … last of it get dy added; out may be addend
__kernel void slice_backward(
    floats dy, floats addend, results out, ulong first, ulong last, ulong n, int has_addend
) {
    size_t i = get_global_id(0);
    if (i < n) {
        float start = has_addend ? addend[i] : 0.0f;
        out[i] = first <= i && i < last ? start + dy[i - first] : start;
    }
}
