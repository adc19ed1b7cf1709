"""The words of a command in a golden script: each is taken once, and none may be left."""

from collections.abc import Callable

from kvorum_node.raft.configuration import AddLearner, AddVoter, Change, Remove
from kvorum_node.raft.types import NodeId
from tests.scripts.golden import ScriptError

CHANGES: dict[str, Callable[[NodeId], Change]] = {
    "voter": AddVoter,
    "learner": AddLearner,
    "joining": lambda node: AddLearner(node, join=True),
    "remove": Remove,
}


class Arguments:
    """Raises ScriptError for whatever is missing, left, or not what it should be."""

    def __init__(self, line: str) -> None:
        self._words = line.split()

    def word(self) -> str:
        if not self._words:
            raise ScriptError("an argument is missing")
        return self._words.pop(0)

    def flag(self, name: str) -> bool:
        """Whether the next word is this one, which is taken then."""
        found = self._words[:1] == [name]
        if found:
            self._words.pop(0)
        return found

    @property
    def has_more(self) -> bool:
        return bool(self._words)

    def node(self) -> NodeId:
        return _node(self.word())

    def nodes(self) -> list[NodeId]:
        """All the words up to the first option, at least one."""
        found = [self.node()]
        while self._words and "=" not in self._words[0]:
            found.append(self.node())
        return found

    def number(self, default: int | None = None) -> int:
        if default is not None and not self._words:
            return default
        return _number(self.word())

    def numbers(self) -> list[int]:
        """All the words that are left, at least one."""
        return [_number(word) for word in self.rest()]

    def option(self, name: str, default: int) -> int:
        text = self.text_option(name)
        return default if text is None else _number(text)

    def node_option(self, name: str) -> NodeId | None:
        text = self.text_option(name)
        return None if text is None else _node(text)

    def text_option(self, name: str) -> str | None:
        """What follows `name=`, wherever it stands among the words that are left."""
        for word in self._words:
            if word.startswith(f"{name}="):
                self._words.remove(word)
                return word.removeprefix(f"{name}=")
        return None

    def changes(self) -> list[Change]:
        """`voter:n4 learner:n5 joining:n6 remove:n1`, at least one."""
        found: list[Change] = []
        while not found or (self._words and ":" in self._words[0]):
            kind, _, node = self.word().partition(":")
            if kind not in CHANGES:
                raise ScriptError(f"{kind!r} is no change: {', '.join(CHANGES)}")
            found.append(CHANGES[kind](_node(node)))
        return found

    def rest(self) -> list[str]:
        """All the words that are left, at least one."""
        words = [self.word(), *self._words]
        self._words.clear()
        return words

    def end(self) -> None:
        if self._words:
            raise ScriptError(f"what is {self._words[0]!r}?")


def _node(word: str) -> NodeId:
    if not (word.startswith("n") and word[1:].isdigit()):
        raise ScriptError(f"{word!r} is no node")
    return NodeId(int(word[1:]))


def _number(word: str) -> int:
    if not word.isdigit():
        raise ScriptError(f"{word!r} is no number")
    return int(word)
