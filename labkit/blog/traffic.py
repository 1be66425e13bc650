"""Who would visit whom, and when: requests for the pages of users, in the rhythm in which the blog is written."""

from __future__ import annotations

import numpy as np

from labkit.blog.generator import Floats, Integers, generate

_WEEK, _FIRST = 7 * 86_400, 100  # whole weeks since a Monday, late enough for everybody to be there


def visits(seed: int, requests: int = 20_000, weeks: int = 4) -> tuple[Floats, Integers, list[Floats]]:
    """Visits drawn from the comments of the blog with this seed, and the real changes of the pages visited.

    A page is visited as often as its posts are commented on, at the hours of the week at which comments are
    made. It changes when its owner posts, and when somebody comments.

    Returns:
        Seconds of each visit, ascending; the page visited (user id - 1); the seconds of the changes of each page.
    """
    rng, data = np.random.default_rng(seed), generate(seed)
    owner = data.post_author[data.comment_post - 1]
    hours = np.bincount(data.comment_time % _WEEK // 3600, minlength=168)
    hour = rng.choice(weeks * 168, requests, p=np.tile(hours, weeks) / (weeks * hours.sum()))
    times = np.sort((hour + rng.random(requests)) * 3600)

    changed = np.concatenate([data.comment_time, data.post_time]) - _FIRST * _WEEK
    whose = np.concatenate([owner, data.post_author]) - 1
    inside = (changed > 0) & (changed < weeks * _WEEK)
    changes = [np.sort(changed[inside & (whose == page)]).astype(float) for page in range(len(data.user_time))]
    return times, rng.choice(owner, requests) - 1, changes
