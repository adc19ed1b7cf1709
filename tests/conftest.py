"""What holds for every test: an interrupt is an interrupt.

A shell that runs the tests in the background lets them ignore SIGINT, and what
is ignored is inherited by every process that a test starts and interrupts.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
