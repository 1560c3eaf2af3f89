// Package badgerkit holds what every Badger database in a node needs around its opening, and nothing
// about what is stored in it: the recovery open, the check of table files against the manifest, the
// checks of tables and value log that tell damage from what a crash leaves and from trouble of the
// environment, the measured base options, a bridge from Badger's logger to slog, and free-space and
// folder sizes.
//
// It does not keep a database open and leaves no goroutine behind. Its only callers are engine (the data
// store) and raftstore (log and stable store); both call, in this order,
//
//	free space → CheckTables → Recover → their own open in Guard
//
// Why there is a recovery open (Invariant B1): Badger v2 moves its replay head forward before the
// entries of a transaction are in the memtable. When a replay fills a memtable, a flush can record a
// head that lies beyond entries that exist nowhere but in memory; the next crash then loses part of a
// transaction that was acknowledged and synced, in the middle of history. Recover replays into a
// memtable that is too big to be filled, and closes, which flushes everything and only then moves the
// head. It may itself be killed at any moment and repeated.
package badgerkit
