// Embedding: rows are gathered forward and added up backward, always in the order of the batch.

#include "vector.cl"

// tokens (M,), wte (V, C), wpe (Tmax, C) -> out (M, C), sequences of `length`
__kernel void embedding(
    __global const int *tokens, floats wte, floats wpe, __global const long *position,
    results out, int columns, int length, int has_position
) {
    int j = WIDTH * get_global_id(0);
    int i = get_global_id(1);
    if (j >= columns) {
        return;
    }
    size_t place = (has_position ? position[0] : 0) + i % length;
    floats word = wte + (size_t)tokens[i] * columns;
    float8 sum = load(word, j, columns, 0.0f) + load(wpe + place * columns, j, columns, 0.0f);
    store(sum, out + (size_t)i * columns, j, columns);
}

// out (n,) = addend, or 0; nothing to do where they are the same memory
__kernel void start(floats addend, results out, ulong n, int has_addend) {
    size_t i = WIDTH * get_global_id(0);
    if (i >= n || (has_addend && addend == out)) {
        return;
    }
    store(has_addend ? load(addend, i, n, 0.0f) : (float8)(0.0f), out, i, n);
}

// tokens (M,) -> next (M,): the next place of the same token, M where there is none;
// leads (M,): whether a place is its token's first
__kernel void links(__global const int *tokens, __global int *next, int rows) {
    __global int *leads = next + rows;
    int i = get_global_id(0);
    if (i >= rows) {
        return;
    }
    int token = tokens[i];
    int before = 0;
    while (before < i && tokens[before] != token) {
        before++;
    }
    int after = i + 1;
    while (after < rows && tokens[after] != token) {
        after++;
    }
    leads[i] = before == i;
    next[i] = after;
}

// dx (M, C) is added to out (V, C): the items of a token's first place take all its places in turn
__kernel void embedding_backward_tokens(
    __global const int *tokens, floats dx, __global const int *next, results out,
    int rows, int columns
) {
    int j = WIDTH * get_global_id(0);
    int i = get_global_id(1);
    if (j >= columns || !next[rows + i]) {
        return;
    }
    results row = out + (size_t)tokens[i] * columns;
    float8 sum = load(row, j, columns, 0.0f);
    for (; i < rows; i = next[i]) {
        sum += load(dx + (size_t)i * columns, j, columns, 0.0f);
    }
    store(sum, row, j, columns);
}

// dx (B, T, C) (, addend (Tmax, C)) -> out (Tmax, C), which may be addend
__kernel void embedding_backward_positions(
    floats dx, floats addend, results out, int batch, int length, int columns, int has_addend
) {
    int j = WIDTH * get_global_id(0);
    int t = get_global_id(1);
    if (j >= columns) {
        return;
    }
    size_t place = (size_t)t * columns;
    float8 sum = has_addend ? load(addend + place, j, columns, 0.0f) : (float8)(0.0f);
    for (int b = 0; b < batch && t < length; b++) {
        sum += load(dx + ((size_t)b * length + t) * columns, j, columns, 0.0f);
    }
    store(sum, out + place, j, columns);
}
