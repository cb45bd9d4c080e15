"""The version of this distribution, as `Hello.client` and the user agent name it."""

from __future__ import annotations

__version__ = "0.1.0"

CLIENT = f"carillon-python {__version__}"
