"""How a process of ours is told to stop: by a signal, or by the end of its parent."""

import os
import signal
import threading
import time
from threading import Event

_LOOK_EVERY_SECONDS = 0.5


def stop_on_signals() -> Event:
    """Return an event that SIGINT and SIGTERM set. Call it once, from the main thread."""
    stop = Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait_for_signal() -> None:
        os.read(reader, 1)
        stop.set()

    # Set from a thread: a handler runs in the main thread, which may hold the event's own lock.
    threading.Thread(target=wait_for_signal, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return stop


def leave_with_parent(parent: int) -> None:
    """Send this process a SIGTERM when the one that started it is gone; 0 is nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, name="parent", daemon=True).start()
