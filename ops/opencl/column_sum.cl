// Sums of columns in two steps: over chunks of rows, then over the chunks, always in order.

#include "vector.cl"

// x (M, N) -> sums (chunks, N): the sum of `count` rows each
__kernel void partial_sums(floats x, results sums, int rows, int columns, int count) {
    int j = WIDTH * get_global_id(0);
    int chunk = get_global_id(1);
    if (j >= columns) {
        return;
    }
    int last = min(rows, (chunk + 1) * count);
    float8 found = 0.0f;
    for (int i = chunk * count; i < last; i++) {
        found += load(x + (size_t)i * columns, j, columns, 0.0f);
    }
    store(found, sums + (size_t)chunk * columns, j, columns);
}

// sums (…, N), of which `chunks` from `first` on (, addend (N,)) -> out (N,), which may be addend
__kernel void total(
    floats sums, floats addend, results out, int columns, int first, int chunks, int has_addend
) {
    int j = WIDTH * get_global_id(0);
    if (j >= columns) {
        return;
    }
    float8 found = has_addend ? load(addend, j, columns, 0.0f) : (float8)(0.0f);
    for (int i = first; i < first + chunks; i++) {
        found += load(sums + (size_t)i * columns, j, columns, 0.0f);
    }
    store(found, out, j, columns);
}
