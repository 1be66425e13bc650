"""Lesson 01, exercise 1.3: each wrong answer is told apart, on her data and on hidden data of any seed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labkit import Lab
from labkit.blog import create_app
from labkit.course.lessons._simulated import SimulatedLab
from tests.lessons.judging import SEEDS, Notebook, profiling

HEAD = '@router.get("/fast-endpoint")\nasync def fast_endpoint(db: Session = Depends(get_db)):\n'
COMMENTS = "select(func.count(Comment.id)).where(Comment.post_id == "
WHOLE = """    users = db.query(User).order_by(User.id).limit(50).all()
    counts = Counter(comment.post_id for comment in db.query(Comment))
    mine = {}
    for p in db.query(Post).order_by(Post.id):
        mine.setdefault(p.author_id, []).append({"id": p.id, "title": p.title, "comments_count": counts[p.id]})
    result = [{"id": user.id, "username": user.username, "posts": mine.get(user.id, [])} for user in users]
    return {"users": result, "total": len(result)}
"""
RELATIONS = """    from sqlalchemy.orm import joinedload, selectinload
    users = db.query(User).options(OPTIONS).order_by(User.id).limit(50).all()
    counts = COUNTS
    result = []
    for user in users:
        posts = [{"id": p.id, "title": p.title, "comments_count": counts(p)} for p in user.posts]
        result.append({"id": user.id, "username": user.username, "posts": posts})
    return {"users": result, "total": len(result)}
"""
TOTALS = "dict(db.execute(select(Comment.post_id, func.count()).group_by(Comment.post_id)).all())"
JOINED = """    rows = db.execute(
        select(User.id, User.username, Post.id, Post.title).JOIN(Post, Post.author_id == User.id)
        .order_by(User.id, Post.id)LIMIT
    ).all()
    counts = TOTALS
    users = {}
    for user, name, post, title in rows:
        own = users.setdefault(user, {"id": user, "username": name, "posts": []})["posts"]
        if post is not None:
            own.append({"id": post, "title": title, "comments_count": counts.get(post, 0)})
    result = list(users.values())[:50]
    return {"users": result, "total": len(result)}
""".replace("TOTALS", TOTALS)
EACH = """    result = []
    users = db.execute(select(User.id, User.username).order_by(User.id).limit(50)).all()
    for chunk in CHUNKS:
        ids = [user.id for user in chunk]
        posts = {id: [] for id in ids}
        rows = select(Post, func.count(Comment.id)).outerjoin(Comment, Comment.post_id == Post.id)
        for post, n in db.execute(rows.where(Post.author_id.in_(ids)).group_by(Post.id).order_by(Post.id)):
            posts[post.author_id].append({"id": post.id, "title": post.title, "comments_count": n})
        result += [{"id": user.id, "username": user.username, "posts": posts[user.id]} for user in chunk]
    return {"users": result, "total": len(result)}
