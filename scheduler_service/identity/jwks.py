"""The keys of the issuer's JWTs, from its JSON Web Key Set's URL.

Keys are fetched beside the calls: at start, each so many seconds, and for a key that is not known, of which any number
of calls cause one fetch. Only a good answer takes the place of the keys that are there; those go on while the URL
cannot be had, until they are too old to be trusted.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import structlog
from jwt import PyJWK

from scheduler_service.domain.errors import Unavailable
from scheduler_service.domain.jwts import refused
from scheduler_service.identity.key_sets import ALGORITHMS, KeySet, read_key_set

log = structlog.get_logger()

REFRESH_SECONDS = 300.0
MAX_AGE_SECONDS = 86_400.0
_SPACING_SECONDS = 10.0
_SPACING_WITHOUT_KEYS = 1.0
_PATIENCE_SECONDS = 3.0
_FETCH_SECONDS = 5.0
_MAX_BYTES = 1024 * 1024
_HEADERS = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}


class Jwks:
    """`refresh` and `max_age` are in seconds; `patience`: how long a call waits for a key that is being fetched.

    `failures`: fetches that brought no good answer. `clock` is monotonic.
    """

    algorithms = ALGORITHMS

    def __init__(
        self,
        url: str,
        *,
        refresh: float = REFRESH_SECONDS,
        max_age: float = MAX_AGE_SECONDS,
        patience: float = _PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = 0
        self._url = url
        self._refresh_seconds = refresh
        self._max_age = max_age
        self._patience = patience
        self._clock = clock
        self._tls = ssl.create_default_context()
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._asked_at = float("-inf")
        self._problem: str | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last good answer; None if there was none."""
        return None if self._keys is None else self._clock() - self._fetched_at

    def start(self) -> None:
        """Begins to fetch, now and from time to time."""
        self._refreshing = asyncio.create_task(self._keep_fresh(), name="jwks")

    async def stop(self) -> None:
        tasks = [task for task in (self._refreshing, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def key(self, algorithm: str, kid: str | None) -> PyJWK:
        """Errors: Unauthenticated for a key that the set has not; Unavailable where that cannot be known now."""
        key = self._find(algorithm, kid)
        if key is None and self._may_fetch():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    await self.refresh()
            key = self._find(algorithm, kid)
        if key is not None:
            return key
        if self._usable() is None or self._problem is not None:
            raise Unavailable(
                "the keys of JWTs cannot be fetched now, so that this one cannot be verified; try again",
                retry_after=self._spacing(),
            )
        raise refused("it names no key of the issuer's key set; sign in again, or look whether the issuer is the right")

    async def refresh(self) -> None:
        """Fetches the keys, or waits for whoever does. What goes wrong is told to the log."""
        if self._fetching is None or self._fetching.done():
            self._asked_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="jwks fetch")
        await asyncio.shield(self._fetching)

    def _find(self, algorithm: str, kid: str | None) -> PyJWK | None:
        keys = self._usable()
        return None if keys is None else keys.find(algorithm, kid)

    def _usable(self) -> KeySet | None:
        return self._keys if self.age is not None and self.age < self._max_age else None

    def _may_fetch(self) -> bool:
        is_fetching = self._fetching is not None and not self._fetching.done()
        return is_fetching or self._clock() - self._asked_at >= self._spacing()

    def _spacing(self) -> float:
        return _SPACING_SECONDS if self._usable() is not None else _SPACING_WITHOUT_KEYS

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            again = self._refresh_seconds if self._problem is None else self._spacing()
            await asyncio.sleep(min(again, self._refresh_seconds))

    async def _fetch(self) -> None:
        try:
            keys = read_key_set(await _get(self._url, self._tls))
        except TimeoutError:
            self._failed(f"it did not answer within {_FETCH_SECONDS:g} s")
        except Exception as error:  # whatever it answered, the keys that are there go on
            self._failed(str(error) or type(error).__name__)
        else:
            self._replace(keys)

    def _failed(self, problem: str) -> None:
        self.failures += 1
        if self._problem is None:
            log.error(
                "JWTs: the key set could not be fetched; the keys that are there go on", why=problem, age=self.age
            )
        self._problem = problem

    def _replace(self, keys: KeySet) -> None:
        before = self._keys
        if self._problem is not None:
            log.info("JWTs: the key set is fetched again")
        if before is None or before.ignored != keys.ignored:
            for sentence in keys.ignored:
                log.warning("JWTs: a key of the set does not count", key=sentence)
        self._problem = None
        self._keys = keys
        self._fetched_at = self._clock()


async def _get(url: str, tls: ssl.SSLContext) -> bytes:
    """What the URL answers: no redirects, no proxy from the environment. Errors: ValueError, TimeoutError, and
    aiohttp's."""
    async with (
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_FETCH_SECONDS),
            connector=aiohttp.TCPConnector(ssl=tls, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers=_HEADERS,
        ) as session,
        session.get(url, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"it answered {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MAX_BYTES:
                raise ValueError(f"its answer is longer than {_MAX_BYTES} bytes")
        return bytes(body)
