"""`__main__` of a process that multiprocessing has spawned for a rank: the names that came to the rank from
the notebook, once more.
"""

import os
import pickle
import sys

from course_lib.ranks import sending

with open(os.environ[sending.CALL_FILE], "rb") as file:
    sending.open_call(pickle.load(file)["call"])
globals().update(
    {name: value for name, value in vars(sys.modules["__main__"]).items() if not name.startswith("__")}
)
