// Causal attention without a matrix of T x T (Dao et al. 2022). A work item has one row of queries
// (or keys), a group has BLOCK of them, and goes through the other side in tiles of TILE rows that
// lie in local memory. Forward keeps a running top and sum of exponentials for each row; backward
// makes the probabilities again from the logarithm of the sum. No sum is shared between groups, so
// the gradients of queries, keys and values are a launch each. Keys and values are two because both
// at once need more registers than GPUs have.
//
// Constants: WIDTH_OF_HEAD, VECTORS of eight that hold it, BLOCK, TILE (a multiple of eight),
// DROPOUT (0 or 1). A head's rows are padded with zeros to whole vectors.

#include "vector.cl"
#include "random.cl"

#define OCTETS (TILE / 8)
#define STEPS (int8)(0, 1, 2, 3, 4, 5, 6, 7)

// One row of a head.
void load_row(floats x, float8 *row) {
    for (int c = 0; c < VECTORS; c++) {
        row[c] = load(x, WIDTH * c, WIDTH_OF_HEAD, 0.0f);
    }
}

void store_row(float8 *row, results x) {
    for (int c = 0; c < VECTORS; c++) {
        store(row[c], x, WIDTH * c, WIDTH_OF_HEAD);
    }
}

// TILE rows of a head by the whole group; rows behind the last become zero.
void load_tile(floats x, int stride, int first, int last, __local float8 *tile) {
    for (int place = get_local_id(0); place < TILE * VECTORS; place += BLOCK) {
        int row = first + place / VECTORS;
        floats source = x + (size_t)(row < last ? row : 0) * stride;
        float8 found = load(source, WIDTH * (place % VECTORS), WIDTH_OF_HEAD, 0.0f);
        tile[place] = row < last ? found : (float8)(0.0f);
    }
}

// The same, each column of the head's rows together: element (d, j) is at d * TILE + j.
void load_turned(floats x, int stride, int first, int last, __local float *tile) {
    for (int place = get_local_id(0); place < TILE * VECTORS; place += BLOCK) {
        int j = place % TILE, c = place / TILE;
        bool inside = first + j < last;
        floats source = x + (size_t)(inside ? first + j : 0) * stride;
        float8 found = load(source, WIDTH * c, WIDTH_OF_HEAD, 0.0f);
        float values[WIDTH];
        vstore8(inside ? found : (float8)(0.0f), 0, values);
        for (int e = 0; e < WIDTH; e++) {
            tile[(WIDTH * c + e) * TILE + j] = values[e];
        }
    }
}

// Products of one row with each row of a turned tile.
void multiply(const float8 *row, __local const float *tile, float8 *products) {
    for (int g = 0; g < OCTETS; g++) {
        float8 sum = 0.0f;
        for (int c = 0; c < VECTORS; c++) {
            __local const float *column = tile + WIDTH * c * TILE + 8 * g;
            sum += row[c].s0 * vload8(0, column);
            sum += row[c].s1 * vload8(0, column + TILE);
            sum += row[c].s2 * vload8(0, column + 2 * TILE);
            sum += row[c].s3 * vload8(0, column + 3 * TILE);
            sum += row[c].s4 * vload8(0, column + 4 * TILE);
            sum += row[c].s5 * vload8(0, column + 5 * TILE);
            sum += row[c].s6 * vload8(0, column + 6 * TILE);
            sum += row[c].s7 * vload8(0, column + 7 * TILE);
        }
        products[g] = sum;
    }
}

// sum = sum * share + weights times the rows of a tile
void accumulate(const float8 *weights, __local const float8 *tile, float share, float8 *sum) {
    float given[TILE];
    for (int g = 0; g < OCTETS; g++) {
        vstore8(weights[g], g, given);
    }
    for (int c = 0; c < VECTORS; c++) {
        float8 found = sum[c] * share;
        for (int j = 0; j < TILE; j++) {
            found += given[j] * tile[j * VECTORS + c];
        }
        sum[c] = found;
    }
}

