"""What flags say, without a store: who is in, that it stays so, and how evenly it is shared out.

Ids are fixed, so the statistics are too: a test of them passes always, or never.
"""

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvorum.errors import DecodeError, InvalidArgument
from kvorum.patterns import flag_rules
from kvorum.patterns.flag_rules import BUCKETS, Context, Decision, Flag, Reason, decide

IDS = [f"user-{number}" for number in range(100_000)]


def flag(name: str = "checkout", **fields: Any) -> Flag:
    unset: dict[str, Any] = {
        "percentage": 0,
        "users": (),
        "where": {},
        "variants": {},
        "weights": {},
        "enabled": True,
        "salt": None,
        "description": "",
    }
    return flag_rules.make(name, **{**unset, **fields})


def says(one: Flag, user: str | None = None, **attributes: Any) -> tuple[bool, str]:
    decision = decide(one, Context(user, attributes))
    return decision.enabled, decision.reason.name


def is_on(one: Flag, user: str) -> bool:
    return decide(one, Context(user)).enabled


# The order of the rules.


def test_everybody_or_nobody() -> None:
    for user in (None, "", "alice"):
        assert says(flag(), user) == (False, "STATIC")
        assert says(flag(percentage=100), user) == (True, "STATIC")
        assert says(flag(percentage=100, users=["alice"], enabled=False), user) == (False, "STATIC")


def test_the_list_comes_before_the_percentage() -> None:
    for percentage in (0, 1e-9, 50, 100):
        assert says(flag(percentage=percentage, users=["alice"]), "alice") == (
            True,
            "TARGETING_MATCH",
        )
    assert says(flag(users=["alice"]), "bob") == (False, "DEFAULT")
    assert says(flag(users=["alice"], percentage=100), "bob") == (True, "DEFAULT")


def test_percentage_0_is_off_and_100_is_on_for_each() -> None:
    none, everybody = flag(users=["x"]), flag(percentage=100, users=["x"])
    assert not any(is_on(none, user) for user in IDS[:10_000])
    assert all(is_on(everybody, user) for user in IDS[:10_000])


def test_attributes_all_of_them_one_value_each() -> None:
    one = flag(where={"country": ["NL", "BE"], "beta": [True]})
    assert says(one, country="NL", beta=True) == (True, "TARGETING_MATCH")
    assert says(one, country="BE", beta=True, plan="pro") == (True, "TARGETING_MATCH")
    for context in ({}, {"country": "NL"}, {"beta": True}, {"country": "DE", "beta": True}):
        assert says(one, **context) == (False, "DEFAULT")
    assert says(one, country="NL", beta=1) == (False, "DEFAULT")  # 1 is not True
    assert says(flag(where={"plan": []}), plan="pro") == (False, "DEFAULT")


def test_an_attribute_that_cannot_be_compared_matches_nothing() -> None:
    class Touchy:
        def __eq__(self, other: object) -> bool:
            raise TypeError("not with me")

        __hash__ = None  # type: ignore[assignment]  # as of an array

    one = flag(where={"country": ["NL"]})
    assert not flag_rules.decide(one, Context("a", {"country": Touchy()})).enabled


@pytest.mark.parametrize("user", [None, ""])
def test_a_percentage_is_of_users_that_are_known(user: str | None) -> None:
    for percentage in (1, 50, 99.999):
        decision = decide(flag(percentage=percentage), Context(user))
        assert decision == Decision(False, "off", False, Reason.DEFAULT, None)
    assert says(flag(percentage=100, users=["x"]), user) == (True, "DEFAULT")


# Buckets.


def test_buckets_are_what_they_were() -> None:
    """In each process and version: a user must not change sides by an upgrade."""
    expected = {
        ("checkout", "alice"): 20_410,
        ("checkout", "bob"): 605_030,
        ("new-search", "alice"): 57_613,
        ("é", "ü\0"): 474_361,
    }
    for (salt, user), bucket in expected.items():
        assert decide(flag(salt=salt), Context(user)).bucket == bucket
    code = (
        "from kvorum.patterns.flag_rules import Context, Flag, decide;"
        "print(decide(Flag('a', salt='checkout'), Context('alice')).bucket)"
    )
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert int(ran.stdout) == 20_410


