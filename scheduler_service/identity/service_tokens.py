"""Service tokens: `id.secret`, known here by the hash of the secret."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from scheduler_service.domain.access import Principal
from scheduler_service.domain.credentials import ServiceToken, secret_hash
from scheduler_service.identity.credentials import invalid

_MAX_TOKEN_LENGTH = 4096


class ServiceTokens:
    """The tokens of CARILLON_SERVICE_TOKENS."""

    def __init__(self, configured: Iterable[ServiceToken]) -> None:
        self._tokens = {token.token_id: token for token in configured}

    def principal(self, token: str) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`)."""
        token_id, _, secret = token[:_MAX_TOKEN_LENGTH].partition(".")
        known = self._tokens.get(token_id)
        presented = secret_hash(secret)
        # Compared also where there is no such token, so that the time taken says nothing about which ids exist.
        if not hmac.compare_digest(presented, known.secret_hash if known else bytes(32)) or known is None:
            raise invalid("the service token is not known here; check CARILLON_SERVICE_TOKENS on both sides")
        return known.principal

    def holds(self, principal: Principal) -> bool:
        return principal.name in self._tokens
