from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_router.memo import Memo

entry = st.tuples(st.sampled_from([b"", b"s"]), st.sampled_from(["", "a", "é" * 50, "日" * 300]))


@settings(max_examples=150, deadline=None)
@given(st.lists(entry, max_size=40), st.integers(0, 3000))
def test_remembers_exactly_and_within_its_bound(uses: list[tuple[bytes, str]], bound: int) -> None:
    memo = Memo(bound)
    for salt, text in uses:
        ids = memo.get(salt, text)
        assert ids in (None, salt + text.encode())
        if ids is None:
            memo.put(salt, text, salt + text.encode())
        assert memo.size_bytes <= bound
    assert memo.hits + memo.misses == len(uses)


def test_oldest_use_goes_first() -> None:
    memo = Memo(1000)
    memo.put(b"", "a", b"1")
    memo.put(b"", "b", b"2")
    assert memo.get(b"", "a") == b"1"
    memo.put(b"", "c", b"3")
    assert (len(memo), memo.get(b"", "b"), memo.get(b"", "a")) == (2, None, b"1")


def test_bytes_return_when_all_is_gone() -> None:
    memo = Memo(1000)
    for i in range(1000):
        memo.put(b"", f"{i}" * 20, b"ids" * i)
    while len(memo) > 1:
        memo.put(b"", f"x{len(memo)}" * 100, b"")
    assert memo.size_bytes <= 1000


def test_tenants_do_not_share() -> None:
    memo = Memo(10_000)
    memo.put(b"one", "text", b"ids")
    assert memo.get(b"two", "text") is None