"""


def relations(options: str, counts: str) -> str:
    return HEAD + RELATIONS.replace("OPTIONS", options).replace("COUNTS", counts)


def joined(join: str, limit: str = "") -> str:
    return HEAD + JOINED.replace("JOIN", join).replace("LIMIT", limit)


def each(chunks: str) -> str:
    return HEAD + EACH.replace("CHUNKS", chunks)


PER_USER = each("[[user] for user in users]")
PER_POST = relations("selectinload(User.posts)", f"lambda p: db.scalar({COMMENTS}p.id))")

SWAPS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "posts without comments": ("fast_lost_posts", [(".outerjoin(", ".join(")]),
    "LIMIT without ORDER BY": ("fast_order", [(".order_by(User.id)", "")]),
    "the newest post first": ("fast_order", [(".order_by(Post.id)", ".order_by(Post.id.desc())")]),
    "by title": ("fast_titles", [(".group_by(Post.id, Post.title, Post.author_id)", ".group_by(Post.title)")]),
    "by author and title": (
        "fast_titles",
        [(".group_by(Post.id, Post.title, Post.author_id)", ".group_by(Post.author_id, Post.title)")],
    ),
    "two joins multiply": (
        "fast_multiplied",
        [
            (
                ".outerjoin(Comment, Comment.post_id == Post.id)",
                ".join(User, User.id == Post.author_id).outerjoin(Comment, Comment.author_id == User.id)",
            )
        ],
    ),
    "count(*)": ("fast_counts_row", [("func.count(Comment.id)", "func.count()")]),
    "no counts": ("fast_no_counts", [(', "comments_count": comments', "")]),
    "keys added": (
        "fast_extra_keys",
        [('"posts": posts_by', '"posts_count": len(posts_by_user[user.id]), "posts": posts_by')],
    ),
    "no LIMIT": ("fast_all_users", [(".limit(50)", "")]),
    "ids as text": ("fast_body", [('{"id": user.id,', '{"id": str(user.id),')]),
    "another total": ("fast_body", [('"total": len(result)', '"total": sum(map(len, posts_by_user.values()))')]),
    "a list": ("fast_body", [('{"users": result, "total": len(result)}', "result")]),
    "no return": ("fast_body", [('return {"users": result, "total": len(result)}', "pass")]),
    "still sleeping": ("fast_sleeps", [("    result = ", "    time.sleep(0.01)\n    result = ")]),
}
WHOLE_CELLS = {
    "users without posts": ("fast_lost_users", joined("join")),
    "LIMIT of rows": ("fast_few_users", joined("outerjoin", ".limit(50)")),
    "a user for each post": (
        "fast_repeated",
        joined("outerjoin").replace("setdefault(user,", "setdefault((user, post),"),
    ),
    "one look-up a user": ("fast_per_user", PER_USER),
    "one look-up a post": ("fast_per_post", PER_POST),
    "batches of ten users": ("fast_grows", each("[users[i:i + 10] for i in range(0, len(users), 10)]")),
    "five statements": (
        "fast_statements",
        each("[users]").replace(
            "ids = [", "db.scalars(select(User.id)).all(), db.scalars(select(Post.id)).all()\n        ids = ["
        ),
    ),
    "relations in batches": (
        "fast_batches",
        relations("selectinload(User.posts).selectinload(Post.comments)", "lambda p: len(p.comments)"),
    ),
    "whole tables": ("fast_rows", HEAD + WHOLE),
    "without Depends": ("fast_declared", "async def fast_endpoint(db: Session):\n" + WHOLE),
    "another status": ("fast_status", HEAD + "    from fastapi import HTTPException\n    raise HTTPException(404)\n"),
}
HIDDEN = {  # right on the visible data, whose ids run from 1 to 50
    "posts of users to 50": ("fast_ids", [("Post.author_id.in_([user.id for user in users])", "Post.author_id <= 50")]),
    "users to 50": ("fast_ids", [(".order_by(User.id).limit(50)", ".where(User.id <= 50).order_by(User.id)")]),
    "ids counted": (
        "fast_ids",
        [
            ('{"id": user.id, "username"', '{"id": n, "username"'),
            ("for user in users\n    ]\n    return", "for n, user in enumerate(users, 1)\n    ]\n    return"),
        ],
    ),
    "letters lost": ("fast_hidden", [('"title": title', '"title": title.encode("cp1252", "ignore").decode("cp1252")')]),
}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as simulated, eight times faster: what is not about time need not wait for it."""
    times = SimulatedLab(0, 8.0)
    monkeypatch.setattr(Lab, "compare", lambda self, a, b, seconds: times.compare("/before", "/after"))


