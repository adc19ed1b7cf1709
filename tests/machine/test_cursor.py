"""A page token works for its own list, on any node, and for nothing else."""

import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from hashlib import blake2b

import pytest

from kvorum import limits
from kvorum.errors import InvalidCursor
from kvorum_node.machine.cursor import Cursor, Place, Position, Selection, decode, encode
from kvorum_node.raft.types import GroupId

USERS = Selection(GroupId(1), b"user:", b"user;")
EMAILS = Selection(GroupId(1), b"a@", b"b@", index="user.email")
PLACE = Place(revision=7, log_time_ms=1_700_000_000_000)


def _after(key: bytes, selection: Selection = USERS) -> str:
    return encode(Cursor(Position(key)), selection)


TOKEN = _after(b"user:0041")


def _raw(token: str) -> bytes:
    return urlsafe_b64decode(token + "=" * (-len(token) % 4))


def _sealed(content: bytes) -> str:
    """A token with a checksum that is right, whatever it says."""
    checksum = blake2b(content, digest_size=8, person=b"kvorum.pagetoken").digest()
    return urlsafe_b64encode(content + checksum).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "last",
    [b"user:", b"user:a", b"user:ab", b"user:abc", b"user:\x00\xff", b"user:" + b"k" * 8187],
)
def test_a_token_leads_back_to_its_position(last: bytes) -> None:
    token = _after(last)
    assert decode(token, USERS) == Cursor(Position(last))
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_token_of_a_snapshot_leads_back_to_its_place(reverse: bool) -> None:
    snapshot = replace(USERS, snapshot=True, reverse=reverse)
    for place in (PLACE, Place(0, 0), Place(2**63 - 1, 2**63 - 1)):
        cursor = Cursor(Position(b"user:0041"), place)
        assert decode(encode(cursor, snapshot), snapshot) == cursor


@pytest.mark.parametrize("value", [b"a@", b"a@\0\1", b"a@" + b"\xff" * 4094])
@pytest.mark.parametrize("key", [b"k", b"\0\1", b"k" * limits.MAX_KEY_BYTES])
def test_a_token_of_an_index_leads_back_to_value_and_key(value: bytes, key: bytes) -> None:
    cursor = Cursor(Position(key, value))
    assert decode(encode(cursor, EMAILS), EMAILS) == cursor


def test_a_token_is_the_same_on_every_node_and_in_every_process() -> None:
    assert TOKEN == "AgAAAAAB6rISLK_pMM91c2VyOjAwNDEzI_mb2_ISmQ"
    assert (
        encode(Cursor(Position(b"user:0041"), PLACE), replace(USERS, snapshot=True))
        == "AgIAAAAB6rISLK_pMM8AAAAAAAAABwAAAYvP5WgAdXNlcjowMDQxfm427n7bHL4"
    )
    assert (
        encode(Cursor(Position(b"user:0041", b"a@b")), EMAILS)
        == "AgAAAAAB8ymWkcX1gSsAA2FAYnVzZXI6MDA0MZg8t-Jl34P6"
    )


def test_every_cut_is_noticed() -> None:
    for length in range(len(TOKEN)):
        with pytest.raises(InvalidCursor, match=r"cut short|altered|is none"):
            decode(TOKEN[:length], USERS)


def test_a_token_too_short_for_its_fields_is_noticed_even_with_a_right_checksum() -> None:
    for length in range(14):
        with pytest.raises(InvalidCursor, match="cut short"):
            decode(_sealed(_raw(TOKEN)[:length]), USERS)


