"""The order of an epoch in which examples of about one length meet in a batch, so that little is padding."""

import numpy as np

POOL = 64  # batches' worth of random examples that are sorted among themselves


def order(lengths: np.ndarray, group: int, rng: np.random.Generator | None) -> np.ndarray:
    """A permutation of the rows whose runs of `group` are alike in length.

    The rows are shuffled, sorted by length within pools of POOL groups, and the groups shuffled; what does
    not fill a group is a random rest at the end, so that leaving it out leaves out no particular lengths.
    As ranks take every n-th row, a group of batch·ranks rows deals all of them rows of one length.

    Args:
        lengths: (rows,).
        group: rows of a batch, times the number of ranks.
        rng: of the epoch; None sorts all rows by length, always in the same way.
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