def test_the_starter_becomes_right_step_by_step(notebook: Notebook) -> None:
    """T11 first, then T12 and T10: each repair uncovers the next trap, in counts."""
    judged = notebook.check("1.3", notebook.text("1.3"))
    assert judged.state == ("todo", "fast_no_counts")
    assert judged.card.counts["bare"] == judged.card.counts["posts"] > 500
    counted = [('"title": post.title}', f'"title": post.title, "comments_count": db.scalar({COMMENTS}post.id))}}')]
    judged = notebook.check("1.3", notebook.version("1.3", *counted, role="starter"))
    assert judged.state == ("almost", "fast_extra_multiplied")
    assert judged.card.counts["got"] > judged.card.counts["expected"] > 0
    bare = ['                "posts_count": user.posts,\n', '                "comments_count": user.comments,\n']
    counted += [(line, "") for line in bare]
    judged = notebook.check("1.3", notebook.version("1.3", *counted, role="starter"))
    assert judged.state == ("almost", "fast_order")
    counted += [("        .limit(50)", "        .order_by(User.id)\n        .limit(50)")]
    judged = notebook.check("1.3", notebook.version("1.3", *counted, role="starter"))
    assert judged.state == ("almost", "fast_per_post")


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_the_solution_is_done_with_any_seed(notebook: Notebook, timed: None, seed: int | None) -> None:
    judged = notebook.check("1.3", notebook.text("1.3", "solution"), seed)
    assert judged.state == ("done", "fast_done") and judged.card.note == ""
    assert judged.card.counts.items() >= {"before": 1_051, "statements": 2, "few": 2, "many": 2}.items()


@pytest.mark.parametrize(("key", "swaps"), SWAPS.values(), ids=SWAPS)
def test_each_wrong_answer_has_a_sentence_of_its_own(
    notebook: Notebook, key: str, swaps: list[tuple[str, str]]
) -> None:
    assert notebook.check("1.3", notebook.version("1.3", *swaps)).state == ("almost", key)


@pytest.mark.parametrize(("key", "source"), WHOLE_CELLS.values(), ids=WHOLE_CELLS)
def test_each_other_way_to_go_wrong_has_one_too(notebook: Notebook, key: str, source: str) -> None:
    assert notebook.check("1.3", source).state == ("almost", key)