def test_every_flipped_bit_is_noticed() -> None:
    raw = bytearray(_raw(TOKEN))
    for position in range(len(raw) * 8):
        raw[position // 8] ^= 1 << position % 8
        altered = urlsafe_b64encode(raw).rstrip(b"=").decode()
        with pytest.raises(InvalidCursor, match="altered"):
            decode(altered, USERS)
        raw[position // 8] ^= 1 << position % 8


def test_every_other_letter_is_noticed() -> None:
    """Also letters that the decoder of base64 would skip, and bits that it would drop."""
    token = _after(b"user:0041x")
    assert len(_raw(token)) % 3, "the last letter must have bits to spare"
    for position in range(len(token)):
        for letter in string.printable + "é\u20ac":
            altered = token[:position] + letter + token[position + 1 :]
            if altered != token:
                with pytest.raises(InvalidCursor):
                    decode(altered, USERS)


@pytest.mark.parametrize("added", ["=", "==", "\n", " ", "A", "AAAA", "!", "\x00"])
def test_what_is_added_is_noticed(added: str) -> None:
    for altered in (TOKEN + added, added + TOKEN, TOKEN[:8] + added + TOKEN[8:]):
        with pytest.raises(InvalidCursor):
            decode(altered, USERS)


@pytest.mark.parametrize("token", ["next", "user:0041", "é", "\ud800", "=", "{}", "A" * 50_000_000])
def test_what_never_was_a_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidCursor):
        decode(token, USERS)


def test_the_longest_token_is_within_the_bound() -> None:
    everything = Selection(GroupId(2**32 - 1), b"", None, index="i", snapshot=True)
    value = b"v" * limits.MAX_INDEX_VALUE_BYTES
    for size in range(limits.MAX_KEY_BYTES - 3, limits.MAX_KEY_BYTES + 1):
        cursor = Cursor(Position(b"k" * size, value), PLACE)
        assert decode(encode(cursor, everything), everything) == cursor
    longer = Cursor(Position(b"k" * (limits.MAX_KEY_BYTES + 3), value), PLACE)
    with pytest.raises(InvalidCursor, match="longer than any"):
        decode(encode(longer, everything), everything)


@pytest.mark.parametrize(
    "other",
    [
        Selection(GroupId(1), b"user:", None),
        Selection(GroupId(1), b"user:", b"user:1"),
        Selection(GroupId(1), b"user:0", b"user;"),
        Selection(GroupId(1), b"", None),
        Selection(GroupId(1), b"user:user", b";"),
        Selection(GroupId(1), b"user:", b"user;", index="user.email"),
    ],
)
def test_a_token_of_another_list_is_refused(other: Selection) -> None:
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        decode(TOKEN, other)


@pytest.mark.parametrize(
    "other",
    [
        USERS,
        replace(EMAILS, index="user.name"),
        replace(EMAILS, index="user.emai", start=b"la@"),
        replace(EMAILS, start=b"a"),
    ],
)
def test_a_token_of_another_index_is_refused(other: Selection) -> None:
    token = encode(Cursor(Position(b"user:0041", b"a@b")), EMAILS)
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        decode(token, other)


def test_a_token_of_another_direction_or_mode_is_refused() -> None:
    modes = [
        replace(USERS, reverse=reverse, snapshot=snapshot)
        for reverse in (False, True)
        for snapshot in (False, True)
    ]
    for made in modes:
        token = encode(Cursor(Position(b"user:0041"), PLACE if made.snapshot else None), made)
        for asked in modes:
            if asked == made:
                continue
            what = "direction" if asked.reverse != made.reverse else "mode"
            with pytest.raises(InvalidCursor, match=f"another {what}"):
                decode(token, asked)


def test_a_token_of_another_namespace_is_refused() -> None:
    with pytest.raises(InvalidCursor, match="another namespace"):
        decode(TOKEN, Selection(GroupId(2), USERS.start, USERS.end))


def test_a_token_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(InvalidCursor, match="has version 1, and this node reads 2"):
        decode(_sealed(b"\x01" + _raw(TOKEN)[1:-8]), USERS)


@pytest.mark.parametrize("position", [b"", b"user", b"user;", b"zebra"])
def test_a_position_outside_its_list_is_refused(position: bytes) -> None:
    forged = _sealed(_raw(TOKEN)[:14] + position)
    with pytest.raises(InvalidCursor, match="another prefix, range or index"):
        decode(forged, USERS)


def test_a_value_outside_its_list_is_refused() -> None:
    for value in (b"a", b"b@", b"b@x"):
        forged = encode(Cursor(Position(b"a@", value)), EMAILS)
        with pytest.raises(InvalidCursor, match="another prefix, range or index"):
            decode(forged, EMAILS)


def test_the_message_says_how_to_go_on() -> None:
    with pytest.raises(InvalidCursor, match="start again without") as raised:
        decode(TOKEN[1:], USERS)
    assert raised.value.reason == "INVALID_PAGE_TOKEN"