// q (B, n, …), k, v (B, longest, …) -> out (B, n, C), lse (B, H, n). Query i sees keys up to
// before + i. A position that does not fit gives NaN.
__kernel __attribute__((reqd_work_group_size(BLOCK, 1, 1))) void attention(
    floats q, floats k, floats v, __global const long *position, __global const ulong *key,
    results out, results lse, int n, int longest, int heads, int q_stride, int k_stride,
    int k_offset, int v_offset, int has_position, float scale,
    ulong stream, uint threshold, float keep_scale
) {
    __local float keys[TILE * VECTORS * WIDTH];
    __local float8 values[TILE * VECTORS];
    int lane = get_local_id(0), block = get_num_groups(0) - 1 - get_group_id(0);
    int b = get_group_id(1) / heads, h = get_group_id(1) % heads;
    int channels = heads * WIDTH_OF_HEAD, head = h * WIDTH_OF_HEAD;
    long start = has_position ? position[0] : 0;
    bool fits = start >= 0 && start + n <= longest;
    int before = fits ? (int)start : 0;
    int i = block * BLOCK + lane;
    int row = min(i, n - 1);
    int last = fits ? min(before + n, before + (block + 1) * BLOCK) : 0;
    k += (size_t)b * longest * k_stride + head + k_offset;
    v += (size_t)b * longest * k_stride + head + v_offset;
    float8 query[VECTORS], sum[VECTORS];
    load_row(q + ((size_t)b * n + row) * q_stride + head, query);
    for (int c = 0; c < VECTORS; c++) {
        query[c] *= scale;
        sum[c] = 0.0f;
    }
    float top = -INFINITY, exponentials = 0.0f;
    for (int first = 0; first < last; first += TILE) {
        barrier(CLK_LOCAL_MEM_FENCE);
        load_turned(k, k_stride, first, last, keys);
        load_tile(v, k_stride, first, last, values);
        barrier(CLK_LOCAL_MEM_FENCE);
        float8 weights[OCTETS];
        multiply(query, keys, weights);
        float new_top = top;
        for (int g = 0; g < OCTETS; g++) {
            int8 seen = first + 8 * g + STEPS <= (int8)(before + row);
            weights[g] = select((float8)(-INFINITY), weights[g], seen);
            new_top = fmax(new_top, max_of(weights[g]));
        }
        float share = exp(top - new_top);
        exponentials *= share;
        for (int g = 0; g < OCTETS; g++) {
            weights[g] = exp(weights[g] - new_top);
            exponentials += sum_of(weights[g]);
#if DROPOUT
            ulong index = ((ulong)get_group_id(1) * n + row) * n + first + 8 * g;
            weights[g] *= keep(key[0] + stream, index, 1, threshold, keep_scale);
#endif
        }
        accumulate(weights, values, share, sum);
        top = new_top;
    }
    if (i < n) {
        for (int c = 0; c < VECTORS; c++) {
            sum[c] /= exponentials;
        }
        store_row(sum, out + ((size_t)b * n + i) * channels + head);
        lse[(size_t)get_group_id(1) * n + i] = top + log(exponentials);
    }
}

