"""The rule of application, frame by frame. Run with `python3 -m unittest` in this folder."""

import json
import unittest

from replica import Entry, Gap, Replica, Unusable, digest_of
from watch import PROTO, pb


def entry(key, value, revision=1, **more):
    return pb.Entry(
        key=key, value=value, create_revision=1, mod_revision=revision, version=revision, **more
    )


def state(**values):
    """Keys of one letter; each value with the revision of its last change."""
    return {
        key.encode(): Entry(value, 1, revision, revision)
        for key, (value, revision) in values.items()
    }


def snapshot(entries, revision, digest_of_state, **more):
    return pb.Snapshot(
        revision=revision, entries=entries, digest=digest_of(digest_of_state), **more
    )


def diff(start, to, changes, digest_of_state, **more):
    return pb.Diff(
        **{"from": start}, to=to, changes=changes, digest=digest_of(digest_of_state), **more
    )


def put(*args, **more):
    return pb.Change(put=entry(*args, **more))


class Application(unittest.TestCase):
    def setUp(self):
        """Holds a = one at revision 5."""
        self.replica = Replica()
        self.replica.hello(pb.Hello(epoch=b"e", token=b"t"))
        self.before = state(a=(b"one", 1))
        self.replica.snapshot(snapshot([entry(b"a", b"one")], 5, self.before))

    def refused(self, error, method, frame):
        """The frame is refused, and nothing of it shows."""
        with self.assertRaises(error):
            method(frame)
        self.assertEqual((self.replica.entries, self.replica.revision), (self.before, 5))

    def test_a_diff_is_applied_at_once_and_whole(self):
        self.replica.progress(pb.Progress(revision=9, digest=digest_of(self.before)))
        after = state(b=(b"two", 10))
        changes = [pb.Change(delete=pb.Delete(key=b"a")), pb.Change(delete=pb.Delete(key=b"x"))]
        # From 5: the range's last change, although 9 is held by now.
        first = pb.Diff(**{"from": 5}, to=10, changes=changes, more=True)
        self.assertIsNone(self.replica.diff(first))
        self.assertEqual(self.replica.entries, self.before)
        changed = self.replica.diff(diff(5, 10, [put(b"b", b"two", 10)], after))
        self.assertEqual(self.replica.entries, after)
        self.assertEqual([key for key, _, _ in changed], [b"a", b"b"])
        have = {"epoch": b"e", "revision": 10, "digest": digest_of(after), "token": b"t"}
        self.assertEqual(self.replica.have(), have)

    def test_what_is_held_already_is_skipped(self):
        stale = pb.Diff(**{"from": 2}, to=4, changes=[put(b"a", b"old", 4)], more=True)
        self.assertIsNone(self.replica.diff(stale))
        self.assertEqual(self.replica.diff(diff(2, 4, [], {})), [])
        self.replica.progress(pb.Progress(revision=4, digest=b"?"))
        self.assertEqual((self.replica.entries, self.replica.revision), (self.before, 5))

    def test_a_value_in_pieces_over_two_chunks(self):
        after = state(a=(b"one", 1), b=(b"12345", 6))
        piece = {"revision": 6, "total": 5}
        begin = pb.Diff(**{"from": 5}, to=6, changes=[put(b"b", b"123", **piece)], more=True)
        self.assertIsNone(self.replica.diff(begin))
        self.replica.diff(diff(5, 6, [put(b"b", b"45", **piece, offset=3)], after))
        self.assertEqual(self.replica.entries, after)

    def test_pieces_that_do_not_fit(self):
        for pieces in (
            [put(b"b", b"12", total=5)],
            [put(b"b", b"12", total=5), put(b"b", b"345", total=5, offset=3)],
            [put(b"b", b"12", total=5), put(b"c", b"345", total=5, offset=2)],
            [put(b"b", b"12", total=5), put(b"b", b"3456", total=5, offset=2)],
            [put(b"b", b"12", total=5), put(b"c", b"whole")],
        ):
            with self.subTest(pieces=pieces):
                self.setUp()
                self.refused(Unusable, self.replica.diff, diff(5, 6, pieces, {}))

    def patch(self, base=1, length=8):
        ops = [
            pb.DeltaOp(insert=b"gr"),
            pb.DeltaOp(copy=pb.Copy(offset=1, length=2)),
            pb.DeltaOp(copy=pb.Copy(offset=0, length=3)),
            pb.DeltaOp(insert=b"!"),
        ]
        patch = pb.Patch(key=b"a", base_mod_revision=base, length=length, ops=ops)
        patch.create_revision, patch.mod_revision, patch.version = 1, 6, 6
        return [pb.Change(patch=patch)]

    def test_a_patch(self):
        after = state(a=(b"grneone!", 6))
        self.replica.diff(diff(5, 6, self.patch(), after))
        self.assertEqual(self.replica.entries, after)

    def test_patches_that_do_not_fit(self):
        for changes in (self.patch(base=2), self.patch(length=9)):
            self.setUp()
            self.refused(Unusable, self.replica.diff, diff(5, 6, changes, {}))
        outside = self.patch()
        outside[0].patch.ops[1].copy.offset = 2
        self.setUp()
        self.refused(Unusable, self.replica.diff, diff(5, 6, outside, {}))

    def test_a_gap_keeps_what_is_held(self):
        self.refused(Gap, self.replica.diff, diff(6, 7, [], self.before))
        self.assertEqual(self.replica.have()["revision"], 5)

    def test_a_wrong_digest(self):
        self.refused(Unusable, self.replica.diff, diff(5, 6, [put(b"b", b"2", 6)], self.before))
        for frame in (pb.Current, pb.Progress):
            self.setUp()
            method = getattr(self.replica, frame.__name__.lower())
            self.refused(Unusable, method, frame(revision=6, digest=digest_of({})))
        self.setUp()
        self.refused(Unusable, self.replica.snapshot, snapshot([], 6, self.before))

    def test_only_a_reset_or_another_history_goes_back(self):
        self.refused(Unusable, self.replica.snapshot, snapshot([], 4, {}))
        for hello, more in ((b"e", {"reset": True}), (b"other", {})):
            self.setUp()
            self.replica.hello(pb.Hello(epoch=hello))
            changed = self.replica.snapshot(snapshot([], 4, {}, **more))
            self.assertEqual(changed, [(b"a", self.before[b"a"], None)])
            self.assertEqual((self.replica.revision, self.replica.have()["epoch"]), (4, hello))

    def test_another_history_is_not_built_on(self):
        self.replica.hello(pb.Hello(epoch=b"other"))
        self.refused(Unusable, self.replica.diff, diff(5, 6, [], self.before))
        self.replica.distrust()
        self.assertIsNone(self.replica.have())

    def test_frames_do_not_mix(self):
        self.replica.diff(pb.Diff(**{"from": 5}, to=6, more=True))
        self.refused(Unusable, self.replica.diff, diff(6, 7, [], self.before))
        self.setUp()
        self.replica.diff(pb.Diff(**{"from": 5}, to=6, more=True))
        current = pb.Current(revision=6, digest=digest_of(self.before))
        self.refused(Unusable, self.replica.current, current)
        # What a stream left unfinished does not outlive it.
        self.replica.hello(pb.Hello(epoch=b"e"))
        self.replica.current(current)
        self.assertEqual(self.replica.revision, 6)


class Digest(unittest.TestCase):
    def test_the_vectors(self):
        text = (PROTO.parent / "testdata" / "digest.json").read_text()
        vectors = json.loads(text)["vectors"]
        self.assertTrue(vectors)

        def value(v):
            if isinstance(v, str):
                return bytes.fromhex(v)
            return bytes.fromhex(v["repeat"]) * v["times"]

        for vector in vectors:
            with self.subTest(vector["name"]):
                entries = {
                    bytes.fromhex(e["key"]): Entry(
                        value(e["value"]), e["create_revision"], e["mod_revision"], e["version"]
                    )
                    for e in vector["entries"]
                }
                self.assertEqual(digest_of(entries).hex(), vector["digest"])


if __name__ == "__main__":
    unittest.main()
