"""Typed frames between the processes of one host: the same over a unix socket, an inherited socket pair, or in memory.

    length (4 bytes) | kind (1) | id (4) | payload          at most 64 KB, numbers big-endian, length counts what follows it

A `Table` closes the protocol: each kind has a number, a side that may send it, and fields of declared types; a payload is one JSON
object with exactly these fields. What is too large for a frame follows it in chunks, which are raw bytes, and whose total the
frame states and the table bounds. Both sides begin with a hello that names protocol and version. A question has an id of its
own, larger than the one before; its answer bears the same id, and is of a kind that answers it.

Whatever breaks a rule raises `BadFrame` with the rule's name, and the connection is of no use from then on: close it. Nothing here
does I/O (`local_socket.py` does); standard library alone, because the root helper uses it too.

    TABLE = Table("heal", 1, Kind("ask", 1, Side.ASKS, {"act": Text(64)}, answers=("done",)),
                             Kind("done", 2, Side.ANSWERS, {"changed": Flag()}))
    asking, reader = Asking(TABLE), Reader(TABLE, Side.ANSWERS)
    socket.sendall(TABLE.hello())
    socket.sendall(b"".join(asking.ask("ask", {"act": "restart"}).frames))
    for message in reader.feed(socket.recv(65_536)): asking.take(message)
"""

from __future__ import annotations

import enum
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadFrame

HANDLE = (
    "COMPLIANCE_AGENT_ROOT_FD"  # where an agent that was started beside a root side finds its end of their socket pair
)
MAX_FRAME_BYTES = 65_536
HEAD = struct.Struct(">IBI")
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES - HEAD.size
LARGEST_ID = 2**32 - 1
HELLO, CHUNK = 0, 255  # numbers that no table gives away
BLOB = "blob"  # the field that says how many bytes follow in chunks
MOST_GIVEN_UP = 1_024
_LARGEST_INT = 2**53 - 1
_LENGTH_OF_REST = HEAD.size - 4
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Side(enum.Enum):
    """Who sends a kind."""

    ASKS = "asks"
    ANSWERS = "answers"


# What a field may hold. `fits` says whether a value that JSON gave is one.


class Form(Protocol):
    """The type of a field."""

    def fits(self, value: object) -> bool:
        """Whether the value is of this type."""
        ...


@dataclass(frozen=True)
class Text:
    """One line of at most so many characters; the whole of it as the pattern says, when there is one."""

    longest: int
    pattern: str | None = None

    def fits(self, value: object) -> bool:
        if not isinstance(value, str) or len(value) > self.longest or _CONTROL.search(value):
            return False
        return self.pattern is None or re.fullmatch(self.pattern, value, re.ASCII) is not None


@dataclass(frozen=True)
class Word:
    """One of these words."""

    words: tuple[str, ...]

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and value in self.words


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds."""

    low: int
    high: int

    def fits(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Maybe:
    """The same, or null. The field itself is never left out."""

    form: Form

    def fits(self, value: object) -> bool:
        return value is None or self.form.fits(value)


@dataclass(frozen=True)
class Several:
    """A list of at most so many."""

    form: Form
    most: int

    def fits(self, value: object) -> bool:
        return isinstance(value, list) and len(value) <= self.most and all(map(self.form.fits, value))


@dataclass(frozen=True)
class Named:
    """At most so many values under names."""

    name: Form
    form: Form
    most: int

    def fits(self, value: object) -> bool:
        if not isinstance(value, dict) or len(value) > self.most:
            return False
        return all(map(self.name.fits, value)) and all(map(self.form.fits, value.values()))


@dataclass(frozen=True)
class Fields:
    """An object of exactly these fields."""

    forms: Mapping[str, Form]

    def fits(self, value: object) -> bool:
        if not isinstance(value, dict) or value.keys() != self.forms.keys():
            return False
        return all(form.fits(value[name]) for name, form in self.forms.items())


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        number: 1 to 254, never given to another kind of the same version.
        by: the side that sends it.
        fields: all of them, always there.
        most_blob_bytes: of what may follow in chunks; 0 when nothing ever does.
        answers: of a question, the kinds that answer it; empty when it is none.
    """

    name: str
    number: int
    by: Side
    fields: Mapping[str, Form] = field(default_factory=dict)
    most_blob_bytes: int = 0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """A frame, with the chunks that followed it."""

    kind: str
    id: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    blob: bytes = b""


