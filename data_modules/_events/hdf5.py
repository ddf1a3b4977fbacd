"""Arrays of an HDF5 file that lie in that file itself: no links, no other files, no plugins.

As a program it reads every sample of the file that it is given: on some damaged files HDF5's own library ends
its process, so that one tries them first.
"""

import sys
from typing import Any

import h5py

FILTERS = {1, 2, 3, 4, 5, 6}  # HDF5's own: deflate, shuffle, fletcher32, szip, nbit, scaleoffset
MOST = 10_000_000  # entries of an array; a few bytes of a file can claim any number


def find(file: h5py.File, name: str) -> h5py.Dataset | None:
    """An array by its path, None if there is none.

    Raises:
        KeyError: what has the name is no array that this file holds.
    """
    node: Any = file
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise KeyError(f"{name} is a link; expected it in the file itself")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise KeyError(f"{name} is no array")
    plist = node.id.get_create_plist()
    if node.is_virtual or plist.get_external_count():
        raise KeyError(f"{name} lies in another file; expected it in the file itself")
    if not {plist.get_filter(i)[0] for i in range(plist.get_nfilters())} <= FILTERS:
        raise KeyError(f"{name} is packed by a filter that is not HDF5's own")
    if node.ndim != 1 or node.shape[0] > MOST:
        raise KeyError(f"{name} is of shape {node.shape}; expected (n,) of at most {MOST:,}")
    return node


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """An array that must be there; see `find`."""
    found = find(file, name)
    if found is None:
        raise KeyError(f"{name} is not there")
    return found


if __name__ == "__main__":
    with h5py.File(sys.argv[1], "r") as opened:
        for column in (dataset(opened, "spikes/times"), dataset(opened, "spikes/units")):
            for row in range(len(column)):
                column[row]
