"""The state of one range: how frames are applied to it, and how the digest proves it.

This is what a client in another language has to build anew. It follows the comments of
config.proto (the rule of application is at `Diff`) and proto/testdata/digest.md. It does no I/O
and knows nothing of gRPC: frames are any objects with the fields of the .proto.
"""

import struct
from typing import NamedTuple

import xxhash


class Entry(NamedTuple):
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


def entry_hash(key: bytes, entry: Entry) -> int:
    """One entry's part of the digest: see proto/testdata/digest.md."""
    revisions = (entry.create_revision, entry.mod_revision, entry.version)
    hashed = xxhash.xxh3_128()
    hashed.update(struct.pack("<Q", len(key)) + key)
    hashed.update(struct.pack("<qqqQ", *revisions, len(entry.value)) + entry.value)
    return hashed.intdigest()


def digest_of(entries) -> bytes:
    """The digest of a whole range: the sum of the hashes modulo 2^128, big-endian."""
    total = sum(entry_hash(key, entry) for key, entry in entries.items())
    return (total % (1 << 128)).to_bytes(16, "big")


class Gap(Exception):
    """A change is missing. What is held is good: reconnect with it."""


class Unusable(Exception):
    """What is held differs from the server's, or the server broke the contract. What is held may be
    shown on, and must not be built on: reconnect with nothing, so that a snapshot comes."""


class Replica:
    """What is held of one range. Nothing of a frame shows before all of it is there and proven."""

    def __init__(self):
        self.entries = {}  # key -> Entry
        self.epoch = None  # The history that the state belongs to; None: nothing is held.
        self.revision = 0
        self.digest = 0
        self.token = b""
        self.stream_epoch = None
        self._drop_chunks()

    def have(self):
        """The fields of the `Have` to tell the next server; None: nothing."""
        if self.epoch is None:
            return None
        digest = self.digest.to_bytes(16, "big")
        return {
            "epoch": self.epoch,
            "revision": self.revision,
            "digest": digest,
            "token": self.token,
        }

    def distrust(self):
        """Build on nothing of this, but show it until there is something better."""
        self.epoch = None

    def forget(self):
        self.__init__()

    def hello(self, hello):
        self.stream_epoch, self.token = hello.epoch, hello.token
        self._drop_chunks()

    def current(self, current):
        self._confirm(current)

    def progress(self, progress):
        # One below what is held comes from a server that is behind: the stream is alive, no more.
        if progress.revision >= self.revision:
            self._confirm(progress)

    def snapshot(self, chunk):
        """Returns what changed, as a list of (key, old entry, new entry); None: more chunks follow."""
        self._same_frame(("snapshot", chunk.revision, chunk.reset))
        for entry in chunk.entries:
            self._put(entry)
        if chunk.more:
            return None
        same_history = self.epoch == self.stream_epoch
        if same_history and chunk.revision < self.revision and not chunk.reset:
            raise Unusable("the snapshot is older than what is held")
        new = self._take_edits()
        if digest_of(new) != chunk.digest:
            raise Unusable("the digest differs")
        old, self.entries = self.entries, new
        self.digest = int.from_bytes(chunk.digest, "big")
        self.epoch, self.revision = self.stream_epoch, chunk.revision
        keys = sorted(old.keys() | new.keys())
        return [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]

    def diff(self, chunk):
        """Returns what `snapshot` does."""
        self._needs_state()
        start = getattr(chunk, "from")  # A word of Python's own.
        self._same_frame(("diff", start, chunk.to))
        if start > self.revision:
            raise Gap(f"a diff starts at revision {start}, but {self.revision} is held")
        skip = chunk.to <= self.revision  # Had already. Its chunks are counted all the same.
        for change in () if skip else chunk.changes:
            self._change(change)
        if chunk.more:
            return None
        edits = self._take_edits()
        if skip:
            return []
        changed, digest = [], self.digest
        for key in sorted(edits):
            old, new = self.entries.get(key), edits[key]
            digest -= entry_hash(key, old) if old else 0
            digest += entry_hash(key, new) if new else 0
            if old != new:  # Deleting a key that is not held is legal, and no change.
                changed.append((key, old, new))
        digest %= 1 << 128
        if digest.to_bytes(16, "big") != chunk.digest:
            raise Unusable("the digest differs")
        # Proven: only now does anything become visible, and all of it at once.
        for key, _, new in changed:
            if new:
                self.entries[key] = new
            else:
                del self.entries[key]
        self.digest, self.revision = digest, chunk.to
        return changed

    def _needs_state(self):
        if self.epoch is None or self.epoch != self.stream_epoch:
            raise Unusable("no snapshot of this history came before")

    def _confirm(self, frame):
        self._needs_state()
        if self.frame is not None:
            raise Unusable("a frame came between the chunks of another")
        if self.digest.to_bytes(16, "big") != frame.digest:
            raise Unusable("the digest differs")
        self.revision = max(self.revision, frame.revision)

    def _drop_chunks(self):
        self.frame, self.edits, self.piece = None, {}, None

    def _same_frame(self, frame):
        if self.frame not in (None, frame):
            raise Unusable("chunks of two frames are mixed")
        self.frame = frame

    def _take_edits(self):
        if self.piece is not None:
            raise Unusable("a value is not complete")
        edits = self.edits
        self._drop_chunks()
        return edits

    def _edit(self, key, entry):
        if self.piece is not None or key in self.edits:
            raise Unusable("a value is not complete, or a key comes twice")
        self.edits[key] = entry

    def _change(self, change):
        kind = change.WhichOneof("change")
        if kind == "put":
            self._put(change.put)
        elif kind == "patch":
            self._patch(change.patch)
        elif kind == "delete":
            self._edit(change.delete.key, None)
        else:
            raise Unusable("a change is of an unknown kind")

    def _put(self, e):
        """A whole entry, or one piece of a large one. A piece may end one chunk and go on in the next."""
        revisions = (e.create_revision, e.mod_revision, e.version)
        if e.total == 0:
            return self._edit(e.key, Entry(e.value, *revisions))
        about = (e.key, revisions, e.total)
        begun, value = self.piece or (about, bytearray())
        if begun != about or e.offset != len(value) or not e.value:
            raise Unusable("the pieces of a value do not fit together")
        value += e.value
        self.piece = (about, value) if len(value) < e.total else None
        if len(value) > e.total:
            raise Unusable("the pieces of a value are longer than the value")
        if self.piece is None:
            self._edit(e.key, Entry(bytes(value), *revisions))

    def _patch(self, patch):
        base = self.entries.get(patch.key)
        if base is None or base.mod_revision != patch.base_mod_revision:
            raise Unusable("a patch refers to a value that is not held")
        value = bytearray()
        for op in patch.ops:
            if op.WhichOneof("op") == "insert":
                value += op.insert
            else:
                end = op.copy.offset + op.copy.length
                if end > len(base.value):
                    raise Unusable("a patch copies what is not there")
                value += base.value[op.copy.offset : end]
        if len(value) != patch.length:
            raise Unusable("a patch makes a value of the wrong length")
        revisions = (patch.create_revision, patch.mod_revision, patch.version)
        self._edit(patch.key, Entry(bytes(value), *revisions))
