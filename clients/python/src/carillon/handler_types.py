"""What a function must be to be a handler, as type checkers see it; `carillon.handlers` sees it at declaration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from typing import TypeAlias

    from carillon.outcome import Completed
    from carillon.run import Run

    Returned: TypeAlias = Completed | Mapping[str, Any] | None


class DataclassPayload(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class ModelPayload(Protocol):
    """Any pydantic model."""

    model_validate: ClassVar[Callable[..., Any]]


# A TypedDict is a mapping of this kind.
P = TypeVar("P", bound="DataclassPayload | ModelPayload | Mapping[str, object]")
R = TypeVar("R", bound="Returned | Awaitable[Returned]")


class Declare(Protocol):
    """Takes a function, async or plain, with at most one `Run` and at most one payload, in either order."""

    # What fits none is compared with the first, in mypy's words, so that is the fullest.
    @overload
    def __call__(self, function: Callable[[Run, P], R], /) -> Callable[[Run, P], R]: ...

    @overload
    def __call__(self, function: Callable[[P, Run], R], /) -> Callable[[P, Run], R]: ...

    @overload
    def __call__(self, function: Callable[[Run], R], /) -> Callable[[Run], R]: ...

    @overload
    def __call__(self, function: Callable[[P], R], /) -> Callable[[P], R]: ...

    @overload
    def __call__(self, function: Callable[[], R], /) -> Callable[[], R]: ...
