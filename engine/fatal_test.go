package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	badger "github.com/dgraph-io/badger/v2"

	"github.com/settkv/sett/internal/badgerkit"
)

// TestFirstErrorIsFinal: after a commit failed nothing is acknowledged any more, it
// is reported once, and the files hold exactly what was acknowledged before, or
// whole revisions beyond (Invariant B2).
func TestFirstErrorIsFinal(t *testing.T) {
	broken := errors.New("input/output error")
	var reports atomic.Int32
	reported := make(chan error, 10)
	dir := freshDir(t)
	e := open(t, dir, func(c *Config) {
		c.commitFault = func(ts uint64) error {
			if ts == 5 {
				return broken
			}
			return nil
		}
		c.OnFatal = func(err error) {
			reports.Add(1)
			reported <- err
		}
	})
	for ts := uint64(1); ts <= 4; ts++ {
		commit(t, e, ts, put("da", fmt.Sprint(ts)))
	}
	r := readAt(t, e, 4)
	// Commits go on being queued until the failure is known.
	for ts := uint64(5); ts < 50; ts++ {
		if err := e.Commit(ts, []Entry{put("da", fmt.Sprint(ts))}, event(ts)); err != nil {
			break
		}
	}
	if err := e.Flush(); !errors.Is(err, broken) || !errors.Is(err, ErrFatal) {
		t.Fatalf("flush: %v", err)
	}
	if err := <-reported; !errors.Is(err, broken) || !strings.Contains(err.Error(), "commit revision 5") {
		t.Errorf("reported %v", err)
	}
	e.Publish(6)
	if e.Published() != 4 {
		t.Errorf("published %d after the failure", e.Published())
	}
	_, readErr := e.ReadAt(4)
	for name, err := range map[string]error{
		"commit": e.Commit(99, nil, event(99)), "flush": e.Flush(), "sync": e.Sync(), "read": readErr,
		"compact": e.Compact(context.Background()), "delete": e.DeleteAt(nil, nil), "err": e.Err(), "close": e.Close(),
	} {
		if !errors.Is(err, broken) && !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, _, err := r.Get([]byte("da")); err == nil {
		t.Error("a reader outlives the engine")
	}
	if n := reports.Load(); n != 1 {
		t.Errorf("reported %d times", n)
	}
	// The files are as a crash leaves them.
	again := open(t, copyDir(t, dir))
	for ts := uint64(1); ts <= 4; ts++ {
		if v, _, _, err := readAt(t, again, ts).Get([]byte("da")); string(v) != fmt.Sprint(ts) || err != nil {
			t.Errorf("revision %d: %q %v", ts, v, err)
		}
	}
}

// TestFinalPartNeedsTheOthers: when a part fails, the final one is not even queued.
func TestFinalPartNeedsTheOthers(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir, func(c *Config) {
		c.commitFault = func(ts uint64) error {
			if ts == 2 {
				return errors.New("disk on fire")
			}
			return nil
		}
		c.OnFatal = nil
	})
	commit(t, e, 1, put("da", "1"))
	if err := e.Commit(2, bigEntries(2), event(2)); !errors.Is(err, ErrFatal) {
		t.Fatalf("commit: %v", err)
	}
	again := open(t, copyDir(t, dir))
	got := scan(t, readAt(t, again, unpublished), ScanOptions{Start: []byte("e"), End: []byte("f")})
	if len(got) != 1 {
		t.Errorf("events %q: the final part was written", got)
	}
}

// fatalReported is printed by a child whose OnFatal was called.
const fatalReported = 777_777

// writeUntilFull commits until the log file hits a limit on file sizes, which fails a
// write half-way as a full disk does, and goes on trying.
func writeUntilFull(e *Engine, dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 3_000_000, Max: math.MaxUint64}); err != nil {
		return err
	}
	failed := false
	for ts := uint64(1); ts < 1000; ts++ {
		err := e.Commit(ts, crashEntries(ts), event(ts))
		if err == nil {
			err = e.Flush()
		}
		switch {
		case err == nil && failed:
			return fmt.Errorf("revision %d acknowledged after a failure", ts)
		case err == nil:
			fmt.Println(ts)
		default:
			failed = true
			// The disk has room again: that changes nothing.
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: math.MaxUint64, Max: math.MaxUint64}); err != nil {
				return err
			}
		}
	}
	if !failed {
		return errors.New("no write failed")
	}
	if err := e.Sync(); !errors.Is(err, ErrFatal) {
		return fmt.Errorf("sync after a failure: %w", err)
	}
	if err := e.Close(); !errors.Is(err, ErrFatal) {
		return fmt.Errorf("close after a failure: %w", err)
	}
	fmt.Println(fatalReported + 1)
	select {}
}

// TestWriteErrorLosesNothing: Badger alone acknowledges commits after a failed write
// and loses them at the next start; the engine does not.
func TestWriteErrorLosesNothing(t *testing.T) {
	dir := freshDir(t)
	cmd, acks := child(t, "full", dir)
	var last uint64
	reports := 0
	for n := range acks {
		if n == fatalReported {
			reports++
			continue
		}
		if n > fatalReported {
			break
		}
		last = n
	}
	must(t, cmd.Process.Kill())
	if last == 0 {
		t.Fatal("nothing was written")
	}
	for range acks {
		reports++
	}
	if reports > 1 {
		t.Errorf("reported %d times", reports)
	}
	if bad := missing(t, dir, last); len(bad) > 0 {
		t.Errorf("acknowledged up to %d: %q", last, bad)
	}
}

