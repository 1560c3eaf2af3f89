package badgerkit

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/options"
)

const (
	// recoveryFactor is how many ordinary memtables the one of a recovery open can hold. A crash leaves
	// at most NumMemtables+2 of them to be replayed, and a memtable overshoots its size by less than a
	// third, so 8 is right for two memtables and the factor grows from there.
	recoveryFactor = 8

	// recoveryFloorBytes is the smallest recovery memtable for a value log that could fill it: the
	// memtable size may have been configured down since the crash, and what is replayed was written under
	// the old one.
	recoveryFloorBytes = 128 << 20

	// replayExpansion bounds how many bytes of memtable one byte of value log can become: the smallest
	// entries (a few bytes of key, no value) cost a skip list node of about a hundred bytes.
	replayExpansion = 8
)

// Recover does the recovery open of one database: it opens opt.Dir with a memtable that the replay
// cannot fill, runs no compaction, syncs the value log and closes, so that nothing is left to replay
// for the open that follows. A missing or empty folder is left alone.
//
// It blocks for one replay and one flush (about a third of a second after a crash under full load).
// Its memtable is address space, touched only as far as there is something to replay; call it before a
// memory limit is set. Managed and ordinary databases are both fine: no version is ever discarded in it.
//
// Before that it reads all tables and checks them, and looks at the value log, so that a caller's own open
// need not verify tables again. An error means that the database must not be opened. Whatever says that its
// files are damaged matches ErrCorrupt, a panic of Badger over them included; errors of the environment
// (see Guard) do not.
//
// It is for databases that may have been written without SyncWrites: what a crash left of the newest writes
// is taken as it is, and how much there must be is the caller's to know.
func Recover(opt badger.Options) error {
	return recovery{opt: opt}.run()
}

// RecoverInspect is Recover for a database that is never written without SyncWrites, with a look inside.
// Nothing that was acknowledged can be missing there, so a value log that breaks off in any other way than
// in its last write matches ErrCorrupt. Once everything is replayed, and before the database is closed,
// inspect is called with it, for reading only (db.View). An error of inspect is returned after the close.
// inspect may be nil; it is not called for a missing or empty folder.
func RecoverInspect(opt badger.Options, inspect func(*badger.DB) error) error {
	return recovery{opt: opt, synced: true, inspect: inspect}.run()
}

// recovery is one recovery open.
type recovery struct {
	opt     badger.Options
	synced  bool // never written without SyncWrites
	inspect func(*badger.DB) error
}

func (r recovery) run() error {
	present, err := exists(r.opt)
	if err == nil && present && !mutantNoRecoveryOpen {
		err = r.open()
	}
	if err != nil {
		return fmt.Errorf("recover %s: %w", r.opt.Dir, err)
	}
	return nil
}

func (r recovery) open() error {
	if err := verifyTables(r.opt); err != nil {
		return err
	}
	if !WasCleanClose(r.opt.Dir) { // else there is nothing to replay
		if err := checkValueLogs(r.opt, r.synced); err != nil {
			return err
		}
	}
	ropt, err := recoveryOptions(r.opt)
	if err != nil {
		return err
	}

	// Invariant B1: managed mode, because there the discard timestamp is zero after an open, so whatever
	// the database is, the recovery open drops none of its history.
	var db *badger.DB
	if err := Guard(ropt, func() (err error) {
		db, err = badger.OpenManaged(ropt)
		return err
	}); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if r.inspect != nil {
		err = r.inspect(db)
	}
	// Invariant B8: Close does not sync the value log, and the flush in Close records a head at its very
	// end; a head beyond what is on disk would be a hole after a power cut.
	if serr := db.Sync(); serr != nil && err == nil {
		err = fmt.Errorf("sync: %w", serr)
	}
	if cerr := db.Close(); cerr != nil && err == nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	return err
}

// recoveryOptions turns the options of the real open into those of the recovery open.
func recoveryOptions(opt badger.Options) (badger.Options, error) {
	valueDir := opt.ValueDir
	if valueDir == "" {
		valueDir = opt.Dir
	}
	vlog, err := DirBytes(valueDir, ".vlog")
	if err != nil {
		return opt, err
	}
	factor := int64(math.Ceil(float64(opt.NumMemtables+3) * 1.3))
	factor = max(factor, recoveryFactor)
	size := max(factor*opt.MaxTableSize, recoveryFloorBytes)
	if vlog < math.MaxInt64/replayExpansion {
		size = min(size, max(opt.MaxTableSize, int64(vlog)*replayExpansion))
	}
	opt.MaxTableSize = size

	// Invariant B2: a compaction at the wall of a full disk deletes data; here none runs, at any level,
	// and level 0 never stalls, so the flush in Close cannot wait for one.
	opt.NumCompactors = 0
	opt.CompactL0OnClose = false
	opt.KeepL0InMemory = false
	opt.NumLevelZeroTablesStall = math.MaxInt32

	opt.ReadOnly = false
	opt.Truncate = true
	opt.ChecksumVerificationMode = options.NoVerification // verifyTables has read all of them
	return opt, nil
}

// exists says whether there is a database in the folder of opt.
func exists(opt badger.Options) (bool, error) {
	if opt.InMemory || opt.Dir == "" {
		return false, nil
	}
	_, err := os.Stat(filepath.Join(opt.Dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
