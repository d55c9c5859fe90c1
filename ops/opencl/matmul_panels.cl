// Matrix product for run-times on a CPU: both operands are packed into panels, and each work-item
// multiplies with a register tile of ROWS x COLUMNS sums. No local memory, one work-item a group.
//
// Constants: ROWS rows and VECTORS vectors of WIDTH columns of a register tile; GROUP register tiles
// below each other of one work-item; INNER, how far along K it goes before it adds the sums to C;
// TRANSPOSE_A, TRANSPOSE_B; HAS_BIAS, HAS_ADDEND; CONTINUES: C holds the sums so far.
//
// Built-in functions are not used: some drivers call them instead of inlining them, and a call
// among the sums moves every one of them to memory and back (PoCL 3.0: a third of the speed). So
// vectors are read and written through pointers to types that say their true alignment.

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define COLUMNS (VECTORS * WIDTH)
#define DEPTH 16  // K is padded to a multiple of it
#define SMALLER(a, b) ((a) < (b) ? (a) : (b))

typedef JOIN(float, WIDTH) vector;                     // packed operands are aligned to it
typedef vector loose __attribute__((aligned(4)));      // the node's operands are not
typedef float16 loose16 __attribute__((aligned(4)));
typedef __attribute__((aligned(64))) float16 line;

#define WHOLE __attribute__((reqd_work_group_size(1, 1, 1)))

// --- packing ---

// Transposes 16 x 16 in registers: four times, row i is interleaved with row i + 8.
#define LOW(x, y) (float16)(x.s0, y.s0, x.s1, y.s1, x.s2, y.s2, x.s3, y.s3, \
                            x.s4, y.s4, x.s5, y.s5, x.s6, y.s6, x.s7, y.s7)
#define HIGH(x, y) (float16)(x.s8, y.s8, x.s9, y.s9, x.sa, y.sa, x.sb, y.sb, \
                             x.sc, y.sc, x.sd, y.sd, x.se, y.se, x.sf, y.sf)
#define PAIR(to, from, i, j, a, b) \
    const float16 to##a = LOW(from##i, from##j), to##b = HIGH(from##i, from##j);
#define INTERLEAVE(to, from) \
    PAIR(to, from, 0, 8, 0, 1) PAIR(to, from, 1, 9, 2, 3) PAIR(to, from, 2, 10, 4, 5) \
    PAIR(to, from, 3, 11, 6, 7) PAIR(to, from, 4, 12, 8, 9) PAIR(to, from, 5, 13, 10, 11) \
    PAIR(to, from, 6, 14, 12, 13) PAIR(to, from, 7, 15, 14, 15)
#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) \
                  X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

// A, rows [first_row, first_row + rows) and columns [first_k, first_k + inner) of it, into panels
// of ROWS rows: [panel][inner / DEPTH][ROWS][DEPTH], or [panel][inner][ROWS] of a transposed A.
// What is missing of a panel is zero. One work-item: GROUP panels, INNER along K.
kernel WHOLE void pack_a(
    global const float *restrict a, global float *restrict packed, int lda, int first_row, int rows,
    int first_k, int inner)
{
    const int panels = (rows + ROWS - 1) / ROWS;
    const int first = get_global_id(0) * GROUP, last = SMALLER(first + GROUP, panels);
    const int padded = (inner + DEPTH - 1) / DEPTH * DEPTH;
    const int start = get_global_id(1) * INNER, end = SMALLER(start + INNER, padded);
#if TRANSPOSE_A
    // along all panels before the next k: memory is read in long runs
    for (int k = start; k < end; k++) {
        global const float *in = a + (size_t)(first_k + k) * lda + first_row + first * ROWS;
        global float *out = packed + ((size_t)first * padded + k) * ROWS;
        for (int panel = first; panel < last; panel++, in += ROWS, out += (size_t)padded * ROWS) {
            const int height = rows - panel * ROWS;
            if (k < inner && height >= ROWS) {
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    out[r] = in[r];
            } else {
                for (int r = 0; r < ROWS; r++)
                    out[r] = k < inner && r < height ? in[r] : 0.0f;
            }
        }
    }
#else
    for (int panel = first; panel < last; panel++) {
        const int height = rows - panel * ROWS;
        global float *out = packed + ((size_t)panel * padded + start) * ROWS;
        for (int k = start; k < end; k += DEPTH) {
            for (int r = 0; r < ROWS; r++, out += DEPTH) {
                global const float *in =
                    a + (size_t)(first_row + panel * ROWS + r) * lda + first_k + k;
                if (k + DEPTH <= inner && r < height) {
                    *(global line *)out = *(global const loose16 *)in;
                } else {
                    for (int j = 0; j < DEPTH; j++)
                        out[j] = k + j < inner && r < height ? in[j] : 0.0f;
                }
            }
        }
    }
#endif
}

