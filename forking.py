"""Preparation of a forked process for searching: threads do not come along, only what they left behind.

A child of `fork` (the default of `multiprocessing` and of `DataLoader` on Linux until Python 3.14, gunicorn's
`--preload`) inherits the thread teams of OpenMP without their threads: the first parallel loop of FAISS or torch waits
for ever. In a child both get one thread. Locks that another thread held at that moment are made anew, and a fork waits
for the imports of other threads.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType

_handlers: list[weakref.WeakMethod[Callable[[], None]]] = []
_is_registered = False
_has_threads = False

# Held during matrix products on several threads, and waited for by every fork: BLAS, forked in the middle of a
# product, would wait for ever in the child.
unforked = threading.Lock()


def _others_import() -> bool:
    """Whether another thread holds a module's lock, which importlib tells nobody but itself."""
    locks = [kept() for kept in list(getattr(importlib._bootstrap, "_module_locks", {}).values())]
    return any(getattr(lock, "owner", None) not in {None, threading.get_ident()} for lock in locks)


def _wait_for_other_threads() -> None:
    """Wait for products and imports under way: a child would wait for ever for the lock of a half-imported module."""
    unforked.acquire()
    patience = time.monotonic() + 10  # an import may itself wait for this thread
    while _others_import() and time.monotonic() < patience:
        time.sleep(0.001)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=_wait_for_other_threads, after_in_parent=unforked.release, after_in_child=unforked.release
    )


class ForkSafeLock:
    """A lock that is free in a forked child, whoever held it in the parent. Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        in_every_child(self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


def in_every_child(handler: Callable[[], None]) -> None:
    """Call a bound method in every child that is forked as long as its object lives, before the child goes on."""
    global _is_registered
    _handlers.append(weakref.WeakMethod(handler))
    if len(_handlers) % 1024 == 0:
        _handlers[:] = [kept for kept in _handlers if kept() is not None]
    if not _is_registered and hasattr(os, "register_at_fork"):  # Windows has no fork
        _is_registered = True
        os.register_at_fork(after_in_child=_in_child)


def make_forks_safe() -> None:
    """Make searching and encoding safe in forked children; called before FAISS or torch start threads here."""
    global _has_threads
    if not _has_threads:
        _has_threads = True
        in_every_child(_threads.stop)


class _ThreadTeams:
    def stop(self) -> None:
        """Set FAISS and torch to one thread: a fork has none of their thread teams."""
        if (faiss := sys.modules.get("faiss")) is not None and hasattr(faiss, "omp_set_num_threads"):
            faiss.omp_set_num_threads(1)
        if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "set_num_threads"):
            torch.set_num_threads(1)


_threads = _ThreadTeams()


def _in_child() -> None:
    for handler in list(_handlers):
        if (call := handler()) is not None:
            call()