class Table:
    """One protocol: all that may be said, and by whom.

    Args:
        name: of the protocol, as the hello says it.
        version: of the table; the other side must have the same.
        kinds: the rows.
    """

    def __init__(self, name: str, version: int, *kinds: Kind) -> None:
        self.name, self.version = name, version
        self.kinds = {kind.name: kind for kind in kinds}
        self._numbers = {kind.number: kind for kind in kinds}
        if len(self.kinds) != len(kinds) or len(self._numbers) != len(kinds):
            raise RuntimeError(f"table {name}: two kinds share a name or a number")
        for kind in kinds:
            if not HELLO < kind.number < CHUNK or BLOB in kind.fields or not set(kind.answers) <= self.kinds.keys():
                raise RuntimeError(f"table {name}: kind {kind.name} has a number, field or answer that it cannot have")

    def hello(self) -> bytes:
        """The first frame of each side."""
        return _frame(HELLO, 0, _written({"protocol": self.name, "version": self.version}))

    def frames(self, message: Message) -> Iterator[bytes]:
        """A message as it is sent, frame by frame.

        Raises:
            BadFrame: it is not what the table allows; nothing was given yet.
        """
        kind = self.kinds.get(message.kind)
        if kind is None or not 0 <= message.id <= LARGEST_ID:
            raise BadFrame(f"{self.name}: no kind {message.kind[:60]!r} to send", code="unknown_kind")
        fields = {**message.fields, BLOB: len(message.blob)} if kind.most_blob_bytes else dict(message.fields)
        payload = _written(fields)
        if len(payload) > MAX_PAYLOAD_BYTES or len(message.blob) > kind.most_blob_bytes:
            raise BadFrame(f"{self.name}: {kind.name} is too large to send", code="too_large")
        self._check(kind, fields)
        return self._cut(kind.number, message.id, payload, message.blob)

    def _cut(self, number: int, id_: int, payload: bytes, blob: bytes) -> Iterator[bytes]:
        yield _frame(number, id_, payload)
        for start in range(0, len(blob), MAX_PAYLOAD_BYTES):
            yield _frame(CHUNK, id_, blob[start : start + MAX_PAYLOAD_BYTES])

    def read(self, number: int, by: Side, payload: bytes) -> tuple[Kind, dict[str, Any]]:
        """Kind and fields of one frame of that side.

        Raises:
            BadFrame: no such kind, not for that side to send, or not the fields that it has.
        """
        kind = self._numbers.get(number)
        if kind is None:
            raise BadFrame(f"{self.name}: no kind has the number {number}", code="unknown_kind")
        if kind.by is not by:
            raise BadFrame(f"{self.name}: {kind.name} is not for this side to send", code="wrong_side")
        fields = strict_object(payload)
        self._check(kind, fields)
        return kind, fields

    def greeted(self, payload: bytes) -> None:
        """Look at the hello of the other side.

        Raises:
            BadFrame: another protocol or version.
        """
        said = strict_object(payload)
        if said.keys() != {"protocol", "version"} or said["protocol"] != self.name:
            raise BadFrame(f"hello: expected {self.name}, and it is not", code="other_protocol")
        if type(said["version"]) is not int or said["version"] != self.version:
            raise BadFrame(f"hello: expected version {self.version} of {self.name}", code="other_version")

    def _check(self, kind: Kind, fields: Mapping[str, Any]) -> None:
        expected = {*kind.fields, BLOB} if kind.most_blob_bytes else {*kind.fields}
        if missing := expected - fields.keys():
            raise BadFrame(f"{self.name}: {kind.name} without its {min(missing)}", code="missing_field")
        if len(fields) > len(expected):
            raise BadFrame(f"{self.name}: {kind.name} with a field that it does not have", code="unknown_field")
        for name, form in kind.fields.items():
            if not form.fits(fields[name]):
                raise BadFrame(f"{self.name}: {name} of {kind.name} is not {form}", code="bad_field")
        if kind.most_blob_bytes and not Whole(0, kind.most_blob_bytes).fits(fields[BLOB]):
            raise BadFrame(f"{self.name}: more follows {kind.name} than {kind.most_blob_bytes} bytes", code="too_large")