def chi_square(counts: list[int], expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("name", ["checkout", "a"])
def test_buckets_are_even(name: str) -> None:
    one = flag(name)
    cells = Counter((decide(one, Context(user)).bucket or 0) * 100 // BUCKETS for user in IDS)
    # 99 degrees of freedom: beyond 148.2 with a probability of 0.001.
    assert chi_square([cells[cell] for cell in range(100)], len(IDS) / 100) < 148.2


@pytest.mark.parametrize("percentage", [0.1, 10, 50, 99])
def test_a_percentage_is_that_share(percentage: float) -> None:
    share, count = percentage / 100, sum(is_on(flag(percentage=percentage), user) for user in IDS)
    deviation = (len(IDS) * share * (1 - share)) ** 0.5
    assert abs(count - len(IDS) * share) < 3.3 * deviation


def test_flags_do_not_share_their_first_users() -> None:
    """Of two flags at 50 %, the four combinations are equally many: unless they share a salt."""
    one, other = flag("one", percentage=50), flag("other", percentage=50)
    cells = Counter((is_on(one, user), is_on(other, user)) for user in IDS)
    assert chi_square(list(cells.values()), len(IDS) / 4) < 16.3  # 3 degrees, 0.001
    same = flag("third", percentage=50, salt="one")
    assert all(is_on(one, user) is is_on(same, user) for user in IDS[:1000])


PERCENTAGES = st.floats(min_value=0, max_value=100, allow_nan=False) | st.integers(0, 100)


# However slow the machine is.
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(user=st.text(min_size=1), name=st.text("abc", min_size=1), a=PERCENTAGES, b=PERCENTAGES)
def test_raising_a_percentage_takes_nobody_away(user: str, name: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    if is_on(flag(name, percentage=low), user):
        assert is_on(flag(name, percentage=high), user)


def test_a_rollout_is_monotone_for_all() -> None:
    on: set[str] = set()
    for percentage in (0, 0.01, 1, 10, 25, 50, 75, 99, 99.99, 100):
        now = {user for user in IDS[:5000] if is_on(flag(percentage=percentage), user)}
        assert on <= now
        on = now
    assert len(on) == 5000


# Variants.

COLOURS = {"red": "#f00", "green": "#0f0", "blue": "#00f"}


def test_variants_are_shared_out_by_weight() -> None:
    weights = {"red": 1, "green": 2, "blue": 7}
    one = flag(percentage=100, variants=COLOURS, weights=weights)
    cells = Counter(decide(one, Context(user)).variant for user in IDS)
    for variant, weight in weights.items():
        share = weight / 10
        assert (
            abs(cells[variant] - len(IDS) * share) < 3.3 * (len(IDS) * share * (1 - share)) ** 0.5
        )


def test_who_is_in_stays_with_a_variant_as_the_percentage_rises() -> None:
    few, many = (flag(percentage=share, variants=COLOURS) for share in (10, 60))
    seen = Counter[str | None]()
    for user in IDS[:10_000]:
        before, after = decide(few, Context(user)), decide(many, Context(user))
        if before.enabled:
            assert (after.variant, after.reason) == (before.variant, Reason.SPLIT)
            seen[before.variant] += 1
    # The variants of the first tenth are as many as those of all: other bits of the hash.
    assert chi_square(list(seen.values()), seen.total() / 3) < 13.8  # 2 degrees, 0.001


def test_the_order_of_variants_says_nothing() -> None:
    one = flag(percentage=100, variants=COLOURS)
    other = flag(percentage=100, variants=dict(reversed(COLOURS.items())))
    for user in IDS[:1000]:
        assert decide(one, Context(user)) == decide(other, Context(user))


def test_variants_where_no_user_is_known_or_the_flag_is_off() -> None:
    one = flag(percentage=100, variants=COLOURS)
    assert decide(one, Context()) == Decision(True, "blue", "#00f", Reason.DEFAULT, None)
    off = decide(flag(percentage=0, variants=COLOURS), Context("alice"))
    assert off == Decision(False, None, None, Reason.STATIC, 20_410)
    never = flag(percentage=100, variants=COLOURS, weights={"red": 0, "green": 1, "blue": 0})
    assert {decide(never, Context(user)).variant for user in IDS[:1000]} == {"green"}
    assert flag_rules._variant(never, 1.0) == "green"


# What is wrong, and what is stored.

NAN = float("nan")


@pytest.mark.parametrize(
    "fields",
    [
        {"percentage": -0.1},
        {"percentage": 100.1},
        {"percentage": NAN},
        {"percentage": True},
        {"percentage": "10"},
        {"percentage": None},
        {"users": "alice"},
        {"users": [""]},
        {"users": [5]},
        {"users": 5},
        {"where": {"": ["x"]}},
        {"where": {"country": "NL"}},
        {"where": {"country": [["NL"]]}},
        {"where": ["country"]},
        {"variants": {"": 1}},
        {"variants": [1]},
        {"variants": {"a": 1}, "weights": {"b": 1}},
        {"variants": {"a": 1}, "weights": {"a": 0}},
        {"variants": {"a": 1}, "weights": {"a": -1}},
        {"variants": {"a": 1}, "weights": {"a": NAN}},
        {"variants": {"a": 1}, "weights": {"a": float("inf")}},
        {"variants": {"a": 1, "b": 2}, "weights": {"a": 1e308, "b": 1e308}},
        {"variants": {"a": 1}, "weights": {"a": 10**400}},
        {"weights": {"a": 1}},
        {"salt": ""},
        {"salt": "a\0b"},
        {"salt": 5},
        {"enabled": "no"},
        {"description": None},
        {"name": ""},
        {"name": "a:b"},
        {"name": "a\0"},
        {"name": None},
    ],
)
def test_wrong_flags(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        flag(**fields)


@pytest.mark.parametrize("value", [NAN, {1, 2}, object(), {1: "one"}, [{"x": {None: 1}}]])
def test_variants_are_json(value: object) -> None:
    with pytest.raises(InvalidArgument):
        flag(variants={"a": value}).encode()


@pytest.mark.parametrize(
    "given",
    ["alice", 5, {"user_id": 5}, Context(5), Context("a", None), Context("a", ["b"])],  # type: ignore[arg-type]  # wrong
)
def test_wrong_contexts(given: Any) -> None:
    with pytest.raises(InvalidArgument):
        flag_rules.read_context(given)


def test_contexts() -> None:
    assert flag_rules.read_context(None) == Context()
    assert flag_rules.read_context({"user_id": "a", "b": 1}) == Context("a", {"b": 1})
    assert flag_rules.read_context({"b": 1}) == Context(None, {"b": 1})


def test_a_flag_comes_back_as_it_was() -> None:
    one = flag(
        percentage=12.5,
        users=["é", "b"],
        where={"n": [1, 2.5, None, True, "x"]},
        variants={"a": {"x": [1]}, "b": None},
        weights={"a": 1, "b": 0.5},
        enabled=False,
        salt="s",
        description="d",
    )
    read = flag_rules.decode("flag:checkout", "checkout", one.encode(), 7)
    assert read == one
    assert read.revision == 7


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"[]", b"5", b"{}", flag().encode()[:-1] + b',"newer":1}',
     flag().encode().replace(b'"percentage":0', b'"percentage":101')],
)  # fmt: skip
def test_records_that_are_no_flags(data: bytes) -> None:
    with pytest.raises(DecodeError) as raised:
        flag_rules.decode("flag:checkout", "checkout", data, 1)
    assert raised.value.key == "flag:checkout"
