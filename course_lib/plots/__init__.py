"""Draw a job: what it sent, what it held, how it spent its time, and whether more ranks made it faster.

Each function takes measured data, draws on `ax` (a new figure if None) and returns the Axes; nothing is saved
or shown. In a notebook a figure carries its words. What was measured, what was modelled and what others have
published never look alike:

    measured    solid, in colour      MEASURED
    sleeps      dash-dotted, hollow   SLEEPS      measured, but the computing is replaced by sleep
    modelled    dashed, dark          MODELLED
    published   dotted, grey, hollow  PUBLISHED

They are keyword arguments of `Axes.plot`, and COLORS has one colour for each collective, kind of memory and
kind of work (Okabe and Ito's, and Tol's for the rarer ones, which colour-blind readers can tell apart), so
that a figure of your own fits in: `plots.panel("My title", job.where).plot(x, y, **plots.MEASURED)`.

bytes_sent.py  what each rank sent in a step, in three layers
bytes_held.py  what each rank held in a step, by what it is for
lanes.py       what each rank did, and when
microbatches.py  the blocks of a pipeline in a timeline, and the messages between them
mesh_axes.py   which axis of a mesh a message went along
layers.py      which layers' full parameters were alive when
schedules.py   a pipeline's schedule, as it ran or on paper
scaling.py     whether more ranks made it faster
traced.py      what figures of one traced step share
units.py       all bytes of one axis in one unit
styles.py      colours, styles of line, and the panel that all draw on
described.py   a figure in words, kept beside its picture
pictures/      who holds what: a collective, a ring, a mesh
"""

from course_lib.plots.bytes_held import memory
from course_lib.plots.bytes_sent import communication
from course_lib.plots.lanes import timeline
from course_lib.plots.layers import alive
from course_lib.plots.scaling import speedup
from course_lib.plots.schedules import schedule
from course_lib.plots.styles import COLORS, MEASURED, MODELLED, PUBLISHED, SLEEPS, panel

__all__ = [
    "communication",
    "memory",
    "speedup",
    "timeline",
    "alive",
    "schedule",
    "panel",
    "MEASURED",
    "SLEEPS",
    "MODELLED",
    "PUBLISHED",
    "COLORS",
]