class Reader:
    """Makes messages of what the other side sent, whatever the pieces it came in.

    Args:
        table: what may be said.
        by: the side that is read.
    """

    def __init__(self, table: Table, by: Side) -> None:
        self._table, self._by = table, by
        self._buffer = bytearray()
        self._open: Message | None = None  # whose chunks are coming
        self._blob = bytearray()
        self._wanted = 0
        self._broken: BadFrame | None = None
        self.greeted = False

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now.

        Raises:
            BadFrame: a rule is broken; so does every further call.
        """
        if self._broken is not None:
            raise self._broken
        self._buffer += data
        whole: list[Message] = []
        try:
            while (frame := self._next()) is not None:
                message = self._take(*frame)
                if message is not None:
                    whole.append(message)
        except BadFrame as error:
            self._broken = error
            self._buffer.clear()
            raise
        return whole

    def end(self) -> None:
        """The other side sends no more.

        Raises:
            BadFrame: in the middle of a message.
        """
        if self._buffer or self._open is not None:
            raise BadFrame(f"{self._table.name}: the connection ended within a message", code="cut")

    def _next(self) -> tuple[int, int, bytes] | None:
        if len(self._buffer) < 4:
            return None
        length = int.from_bytes(self._buffer[:4], "big")
        if not _LENGTH_OF_REST <= length <= MAX_FRAME_BYTES - 4:
            raise BadFrame(f"{self._table.name}: a frame of {length} bytes", code="bad_length")
        if len(self._buffer) < 4 + length:
            return None
        _, number, id_ = HEAD.unpack_from(self._buffer)
        payload = bytes(self._buffer[HEAD.size : 4 + length])
        del self._buffer[: 4 + length]
        return number, id_, payload

    def _take(self, number: int, id_: int, payload: bytes) -> Message | None:
        if not self.greeted:
            if number != HELLO or id_:
                raise BadFrame(f"{self._table.name}: the first frame is no hello", code="no_hello")
            self._table.greeted(payload)
            self.greeted = True
            return None
        if self._open is not None or number == CHUNK:
            return self._chunk(number, id_, payload)
        kind, fields = self._table.read(number, self._by, payload)
        self._wanted = fields.pop(BLOB) if kind.most_blob_bytes else 0
        message = Message(kind.name, id_, fields)
        if not self._wanted:
            return message
        self._open = message
        return None

    def _chunk(self, number: int, id_: int, payload: bytes) -> Message | None:
        head = self._open
        if head is None or number != CHUNK or id_ != head.id or not payload:
            raise BadFrame(f"{self._table.name}: a chunk that was not to come, or none where one was", code="bad_chunk")
        self._blob += payload
        if len(self._blob) > self._wanted:
            raise BadFrame(f"{self._table.name}: more chunks than the frame had said", code="bad_chunk")
        if len(self._blob) < self._wanted:
            return None
        whole = Message(head.kind, head.id, head.fields, bytes(self._blob))
        self._open = None
        self._blob.clear()
        return whole


@dataclass(frozen=True)
class Question:
    """A question that was made: its id, and what to send."""

    id: int
    frames: Sequence[bytes]


class Asking:
    """The asking side's memory: which questions are open, and what may answer them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._last = 0
        self._open: dict[int, Kind] = {}
        self._given_up: dict[int, Kind] = {}

    def ask(self, kind: str, fields: Mapping[str, Any], blob: bytes = b"") -> Question:
        """Make a question.

        Raises:
            BadFrame: the table does not allow it, or the ids of this connection are used up; nothing is to be sent.
        """
        if self._last == LARGEST_ID:
            raise BadFrame(f"{self._table.name}: no id is left", code="ids_used_up")
        id_ = self._last + 1
        frames = list(self._table.frames(Message(kind, id_, fields, blob)))
        self._last = id_
        self._open[id_] = self._table.kinds[kind]
        return Question(id_, frames)

    def give_up(self, id_: int) -> None:
        """Wait no more for this answer; when it comes, it is dropped."""
        kind = self._open.pop(id_, None)
        if kind is not None:
            self._given_up[id_] = kind
            if len(self._given_up) > MOST_GIVEN_UP:
                del self._given_up[next(iter(self._given_up))]

    def take(self, message: Message) -> bool:
        """Take an answer; False when nobody waits for it any more.

        Raises:
            BadFrame: no question has this id, or this is no answer to it.
        """
        wanted = message.id in self._open
        kind = self._open.pop(message.id, None) or self._given_up.pop(message.id, None)
        if kind is None:
            raise BadFrame(f"{self._table.name}: an answer to a question that is not open", code="unknown_id")
        if message.kind not in kind.answers:
            raise BadFrame(f"{self._table.name}: {message.kind} is no answer to {kind.name}", code="wrong_answer")
        return wanted


