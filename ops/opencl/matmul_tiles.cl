// Matrix product for GPUs: a work-group computes TILE_ROWS x TILE_COLUMNS of C from tiles of both
// operands in local memory; each work-item has ITEM_ROWS x ITEM_COLUMNS sums in registers. Not run
// on AMD hardware: tested under PoCL on a CPU only.
//
// Constants: TILE_ROWS, TILE_COLUMNS, TILE_INNER; ITEM_ROWS, ITEM_COLUMNS (a multiple of 4);
// TRANSPOSE_A, TRANSPOSE_B; QUADS_A, QUADS_B: rows of the operand are multiples of 4 long, so it is
// read by four; HAS_BIAS, HAS_ADDEND; HALF: operands are 16-bit floats; ROWS_FIRST: neighbouring
// groups are below each other instead of beside each other, which suits a C of few rows.

#define ITEMS_X (TILE_COLUMNS / ITEM_COLUMNS)
#define ITEMS_Y (TILE_ROWS / ITEM_ROWS)
#define ITEMS (ITEMS_X * ITEMS_Y)
#define PAD 4  // spreads the columns of a tile over the banks, and keeps rows aligned to float4
#define PITCH_A (TILE_ROWS + PAD)
#define PITCH_B (TILE_COLUMNS + PAD)
#define STEPS (ITEM_COLUMNS / 4)

#if HALF
typedef half stored;
#define READ(p, i) vload_half(i, p)
#define READ4(p, i) vload_half4(0, (p) + (i))
#else
typedef float stored;
#define READ(p, i) (p)[i]
#define READ4(p, i) vload4(0, (p) + (i))
#endif

// One element or four neighbours, of which the operand has all or none. `ALONG` is the axis on
// which memory runs: its size in the tile, its place, its end; ACROSS the other.
#define LOAD(tile, place, source, quads, along_tile, along_at, along_end, across_tile, across_at, \
             across_end) \
    for (int i = item * (quads ? 4 : 1); i < (along_tile) * (across_tile); \
         i += ITEMS * (quads ? 4 : 1)) { \
        const int x = i % (along_tile), y = i / (along_tile); \
        const int is_inside = (along_at) + x < (along_end) && (across_at) + y < (across_end); \
        const size_t at = (size_t)((across_at) + y) * (along_end) + (along_at) + x; \
        if (quads) { \
            const float4 four = is_inside ? READ4(source, at) : (float4)(0.0f); \
            tile[place(x, y)] = four.s0; \
            tile[place(x + 1, y)] = four.s1; \
            tile[place(x + 2, y)] = four.s2; \
            tile[place(x + 3, y)] = four.s3; \
        } else { \
            tile[place(x, y)] = is_inside ? READ(source, at) : 0.0f; \
        } \
    }

// where an element of the tile lies: [k][row or column]
#define A_ALONG_K(x, y) ((x) * PITCH_A + (y))
#define A_ALONG_ROWS(x, y) ((y) * PITCH_A + (x))
#define B_ALONG_K(x, y) ((x) * PITCH_B + (y))
#define B_ALONG_COLUMNS(x, y) ((y) * PITCH_B + (x))

// C = A B (+ bias) (+ addend); A (M, K) or transposed, B (K, N) or transposed; the addend may be C.
kernel __attribute__((reqd_work_group_size(ITEMS_X, ITEMS_Y, 1))) void multiply_tiles(
    global const stored *restrict a, global const stored *restrict b, global float *c,
#if HAS_BIAS
    global const float *bias,
#endif
#if HAS_ADDEND
    global const float *addend,
#endif
    int M, int N, int K)
{
    local float tile_a[TILE_INNER * PITCH_A] __attribute__((aligned(16)));
    local float tile_b[TILE_INNER * PITCH_B] __attribute__((aligned(16)));
    const int item_x = get_local_id(0), item_y = get_local_id(1);
    const int item = item_y * ITEMS_X + item_x;
    const int row = get_group_id(ROWS_FIRST ? 0 : 1) * TILE_ROWS;
    const int column = get_group_id(ROWS_FIRST ? 1 : 0) * TILE_COLUMNS;

    // of a work-item: rows that follow each other, columns in fours that lie ITEMS_X fours apart
    float4 sums[ITEM_ROWS][STEPS];
#pragma unroll
    for (int r = 0; r < ITEM_ROWS; r++)
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            sums[r][s] = (float4)(0.0f);

    for (int k = 0; k < K; k += TILE_INNER) {
#if TRANSPOSE_A
        LOAD(tile_a, A_ALONG_ROWS, a, QUADS_A, TILE_ROWS, row, M, TILE_INNER, k, K)
#else
        LOAD(tile_a, A_ALONG_K, a, QUADS_A, TILE_INNER, k, K, TILE_ROWS, row, M)
#endif
#if TRANSPOSE_B
        LOAD(tile_b, B_ALONG_K, b, QUADS_B, TILE_INNER, k, K, TILE_COLUMNS, column, N)
#else
        LOAD(tile_b, B_ALONG_COLUMNS, b, QUADS_B, TILE_COLUMNS, column, N, TILE_INNER, k, K)
#endif
        barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll 4
        for (int d = 0; d < TILE_INNER; d++) {
            float4 across[STEPS];
#pragma unroll
            for (int s = 0; s < STEPS; s++)
                across[s] = *(local const float4 *)(
                    tile_b + d * PITCH_B + (s * ITEMS_X + item_x) * 4);
#pragma unroll
            for (int r = 0; r < ITEM_ROWS; r++) {
                const float x = tile_a[d * PITCH_A + item_y * ITEM_ROWS + r];
#pragma unroll
                for (int s = 0; s < STEPS; s++)
                    sums[r][s] += x * across[s];
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }

#pragma unroll
    for (int r = 0; r < ITEM_ROWS; r++) {
        const int i = row + item_y * ITEM_ROWS + r;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int j = column + (s * ITEMS_X + item_x) * 4;
            const float four[4] = {sums[r][s].s0, sums[r][s].s1, sums[r][s].s2, sums[r][s].s3};
#pragma unroll
            for (int q = 0; q < 4; q++) {
                if (i < M && j + q < N) {
                    const size_t at = (size_t)i * N + j + q;
                    float sum = four[q];
#if HAS_BIAS
                    sum += bias[j + q];
#endif
#if HAS_ADDEND
                    sum += addend[at];
#endif
                    c[at] = sum;
                }
            }
        }
    }
}

#if HALF
// Four neighbours of `count` floats as 16-bit floats, rounded to nearest even; beyond 65504: inf.
kernel void to_half(global const float *restrict x, global half *restrict out, ulong count)
{
    const ulong first = (ulong)get_global_id(0) * 4;
    if (first + 4 <= count) {
        vstore_half4_rte(vload4(0, x + first), 0, out + first);
    } else {
        for (ulong i = first; i < count; i++)
            vstore_half_rte(x[i], i, out);
    }
}
#endif
