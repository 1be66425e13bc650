"""Which arguments make the key: the same for every way to write a call, without tools, with who is asking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import BackgroundTasks, Body, Cookie, Depends, Header, Path, Query, Request, Response, Security
from fastapi.security import APIKeyHeader, APIKeyQuery, HTTPBearer, OAuth2PasswordBearer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from starlette.requests import Request as StarletteRequest

from labkit.cache.arguments import Arguments
from labkit.cache.keys import KeyMaker
from labkit.errors import CacheError

if TYPE_CHECKING:
    from somewhere import Unknown


def values(function: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return Arguments(function).values(args, kwargs)


# Binding -----------------------------------------------------------------------------------------------------


def shape_0(a: int, b: int = 2, *, c: int = 3) -> dict[str, Any]:
    return locals()


def shape_1(a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **more: int) -> dict[str, Any]:
    return locals()


def shape_2(*rest: int, c: int = 1) -> dict[str, Any]:
    return locals()


def shape_3(**more: int) -> dict[str, Any]:
    return locals()


def shape_4(a: int, b: int) -> dict[str, Any]:
    return locals()


def shape_5() -> dict[str, Any]:
    return locals()


def shape_6(a: int = 1, /, b: int = 2, **more: int) -> dict[str, Any]:
    return locals()


SHAPES = [shape_0, shape_1, shape_2, shape_3, shape_4, shape_5, shape_6]


@given(
    st.sampled_from(SHAPES),
    st.lists(st.integers(0, 9), max_size=4),
    st.dictionaries(st.sampled_from("abcdexyz"), st.integers(0, 9), max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_a_call_is_bound_as_python_binds_it(function: Any, args: list[int], kwargs: dict[str, int]) -> None:
    arguments = Arguments(function)
    try:
        bound = function(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            arguments.values(tuple(args), kwargs)
        return
    assert dict(zip(arguments.names, arguments.values(tuple(args), kwargs), strict=True)) == bound


def test_default_position_and_name_are_one() -> None:
    assert (
        values(shape_0, 1) == values(shape_0, a=1) == values(shape_0, 1, 2) == values(shape_0, 1, b=2, c=3) == (1, 2, 3)
    )


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"z": 1}), ((1, 2), {"b": 2}), ((), {"b": 1})],
)
def test_a_call_that_python_refuses_makes_no_key(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Arguments(shape_0).values(args, kwargs)


def test_a_name_that_only_its_place_gives_is_free_for_the_rest() -> None:
    assert values(shape_6, a=5) == (1, 2, {"a": 5})


def test_a_mutable_default_is_a_value() -> None:
    def find(tags: list[str] = []) -> None: ...  # noqa: B006

    assert values(find) == values(find, []) == ([],)


def test_methods_are_refused() -> None:
    class Users:
        def get(self, user_id: int) -> None: ...

        @classmethod
        def find(cls, user_id: int) -> None: ...

    for method, name in ((Users.get, "self"), (Users.find.__func__, "cls")):
        with pytest.raises(CacheError, match=name):
            Arguments(method)
    assert values(Users().get, 5) == (5,)


# What is left out --------------------------------------------------------------------------------------------


def get_db() -> Iterator[Session]:
    yield Session()


async def get_async_db() -> AsyncIterator[AsyncSession]:
    yield AsyncSession()


def get_plain_db() -> Session: ...  # type: ignore[empty-body]
def get_something(): ...  # type: ignore[no-untyped-def]
def get_page(page: int = 1) -> int:
    return page


Db = Annotated[Session, Depends(get_db)]


def course(user_id: int, db: Session = Depends(get_db)) -> None: ...
def aliased(user_id: int, db: Db) -> None: ...
def optional(user_id: int, db: Session | None = None) -> None: ...
def by_dependency(user_id: int, db=Depends(get_db)) -> None: ...  # type: ignore[no-untyped-def]
def by_async_dependency(user_id: int, db: Any = Depends(get_async_db)) -> None: ...
def by_return(user_id: int, db: Any = Depends(get_plain_db)) -> None: ...
def scoped(user_id: int, db: scoped_session[Session]) -> None: ...
def answering(user_id: int, response: Response, tasks: BackgroundTasks, db: Session = Depends(get_db)) -> None: ...
def first(db: Session, user_id: int) -> None: ...
def only_name(user_id: int, *, db: AsyncSession) -> None: ...


@pytest.mark.parametrize(
    "function", [course, aliased, optional, by_dependency, by_async_dependency, by_return, scoped, answering, only_name]
)
def test_tools_are_left_out_and_may_be_missing(function: Any) -> None:
    arguments = Arguments(function)
    assert arguments.names == ("user_id",)
    assert arguments.values((7,), {}) == arguments.values((), {"user_id": 7}) == (7,)
    assert arguments.values((7,), {"db": None}) == arguments.values((7,), {"db": object()}) == (7,)


def test_none_in_the_place_of_a_session_is_fine() -> None:
    assert values(course, 7, None) == values(course, 7, Session()) == values(course, 7) == (7,)
    assert values(first, None, 7) == values(first, user_id=7) == (7,)


def test_a_parameter_without_annotation_counts_as_none_when_it_holds_a_session() -> None:
    def get(user_id, db): ...  # type: ignore[no-untyped-def]

    arguments = Arguments(get)
    make = KeyMaker("", get, arguments.names)
    assert make(arguments.values((7, Session()), {})) == make(arguments.values((7, None), {}))
    with pytest.raises(TypeError, match="db"):
        arguments.values((7,), {})


def test_an_annotation_that_cannot_be_resolved_does_not_hide_the_others() -> None:
    def get(user_id: int, thing: Unknown, db: Session) -> None: ...

    assert values(get, 7, "x", None) == values(get, 7, "x") == (7, "x")


def test_a_value_from_depends_is_part_of_the_key() -> None:
    def search(text: str, page: int = Depends(get_page), size: int = Query(10)) -> None: ...

    assert values(search, text="a", page=2, size=5) == ("a", 2, 5)
    with pytest.raises(CacheError, match="page"):
        values(search, "a", size=5)
    with pytest.raises(CacheError, match="size"):
        values(search, "a", 2)


def test_values_in_annotated_keep_their_default() -> None:
    def search(page: Annotated[int, Depends(get_page)], size: Annotated[int, Query(le=50)] = 10) -> None: ...

    assert values(search, page=2) == (2, 10)
    with pytest.raises(CacheError, match="page"):
        values(search)


# Who is asking -----------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


def current_user() -> User: ...  # type: ignore[empty-body]
def mine(post_id: int, current_user: User = Depends(current_user), db: Session = Depends(get_db)) -> None: ...


def test_an_orm_user_is_refused_unless_who_says_what_counts() -> None:
    ana, bea = User(id=1), User(id=2)
    arguments = Arguments(mine)
    with pytest.raises(CacheError, match="who=lambda current_user"):
        KeyMaker("", mine, arguments.names)(arguments.values((5, ana, None), {}))
    arguments = Arguments(mine, who=lambda current_user: current_user.id)
    assert arguments.names == ("post_id", "who")
    assert (
        arguments.values((5, ana), {})
        == arguments.values((), {"post_id": 5, "current_user": ana, "db": None})
        == (5, 1)
    )
    assert arguments.values((5, bea), {}) == (5, 2)
    with pytest.raises(CacheError, match="current_user"):
        arguments.values((5,), {})


def test_who_does_not_take_values_out_of_the_key() -> None:
    arguments = Arguments(shape_4, who=lambda a: a % 2)
    assert arguments.values((1, 5), {}) == (1, 5, 1)
    assert arguments.values((3, 5), {}) == (3, 5, 1)


def test_who_sees_the_request_of_an_endpoint_that_has_none() -> None:
    def endpoint(post_id: int) -> None: ...

    arguments = Arguments(endpoint, who=lambda request: request.headers.get("authorization"))
    asked = SimpleNamespace(headers={"authorization": "Bearer ana"})
    assert arguments.values((), {"post_id": 5}, request=asked) == (5, "Bearer ana")
    assert arguments.values((5,), {"request": asked}) == (5, "Bearer ana")
    with pytest.raises(CacheError, match="request"):
        arguments.values((5,), {})


def test_who_sees_the_request_that_the_endpoint_declares() -> None:
    def endpoint(request: Request, post_id: int) -> None: ...

    arguments = Arguments(endpoint, who=lambda request: request.headers["authorization"])
    asked = SimpleNamespace(headers={"authorization": "ana"})
    assert arguments.names == ("post_id", "who")
    assert arguments.values((asked, 5), {}) == arguments.values((), {"request": asked, "post_id": 5}) == (5, "ana")


def test_who_sees_defaults() -> None:
    def endpoint(post_id: int, tenant: str = "main") -> None: ...

    assert Arguments(endpoint, who=lambda tenant: tenant.upper()).values((5,), {}) == (5, "main", "MAIN")


def test_who_can_only_ask_for_what_there_is() -> None:
    with pytest.raises(CacheError, match=r"user.*a, b, request"):
        Arguments(shape_4, who=lambda user: user)


def tenant_db(tenant: str) -> Session: ...  # type: ignore[empty-body]
def untyped_tenant_db(x_tenant=Header()): ...  # type: ignore[no-untyped-def]
def pair() -> tuple[Session, int]: ...  # type: ignore[empty-body]


def test_a_session_chosen_by_what_is_not_in_the_key_must_say_so() -> None:
    """Two tenants, two databases, one key: the second would read what belongs to the first."""

    def hidden(user_id: int, db: Session = Depends(tenant_db)) -> None: ...
    def below(user_id: int, db: Session = Depends(lambda db=Depends(tenant_db): db)) -> None: ...
    def said(user_id: int, tenant: str, db: Session = Depends(tenant_db)) -> None: ...

    for endpoint in (hidden, below):
        with pytest.raises(CacheError, match="tenant"):
            Arguments(endpoint)
    assert Arguments(said).names == ("user_id", "tenant")
    asked = SimpleNamespace(path_params={"tenant": "a"})
    arguments = Arguments(hidden, who=lambda request: request.path_params["tenant"])
    assert arguments.values((), {"user_id": 1}, request=asked) == (1, "a")


def test_such_a_session_without_annotation_is_seen_when_it_comes() -> None:
    def endpoint(user_id: int, db=Depends(untyped_tenant_db)): ...  # type: ignore[no-untyped-def]

    arguments = Arguments(endpoint)
    assert arguments.values((1, "a"), {}) == (1, "a")
    with pytest.raises(CacheError, match="x-tenant"):
        arguments.values((1, Session()), {})


def test_a_value_beside_a_session_is_not_left_out() -> None:
    def endpoint(user_id: int, both: Any = Depends(pair), either: Session | int = 1) -> None: ...

    assert Arguments(endpoint).names == ("user_id", "both", "either")


class Headers(BaseModel):
    x_id: str = ""
    authorization: str = ""


def with_header(authorization: str = Header()) -> Session: ...  # type: ignore[empty-body]
def with_tenant(x_tenant: str = Header()) -> str:
    return x_tenant


def with_request(request: StarletteRequest) -> int:
    return 1


bearer, oauth2, api_key = HTTPBearer(), OAuth2PasswordBearer(tokenUrl="token"), APIKeyHeader(name="x-key")


def nested(db: Session = Depends(with_header)) -> int:
    return 1


def a_bearer(post_id: int, token: Any = Depends(bearer)) -> None: ...
def a_token(post_id: int, token: str = Depends(oauth2)) -> None: ...
def a_scope(post_id: int, token: str = Security(oauth2, scopes=["read"])) -> None: ...
def a_key(post_id: int, token: Annotated[str, Depends(api_key)]) -> None: ...
def a_query_key(post_id: int, token: str = Depends(APIKeyQuery(name="k"))) -> None: ...
def a_header(post_id: int, authorization: str = Header()) -> None: ...
def a_renamed(post_id: int, token: Annotated[str | None, Header(alias="Authorization")] = None) -> None: ...
def a_cookie(post_id: int, session: str | None = Cookie(None)) -> None: ...
def a_model(post_id: int, headers: Annotated[Headers, Header()]) -> None: ...
def a_session(post_id: int, db: Session = Depends(with_header)) -> None: ...
def a_nested(post_id: int = Path(), page: int = Depends(nested)) -> None: ...


@pytest.mark.parametrize(
    "endpoint",
    [a_bearer, a_token, a_scope, a_key, a_query_key, a_header, a_renamed, a_cookie, a_model, a_session, a_nested],
)
def test_an_endpoint_that_depends_on_who_is_asking_must_say_so(endpoint: Any) -> None:
    with pytest.raises(CacheError, match="who="):
        Arguments(endpoint)
    Arguments(endpoint, public=True)
    Arguments(endpoint, who=lambda request: request.headers["authorization"])


def asked(**headers: str) -> Request:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {"type": "http", "method": "GET", "path": "/", "query_string": b"", "path_params": {}, "headers": pairs}
    )


def plain(post_id: int) -> None: ...
def tenant(post_id: int, x_tenant: str = Header(), page: int = Depends(get_page)) -> None: ...
def below(post_id: int, tenant: str = Depends(with_tenant)) -> None: ...
def posted(post_id: int, headers: Headers = Body()) -> None: ...


@pytest.mark.parametrize("endpoint", [plain, tenant, below, posted, course, aliased, answering])
def test_other_endpoints_need_not(endpoint: Any) -> None:
    arguments = Arguments(endpoint)
    assert not arguments.bypasses(asked(authorization="x", cookie="y"))


def sees(post_id: int, request: Request) -> None: ...
def sees_below(post_id: int, page: int = Depends(with_request)) -> None: ...


@pytest.mark.parametrize("endpoint", [sees, sees_below])
def test_a_request_that_says_who_is_asking_bypasses_what_sees_it(endpoint: Any) -> None:
    arguments = Arguments(endpoint)
    assert arguments.bypasses(asked(authorization="x"))
    assert arguments.bypasses(asked(cookie="x"))
    assert not arguments.bypasses(asked(accept="x"))
    for other in (Arguments(endpoint, public=True), Arguments(endpoint, who=lambda request: 1)):
        assert not other.bypasses(asked(authorization="x"))


def test_what_fastapi_takes_for_no_endpoint_is_an_ordinary_function() -> None:
    class Strange:
        pass

    def helper(thing: Strange, request: Request, size: int) -> None: ...

    assert Arguments(helper).names == ("thing", "size")


def test_an_int_takes_the_short_way() -> None:
    arguments, given = Arguments(shape_4), (1, 2)
    assert arguments.values(given, {}) is given


def test_equality_is_not_asked_of_arguments() -> None:
    class Loud:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("asked")

        __hash__ = None  # type: ignore[assignment]

    assert values(shape_0, Loud(), b=Loud())[2] == 3
