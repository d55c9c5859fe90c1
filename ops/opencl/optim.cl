// AdamW, and the parts of clipping by the global norm.

#include "wide.cl"

#define GROUP 64
#define CHUNK 65536

// x (n,) -> sums (chunks,), float64: the squares of a chunk are summed by one group
__kernel __attribute__((reqd_work_group_size(GROUP, 1, 1))) void squared_norm(
    floats x, __global ulong *sums, ulong n
) {
    __local wide cells[GROUP];
    size_t first = CHUNK * (size_t)get_group_id(0);
    size_t last = min((size_t)n, first + CHUNK);
    wide8 found = wide8_zero();
    for (size_t i = first + WIDTH * get_local_id(0); i < last; i += WIDTH * GROUP) {
        found = wide8_add_squares(found, load(x, i, last, 0.0f));
    }
    wide sum = wide_group_sum(wide_of(found), cells, GROUP);
    if (get_local_id(0) == 0) {
        sums[get_group_id(0)] = wide_bits(sum);
    }
}

// Work item k sums array k of up to eight, all float64, to sums[first + k].
__kernel void sum_each(
    __global const ulong *x0, __global const ulong *x1, __global const ulong *x2,
    __global const ulong *x3, __global const ulong *x4, __global const ulong *x5,
    __global const ulong *x6, __global const ulong *x7, __global ulong *sums,
    int n0, int n1, int n2, int n3, int n4, int n5, int n6, int n7, int first
) {
    int k = get_global_id(0);
    __global const ulong *x = x0;
    int n = n0;
    switch (k) {
        case 1: x = x1; n = n1; break;
        case 2: x = x2; n = n2; break;
        case 3: x = x3; n = n3; break;
        case 4: x = x4; n = n4; break;
        case 5: x = x5; n = n5; break;
        case 6: x = x6; n = n6; break;
        case 7: x = x7; n = n7; break;
        default: break;
    }
    wide sum = wide_zero();
    for (int i = 0; i < n; i++) {
        sum = wide_add(sum, wide_from(x[i]));
    }
    if (n > 0) {
        sums[first + k] = wide_bits(sum);
    }
}

__kernel void clip_factor(
    __global const ulong *sums, results factor, results norm, int count, float max_norm
) {
    wide sum = wide_zero();
    for (int i = 0; i < count; i++) {
        sum = wide_add(sum, wide_from(sums[i]));
    }
    float found = wide_root(sum);
    float share = max_norm / (found + 1e-6f);
    // written so that a norm that is not a number leaves the factor at 1, as on the CPU
    factor[0] = max_norm != 0.0f && share < 1.0f ? share : 1.0f;
    norm[0] = found;
}

// parameter, m, v (n,) are updated; rates: learning rate, 1 - beta1^t, 1 - beta2^t in float64
__kernel void adamw(
    results parameter, floats gradient, results m, results v,
    __global const ulong *rates, floats factor, ulong n,
    float beta1, float take1, float beta2, float take2, float epsilon, float weight_decay,
    int has_factor
) {
    size_t i = WIDTH * get_global_id(0);
    if (i >= n) {
        return;
    }
    float rate = wide_round(wide_from(rates[0]));
    float pace = rate / wide_round(wide_from(rates[1]));
    float spread = 1.0f / sqrt(wide_round(wide_from(rates[2])));
    float decay = 1.0f - rate * weight_decay;
    float8 g = load(gradient, i, n, 0.0f) * (has_factor ? factor[0] : 1.0f);
    float8 new_m = beta1 * load(m, i, n, 0.0f) + take1 * g;
    float8 new_v = beta2 * load(v, i, n, 0.0f) + take2 * g * g;
    float8 step = pace * new_m / (sqrt(new_v) * spread + epsilon);
    store(new_m, m, i, n);
    store(new_v, v, i, n);
    store(load(parameter, i, n, 0.0f) * decay - step, parameter, i, n);
}
