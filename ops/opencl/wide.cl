// Sums with more digits than float32 has: in float64 where the device has it, else in pairs of
// float32 whose sum is the value (Dekker 1971), good for about 14 decimal digits. Pairs have the
// range of float32, so a sum of squares of norm above 1.8e19 becomes infinite there.
//
// Arrays hold float64 in either case. Without the type, their bits are put together here.

#include "vector.cl"

#if defined(cl_khr_fp64) && !defined(NO_FP64)
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#pragma OPENCL FP_CONTRACT OFF

typedef double wide;
typedef struct { double4 low, high; } wide8;

wide wide_zero(void) { return 0.0; }
wide wide_add(wide x, wide y) { return x + y; }

wide8 wide8_add(wide8 sum, float8 x) {
    sum.low += convert_double4(x.lo);
    sum.high += convert_double4(x.hi);
    return sum;
}

wide8 wide8_add_squares(wide8 sum, float8 x) {
    double4 low = convert_double4(x.lo), high = convert_double4(x.hi);
    sum.low += low * low;
    sum.high += high * high;
    return sum;
}

wide wide_of(wide8 x) {
    double4 four = x.low + x.high;
    double2 two = four.lo + four.hi;
    return two.x + two.y;
}

ulong wide_bits(wide x) { return as_ulong(x); }
wide wide_from(ulong bits) { return as_double(bits); }
float wide_round(wide x) { return convert_float(x); }
float wide_share(wide x, ulong count) { return convert_float(x / count); }
float wide_root(wide x) { return convert_float(sqrt(x)); }

#else
#pragma OPENCL FP_CONTRACT OFF

typedef struct { float high, low; } wide;
typedef struct { float8 high, low; } wide8;

wide wide_zero(void) { wide x = {0.0f, 0.0f}; return x; }

wide wide_add(wide x, wide y) {
    float sum = x.high + y.high;
    float part = sum - x.high;
    float rest = (x.high - (sum - part)) + (y.high - part) + (x.low + y.low);
    rest = isfinite(sum) ? rest : 0.0f; // infinity less infinity is not a number
    wide found;
    found.high = sum + rest;
    found.low = isfinite(sum) ? rest - (found.high - sum) : 0.0f;
    return found;
}

wide8 wide8_add_pair(wide8 x, float8 high, float8 low) {
    float8 sum = x.high + high;
    float8 part = sum - x.high;
    float8 rest = (x.high - (sum - part)) + (high - part) + (x.low + low);
    rest = select((float8)(0.0f), rest, isfinite(sum));
    wide8 found;
    found.high = sum + rest;
    found.low = select((float8)(0.0f), rest - (found.high - sum), isfinite(sum));
    return found;
}

wide8 wide8_add(wide8 sum, float8 x) { return wide8_add_pair(sum, x, (float8)(0.0f)); }

wide8 wide8_add_squares(wide8 sum, float8 x) {
    float8 square = x * x;
    return wide8_add_pair(sum, square, fma(x, x, -square));
}

wide wide_of(wide8 x) {
    float high[WIDTH], low[WIDTH];
    vstore8(x.high, 0, high);
    vstore8(x.low, 0, low);
    wide sum = wide_zero();
    for (int j = 0; j < WIDTH; j++) {
        wide one = {high[j], low[j]};
        sum = wide_add(sum, one);
    }
    return sum;
}

// The float64 nearest to high + low: 24 bits of high, then what low adds in units of the 53rd bit.
ulong wide_bits(wide x) {
    ulong sign = as_uint(x.high) >> 31;
    if (isnan(x.high)) {
        return 0x7FF8000000000000UL;
    }
    if (isinf(x.high)) {
        return (sign << 63) | 0x7FF0000000000000UL;
    }
    if (x.high == 0.0f) {
        return sign << 63;
    }
    int exponent;
    float fraction = frexp(fabs(x.high), &exponent);
    long digits = convert_long(ldexp(fraction, 24)) << 29;
    float low = sign ? -x.low : x.low;
    digits += convert_long_rte(ldexp(low, 53 - exponent));
    if (digits < (1L << 52)) {
        digits <<= 1;
        exponent--;
    } else if (digits >= (1L << 53)) {
        digits >>= 1;
        exponent++;
    }
    return (sign << 63) | ((ulong)(exponent + 1022) << 52) | (digits & ((1L << 52) - 1));
}

// Beyond float32's range: infinite, or zero.
wide wide_from(ulong bits) {
    int exponent = (int)((bits >> 52) & 0x7FF) - 1023;
    ulong digits = bits & ((1UL << 52) - 1);
    wide x = {0.0f, 0.0f};
    if (exponent == 1024 && digits) {
        x.high = NAN;
    } else if (exponent > 127) {
        x.high = INFINITY;
    } else if (exponent > -127) {
        digits |= 1UL << 52;
        x.high = ldexp(convert_float(digits >> 29), exponent - 23);
        x.low = ldexp(convert_float(digits & ((1UL << 29) - 1)), exponent - 52);
    }
    if (bits >> 63) {
        x.high = -x.high;
        x.low = -x.low;
    }
    return x;
}

float wide_round(wide x) { return x.high + x.low; }
float wide_share(wide x, ulong count) { return wide_round(x) / count; }
float wide_root(wide x) { return sqrt(wide_round(x)); }
#endif

wide8 wide8_zero(void) {
    wide8 x;
    x.high = 0.0f;
    x.low = 0.0f;
    return x;
}

// The sum of the cells of a group of `count` items, in order, for each of them.
wide wide_group_sum(wide value, __local wide *cells, int count) {
    cells[get_local_id(0)] = value;
    barrier(CLK_LOCAL_MEM_FENCE);
    wide sum = wide_zero();
    for (int j = 0; j < count; j++) {
        sum = wide_add(sum, cells[j]);
    }
    return sum;
}