// TestHungWritesAreFatal: commits that make no progress stop the engine.
func TestHungWritesAreFatal(t *testing.T) {
	fatal := make(chan error, 1)
	e := open(t, freshDir(t), func(c *Config) {
		c.tune = func(o badger.Options) badger.Options {
			return o.WithNumCompactors(0).WithNumLevelZeroTables(1).WithNumLevelZeroTablesStall(2)
		}
		c.StallTimeout = 300 * time.Millisecond
		c.pollInterval = 10 * time.Millisecond
		c.OnFatal = func(err error) { fatal <- err }
	})
	var err error
	for ts := uint64(1); err == nil && ts < 100_000; ts++ {
		err = e.Commit(ts, crashEntries(ts), event(ts))
	}
	if !errors.Is(err, ErrFatal) {
		t.Fatalf("commit: %v", err)
	}
	if err := <-fatal; !strings.Contains(err.Error(), "no progress") {
		t.Errorf("reported %v", err)
	}
}

func TestFreeSpaceFloors(t *testing.T) {
	var free atomic.Uint64
	free.Store(1000 << 20)
	fatal := make(chan error, 1)
	dir := freshDir(t)
	change := func(c *Config) {
		c.MinFreeBytes = 400 << 20
		c.pollInterval = time.Millisecond
		c.freeBytes = func(string) (uint64, error) { return free.Load(), nil }
		c.OnFatal = func(err error) { fatal <- err }
	}
	e := open(t, dir, change)
	commit(t, e, 1, put("da", "1"))
	full := func(mib uint64, want bool) {
		t.Helper()
		free.Store(mib << 20)
		eventually(t, "space is measured", func() bool { return e.upkeep.free.Load() == mib<<20 })
		eventually(t, fmt.Sprintf("full %v at %d MiB", want, mib), func() bool { return e.Full() == want })
	}
	full(1000, false)
	full(399, true)
	full(450, true) // not yet: a quarter more is needed
	full(501, false)
	full(450, false)
	full(101, true)
	commit(t, e, 2, del("da")) // deletes go on
	free.Store(99 << 20)
	if err := <-fatal; !errors.Is(err, badgerkit.ErrNoSpace) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("reported %v", err)
	}
	if err := e.Commit(3, nil, event(3)); !errors.Is(err, ErrFatal) {
		t.Errorf("commit below the hard floor: %v", err)
	}
	if _, err := Open(testConfig(t, freshDir(t), change)); !errors.Is(err, badgerkit.ErrNoSpace) {
		t.Errorf("open below the hard floor: %v", err)
	}
}

// TestCloseWithFullDisk: Badger would try for ever to write its memtable out.
func TestCloseWithFullDisk(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 30)
	dir := freshDir(t)
	e := open(t, dir, func(c *Config) {
		c.freeBytes = func(string) (uint64, error) { return free.Load(), nil }
		c.pollInterval = time.Hour
	})
	commit(t, e, 1, put("da", "1"))
	free.Store(1 << 20)
	if err := e.Close(); err == nil || !strings.Contains(err.Error(), "1 MiB free") {
		t.Fatalf("close: %v", err)
	}
	again := open(t, copyDir(t, dir))
	if v, _, _, _ := readAt(t, again, unpublished).Get([]byte("da")); string(v) != "1" {
		t.Errorf("lost: %q", v)
	}
}

// TestDamagedFilesStopTheStart: a table that is missing, or damaged anywhere, must
// not look like missing keys (Invariants B2 and B8).
func TestDamagedFilesStopTheStart(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir)
	h := newHistory()
	grow(t, e, h, 500, 30)
	must(t, e.Close())
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	must(t, err)
	if len(tables) == 0 {
		t.Fatal("no tables")
	}
	name := filepath.Base(tables[0])

	missing := copyDir(t, dir)
	must(t, os.Remove(filepath.Join(missing, name)))
	if _, err := Open(testConfig(t, missing)); !errors.Is(err, badgerkit.ErrCorrupt) {
		t.Errorf("open with a missing table: %v", err)
	}

	unnamed := copyDir(t, dir)
	b, err := os.ReadFile(filepath.Join(unnamed, name))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(unnamed, "000099.sst"), b, 0o600))
	if _, err := Open(testConfig(t, unnamed)); !errors.Is(err, badgerkit.ErrCorrupt) {
		t.Errorf("open with an unnamed table after a clean close: %v", err)
	}

	for _, at := range []int{10, len(b) / 3, len(b) / 2} {
		damaged := copyDir(t, dir)
		bad := bytes.Clone(b)
		bad[at] ^= 0x40
		must(t, os.WriteFile(filepath.Join(damaged, name), bad, 0o600))
		if e, err := Open(testConfig(t, damaged)); err == nil {
			e.Close() //nolint:errcheck // failed already
			t.Errorf("opened with byte %d of a table changed", at)
		}
	}
}
