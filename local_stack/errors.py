"""What the local stack says when it cannot go on."""

from __future__ import annotations


class LocalStackError(Exception):
    """The local stack cannot go on; the message is a sentence for the person who started it."""
