"""A thread that looks at another one's frames holds what these hold, tensors too, until it has looked. So it
looks within `lock`, and keeps nothing; and who counts memory counts within it, too.
"""

import threading

__all__ = ["lock"]

lock = threading.RLock()
