"""Calls are signed after the Standard Webhooks specification, so that a service knows who calls and what was said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog
from carillon.execution import Failed
from carillon.signing import SigningKeys

SIGNING_KEY_MISSING = "SIGNING_KEY_MISSING"

_log = structlog.stdlib.get_logger("worker_service")


class Signer:
    """Signs calls with the keys of the service that is called.

    keys: by service. required: whether a service without a key is not called. clock: seconds since the Unix epoch.
    """

    def __init__(
        self, keys: Mapping[str, SigningKeys], *, required: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = dict(keys)
        self._required = required
        self._clock = clock
        self._warned: set[str] = set()

    def require_key(self, service: str) -> None:
        """Errors: Failed with `SIGNING_KEY_MISSING` if calls must be signed and there is no key for the service."""
        if self._required and service not in self._keys:
            raise Failed(
                SIGNING_KEY_MISSING,
                f"the call must be signed (CARILLON_REQUIRE_SIGNING), and the worker service has no key for {service} "
                "in CARILLON_SIGNING_KEYS",
            )

    def headers(self, service: str, message: str, body: bytes) -> Mapping[str, str]:
        """`webhook-id`, `webhook-timestamp` and `webhook-signature`; none if there is no key, with one warning."""
        keys = self._keys.get(service)
        if keys is None:
            self._warn_once(service)
            return {}
        return keys.headers(message, int(self._clock()), body)

    def _warn_once(self, service: str) -> None:
        if service not in self._warned:
            self._warned.add(service)
            _log.warning("calls to a service are not signed: CARILLON_SIGNING_KEYS has no key for it", service=service)
