package badgerkit

import (
	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/options"
)

// blockBytes is the size of a block of a table. What is kept of each block in memory takes some
// 100 bytes and is looked at by every garbage collection, and blocks are searched in place, so bigger
// ones than Badger's 4 KiB make both less, and reads, warm or cold, take as long (the kernel reads
// 128 KiB around a page that is missing).
const blockBytes = 128 << 10

// tableBytes is the size of a table for memtables of memTableBytes, when those are a power of two. Badger builds a
// table in a buffer that doubles from 1 MiB on, ends a table only after the entry that fills it, and adds an
// index. A table that ended at the power of two itself would so take a buffer, and a copy, of twice its size.
func tableBytes(memTableBytes int64) int64 { return memTableBytes - memTableBytes/16 }

// BaseOptions are the measured starting values for a database in dir with memtables (and tables) of
// memTableBytes; callers change what is theirs (Invariants B8 and B9). logger comes from Logger.
//
// Two of them are about safety, not speed: Truncate, because without it an open after a torn write
// fails, and checksum verification when a table is opened, because a damaged block that is only noticed
// on a read looks like a missing key.
func BaseOptions(dir string, memTableBytes int64, logger badger.Logger) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(logger).
		WithTruncate(true).
		WithDetectConflicts(false).
		WithNumVersionsToKeep(1).
		WithMaxTableSize(tableBytes(memTableBytes)).
		WithBlockSize(blockBytes).
		WithNumMemtables(2).
		WithNumLevelZeroTables(3).
		WithNumLevelZeroTablesStall(8).
		WithLevelOneSize(64 << 20).
		WithNumCompactors(2).
		WithValueLogFileSize(64 << 20).
		WithLogRotatesToFlush(1).
		WithValueLogLoadingMode(options.FileIO).
		WithTableLoadingMode(options.MemoryMap).
		WithCompactL0OnClose(false).
		WithKeepL0InMemory(false).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithCompression(options.None).
		WithVerifyValueChecksum(true).
		WithChecksumVerificationMode(options.OnTableRead)
}
