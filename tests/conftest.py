"""What all tests share."""
import signal

import pytest

# Started in the background of a shell (`make test &`), a process ignores SIGINT, and so would the kernels that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("verdicts")
