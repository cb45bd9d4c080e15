"""What a call is, apart from how it is carried out: `Client` awaits it, `blocking.Client` waits for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from carillon.channel import Connection
from carillon.tls import Tls
from carillon.v1 import (
    audit_service_pb2_grpc,
    job_service_pb2_grpc,
    registry_service_pb2_grpc,
    run_service_pb2_grpc,
    schedule_service_pb2_grpc,
)

if TYPE_CHECKING:
    import grpc

Q = TypeVar("Q")
A = TypeVar("A")
R = TypeVar("R")
C = TypeVar("C")
Self = TypeVar("Self", bound="Caller[Any]")

CALL_SECONDS = 30.0
PAGE = 500


class Stubs:
    """The services of one channel, asyncio's or the blocking kind. Typed as the latter; the messages are the same."""

    def __init__(self, channel: Any) -> None:
        self.registry: registry_service_pb2_grpc.RegistryServiceStub
        self.jobs: job_service_pb2_grpc.JobServiceStub
        self.schedules: schedule_service_pb2_grpc.ScheduleServiceStub
        self.runs: run_service_pb2_grpc.RunServiceStub
        self.audit: audit_service_pb2_grpc.AuditServiceStub
        self.registry = registry_service_pb2_grpc.RegistryServiceStub(channel)
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.schedules = schedule_service_pb2_grpc.ScheduleServiceStub(channel)
        self.runs = run_service_pb2_grpc.RunServiceStub(channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(channel)


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request with one answer. `read` makes the result of the answer."""

    rpc: Callable[[Stubs], Any]
    request: Any
    read: Callable[[Any], R]


@dataclass(frozen=True)
class Page(Generic[R]):
    """A part of a list, and the call that reads the next part."""

    found: Sequence[R]
    following: Call[Page[R]] | None


@dataclass(frozen=True)
class Pages(Generic[R]):
    """A list that is read page by page."""

    first: Call[Page[R]]


@dataclass(frozen=True)
class Stream(Generic[R]):
    """One request with many answers, without a deadline. `read` makes the result of each."""

    rpc: Callable[[Stubs], Any]
    request: Any
    read: Callable[[Any], R]


class Unary(Generic[Q, A]):
    """A method with one answer, as in `Unary(lambda stubs: stubs.jobs.GetJob)`."""

    def __init__(self, rpc: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[Q, A]]) -> None:
        self._rpc = rpc

    def call(self, request: Q, read: Callable[[A], R]) -> Call[R]:
        return Call(self._rpc, request, read)

    def pages(self, request: Q, read: Callable[[A], Iterable[R]]) -> Pages[R]:
        """For methods that have `page_token` and `next_page_token`."""
        return Pages(self._page(request, read))

    def _page(self, request: Any, read: Callable[[A], Iterable[R]]) -> Call[Page[R]]:
        def read_page(answer: Any) -> Page[R]:
            if not answer.next_page_token:
                return Page(list(read(answer)), None)
            following = type(request)()
            following.CopyFrom(request)
            following.page_token = answer.next_page_token
            return Page(list(read(answer)), self._page(following, read))

        return Call(self._rpc, request, read_page)


class Streaming(Generic[Q, A]):
    """A method with many answers, as in `Streaming(lambda stubs: stubs.runs.WatchRuns)`."""

    def __init__(self, rpc: Callable[[Stubs], grpc.UnaryStreamMultiCallable[Q, A]]) -> None:
        self._rpc = rpc

    def stream(self, request: Q, read: Callable[[A], R]) -> Stream[R]:
        return Stream(self._rpc, request, read)


class Caller(Generic[C]):
    """What both clients are made of, but for the waiting."""

    _opened_by: ClassVar[str]

    def __init__(
        self,
        target: str | None = None,
        *,
        token: str | None = None,
        service_token: str | None = None,
        tls: Tls | bool | None = None,
        plaintext: bool | None = None,
        timeout: float = CALL_SECONDS,
        channel: C | None = None,
    ) -> None:
        connection = Connection.resolve(
            target,
            service_token=service_token,
            jwt=token,
            tls=tls,
            # What a channel that is given speaks is its maker's affair.
            plaintext=plaintext if channel is None else True,
        )
        self._set_up(connection, timeout, channel)

    @classmethod
    def through(cls: type[Self], connection: Connection, *, timeout: float = CALL_SECONDS) -> Self:
        """A client with the address and credentials of this connection, such as `jobs.connection`."""
        client = cls.__new__(cls)  # all is resolved: the environment is not asked again
        client._set_up(connection, timeout, None)
        return client

    def _set_up(self, connection: Connection, timeout: float, channel: C | None) -> None:
        self._connection = connection
        self._timeout = timeout
        self._given = channel
        self._own: C | None = None
        self._stubs: Stubs | None = None

    def _open(self, connect: Callable[[], C]) -> None:
        channel = self._given
        if channel is None:
            channel = self._own = connect()
        self._stubs = Stubs(channel)

    def _leave(self) -> C | None:
        """Forgets the channel, and returns it if it is to be closed."""
        own, self._own, self._stubs = self._own, None, None
        return own

    def _start(self, call: Call[Any] | Stream[Any], timeout: float | None) -> Any:
        if self._stubs is None:
            raise RuntimeError(f"the client is not open; use it as `{self._opened_by} Client(...) as client:`")
        return call.rpc(self._stubs)(call.request, timeout=timeout, metadata=self._connection.metadata())


def as_method(method: Callable[..., Any], describe: Callable[..., Any], returns: str) -> None:
    """Gives a derived method the name, documentation and signature of what it is derived from.

    returns: how the result is shown, with `R` for what the description's type is of.
    """
    described = inspect.signature(describe)
    result = str(described.return_annotation).partition("[")[2].removesuffix("]")
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__ = describe.__name__
    method.__qualname__ = f"Client.{describe.__name__}"
    method.__doc__ = describe.__doc__
    method.__signature__ = described.replace(  # type: ignore[attr-defined]  # read by inspect
        parameters=[itself, *described.parameters.values()], return_annotation=returns.replace("R", result)
    )
