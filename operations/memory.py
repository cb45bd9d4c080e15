"""How a process of ours collects its garbage."""

from __future__ import annotations

import gc

_YOUNG = 50_000


def collect_rarely() -> None:
    """To be called once, when everything is imported.

    Python looks for cycles after 700 new objects, and a batch of 500 runs is tens of thousands of them, nearly all
    alive: a fifth to a third of the time per run went into walking them in vain. Nothing on these paths makes cycles,
    so that looking rarely keeps little. What was imported stays for ever, and is not walked at all.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