class Answering:
    """The answering side's memory: which questions came, each once and in order, and are not answered yet.

    Args:
        table: what may be said.
        most_open: questions that may wait at the same time.
    """

    def __init__(self, table: Table, most_open: int = 64) -> None:
        self._table = table
        self._most_open = most_open
        self._last = 0
        self._open: dict[int, Kind] = {}

    def take(self, message: Message) -> None:
        """Take a question.

        Raises:
            BadFrame: its id is not larger than the one before, or too many wait.
        """
        if message.id <= self._last:
            raise BadFrame(f"{self._table.name}: id {message.id} after {self._last}", code="stale_id")
        if len(self._open) >= self._most_open:
            raise BadFrame(f"{self._table.name}: more than {self._most_open} questions at once", code="too_many")
        self._last = message.id
        self._open[message.id] = self._table.kinds[message.kind]

    def answer(self, id_: int, kind: str, fields: Mapping[str, Any], blob: bytes = b"") -> list[bytes]:
        """Make the answer to an open question.

        Raises:
            BadFrame: the table does not allow it; the question stays open.
        """
        asked = self._open.get(id_)
        if asked is None or kind not in asked.answers:
            raise RuntimeError(f"{self._table.name}: {kind} answers no open question {id_}")
        frames = list(self._table.frames(Message(kind, id_, fields, blob)))
        del self._open[id_]
        return frames


def strict_object(payload: bytes) -> dict[str, Any]:
    """The one JSON object of a payload: UTF-8, no key twice, whole numbers within +-(2^53-1) only.

    Raises:
        BadFrame: `bad_json`, or `not_an_object`.
    """
    try:
        value = _DECODER.decode(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFrame("a payload that is not strict JSON", code="bad_json") from error
    if not isinstance(value, dict):
        raise BadFrame("a payload that is not a JSON object", code="not_an_object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key stands twice")
    return mapping


def _whole(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > _LARGEST_INT or digits == "-0":
        raise ValueError("a number is out of bounds")
    return int(digits)


def _refused(_digits: str) -> Any:
    raise ValueError("a number is not whole")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_refused, parse_constant=_refused, strict=True
)


def _written(fields: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadFrame("fields that are not JSON", code="bad_field") from error


def _frame(number: int, id_: int, payload: bytes) -> bytes:
    return HEAD.pack(_LENGTH_OF_REST + len(payload), number, id_) + payload
