from __future__ import annotations

import pytest
import torch

from workers.engine.maths.group_choice import Groups, Key, gone_by, next_groups

HEAD, CHANNEL = 50, 10


def families(head_U: list[float], *channel_U: list[float], most: int = 99) -> dict[Key, Groups]:
    """A block with heads and channels, and further ones with channels."""
    found: dict[Key, Groups] = {(0, "head"): groups(HEAD, head_U, most)}
    return found | {(block, "channel"): groups(CHANNEL, one_U, most) for block, one_U in enumerate(channel_U)}


def groups(size: int, saliency_U: list[float], most: int) -> Groups:
    kept_U = torch.ones(len(saliency_U), dtype=torch.bool)
    return Groups(size, min(most, len(saliency_U) - 1), torch.tensor(saliency_U, dtype=torch.float64), kept_U)


def test_courses_go_from_nothing_to_all() -> None:
    assert (gone_by("linear", 0.25), gone_by("cubic", 0.5)) == (0.25, 0.875)
    for course in ("linear", "cubic"):
        assert (gone_by(course, 0), gone_by(course, 1)) == (0, 1)


def test_one_kind_goes_the_one_that_costs_least_a_parameter() -> None:
    # Five channels cost 1 + ... + 5 = 15 for 50 parameters, the lowest head 14.
    found = families([14, 40], [1, 2, 9, 9], [3, 4, 5, 9])
    assert next_groups(found, missing=50, room=500) == [((0, "head"), 0)]
    found[0, "head"].saliency_U[0] = 16
    lowest = [((0, "channel"), 0), ((0, "channel"), 1), ((1, "channel"), 0), ((1, "channel"), 1), ((1, "channel"), 2)]
    assert next_groups(found, missing=50, room=500) == lowest
    assert next_groups(found, missing=41, room=500) == lowest, "the last group is whole"
    assert next_groups(found, missing=10, room=500) == lowest[:1]


def test_what_does_not_fit_stays_and_the_other_kind_follows_where_one_has_too_few() -> None:
    found = families([0, 0], [1, 2, 3])
    assert next_groups(found, missing=10, room=49) == [((0, "channel"), 0)]
    # One of each kind stays: two channels and one head may go.
    everything = [((0, "head"), 0), ((0, "channel"), 0), ((0, "channel"), 1)]
    assert next_groups(found, missing=999, room=999) == everything
    assert next_groups(found, missing=0, room=999) == []


def test_a_kind_waits_where_the_other_could_not_complete_what_goes() -> None:
    # 65 of 50 + 3 x 10 go: a head and a channel. After two channels neither would fit.
    found = families([99, 99], [1, 2, 3, 4])
    assert next_groups(found, missing=20, room=65) == [((0, "head"), 0)]
    assert next_groups(found, missing=65, room=65) == [((0, "head"), 0), ((0, "channel"), 0)]
    assert next_groups(found, missing=10, room=65) == [((0, "channel"), 0)]
    # Where nothing completes it the cheaper goes all the same.
    assert next_groups(found, missing=10, room=500) == [((0, "channel"), 0)]


def test_quotas_and_units_that_are_gone_are_minded_and_ties_go_by_place() -> None:
    found = families([9, 9], [1, 1, 1, 1], [1, 1, 1, 1], most=1)
    found[0, "channel"].kept_U[0] = False
    assert next_groups(found, missing=20, room=500) == [((0, "channel"), 1), ((1, "channel"), 0)]


def test_groups_without_saliency_go_first() -> None:
    found = families([5, 6], [3, 0, 2], [1, 4, 0])
    assert {*next_groups(found, missing=20, room=500)} == {((0, "channel"), 1), ((1, "channel"), 2)}


@pytest.mark.parametrize("missing", [0, 7, 60, 110])
def test_the_families_that_are_asked_are_not_written_to(missing: int) -> None:
    found = families([1, 2], [1, 2, 3])
    next_groups(found, missing, 500)
    assert all(bool(one.kept_U.all()) for one in found.values())
