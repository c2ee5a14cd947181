"""Processes that work for another one."""

import multiprocessing
import os
import signal
import threading


def start_worker() -> None:
    """What a worker process does first: leave Ctrl-C to its parent, and end when the parent does, however that ends;
    else it would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_it() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_it, daemon=True).start()
