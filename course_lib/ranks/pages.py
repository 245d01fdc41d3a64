"""The server's memory in large pages: what a fork copies, page for page, becomes a hundredth as many."""

import ctypes
import sys

__all__ = ["enlarge"]

LARGE = 2 * 2**20  # bytes of a large page
_MADV_COLLAPSE = 25  # linux/mman.h, since Linux 6.1


def enlarge() -> None:
    """Put this process's own writable memory into pages of 2 MB where Linux can. A rank gets the table of all
    pages, and its first write to each is a fault: with few large ones both cost less (what a rank writes to
    is copied in pages of 4 KB as before). Where the system refuses, nothing changes.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    for span, access, _, _, inode, *name in lines:
        if access != "rw-p" or inode != "0" or name not in ([], ["[heap]"]):
            continue
        begin, end = (int(number, 16) for number in span.split("-"))
        begin, end = -(-begin // LARGE) * LARGE, end // LARGE * LARGE
        if begin < end:
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_COLLAPSE)
