"""Service tokens: `id.secret`, known here by the hash of the secret.

Two sources. The tokens of CARILLON_SERVICE_TOKENS hold as long as the process lives, and go before one of the table
with the same id: who may write to the table cannot take their place. The table's tokens are read each second, so that
one that was made, rotated or revoked anywhere is known on every replica.

In charge of expiry: the database's clock, carried on by this process's monotonic one between two looks. While the
database is away the last list goes on, for an hour.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from scheduler_service.domain.access import Principal
from scheduler_service.domain.credentials import ServiceToken, secret_hash
from scheduler_service.domain.errors import Unavailable
from scheduler_service.identity.credentials import invalid
from scheduler_service.store.connection import Connection
from scheduler_service.store.service_tokens import Version, read_tokens, record_uses, version_of_tokens

LONGEST_AWAY_SECONDS = 3_600.0
"""How long a list counts that could not be read again."""
USE_SECONDS = 60.0
"""How far apart the uses of a token are that are written down."""
_MAX_TOKEN_LENGTH = 4096
_NO_HASH = bytes(32)


class StoredTokens:
    """The table's tokens, as this replica read them last, and when they were used since. `step` reads and writes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens: Mapping[str, ServiceToken] = {}
        self._version: Version | None = None
        self._read_at: tuple[datetime, float] | None = None
        self._used: dict[str, float] = {}
        self._written: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def find(self, token_id: str) -> ServiceToken | None:
        """A token that counts now. Errors: Unavailable while the table could not be read, or not for an hour."""
        if self._read_at is None:
            raise Unavailable("the service tokens could not be read from the database yet; ask again in a second")
        database_then, then = self._read_at
        away = self._clock() - then
        if away > LONGEST_AWAY_SECONDS:
            raise Unavailable("the service tokens could not be read from the database for an hour", retry_after=5.0)
        token = self._tokens.get(token_id)
        if token is not None and token.expires_at is not None:
            return token if database_then + timedelta(seconds=away) < token.expires_at else None
        return token

    def used(self, token_id: str) -> None:
        """It was shown, or a stream that it opened goes on."""
        self._used[token_id] = self._clock()

    async def step(self, connection: Connection) -> None:
        """Reads the tokens if they are others than before, and writes which were used."""
        asked_at = self._clock()
        now, version = await version_of_tokens(connection)
        if version != self._version:
            self._tokens = {token.token_id: token for token in await read_tokens(connection)}
            self._version = version
            self._used = {token_id: at for token_id, at in self._used.items() if token_id in self._tokens}
            self._written = {token_id: at for token_id, at in self._written.items() if token_id in self._tokens}
        self._read_at = (now, asked_at)
        await self._write_uses(connection)

    async def _write_uses(self, connection: Connection) -> None:
        now = self._clock()
        due = {
            token_id: now - at
            for token_id, at in self._used.items()
            if now - self._written.get(token_id, float("-inf")) >= USE_SECONDS
        }
        if not due:
            return
        await record_uses(connection, due, apart=USE_SECONDS)
        for token_id, age in due.items():
            self._written[token_id] = now
            if self._used[token_id] == now - age:
                del self._used[token_id]


class ServiceTokens:
    """Who a service token is. `stored`: the table's; without it only the configured ones count."""

    def __init__(self, configured: Iterable[ServiceToken], stored: StoredTokens | None = None) -> None:
        self._configured = {token.token_id: token for token in configured}
        self._stored = stored

    def principal(self, token: str) -> Principal:
        """Errors: Unauthenticated (`CREDENTIALS_INVALID`); Unavailable if the table could not be read yet."""
        if len(token) > _MAX_TOKEN_LENGTH:
            raise invalid(f"the service token is longer than {_MAX_TOKEN_LENGTH:,} bytes")
        token_id, _, secret = token.partition(".")
        known = self._find(token_id)
        # Compared also where there is no such token, so that the time taken says nothing about which ids exist.
        is_right = hmac.compare_digest(secret_hash(secret), known.secret_hash if known else _NO_HASH)
        if known is None or not is_right:
            raise invalid(
                "the service token is not known here, or counts no longer (expired or revoked); compare it with"
                " `tokens list` and CARILLON_SERVICE_TOKENS"
            )
        self._used(known)
        return known.principal

    def holds(self, principal: Principal) -> bool:
        """Whether the token by which this principal came is still good; so is whoever came by another credential."""
        if not principal.token_id:
            return True
        try:
            token = self._find(principal.token_id)
        except Unavailable:
            return False
        if token is None or token.principal != principal:
            return False
        self._used(token)
        return True

    def _find(self, token_id: str) -> ServiceToken | None:
        if (configured := self._configured.get(token_id)) is not None or self._stored is None:
            return configured
        return self._stored.find(token_id)

    def _used(self, token: ServiceToken) -> None:
        if self._stored is not None and token.token_id not in self._configured:
            self._stored.used(token.token_id)
