// Layer normalisation. LANES work items share a row and ROWS rows a group; rows are padded to whole
// groups, and the items of a row that does not exist take part in barriers only.

#include "vector.cl"

#define LANES 8
#define ROWS 8

// The sum of a row's LANES values, the same for each of its items.
float row_sum(float value, __local float *cells) {
    __local float *row = cells + LANES * get_local_id(1);
    row[get_local_id(0)] = value;
    barrier(CLK_LOCAL_MEM_FENCE);
    float total = sum_of(vload8(0, row));
    barrier(CLK_LOCAL_MEM_FENCE);
    return total;
}


// x (M, C), weight, bias (C,) -> out (M, C), means, rstds (M,)
__kernel __attribute__((reqd_work_group_size(LANES, ROWS, 1))) void layernorm(
    floats x, floats weight, floats bias, results out, results means, results rstds,
    int rows, int columns, float epsilon
) {
    __local float cells[LANES * ROWS];
    int lane = get_local_id(0);
    int i = get_global_id(1);
    int width = i < rows ? columns : 0;
    floats row = x + (size_t)(i < rows ? i : 0) * columns;
    results target = out + (size_t)(i < rows ? i : 0) * columns;
    float8 sums = 0.0f;
    for (int j = WIDTH * lane; j < width; j += WIDTH * LANES) {
        sums += load(row, j, columns, 0.0f);
    }
    float mean = row_sum(sum_of(sums), cells) / columns;
    float8 squares = 0.0f;
    for (int j = WIDTH * lane; j < width; j += WIDTH * LANES) {
        float8 centred = load(row, j, columns, mean) - mean;
        squares += centred * centred;
    }
    float rstd = 1.0f / sqrt(row_sum(sum_of(squares), cells) / columns + epsilon);
    for (int j = WIDTH * lane; j < width; j += WIDTH * LANES) {
        float8 normalised = (load(row, j, columns, mean) - mean) * rstd;
        float8 scaled = normalised * load(weight, j, columns, 0.0f);
        store(scaled + load(bias, j, columns, 0.0f), target, j, columns);
    }
    if (lane == 0 && i < rows) {
        means[i] = mean;
        rstds[i] = rstd;
    }
}

// dy, x, addend (M, C), weight (C,), means, rstds (M,) -> dx (M, C), which may be dy or addend
__kernel __attribute__((reqd_work_group_size(LANES, ROWS, 1))) void layernorm_backward(
    floats dy, floats x, floats weight, floats means, floats rstds, floats addend, results dx,
    int rows, int columns, int has_addend
) {
    __local float cells[LANES * ROWS];
    int lane = get_local_id(0);
    int i = get_global_id(1);
    int width = i < rows ? columns : 0;
    size_t first = (size_t)(i < rows ? i : 0) * columns;
    float mean = means[i < rows ? i : 0];
    float rstd = rstds[i < rows ? i : 0];
    float8 levels = 0.0f, alongs = 0.0f;
    for (int j = WIDTH * lane; j < width; j += WIDTH * LANES) {
        float8 scaled = load(dy + first, j, columns, 0.0f) * load(weight, j, columns, 0.0f);
        levels += scaled;
        alongs += scaled * (load(x + first, j, columns, mean) - mean);
    }
    float level = row_sum(sum_of(levels), cells) / columns;
    float along = row_sum(sum_of(alongs), cells) / columns * rstd * rstd;
    for (int j = WIDTH * lane; j < width; j += WIDTH * LANES) {
        float8 scaled = load(dy + first, j, columns, 0.0f) * load(weight, j, columns, 0.0f);
        float8 centred = load(x + first, j, columns, mean) - mean;
        float8 gradient = (scaled - level - centred * along) * rstd;
        if (has_addend) {
            gradient += load(addend + first, j, columns, 0.0f);
        }
        store(gradient, dx + first, j, columns);
    }
}

// Sums over `count` rows from count * group on: x, dy (M, C) -> sums (2, chunks, C), the second
// launch of which is `total` of column_sum.cl.
__kernel void layernorm_backward_params(
    floats x, floats dy, floats means, floats rstds, results sums,
    int rows, int columns, int count, int chunks
) {
    int j = WIDTH * get_global_id(0);
    int chunk = get_global_id(1);
    if (j >= columns) {
        return;
    }
    int last = min(rows, (chunk + 1) * count);
    float8 weights = 0.0f, biases = 0.0f;
    for (int i = chunk * count; i < last; i++) {
        float8 given = load(dy + (size_t)i * columns, j, columns, 0.0f);
        float8 row = load(x + (size_t)i * columns, j, columns, 0.0f);
        weights += given * ((row - means[i]) * rstds[i]);
        biases += given;
    }
    store(weights, sums + (size_t)chunk * columns, j, columns);
    store(biases, sums + (size_t)(chunks + chunk) * columns, j, columns);
}