// B, rows [first_k, first_k + inner) and columns [first_column, first_column + columns) of it, into
// panels of COLUMNS columns: [panel][inner][COLUMNS]. One work-item: one panel, INNER along K.
kernel WHOLE void pack_b(
    global const float *restrict b, global float *restrict packed, int ldb, int first_column,
    int columns, int first_k, int inner)
{
    const int panel = get_global_id(0), column = panel * COLUMNS;
    const int padded = (inner + DEPTH - 1) / DEPTH * DEPTH;
    const int start = get_global_id(1) * INNER, end = SMALLER(start + INNER, padded);
    const int width = SMALLER(COLUMNS, columns - column);
    global float *out = packed + ((size_t)panel * padded + start) * COLUMNS;
#if TRANSPOSE_B
    global const float *in = b + (size_t)(first_column + column) * ldb + first_k;
    for (int k = start; k < end; k += DEPTH, out += DEPTH * COLUMNS) {
        for (int j = 0; j < COLUMNS; j += 16) {
            global const float *from = in + (size_t)j * ldb + k;
            global float *to = out + j;
            if (k + DEPTH <= inner && j + 16 <= width) {
#define READ(i) const float16 p##i = *(global const loose16 *)(from + (size_t)i * ldb);
#define WRITE(i) *(global line *)(to + i * COLUMNS) = t##i;
                EACH16(READ)
                INTERLEAVE(q, p)
                INTERLEAVE(r, q)
                INTERLEAVE(s, r)
                INTERLEAVE(t, s)
                EACH16(WRITE)
            } else {
                for (int i = 0; i < 16; i++)
                    for (int d = 0; d < DEPTH; d++)
                        to[d * COLUMNS + i] =
                            k + d < inner && j + i < width ? from[(size_t)i * ldb + d] : 0.0f;
            }
        }
    }
#else
    global const float *in = b + (size_t)(first_k + start) * ldb + first_column + column;
    for (int k = start; k < end; k++, in += ldb, out += COLUMNS) {
        if (k < inner && width == COLUMNS) {
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                ((global vector *)out)[v] = ((global const loose *)in)[v];
        } else {
            for (int j = 0; j < COLUMNS; j++)
                out[j] = k < inner && j < width ? in[j] : 0.0f;
        }
    }
#endif
}

// --- multiplying ---

// The sums are variables c<row>_<vector>, because not every driver takes an array apart.
#define DOWN4(X) X(0) X(1) X(2) X(3)
#define DOWN6(X) DOWN4(X) X(4) X(5)
#define DOWN8(X) DOWN6(X) X(6) X(7)
#define DOWN12(X) DOWN8(X) X(8) X(9) X(10) X(11)
#define EACH_ROW(X) JOIN(DOWN, ROWS)(X)
#define BESIDE2(X, r) X(r, 0) X(r, 1)
#define BESIDE3(X, r) BESIDE2(X, r) X(r, 2)
#define EACH_VECTOR(X, r) JOIN(BESIDE, VECTORS)(X, r)

