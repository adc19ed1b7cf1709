"""A page token works for its own list, on any node, and for nothing else."""

import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

import pytest

from kvorum import limits
from kvorum.errors import InvalidCursor
from kvorum_node.machine.cursor import Selection, decode, encode
from kvorum_node.raft.types import GroupId

USERS = Selection(GroupId(1), b"user:", b"user;")
TOKEN = encode(b"user:0041", USERS)


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
    token = encode(last, USERS)
    assert decode(token, USERS) == last
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")


def test_a_token_is_the_same_on_every_node_and_in_every_process() -> None:
    assert TOKEN == "AQAAAAEmPIjXvW8Y4nVzZXI6MDA0MWLxEDAPFPWE"


def test_every_cut_is_noticed() -> None:
    for length in range(len(TOKEN)):
        with pytest.raises(InvalidCursor, match=r"cut short|altered|no page token"):
            decode(TOKEN[:length], USERS)


def test_a_token_too_short_for_its_fields_is_noticed_even_with_a_right_checksum() -> None:
    for length in range(13):
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
    token = encode(b"user:0041x", USERS)
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
    everything = Selection(GroupId(2**32 - 1), b"", None)
    for size in range(limits.MAX_KEY_BYTES - 3, limits.MAX_KEY_BYTES + 1):
        assert decode(encode(b"k" * size, everything), everything) == b"k" * size
    with pytest.raises(InvalidCursor, match="longer than any"):
        decode(encode(b"k" * (limits.MAX_KEY_BYTES + 3), everything), everything)


@pytest.mark.parametrize(
    "other",
    [
        Selection(GroupId(1), b"user:", None),
        Selection(GroupId(1), b"user:", b"user:1"),
        Selection(GroupId(1), b"user:0", b"user;"),
        Selection(GroupId(1), b"", None),
        Selection(GroupId(1), b"user:user", b";"),
    ],
)
def test_a_token_of_another_list_is_refused(other: Selection) -> None:
    with pytest.raises(InvalidCursor, match="another prefix or range"):
        decode(TOKEN, other)


def test_a_token_of_another_namespace_is_refused() -> None:
    with pytest.raises(InvalidCursor, match="another namespace"):
        decode(TOKEN, Selection(GroupId(2), USERS.start, USERS.end))


def test_a_token_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(InvalidCursor, match="has version 2, and this node reads 1"):
        decode(_sealed(b"\x02" + _raw(TOKEN)[1:-8]), USERS)


@pytest.mark.parametrize("position", [b"", b"user", b"user;", b"zebra"])
def test_a_position_outside_its_list_is_refused(position: bytes) -> None:
    forged = _sealed(_raw(TOKEN)[:13] + position)
    with pytest.raises(InvalidCursor, match="another prefix or range"):
        decode(forged, USERS)


def test_the_message_says_how_to_go_on() -> None:
    with pytest.raises(InvalidCursor, match="start again without") as raised:
        decode(TOKEN[1:], USERS)
    assert raised.value.reason == "INVALID_PAGE_TOKEN"
