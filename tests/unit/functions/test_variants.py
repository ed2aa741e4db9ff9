"""The order in which variants are listed."""

from __future__ import annotations

from homeport.functions.model import FunctionRecord
from homeport.functions.variants import PAGE_MAX, RANKED_MAX, Cursor, page


def variant(number: int, created_at: float) -> FunctionRecord:
    return FunctionRecord(
        function_id=f"fu-{number:05}", app_id="ap-1", tag="f", handle=b"", created_at=created_at
    )


def none(_function_id: str) -> int:
    return 0


def test_the_busiest_come_first_and_the_newest_of_equals() -> None:
    variants = [variant(number, float(number)) for number in range(5)]
    containers = {"fu-00001": 3, "fu-00003": 1}
    found = page(variants, limit=4, cursor=None, containers=lambda each: containers.get(each, 0))
    assert [each.function_id[-1] for each in found.variants] == ["1", "3", "4", "2"]
    assert (found.following, found.is_ranked) == (None, True)


def test_all_are_listed_newest_first_in_pages() -> None:
    # Some of them were made at the same time.
    variants = [variant(number, float(number // 7)) for number in range(2 * PAGE_MAX + 3)]
    for limit in (0, RANKED_MAX + 1):
        found: list[FunctionRecord] = []
        cursor: Cursor | None = None
        pages = 0
        while True:
            part = page(variants, limit=limit, cursor=cursor, containers=none)
            assert not part.is_ranked
            found += part.variants
            pages += 1
            cursor = part.following
            if cursor is None:
                break
        assert pages == 3
        assert len({each.function_id for each in found}) == len(found) == len(variants)
        times = [each.created_at for each in found]
        assert times == sorted(times, reverse=True)


def test_a_new_variant_does_not_shift_the_following_pages() -> None:
    variants = [variant(number, float(number)) for number in range(PAGE_MAX + 5)]
    first = page(variants, limit=0, cursor=None, containers=none)
    variants.append(variant(99_999, 10**6))
    second = page(variants, limit=0, cursor=first.following, containers=none)
    assert [each.created_at for each in second.variants] == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_without_variants() -> None:
    assert page([], limit=0, cursor=None, containers=none) == ([], None, False)
