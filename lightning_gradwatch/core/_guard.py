"""What every guard of ours lets through: exceptions that are the user's, though our code was running."""

from __future__ import annotations

import functools
import signal
import traceback
from collections.abc import Callable
from types import CodeType, FunctionType, MethodType


def is_the_users(failure: BaseException) -> bool:
    """Whether a handler of signals raised it, such as somebody's time limit, which must end the run as without us.

    Python calls these handlers between any two instructions, so also within our code.
    """
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(failure.__traceback__))


def attempt(action: Callable[[], object]) -> None:
    """Do something whose failure is of no account, unless it is the user's."""
    try:
        action()
    except Exception as failure:
        if is_the_users(failure):
            raise


def _code_of(handler: object) -> CodeType | None:
    """Code of a handler that is written in Python; None for any other."""
    while isinstance(handler, (functools.partial, MethodType)):
        handler = handler.func if isinstance(handler, functools.partial) else handler.__func__
    function = handler if isinstance(handler, FunctionType) else vars(type(handler)).get("__call__")
    return function.__code__ if isinstance(function, FunctionType) else None
