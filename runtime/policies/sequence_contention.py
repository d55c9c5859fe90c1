"""The machine code of `sequence_search`, its third part: what others slow each piece down by.

A decoding takes the seconds of pieces as given. How much longer devices make each other take is
known once it is seen which of them are busy when, so it is reckoned between stages of a search.
"""

import numpy as np

from aieflow.runtime.policies.machine_code import compiled
from aieflow.runtime.policies.step_layout import Floats, Ints


@compiled
def contention(spans: Floats, device: Ints, slowdowns: Floats) -> Floats:
    """How many times longer each piece takes in a timeline than it would alone.

    `spans` has when each begins and ends, in seconds, `device` whom it keeps busy, `slowdowns` by
    the set of busy devices, as bits, and device how many times longer that one takes. What takes no
    time is not slowed.
    """
    count, devices = len(spans), slowdowns.shape[1]
    moments = np.concatenate((spans[:, 0], spans[:, 1]))
    doing, done, began = np.zeros(devices, np.int64), np.zeros(devices), np.zeros(count)
    found, now, busy = np.ones(count), 0.0, 0
    for moment in np.argsort(moments, kind="mergesort"):
        passed = moments[moment] - now
        for each in range(devices):
            if doing[each] > 0:
                done[each] += passed / slowdowns[busy, each]
        now, piece = moments[moment], moment % count
        own = device[piece]
        if spans[piece, 1] <= spans[piece, 0]:
            continue
        if moment < count:
            began[piece] = done[own]
            doing[own] += 1
            busy |= 1 << own
        else:
            alone = done[own] - began[piece]
            found[piece] = (spans[piece, 1] - spans[piece, 0]) / alone if alone > 0 else 1.0
            doing[own] -= 1
            if doing[own] == 0:
                busy &= ~(1 << own)
    return found
