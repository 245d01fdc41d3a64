"""Draw who holds what: a collective before and after, a ring step by step, and a mesh of ranks, from values
that real ranks returned.

The trick is in the numbers. Rank r starts with 1, 2, 3, 4, ... times 10**r in its pieces 0, 1, 2, 3, ..., so
a number tells where it comes from: its digits are the pieces, and the place of a digit is the rank. 300 is
piece 2 of rank 2; 3333 is piece 2 of four ranks, added up; 0 is nothing. Each rank has a colour, and a box
has the colours of all ranks that are in its number.

exchanges.py  what ranks hold before and after they exchange something
groups.py     which ranks belong together
products.py   matrices that are cut over two ranks
boxes.py      numbers in boxes, and arrows between them
player.py     pictures one after the other, without a kernel
"""

from course_lib.plots.pictures.boxes import sources
from course_lib.plots.pictures.exchanges import RingStep, collective, ring, ring_steps
from course_lib.plots.pictures.groups import mesh
from course_lib.plots.pictures.player import slider
from course_lib.plots.pictures.products import equation

__all__ = ["collective", "RingStep", "ring_steps", "ring", "mesh", "equation", "slider", "sources"]