// Of all three gradient launches: qkv (B, T, 3C), out, dout (B, T, C), lse, along (B, H, T).
// Here: dqkv's queries, and along = the sum of dout * out over a head's row.
__kernel __attribute__((reqd_work_group_size(BLOCK, 1, 1))) void attention_backward_queries(
    floats qkv, floats out, floats lse, floats dout, __global const ulong *key,
    results along, results dqkv, int T, int heads, float scale,
    ulong stream, uint threshold, float keep_scale
) {
    __local float turned_keys[TILE * VECTORS * WIDTH], turned_values[TILE * VECTORS * WIDTH];
    __local float8 keys[TILE * VECTORS];
    int lane = get_local_id(0), block = get_num_groups(0) - 1 - get_group_id(0);
    int b = get_group_id(1) / heads, h = get_group_id(1) % heads;
    int channels = heads * WIDTH_OF_HEAD, head = h * WIDTH_OF_HEAD;
    int stride = 3 * channels;
    int i = block * BLOCK + lane;
    int row = min(i, T - 1);
    int last = min(T, (block + 1) * BLOCK);
    floats q = qkv + (size_t)b * T * stride + head;
    size_t place = ((size_t)b * T + row) * channels + head;
    size_t unit = (size_t)get_group_id(1) * T + row;
    float8 query[VECTORS], given[VECTORS], sum[VECTORS];
    load_row(q + (size_t)row * stride, query);
    load_row(out + place, sum);
    load_row(dout + place, given);
    float8 products = 0.0f;
    for (int c = 0; c < VECTORS; c++) {
        products += given[c] * sum[c];
        sum[c] = 0.0f;
    }
    float own_along = sum_of(products), own_lse = lse[unit];
    for (int first = 0; first < last; first += TILE) {
        barrier(CLK_LOCAL_MEM_FENCE);
        load_tile(q + channels, stride, first, last, keys);
        load_turned(q + channels, stride, first, last, turned_keys);
        load_turned(q + 2 * channels, stride, first, last, turned_values);
        barrier(CLK_LOCAL_MEM_FENCE);
        float8 scores[OCTETS], weights[OCTETS];
        multiply(query, turned_keys, scores);
        multiply(given, turned_values, weights);
        for (int g = 0; g < OCTETS; g++) {
            int8 seen = first + 8 * g + STEPS <= (int8)(row);
#if DROPOUT
            ulong index = unit * T + first + 8 * g;
            weights[g] *= keep(key[0] + stream, index, 1, threshold, keep_scale);
#endif
            float8 slope = exp(scores[g] * scale - own_lse) * (weights[g] - own_along) * scale;
            weights[g] = select((float8)(0.0f), slope, seen);
        }
        accumulate(weights, keys, 1.0f, sum);
    }
    if (i < T) {
        store_row(sum, dqkv + ((size_t)b * T + i) * stride + head);
        along[unit] = own_along;
    }
}

// What eight queries from `first` on have in a row of lse or along; 0 where there is no query. The
// rows of such queries are zero in a tile, so they add nothing.
float8 tile_of(floats x, size_t unit, int first, int T) {
    return load(x + unit, first, T, 0.0f);
}

// dqkv's keys.
__kernel __attribute__((reqd_work_group_size(BLOCK, 1, 1))) void attention_backward_keys(
    floats qkv, floats lse, floats dout, __global const ulong *key,
    floats along, results dqkv, int T, int heads, float scale,
    ulong stream, uint threshold, float keep_scale
) {
    __local float turned_queries[TILE * VECTORS * WIDTH], gradients[TILE * VECTORS * WIDTH];
    __local float8 queries[TILE * VECTORS];
    int lane = get_local_id(0), block = get_group_id(0);
    int b = get_group_id(1) / heads, h = get_group_id(1) % heads;
    int channels = heads * WIDTH_OF_HEAD, head = h * WIDTH_OF_HEAD;
    int stride = 3 * channels;
    int i = block * BLOCK + lane;
    int row = min(i, T - 1);
    floats q = qkv + (size_t)b * T * stride + head;
    floats given = dout + (size_t)b * T * channels + head;
    size_t unit = (size_t)get_group_id(1) * T;
    float8 own_key[VECTORS], own_value[VECTORS], sum[VECTORS];
    load_row(q + (size_t)row * stride + channels, own_key);
    load_row(q + (size_t)row * stride + 2 * channels, own_value);
    for (int c = 0; c < VECTORS; c++) {
        sum[c] = 0.0f;
    }
    for (int first = block * BLOCK; first < T; first += TILE) {
        barrier(CLK_LOCAL_MEM_FENCE);
        load_tile(q, stride, first, T, queries);
        load_turned(q, stride, first, T, turned_queries);
        load_turned(given, channels, first, T, gradients);
        barrier(CLK_LOCAL_MEM_FENCE);
        float8 scores[OCTETS], weights[OCTETS];
        multiply(own_key, turned_queries, scores);
        multiply(own_value, gradients, weights);
        for (int g = 0; g < OCTETS; g++) {
            int query = first + 8 * g;
            float8 p = exp(scores[g] * scale - tile_of(lse, unit, query, T));
#if DROPOUT
            ulong index = (unit + query) * T + row;
            weights[g] *= keep(key[0] + stream, index, T, threshold, keep_scale);
#endif
            float8 slope = p * (weights[g] - tile_of(along, unit, query, T)) * scale;
            weights[g] = select((float8)(0.0f), slope, query + STEPS >= (int8)(row));
        }
        accumulate(weights, queries, 1.0f, sum);
    }
    if (i < T) {
        store_row(sum, dqkv + ((size_t)b * T + i) * stride + channels + head);
    }
}

