"""Which claims of a JWT may say what somebody is: none that people write themselves, or that means something else."""

from __future__ import annotations

from scheduler_service.domain.jwts import ClaimPath, claim_path

_OF_THE_JWT = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})
"""RFC 7519, section 4.1."""
_OF_AN_ORGANIZATION = (("org_role",), ("org_permissions",), ("o", "rol"), ("o", "per"))
_METADATA_OF_PEOPLE = frozenset({"unsafe_metadata", "unsafeMetadata", "user_metadata", "userMetadata"})
_PROFILE = frozenset(
    {
        *("name", "given_name", "family_name", "middle_name", "nickname", "preferred_username", "profile", "picture"),
        *("website", "email", "gender", "birthdate", "zoneinfo", "locale", "phone_number", "address"),
    }
)
"""OpenID Connect Core 1.0, section 5.1."""


def check_role_claim(text: str) -> None:
    """Errors: ValueError with a sentence, for a path that is none or that cannot say who is an admin."""
    path = claim_path(text)
    _check_writer(path)
    if path[0] in _OF_THE_JWT:
        raise ValueError(f"`{path[0]}` says something else of each JWT; name the claim with the role, such as role")


def check_tenant_claim(text: str) -> None:
    """Errors: ValueError with a sentence, for a path that is none or that cannot say a tenant. `sub` can: everybody is
    a tenant of its own then."""
    path = claim_path(text)
    _check_writer(path)
    if path[0] in _OF_THE_JWT - {"sub"}:
        raise ValueError(f"`{path[0]}` says something else of each JWT; name the claim with the tenant, such as tenant")


def _check_writer(path: ClaimPath) -> None:
    if path[0] in _PROFILE or not _METADATA_OF_PEOPLE.isdisjoint(path):
        raise ValueError("people write this claim themselves, and would so take any role or tenant; name another")
    if any(path[: len(known)] == known for known in _OF_AN_ORGANIZATION):
        raise ValueError(
            "it says what somebody is in one organization, which is one tenant; Carillon's admins see every tenant"
        )
