"""Random stories of several nodes: letters are late, lost or returned, users move, and every push ends once, truly.

The steps of a story are numbers, so that one that fails can be told in fewer steps: see `shrunk`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import pytest

from tests.support.random_town import KINDS, LIMITS, Step, Story
from tests.support.random_town_checks import wrong_of
from tests.support.town import town


def story(seed: int, length: int) -> tuple[int, list[Step]]:
    """The number of nodes, and what happens."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    if seed % 3 == 0:  # nothing but late letters
        weights = [0 if k in ("returns", "loses", "unsure", "moves") else w for k, w in KINDS.items()]
    steps = [
        Step(rng.choices(kinds, weights)[0], rng.randrange(1 << 10), rng.randrange(1 << 10))
        for _ in range(length)
    ]
    first = [Step("open", n, rng.randrange(3)) for n in range(3)]
    return rng.choice((2, 3)), first + steps


async def told(nodes: int, steps: Sequence[Step], *, says: bool = True) -> list[str]:
    """What is wrong after this story."""
    async with town(*"abc"[:nodes], limits=LIMITS) as (made, houses):
        it = Story(made, houses, says=says)
        await it.pass_time(0.1)
        for step in steps:
            await it.do(step)
        await it.heal()
        return wrong_of(it)


async def shrunk(nodes: int, steps: list[Step], *, says: bool = True) -> list[Step]:
    """The story without all that it fails without."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if await told(nodes, fewer, says=says):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


@pytest.mark.parametrize("seed", range(40))
async def test_every_push_ends_once_and_truly(seed: int) -> None:
    nodes, steps = story(seed, 60)
    says = seed % 4 > 0  # otherwise no node says what it has, as those of the version before
    if await told(nodes, steps, says=says):
        fewer = await shrunk(nodes, steps, says=says)
        raise AssertionError(f"{await told(nodes, fewer, says=says)} after {fewer}")


TOLD_BEFORE: Final = {
    "a row is written while holders are asked for": (
        2,
        "halts 192 263, push 544 902, open 950 588",
    ),
    "a session leaves that has a push from the mailbox and from its owner": (
        3,
        "open 0 2, open 1 2, freeze 849 201, resume 863 538, push 232 324, pause 278 47, push 510 12, "
        "resume 1021 616, pause 524 701, leave 373 864",
    ),
    "who resumes elsewhere reads what was proven after what was not": (
        3,
        "open 2 0, push_to_all_users 994 113, answer_one 549 437, recall 431 363, resume 190 306, "
        "open 272 449, push 306 731, push 885 812, resume 805 953, resume 746 68",
    ),
    "a session holds what is superseded while it reads": (
        3,
        "open 0 2, open 1 2, halts 767 381, resume 0 95, pause 201 325, push 538 22, freeze 587 367, "
        "push_to_all_users 347 784, pause 607 491",
    ),
    "a proof is returned, and the word that its session has left is not": (
        3,
        "open 0 2, open 1 2, open 2 1, open 111 699, open 749 624, returns 933 53, push 902 906, "
        "answer 140 684, works 540 96, resume 0 95, pause 201 325, pause 427 798, leave 247 149",
    ),
    "a client that reads slowly gets what another node has ended": (
        3,
        "open 0 2, open 1 2, open 2 0, resume 660 80, open 287 519, open 769 252, open 171 227, leave 603 942, "
        "open 497 721, leave 468 696, open 511 764, open 121 341, dies 968 250, leave 824 916, leave 956 104, "
        "stuff 480 323, push 556 971, push 611 350, resume 133 848, answer_one 159 952, pause 965 248",
    ),
    "what comes late is for who was there before": (
        3,
        "open 492 276, push_to_all_users 36 309, open 741 614, push 134 999, push 619 366",
    ),
    "who opens while others are asked for gets what is newer first": (
        2,
        "open 1 2, push 504 25, push 813 874, push 379 247, open 946 962",
    ),
    "a session that opens while others are asked for proves what one here before has not got": (
        2,
        "halts 192 263, push 544 902, open 740 368, push 309 383, open 950 588",
    ),
    "what was proven is rung for together with what was not": (
        3,
        "open 466 667, push_to_session 275 273, answer 502 660, resume 595 603, halts 877 363, "
        "push_to_all_users 605 340, push_to_all_users 510 688, resume 866 833, pause 285 397",
    ),
    "what was rung for as stored is proven before who has resumed reads it": (
        2,
        "open 0 2, open 1 1, open 2 1, resume 64 416, open 159 1008, push 200 691, pause 936 443, open 763 695, "
        "answer 909 545, leave 284 264, resume 661 944, halts 910 1012, pause 77 665, open 75 672, open 18 267, "
        "push 187 451, answer 128 243, push 223 359, resume 792 273, resume 236 943",
    ),
    "a ring is lost, and others prove what it was for": (
        3,
        "open 0 0, open 1 1, open 2 1, open 804 595, resume 559 933, leave 744 442, resume 972 193, "
        "push 1002 497, open 90 160, answer 964 501, leave 40 442, returns 865 878, answer 794 982, resume 570 79, "
        "push 320 689",
    ),
    "a session is rung for while it reads one push that others have proven": (
        3,
        "open 0 0, open 1 0, open 2 1, resume 994 390, halts 453 403, push 376 7, freeze 393 385, "
        "push_to_all_users 665 458, resume 960 136, answer 995 841, wake 183 205, resume 594 281, goes_on 188 326, "
        "loses 287 284, push 414 16, pause 250 322, pause 117 607, push_to_all_users 870 417",
    ),
    "a forward comes back after others have proven the push": (
        3,
        "open 0 2, open 1 0, open 2 1, leave 31 489, resume 409 942, leave 34 863, open 953 772, push 368 234, "
        "resume 406 959, open 258 159, pause 428 758, answer_one 614 932, resume 814 86, resume 13 586, push 602 684, "
        "returns 568 903, push_to_all_users 41 634",
    ),
    "what is older than the push that a session has resumed after is rung for again": (
        3,
        "open 0 0, open 1 0, open 2 1, resume 177 634, push 148 904, pause 467 198, pause 930 5, pause 741 669, "
        "pause 846 1022, pause 537 458, open 79 359, resume 495 450, leave 433 999, leave 329 14, returns 968 602, "
        "pause 342 679, resume 351 368, resume 27 81, push 67 586, answer 644 507, moves 584 64, resume 1023 455",
    ),
    "a session that has resumed looks for what it must be sent again while others prove what is newer": (
        3,
        "open 0 1, open 1 0, open 2 0, push 766 500, answer 545 318, open 68 757, resume 14 340, resume 661 252, "
        "loses 625 70, pause 412 585, answer 386 35, answer 605 303, push_to_all_users 9 648, pause 97 384, "
        "pause 285 353",
    ),
    "a node is sent a push again before it could say that it was proven there": (
        3,
        "open 0 2, open 1 0, open 2 1, loses 843 327, dies 556 395, open 412 623, stuff 472 582, leave 915 674, "
        "push_to_all_users 840 699, answer 79 421, pause 237 233, open 596 341, open 717 50, open 416 21, open "
        "375 152, pause 90 420, resume 91 543, moves 764 796, works 705 594, push 797 870, pause 90 208",
    ),
    "a node is sent a push again before it could say that its session has left": (
        3,
        "open 0 0, open 1 1, open 2 1, resume 14 373, open 96 282, resume 59 829, freeze 81 509, resume 993 200, "
        "push_to_all_users 768 347, open 691 598, pause 851 762, wake 885 400, freeze 252 355, leave 558 678, "
        "pause 213 411, pause 24 968, open 99 148, push 651 307, leave 41 402, moves 979 884, pause 394 210, "
        "pause 930 459, answer 895 599, pause 846 648",
    ),
    "a push comes late to a session that opened before it and has read a newer one": (
        3,
        "open 0 0, open 1 2, open 2 1, push 151 20, freeze 1017 533, leave 680 160, open 170 769, resume 316 701, "
        "pause 691 151, open 790 440, open 578 596, open 923 779, push 45 368, pause 984 252, leave 559 438, "
        "push 112 89",
    ),
    "a queue is lost with what others have proven, and nothing newer is sent": (
        2,
        "open 0 2, open 1 0, open 2 2, resume 851 188, leave 90 22, resume 783 940, leave 903 475, open 826 933, "
        "open 185 917, push 575 483, resume 631 778, open 967 798, freeze 498 1019, open 479 749, open 156 337, "
        "answer 899 187, resume 142 757, push_to_all_users 489 1019, halts 256 703, push 555 963, "
        "push_to_all_users 275 984, returns 919 697, wake 702 292, push 6 830, recall 215 998, answer 178 771",
    ),
    "who resumes at another node is forwarded what is newer than a push that was just proven": (
        2,
        "freeze 341 151, open 889 132, push 947 499, answer 417 215, wake 995 67, open 46 142, halts 853 840, "
        "push 607 355, pause 388 951, resume 886 1003, answer_one 878 820, push 640 289",
    ),
}
"""Stories, and the number of nodes, after which something was wrong once."""


@pytest.mark.parametrize("name", TOLD_BEFORE)
async def test_what_went_wrong_once_goes_well(name: str) -> None:
    nodes, text = TOLD_BEFORE[name]
    steps = [Step(kind, int(n), int(m)) for kind, n, m in map(str.split, text.split(", "))]
    assert await told(nodes, steps) == []
