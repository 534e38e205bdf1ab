"""Many workers, many hosts, and no host asked by too many at once."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

from mmbench.data.fetch.asking import host_of


class Turns:
    """Addresses that wait to be asked; hosts take turns, each up to `per_host` at a time."""

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._waiting: dict[str, deque[tuple[str, str]]] = defaultdict(deque)
        self._ready: deque[str] = deque()  # hosts that wait and may be asked, each once
        self._is_ready: set[str] = set()
        self._active: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._is_closed = False

    def add(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Queue pairs of what is worked on and the address that is really asked."""
        with self._changed:
            for what, address in jobs:
                host = host_of(address)
                self._waiting[host].append((what, address))
                self._make_ready(host)
            self._changed.notify_all()

    def take(self) -> tuple[str, str, str] | None:
        """Host, what and address of the next turn, once there is one; None when all is over.

        The host must be given back.
        """
        with self._changed:
            while not self._ready and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            host = self._ready.popleft()
            self._is_ready.discard(host)
            what, address = self._waiting[host].popleft()
            self._active[host] += 1
            self._make_ready(host)
            return host, what, address

    def give_back(self, host: str) -> None:
        """A turn is over."""
        with self._changed:
            self._active[host] -= 1
            self._make_ready(host)
            self._changed.notify_all()

    def close(self) -> None:
        """No more turns."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _make_ready(self, host: str) -> None:
        is_free = self._waiting[host] and self._active[host] < self._per_host
        if is_free and host not in self._is_ready:
            self._is_ready.add(host)
            self._ready.append(host)
