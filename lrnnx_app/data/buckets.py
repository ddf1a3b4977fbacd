"""Orders the examples of an epoch so that a batch holds examples of similar length, with little padding."""

import numpy as np

POOL = 64  # groups of random examples that are sorted together


def order(lengths: np.ndarray, group: int, rng: np.random.Generator | None) -> np.ndarray:
    """A permutation of the rows in which every `group` rows in turn have similar lengths.

    Rows are shuffled, then sorted by length within pools of POOL groups; then the groups are shuffled. Rows
    that do not fill a group come last. They are chosen at random, so that dropping them drops no special
    lengths. Each of n ranks takes every n-th row, so within a group all ranks get rows of similar length.

    Args:
        lengths: (rows,) length of each row.
        group: rows of a batch, times the number of ranks.
        rng: random numbers of the epoch; None sorts all rows by length.
    """
    if rng is None:
        return np.argsort(lengths, kind="stable")
    rows = rng.permutation(len(lengths))
    whole = len(rows) // group * group
    pools = [
        pool[np.argsort(lengths[pool], kind="stable")]
        for pool in np.split(rows[:whole], range(POOL * group, whole, POOL * group))
    ]
    groups = np.concatenate(pools).reshape(-1, group)
    rest = rows[whole:]
    return np.concatenate((groups[rng.permutation(len(groups))].ravel(), rest))
