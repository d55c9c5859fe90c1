// The mask bits of ops/random.py: splitmix64 of a counter, 24 bits of which are compared with the
// rate. An element is kept where its bits are not below the threshold.

#define INDEX_STEP 0x9E3779B97F4A7C15UL
#define MIX_1 0xBF58476D1CE4E5B9UL
#define MIX_2 0x94D049BB133111EBUL
#define UNUSED_BITS 40

// Of eight elements, from one to the next so many steps; base = key + the stream's offset.
float8 keep(ulong base, ulong first, ulong step, uint threshold, float keep_scale) {
    ulong8 index = first + step * (ulong8)(0, 1, 2, 3, 4, 5, 6, 7);
    ulong8 z = (index + 1UL) * INDEX_STEP + base;
    z = (z ^ (z >> 30)) * MIX_1;
    z = (z ^ (z >> 27)) * MIX_2;
    z ^= z >> 31;
    z >>= UNUSED_BITS;
    uint8 bits = (uint8)(convert_uint4(z.lo), convert_uint4(z.hi));
    return select((float8)(0.0f), (float8)(keep_scale), bits >= (uint8)(threshold));
}