@pytest.mark.parametrize(("key", "swaps"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_only_hidden_data_shows_is_the_same_with_any_seed(
    notebook: Notebook, key: str, swaps: list[tuple[str, str]], seed: int
) -> None:
    assert notebook.check("1.3", notebook.version("1.3", *swaps), seed).state == ("almost", key)


@pytest.mark.parametrize(("key", "source"), [("fast_per_user", PER_USER), ("fast_per_post", PER_POST)])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_left_is_the_same_with_any_seed(notebook: Notebook, key: str, source: str, seed: int) -> None:
    assert notebook.check("1.3", source, seed).state == ("almost", key)


def test_a_failure_on_hidden_data_prints_its_seed_and_can_be_repeated(notebook: Notebook) -> None:
    source = notebook.version("1.3", *HIDDEN["letters lost"][1])
    first = notebook.check("1.3", source).card
    found = re.search(r"[\d.]+", first.note)
    assert found
    seed = int(found[0].replace(".", ""))
    again = notebook.check("1.3", source, seed).card
    assert (again.message, again.note) == (first.message, first.note)
    assert f"{seed}" in first.message.replace(".", "")


def test_a_failure_on_her_own_data_speaks_of_no_seed(notebook: Notebook) -> None:
    assert notebook.check("1.3", notebook.version("1.3", *SWAPS["count(*)"][1])).card.note == ""


def test_an_answer_that_was_kept_is_told(notebook: Notebook) -> None:
    source = "kept = {}\n" + notebook.version(
        "1.3",
        ("    users = db", "    if kept:\n        return kept\n    users = db"),
        ("    return {", "    kept.update(users=result, total=len(result))\n    return {"),
    )
    assert notebook.check("1.3", source).state == ("almost", "fast_remembered")


def test_relations_in_batches_are_explained_in_counts(notebook: Notebook) -> None:
    """1,000 posts are two batches of 500 keys: the fourth statement, which no budget can forgive."""
    card = notebook.check("1.3", WHOLE_CELLS["relations in batches"][1]).card
    assert card.counts.items() >= {"statements": 4, "many": 3, "posts": 1_000, "lots": 2}.items()
    assert "selectinload" in card.message and "func.count(Comment.id)" in card.hint


def test_a_list_indexed_by_id_is_her_own_line(notebook: Notebook) -> None:
    swap = ("{user.id: [] for user in users}", "[[] for _ in range(51)]")
    judged = notebook.check("1.3", notebook.version("1.3", swap))
    assert judged.state == ("error", "course.endpoint_raised")
    assert "IndexError" in judged.card.code and "posts_by_user[author_id]" in judged.card.code
    assert judged.card.note != "", "hidden data: the seed is needed to see it again"


@pytest.mark.parametrize(
    ("times_faster", "state"),
    [(0.5, ("almost", "fast_slower")), (8.0, ("done", "fast_done")), (1.02, ("done", "fast_done"))],
    ids=["slower", "faster", "cannot tell"],
)
def test_time_counts_only_where_it_is_clear(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch, times_faster: float, state: tuple[str, str]
) -> None:
    """With simulated times, so that nothing depends on this machine."""
    times = SimulatedLab(0, times_faster)
    monkeypatch.setattr(Lab, "compare", lambda self, a, b, seconds: times.compare("/before", "/after"))
    assert notebook.check("1.3", notebook.text("1.3", "solution")).state == state


ROUTE = '@router.get("/fast-endpoint")\n'


@pytest.mark.parametrize(
    "route",
    ["", '@router.get("/faster")\n', '@router.post("/fast-endpoint")\n', '@APIRouter().get("/fast-endpoint")\n'],
    ids=["dropped", "another path", "another method", "a router that nobody included"],
)
def test_a_right_function_that_is_not_reached_at_its_path_is_told(notebook: Notebook, timed: None, route: str) -> None:
    """The lesson goes on to measure the path, where the blog's own endpoint would answer."""
    judged = notebook.check("1.3", notebook.version("1.3", (ROUTE, route)))
    assert judged.state == ("almost", "fast_path")
    assert "/performance/fast-endpoint" in judged.card.message and "include_router" in judged.card.hint


def test_a_decorator_around_it_does_not_hide_that_it_is_hers(notebook: Notebook, timed: None) -> None:
    above = (
        "def same(f):\n    @wraps(f)\n    async def g(*a, **k):\n        return await f(*a, **k)\n    return g\n@same\n"
    )
    below = notebook.version("1.3", (ROUTE, f"{above.replace('@same', ROUTE + '@same')}"))
    for source in (below, notebook.version("1.3", (ROUTE, above + ROUTE))):
        assert notebook.check("1.3", source).state == ("done", "fast_done")


def test_an_endpoint_that_hangs_ends_with_a_sentence(data: Path) -> None:
    with Lab(create_app(data_folder=data), redis=False, latency=0, time_limit=6) as lab:
        notebook = profiling(lab)
        lab.time_limit = 60.0  # from which the check takes its own limit; that of requests stays
        judged = notebook.check("1.3", HEAD + "    while True:\n        time.sleep(0.01)\n")
        assert judged.card.verdict == "error" and judged.key != "course.too_long", "the request is ended first"
        assert lab.get("/health/").status == 200


@pytest.mark.parametrize(
    "source",
    [
        relations("selectinload(User.posts)", f"(lambda of: lambda p: of.get(p.id, 0))({TOTALS})"),
        relations("joinedload(User.posts)", f"(lambda of: lambda p: of.get(p.id, 0))({TOTALS})"),
        joined("outerjoin"),
        each("[users]").replace("async def", "def"),
    ],
    ids=["selectinload", "joinedload", "one join", "a plain function"],
)
def test_other_right_answers_are_done(notebook: Notebook, timed: None, source: str) -> None:
    assert notebook.check("1.3", source).state == ("done", "fast_done")
