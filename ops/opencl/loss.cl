// Softmax cross-entropy: one group a row, one pass for its top and its sum of exponentials, one for
// the gradient. Each item keeps its own top and sum (Milakov and Gimelshein 2018).

#include "wide.cl"

#define GROUP 64

float exponential_sum(
    floats row, int columns, __local float *tops, __local float *sums, float *top
) {
    int lane = get_local_id(0);
    float own_top = -INFINITY, own_sum = 0.0f;
    for (int j = WIDTH * lane; j < columns; j += WIDTH * GROUP) {
        float8 x = load(row, j, columns, -INFINITY);
        float new_top = fmax(own_top, max_of(x));
        own_sum = own_sum * exp(own_top - new_top) + sum_of(exp(x - new_top));
        own_top = new_top;
    }
    tops[lane] = own_top;
    barrier(CLK_LOCAL_MEM_FENCE);
    float8 found = vload8(0, tops);
    for (int g = 1; g < GROUP / WIDTH; g++) {
        found = fmax(found, vload8(g, tops));
    }
    float row_top = max_of(found);
    sums[lane] = own_sum * exp(own_top - row_top);
    barrier(CLK_LOCAL_MEM_FENCE);
    found = vload8(0, sums);
    for (int g = 1; g < GROUP / WIDTH; g++) {
        found += vload8(g, sums);
    }
    *top = row_top;
    return sum_of(found);
}

// logits (M, V), targets (M,) -> losses (M,)
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void cross_entropy(
    floats logits, __global const int *targets, results losses, int columns
) {
    __local float tops[GROUP], sums[GROUP];
    int i = get_group_id(0);
    floats row = logits + (size_t)i * columns;
    float top;
    float sum = exponential_sum(row, columns, tops, sums, &top);
    if (get_local_id(0) == 0) {
        losses[i] = log(sum) + (top - row[targets[i]]);
    }
}

// logits (M, V), targets (M,) -> losses (M,), dlogits (M, V), which may be logits
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void cross_entropy_gradient(
    floats logits, __global const int *targets, results losses, results dlogits,
    int columns, float scale
) {
    __local float tops[GROUP], sums[GROUP];
    int i = get_group_id(0);
    int target = targets[i];
    floats row = logits + (size_t)i * columns;
    results gradient = dlogits + (size_t)i * columns;
    float picked = row[target]; // before anyone writes
    float top;
    float sum = exponential_sum(row, columns, tops, sums, &top);
    float share = scale / sum;
    for (int j = WIDTH * get_local_id(0); j < columns; j += WIDTH * GROUP) {
        store(exp(load(row, j, columns, top) - top) * share, gradient, j, columns);
    }
    barrier(CLK_GLOBAL_MEM_FENCE);
    if (get_local_id(0) == 0) {
        losses[i] = log(sum) + (top - picked);
        gradient[target] -= scale;
    }
}

// x (n,) -> sums[place], float64
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void sum(
    floats x, __global ulong *sums, ulong n, int place
) {
    __local wide cells[GROUP];
    wide8 found = wide8_zero();
    for (size_t i = WIDTH * get_local_id(0); i < n; i += WIDTH * GROUP) {
        found = wide8_add(found, load(x, i, n, 0.0f));
    }
    wide total = wide_group_sum(wide_of(found), cells, GROUP);
    if (get_local_id(0) == 0) {
        sums[place] = wide_bits(total);
    }
}

__kernel void mean(__global const ulong *sums, results out, int count, ulong n) {
    wide total = wide_zero();
    for (int i = 0; i < count; i++) {
        total = wide_add(total, wide_from(sums[i]));
    }
    out[0] = wide_share(total, n);
}
