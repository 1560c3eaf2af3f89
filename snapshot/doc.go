// Package snapshot keeps the state machine's database in generation folders, knows
// which Raft snapshot that database stands for, and moves whole databases between
// servers as verified streams.
//
// Layout, below the folder given to OpenStore:
//
//	CURRENT       names the generation in use; replaced by rename only
//	gen-<hex>/db  the database of a generation, owned by package engine
//	gen-<hex>/label  what Raft snapshot the database includes; replaced by rename only
//
// Taking a Raft snapshot copies nothing: the database is synced and the label is
// written, so the cost does not grow with the data. The content is read only when
// a follower needs it, straight from the live database at one revision. An install
// is written into a fresh generation, verified on its way in and again as read back
// from disk, and becomes current by replacing CURRENT. Before that rename the
// old generation is complete and in use; after it the new one is.
//
// Invariants (the numbers are those of the specification): 13 a label is written
// after the database is synced; 16 a stream's label and content are of one capture;
// 17 nothing unverified is switched in, and no error leaves a half state; 18 a
// stream's own label says what it contains; 19 taking a snapshot reads no data;
// 20 while a stream is out, no local snapshot is taken, so that raft keeps the log
// that the follower needs next.
//
// The package does not know what keys mean, does not decide when a snapshot is
// taken, and does not apply entries. fsm is its Source and calls Commit and Switch;
// consensus hands Raft's view of it (Store.Raft) to raft; offline tools use Inspect,
// Verify and ReadStream. Only raft.go knows hashicorp/raft.
package snapshot
