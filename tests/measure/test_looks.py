"""Who asks a rank where it is keeps nothing of it alive."""

import gc
import threading
import weakref

import torch

from course_lib import run


def asked_all_the_time() -> int:
    """How many of 300 tensors are still there when the function that made them has returned."""
    from course_lib.measure import looks
    from course_lib.ranks import where

    def works():
        tensor = torch.ones(1000)
        torch.distributed.barrier()  # of the tensor itself, gloo's threads would let go a little later
        return weakref.ref(tensor)

    def asks():
        while not over.is_set():
            where.whereabouts()

    over, kept = threading.Event(), 0
    asking = threading.Thread(target=asks)
    gc.disable()  # what a circle keeps alive would be found sooner or later
    asking.start()
    for _ in range(300):
        made = works()
        with looks.lock:
            kept += made() is not None
    over.set()
    asking.join()
    return kept


def test_a_look_at_where_a_rank_is_keeps_no_tensor_alive():
    assert run(asked_all_the_time, ranks=2).results == [0, 0]
