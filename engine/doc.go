// Package engine is the only door to the data store's Badger: read at a revision,
// scan, commit, export and restore, sync, and the upkeep that keeps disk and memory
// bounded. Another engine would be another implementation of these few types
// (Invariant B11).
//
// A revision is a Badger commit timestamp (managed mode), so a read, a scan or an
// export of any kept revision is one read timestamp. The engine knows nothing of
// what the keys mean.
//
// How a revision gets in: Commit queues it and returns; Flush waits for all that was
// queued; Publish lets readers see it. A revision too big for one Badger transaction
// is written in parts, and its final part, which carries the caller's record that
// makes the revision count, is queued only once the others are written. Nothing is
// durable before Sync; a crash of the process loses nothing that was flushed, a
// power cut loses at most a tail of whole revisions.
//
// How history goes: SetDiscard asks for it, open readers hold it back for a bounded
// time, compaction does it. A reader never sees partly discarded data: it fails with
// ErrDiscarded instead (Invariant B5).
//
// What stops it: the first error of a write, a sync or a flatten is final. It is
// reported to Config.OnFatal once, and everything afterwards fails, because Badger
// acknowledges writes after an error that the next start does not find (Invariant
// B2). The process must exit.
//
// Callers: fsm (apply and reads) and snapshot (export, restore, generations).
package engine
