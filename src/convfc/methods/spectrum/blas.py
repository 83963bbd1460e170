"""One thread for BLAS, where matrices are so small that its threads wait more than they work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["one_blas_thread"]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[bool]:
    """Hold BLAS to one thread for the length of a block, and say whether that is so.

    It takes the package threadpoolctl; without it BLAS does as it likes.

    Examples
    --------
    >>> with one_blas_thread() as held:
    ...     type(held)
    <class 'bool'>
    """
    try:
        import threadpoolctl  # type: ignore[import-untyped]
    except ImportError:
        yield False
        return
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield True