#if TRANSPOSE_A
#define A_AT(r) a[d * ROWS + r]
#else
#define A_AT(r) a[r * DEPTH + d]
#endif
#define ZERO_ONE(r, v) vector c##r##_##v = (vector)(0.0f);
#define ZERO(r) EACH_VECTOR(ZERO_ONE, r)
#define READ_B(r, v) const vector b##v = ((global const vector *)(b + d * COLUMNS))[v];
#define ADD_ONE(r, v) c##r##_##v += x * b##v;
#define ADD(r) { const vector x = (vector)(A_AT(r)); EACH_VECTOR(ADD_ONE, r) }
#define PUT_ONE(r, v) ((private vector *)(sums + r * COLUMNS))[v] = c##r##_##v;
#define PUT(r) EACH_VECTOR(PUT_ONE, r)
// What the sums are added to: C, or bias and addend as far as there are any.
#if HAS_BIAS
#define BIAS(type, j) sum += *(global const type *)(bias + column + (j));
#else
#define BIAS(type, j)
#endif
#if HAS_ADDEND
#define ADDEND(type, at) sum += *(global const type *)(addend + (at));
#else
#define ADDEND(type, at)
#endif
#define FINISH(type, kind, value, r, j) { \
    global float *to = out + (size_t)(r) * ldc + (j); \
    kind sum = value; \
    if (goes_on) { sum += *(global const type *)to; } \
    else { BIAS(type, j) ADDEND(type, to - c) } \
    *(global type *)to = sum; }
#define STORE_ONE(r, v) FINISH(loose, vector, c##r##_##v, r, v * WIDTH)
#define STORE(r) EACH_VECTOR(STORE_ONE, r)
#define STORE_AT(r, j) FINISH(float, float, sums[(r) * COLUMNS + (j)], r, j)

// A block of C, from packed operands: their product (+ bias) (+ addend), or, where CONTINUES, added to
// C. The addend may be C itself. One work-item: GROUP * ROWS rows, COLUMNS columns.
kernel WHOLE void multiply_panels(
    global const float *restrict packed_a, global const float *restrict packed_b, global float *c,
#if HAS_BIAS
    global const float *bias,
#endif
#if HAS_ADDEND
    global const float *addend,
#endif
    int ldc, int first_row, int rows, int first_column, int columns, int inner)
{
    const int padded = (inner + DEPTH - 1) / DEPTH * DEPTH;
    const int tiles = (rows + ROWS - 1) / ROWS;
    const int first_tile = get_global_id(0) * GROUP, last_tile = SMALLER(first_tile + GROUP, tiles);
    const int panel = get_global_id(1), width = SMALLER(COLUMNS, columns - panel * COLUMNS);
    const int column = first_column + panel * COLUMNS;
    for (int start = 0; start < padded; start += INNER) {
        const int end = SMALLER(start + INNER, padded);
        const int goes_on = CONTINUES || start > 0;
        for (int tile = first_tile; tile < last_tile; tile++) {
            global const float *a = packed_a + ((size_t)tile * padded + start) * ROWS;
            global const float *b = packed_b + ((size_t)panel * padded + start) * COLUMNS;
            EACH_ROW(ZERO)
            for (int k = start; k < end; k += DEPTH, a += DEPTH * ROWS, b += DEPTH * COLUMNS) {
#pragma unroll 4
                for (int d = 0; d < DEPTH; d++) {
                    EACH_VECTOR(READ_B, 0)
                    EACH_ROW(ADD)
                }
            }
            const int height = SMALLER(ROWS, rows - tile * ROWS);
            global float *out = c + (size_t)(first_row + tile * ROWS) * ldc + column;
            if (height == ROWS && width == COLUMNS) {
                EACH_ROW(STORE)
            } else {
                float sums[ROWS * COLUMNS] __attribute__((aligned(64)));
                EACH_ROW(PUT)
                for (int r = 0; r < height; r++)
                    for (int j = 0; j < width; j++)
                        STORE_AT(r, j)
            }
        }
    }
}
