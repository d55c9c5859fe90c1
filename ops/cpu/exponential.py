"""exp in float32, written so that loops over it are vectorised (calls to libm are not).

exp(x) = 2^n e^r with n the integer nearest to x / ln 2 and r the rest, |r| <= ln(2) / 2. ln 2 is
taken off in two parts, so that r is exact (Cody and Waite 1980, chapter 6); e^r is a polynomial of
degree 5 fitted for the least relative error, 1.1e-7. 2^n is made from its bits.
"""

import numpy as np

from aieflow.ops.cpu.compile import compiled

LOWEST = np.float32(-87.33)  # below, 2^n would leave the normal numbers
HIGHEST = np.float32(88.02)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # 9 bits: n times it is exact
LN2_LOW = np.float32(-2.12194440e-4)
ROUND = np.float32(12582912.0)  # 1.5 x 2^23: adding it leaves an integer in the low bits
ONE = np.float32(1)
C2 = np.float32(0.499992311000824)
C3 = np.float32(0.16667114198207855)
C4 = np.float32(0.04189015552401543)
C5 = np.float32(0.008312520571053028)
MANTISSA_BITS = np.int32(23)
BITS_OF_ONE = np.int32(127 << 23)


@compiled
def exponential(x: np.float32) -> np.float32:
    """e^x within 3e-7 relative; 1.2e-38 below -87.3, 1.7e38 above 88; NaN for NaN."""
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ((C5 * r + C4) * r + C3) * r + C2
    p = (p * r + ONE) * r + ONE
    # numba wants to see the dtype beside a view
    power = np.int32((np.float32(shifted).view(np.int32) << MANTISSA_BITS) + BITS_OF_ONE)
    return np.float32(p * np.int32(power).view(np.float32))