// dqkv's values.
__kernel __attribute__((reqd_work_group_size(BLOCK, 1, 1))) void attention_backward_values(
    floats qkv, floats lse, floats dout, __global const ulong *key,
    results dqkv, int T, int heads, float scale,
    ulong stream, uint threshold, float keep_scale
) {
    __local float queries[TILE * VECTORS * WIDTH];
    __local float8 gradients[TILE * VECTORS];
    int lane = get_local_id(0), block = get_group_id(0);
    int b = get_group_id(1) / heads, h = get_group_id(1) % heads;
    int channels = heads * WIDTH_OF_HEAD, head = h * WIDTH_OF_HEAD;
    int stride = 3 * channels;
    int i = block * BLOCK + lane;
    int row = min(i, T - 1);
    floats q = qkv + (size_t)b * T * stride + head;
    floats given = dout + (size_t)b * T * channels + head;
    size_t unit = (size_t)get_group_id(1) * T;
    float8 own_key[VECTORS], sum[VECTORS];
    load_row(q + (size_t)row * stride + channels, own_key);
    for (int c = 0; c < VECTORS; c++) {
        sum[c] = 0.0f;
    }
    for (int first = block * BLOCK; first < T; first += TILE) {
        barrier(CLK_LOCAL_MEM_FENCE);
        load_turned(q, stride, first, T, queries);
        load_tile(given, channels, first, T, gradients);
        barrier(CLK_LOCAL_MEM_FENCE);
        float8 weights[OCTETS];
        multiply(own_key, queries, weights);
        for (int g = 0; g < OCTETS; g++) {
            int query = first + 8 * g;
            float8 p = exp(weights[g] * scale - tile_of(lse, unit, query, T));
#if DROPOUT
            ulong index = (unit + query) * T + row;
            p *= keep(key[0] + stream, index, T, threshold, keep_scale);
#endif
            weights[g] = select((float8)(0.0f), p, query + STEPS >= (int8)(row));
        }
        accumulate(weights, gradients, 1.0f, sum);
    }
    if (i < T) {
        store_row(sum, dqkv + ((size_t)b * T + i) * stride + 2 * channels + head);
    }
}

// qkv (B, n, 3C): its keys and values become rows position … of keys, values (B, longest, C)
__kernel void store_cache(
    floats qkv, __global const long *position, results keys, results values,
    int n, int longest, int channels
) {
    int j = WIDTH * get_global_id(0);
    int b = get_global_id(1) / n, i = get_global_id(1) % n;
    long start = position[0];
    if (j >= channels || start < 0 || start + n > longest) {
        return;
    }
    floats source = qkv + ((size_t)b * n + i) * 3 * channels;
    size_t target = ((size_t)b * longest + start + i) * channels;
    store(load(source + channels, j, channels, 0.0f), keys + target, j, channels);
    store(load(source + 2 * channels, j, channels, 0.0f), values + target, j, channels);
}
