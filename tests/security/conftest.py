"""What tests of security share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import DatabaseUrls
from tests.security.world import World, a_world


@pytest.fixture
async def world(database_urls: DatabaseUrls) -> AsyncIterator[World]:
    """A serving scheduler with two services' and two tenants' data."""
    async with a_world(database_urls) as world:
        yield world
