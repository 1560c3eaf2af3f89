package raftstore

import "errors"

var (
	// ErrClosed is returned by calls that come after Close; raft makes some during its own shutdown.
	ErrClosed = errors.New("raft store is closed")

	// ErrFailed is matched by every error that is returned once the store has latched, together with the
	// cause. Nothing was acknowledged since; the process has to end.
	ErrFailed = errors.New("raft store has failed")

	// ErrHole says that the log on disk lacks an entry between its first and its last. Acknowledged entries
	// are gone: the node must not vote under its identity again and is re-seeded as a new server.
	ErrHole = errors.New("raft log has a hole")

	// ErrCorrupt says that files, or what was read from them, are damaged or older than they can be. The
	// same follows as for ErrHole.
	ErrCorrupt = errors.New("raft store is corrupt")

	// ErrNotContiguous refuses an append that does not continue the log. Nothing was written.
	ErrNotContiguous = errors.New("append does not continue the raft log")

	// ErrMiddle refuses a deletion that would leave entries on both sides. Nothing was deleted.
	ErrMiddle = errors.New("deletion in the middle of the raft log")

	// ErrEntryTooBig refuses an append with an entry over MaxEntryBytes. Nothing was written.
	ErrEntryTooBig = errors.New("raft log entry too big")

	// ErrDiskFull says that free disk space is below the floor: at Open, or as the cause of a latch.
	ErrDiskFull = errors.New("too little free disk space for the raft log")

	// ErrStalled is the cause of a latch when one write took longer than Config.StallTimeout.
	ErrStalled = errors.New("write to the raft store hangs")

	// ErrNotFound says that the stable store has no such key. raft recognises it by its text.
	ErrNotFound = errors.New("not found")
)
