"""Requests of newer versions, which ask for what this one does not know.

To do something else than what was asked for, or more of it, would be worse than to refuse:
a put that is to be made on a condition, say, which this version would make on none.
"""

from google.protobuf.message import Message

from kvorum.errors import InvalidArgument
from kvorum_node.unknown_fields import has_unknown_fields


def validate_known(request: Message, what: str) -> None:
    """Raises InvalidArgument if the request, or a message in it, has a field that is not known."""
    if has_unknown_fields(request):
        raise InvalidArgument(f"{what} asks for something that this version does not know")
