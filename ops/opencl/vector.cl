// Eight elements at a time of arrays of any length. What lies behind an array's end is neither
// read nor written, so its last elements are taken one by one.
//
// Arrays that an op may lay in the same memory are never `restrict`: a kernel reads an element
// before it writes that element, and no other work item touches it.
//
// No function is given a vector of 64 bytes, or gives one. PoCL 3.0 has built-in functions for
// AVX-512, but its compiler does not know that an AMD Zen 4 has that, and passes such a vector
// another way: the program is broken, and the process aborts when it is read again.

#define WIDTH 8

typedef __global const float *floats;
typedef __global float *results;

float8 load(floats x, size_t i, size_t n, float otherwise) {
    if (i + WIDTH <= n) {
        return vload8(0, x + i);
    }
    float found[WIDTH];
    for (int j = 0; j < WIDTH; j++) {
        found[j] = i + j < n ? x[i + j] : otherwise;
    }
    return vload8(0, found);
}

void store(float8 values, results x, size_t i, size_t n) {
    if (i + WIDTH <= n) {
        vstore8(values, 0, x + i);
        return;
    }
    float given[WIDTH];
    vstore8(values, 0, given);
    for (int j = 0; j < WIDTH; j++) {
        if (i + j < n) {
            x[i + j] = given[j];
        }
    }
}

float sum_of(float8 x) {
    float4 four = x.lo + x.hi;
    float2 two = four.lo + four.hi;
    return two.x + two.y;
}

float max_of(float8 x) {
    float4 four = fmax(x.lo, x.hi);
    float2 two = fmax(four.lo, four.hi);
    return fmax(two.x, two.y);
}
