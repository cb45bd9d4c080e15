"""The credentials that tests of single services accept."""

from __future__ import annotations

from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.service_tokens import ServiceTokens


def accepting(tokens: str = "", rules: JwtRules | None = None) -> Credentials:
    """`tokens` as in CARILLON_SERVICE_TOKENS; without `rules`, no JWT is accepted."""
    return Credentials(ServiceTokens(parse_service_tokens(tokens)), JwtVerifier(rules or JwtRules()))
