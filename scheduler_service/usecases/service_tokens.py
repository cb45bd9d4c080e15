"""Service tokens, as the deployment's operators manage them at the command line."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from datetime import timedelta

from scheduler_service.domain.access import Action, Principal, Scope, require
from scheduler_service.domain.audit import Change
from scheduler_service.domain.credentials import secret_hash
from scheduler_service.domain.errors import Conflict, NotFound
from scheduler_service.domain.fields import quoted
from scheduler_service.domain.service_tokens import TokenRecord, check_new, new_id, rotate
from scheduler_service.store import audit
from scheduler_service.store import service_tokens as store
from scheduler_service.store.database import Database, Transaction

_SECRET_BYTES = 32
_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token that was just made, with its secret, which nobody can be told again."""

    record: TokenRecord
    _secret: str = field(repr=False)

    def reveal(self) -> str:
        """`id.secret`, as its holder sends it."""
        return f"{self.record.token_id}.{self._secret}"


async def create_token(
    database: Database,
    principal: Principal,
    service: str,
    scopes: frozenset[Scope],
    *,
    lifetime: timedelta | None = None,
    description: str = "",
) -> IssuedToken:
    """A token for a service (`*`: a worker for all). Errors: InvalidInput."""
    require(principal, Action.ADMINISTER)
    check_new(service, scopes, description, lifetime)
    async with database.acting_for(principal) as tx:
        record = TokenRecord(
            token_id=_fresh_id(service),
            service=service,
            scopes=scopes,
            created_at=tx.now,
            created_by=str(principal),
            description=description,
            expires_at=tx.now + lifetime if lifetime else None,
        )
        issued = await _issue(tx, record)
        await audit.record(tx, [_created(record)])
        return issued


async def list_tokens(database: Database, principal: Principal) -> list[TokenRecord]:
    """Every token there ever was, by service."""
    require(principal, Action.ADMINISTER)
    async with database.acting_for(principal) as tx:
        return await store.list_tokens(tx)


async def rotate_token(
    database: Database, principal: Principal, token_id: str, overlap: timedelta
) -> tuple[IssuedToken, TokenRecord]:
    """A token in the place of this one, which counts for `overlap` from now on. Answers the new and the old one.
    Errors: NotFound; Conflict if three of a chain would count, or this one does no longer."""
    require(principal, Action.ADMINISTER)
    async with database.acting_for(principal) as tx:
        chain = await store.lock_chain(tx, token_id)
        old = _known(chain, token_id)
        await tx.look_at_clock()
        after = next((token for token in chain.values() if token.replaces == token_id), None)
        rotation = rotate(old, chain.get(old.replaces), after, overlap, tx.now)
        record = TokenRecord(
            token_id=_fresh_id(old.service),
            service=old.service,
            scopes=old.scopes,
            created_at=tx.now,
            created_by=str(principal),
            description=old.description,
            replaces=token_id,
            expires_at=rotation.new_expires_at,
        )
        issued = await _issue(tx, record)
        await store.expire_token(tx, token_id, rotation.old_expires_at)
        expiring = replace(old, expires_at=rotation.old_expires_at)
        await audit.record(tx, [_changed(old, expiring), _created(record)])
        return issued, expiring


async def revoke_token(database: Database, principal: Principal, token_id: str) -> TokenRecord:
    """This one counts no longer. Errors: NotFound; Conflict if it was revoked before."""
    require(principal, Action.ADMINISTER)
    async with database.acting_for(principal) as tx:
        old = _known(await store.lock_chain(tx, token_id), token_id)
        if not await store.revoke_token(tx, token_id):
            raise Conflict(f"{token_id} was revoked before, by {old.revoked_by}")
        revoked = replace(old, revoked_at=tx.now, revoked_by=str(principal))
        await audit.record(tx, [_changed(old, revoked)])
        return revoked


def _fresh_id(service: str) -> str:
    return new_id(service, secrets.token_hex(_ID_BYTES))


async def _issue(tx: Transaction, record: TokenRecord) -> IssuedToken:
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    await store.add_token(tx, record, secret_hash(secret))
    return IssuedToken(record, secret)


def _known(chain: dict[str, TokenRecord], token_id: str) -> TokenRecord:
    if token_id not in chain:
        raise NotFound(
            f"there is no service token with the id {quoted(token_id)}; `tokens list` shows those that were created"
            " (those of CARILLON_SERVICE_TOKENS are changed there)"
        )
    return chain[token_id]


def _created(token: TokenRecord) -> Change:
    return Change(f"serviceTokens/{token.token_id}", after=token.document())


def _changed(old: TokenRecord, new: TokenRecord) -> Change:
    return Change(f"serviceTokens/{old.token_id}", before=old.document(), after=new.document())
