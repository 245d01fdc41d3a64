"""Draw a job: what it sent, what it held, how it spent its time, and whether more ranks made it faster.

Each function takes measured data, draws on `ax` (a new figure if None) and returns the Axes; nothing is
saved, shown or configured. What was measured, what was modelled and what others have published never look
alike:

    measured    solid, in colour      MEASURED
    sleeps      dash-dotted, hollow   SLEEPS      measured, but the computing is replaced by sleep
    modelled    dashed, dark          MODELLED
    published   dotted, grey, hollow  PUBLISHED

They are keyword arguments of `Axes.plot`, and COLORS has one colour for each collective, kind of memory and
kind of work (Okabe and Ito's, and Tol's for the rarer ones, which colour-blind readers can tell apart), so
that a figure of your own fits in: `plots.panel("My title", job.where).plot(x, y, **plots.MEASURED)`.
"""

from course_lib.plots.bytes_held import memory
from course_lib.plots.bytes_sent import communication
from course_lib.plots.lanes import timeline
from course_lib.plots.layers import alive
from course_lib.plots.scaling import speedup
from course_lib.plots.styles import COLORS, MEASURED, MODELLED, PUBLISHED, SLEEPS, panel

__all__ = [
    "communication",
    "memory",
    "speedup",
    "timeline",
    "alive",
    "panel",
    "MEASURED",
    "SLEEPS",
    "MODELLED",
    "PUBLISHED",
    "COLORS",
]
