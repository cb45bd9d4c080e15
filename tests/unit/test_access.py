"""docs/security.md says who may do what, and `may` says the same."""

from __future__ import annotations

import pytest

from scheduler_service.domain.access import (
    ANONYMOUS,
    ANY_SERVICE,
    SYSTEM_TENANT,
    Action,
    Kind,
    Principal,
    Resource,
    Scope,
    may,
    require,
)
from scheduler_service.domain.errors import Forbidden, NotFound, NothingToSee, Unauthenticated
from tests.e2e.cluster import ROOT

_PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in _PAGE.partition("| may | service |")[2].partition("\n\n")[0].splitlines()[2:]
]
_SERVICE = Principal(Kind.SERVICE, name="t", service="email-service", scopes=frozenset(Scope))
_WORKER = Principal(Kind.WORKER, name="w", service=ANY_SERVICE, scopes=frozenset({Scope.WORK}))
_ADMIN = Principal(Kind.ADMIN, name="alice")
_USER = Principal(Kind.USER, name="ann", tenant="acme")
_OWN = Resource(service="email-service", tenant="acme")


def test_the_page_has_every_action() -> None:
    assert [row[0] for row in _ROWS] == [action.value for action in Action]


@pytest.mark.parametrize(("action", "service", "worker", "admin", "user"), _ROWS)
def test_each_may_what_the_page_says(action: str, service: str, worker: str, admin: str, user: str) -> None:
    wanted = Action(action)
    principals = ((_SERVICE, service), (_WORKER, worker), (_ADMIN, admin), (_USER, user))
    assert [may(principal, wanted, _OWN) for principal, _ in principals] == [said != "no" for _, said in principals]
    assert may(_SERVICE, wanted, Resource(service="kpi-service")) is False
    assert may(_USER, wanted, Resource(tenant="globex")) is False
    assert may(_USER, wanted, Resource(tenant=SYSTEM_TENANT)) is False
    assert may(_ADMIN, wanted, Resource(service="kpi-service", tenant="globex")) is (admin != "no")


@pytest.mark.parametrize(("action", "service"), [(row[0], row[1]) for row in _ROWS])
def test_a_service_needs_the_scope_that_the_page_says(action: str, service: str) -> None:
    with_scope = [
        scope.value
        for scope in Scope
        if may(Principal(Kind.SERVICE, service="email-service", scopes=frozenset({scope})), Action(action), _OWN)
    ]
    assert with_scope == ([] if service == "no" else [service.partition("`")[2].rstrip("`")])


@pytest.mark.parametrize("action", Action)
def test_who_is_nobody_may_nothing_and_learns_nothing(action: Action) -> None:
    with pytest.raises(NothingToSee):
        require(Principal(Kind.USER, name="nora"), action)
    with pytest.raises(Unauthenticated):
        require(ANONYMOUS, action)
    assert not may(Principal(Kind.ENGINE), action)


def test_a_refusal_says_who_may_and_a_user_is_not_told_what_is_there() -> None:
    with pytest.raises(Forbidden, match="may not register jobs of kpi-service; registration needs a service token"):
        require(_SERVICE, Action.REGISTER, Resource(service="kpi-service"))
    with pytest.raises(NotFound, match="not yours to see"):
        require(_USER, Action.READ, Resource(tenant="globex"))
