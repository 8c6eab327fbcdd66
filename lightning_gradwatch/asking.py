"""Questions to objects that users may have written: what cannot be had is not known, and nothing fails."""

from __future__ import annotations

from typing import Any

from lightning_gradwatch.core._guard import is_the_users


def ask(owner: object, name: str, default: object = None) -> Any:
    """An attribute; the default if it is not there, or asking for it raises."""
    try:
        return getattr(owner, name, default)
    except Exception as failure:
        if is_the_users(failure):
            raise
        return default


def call(owner: object, name: str) -> object:
    """What a method returns, without arguments; None if it cannot be had."""
    try:
        return getattr(owner, name)()
    except Exception as failure:
        if is_the_users(failure):
            raise
        return None


def own_attributes(owner: object) -> dict[str, object]:
    """What stands in an object itself and not in its class; nothing if it does not say."""
    known = ask(owner, "__dict__")
    return known if isinstance(known, dict) else {}
