// Package raftstore keeps raft's log and raft's stable values (term and vote) on disk: BBVA/raft-badger,
// which hashicorp/raft never sees bare, behind a thin layer that makes it sound.
//
// Each of the two has a Badger of its own, log/ and stable/, so that a vote never waits behind a big
// append and a range deletion never meets a stable key. What the layer adds, by the rules' numbers:
//
//   - Invariant 2: everything is synced before it is acknowledged; no setting turns that off.
//   - Invariant 3: first and last index are kept in memory. A byte-bounded cache holds the newest entries
//     for replication.
//   - Invariants 4, 5, 6: appends are contiguous or refused and split to fit; deletions are clamped and
//     chunked so that a crash never leaves a hole, a suffix from its end; a whole log goes by one rename.
//   - Invariant 7: the first I/O error of either database, a write that hangs, or too little free disk
//     latches the store. After that every call fails and Config.OnFatal has been called once.
//   - Invariant 8: an open checks all table files and the value log that is to be replayed, replays in a
//     recovery open, checks the log for holes (ErrHole) and reads its newest entries back. ErrHole and
//     ErrCorrupt mean that the node must come back as a new server.
//   - The stable values are kept twice, in Badger and in the file votes, which is written first: a term or a
//     vote that Badger has lost is noticed and taken from there (see stableStore).
//   - Invariant 9: the value logs are collected while the store runs, and Close stops that first.
//     raft-badger's own collector is off: it outlives Close. Its Badger handle, which it does not export,
//     is read from the struct (see handle).
//
// On disk is what raft-badger writes: key 0x00+BE64(index) → the raft.Log in msgpack of
// go-msgpack v0.5.5 (log/), key 0x01+name → value, numbers as BE64 (stable/). Any raft-badger v1.0.x with
// Badger v2 opens these folders. Beside them is votes (format in votes.go). A folder log.deleted-N is a
// dropped log whose removal was cut off.
//
// The package does not decide anything about raft: whether a log fits a snapshot or a state machine is
// the caller's start-up check. It does not implement raft.CommitTrackingLogStore, which must stay off.
//
// Package node opens and closes it; package consensus hands Logs and Stable to raft, and asks Full.
package raftstore
