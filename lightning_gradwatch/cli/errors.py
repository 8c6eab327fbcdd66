"""What the command says when it cannot do what was asked."""

from __future__ import annotations


class CommandError(Exception):
    """The message is a sentence for the person who asked: the argument, the rule, what came, and the cure."""
