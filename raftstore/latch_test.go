package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// faulty opens a store whose calls fail or wait as before says, and collects what OnFatal is told.
func faulty(t *testing.T, cfg Config, before func(db, call string) error) (*Store, *fatals) {
	t.Helper()
	f := new(fatals)
	cfg.OnFatal = f.add
	cfg.seams.wrap = func(name string, in inner) inner {
		return &hooked{inner: in, before: func(call string) error { return before(name, call) }}
	}
	s := mustOpen(t, cfg)
	t.Cleanup(func() { abandon(s) })
	return s, f
}

// abandon closes the databases of a latched store, which Close leaves alone.
func abandon(s *Store) {
	s.Close()
	for _, d := range []*database{s.logDB, s.stabDB} {
		if d.in != nil {
			d.in.Close()
			d.in, d.db = nil, nil
		}
	}
}

// wantLatched checks that every call of s fails with cause and that OnFatal was told of it exactly once.
func wantLatched(t *testing.T, s *Store, f *fatals, cause error) {
	t.Helper()
	next := uint64(1)
	if _, last := s.Bounds(); last != 0 {
		next = last + 1
	}
	var log raft.Log
	calls := map[string]error{
		"StoreLogs":   s.Logs().StoreLogs(entries(next, next, 1, 10)),
		"StoreLog":    s.Logs().StoreLog(entry(next, 1, 10)),
		"DeleteRange": s.Logs().DeleteRange(1, 1),
		"GetLog":      s.Logs().GetLog(1, &log),
		"Set":         s.Stable().Set([]byte("k"), []byte("v")),
		"SetUint64":   s.Stable().SetUint64([]byte("k"), 1),
		"Reset":       s.Reset(),
		"Err":         s.Err(),
	}
	_, calls["FirstIndex"] = s.Logs().FirstIndex()
	_, calls["LastIndex"] = s.Logs().LastIndex()
	_, calls["Get"] = s.Stable().Get([]byte("k"))
	_, calls["GetUint64"] = s.Stable().GetUint64([]byte("k"))
	for call, err := range calls {
		if !errors.Is(err, ErrFailed) || !errors.Is(err, cause) {
			t.Errorf("%s after the failure: %v, want ErrFailed with %v", call, err, cause)
		}
	}
	causes := f.all()
	if len(causes) != 1 || !errors.Is(causes[0], cause) {
		t.Errorf("OnFatal was told %v, want once %v", causes, cause)
	}
}

// TestENOSPCLatch shows Invariant 7: after the first write error nothing is acknowledged any more, in
// either database, although the disk has space again. It runs against faults put in between, and against
// a real full file system where one can be mounted.
func TestENOSPCLatch(t *testing.T) {
	for _, call := range []struct{ db, call string }{{"log", "append"}, {"log", "delete"}, {"stable", "set"}} {
		t.Run(fmt.Sprintf("injected into %s %s", call.db, call.call), func(t *testing.T) {
			var full atomic.Bool
			s, f := faulty(t, testConfig(t, t.TempDir()), func(db, c string) error {
				if full.Load() && db == call.db && c == call.call {
					return &os.PathError{Op: "write", Path: "000001.vlog", Err: syscall.ENOSPC}
				}
				return nil
			})
			mustStore(t, s.Logs(), entries(1, 10, 1, 100))
			if err := s.Stable().SetUint64([]byte("CurrentTerm"), 1); err != nil {
				t.Fatal(err)
			}

			full.Store(true)
			var err error
			switch call.call {
			case "append":
				err = s.Logs().StoreLogs(entries(11, 12, 1, 100))
			case "delete":
				err = s.Logs().DeleteRange(8, 10)
			case "set":
				err = s.Stable().SetUint64([]byte("CurrentTerm"), 2)
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("got %v, want ENOSPC", err)
			}
			full.Store(false)
			wantLatched(t, s, f, syscall.ENOSPC)
		})
	}
	t.Run("on a full file system", func(t *testing.T) {
		dir, unmount := mountTmpfs(t, 64<<20)
		defer unmount()
		if dir == "" {
			return
		}
		testRealENOSPC(t, dir)
	})
}

// mountTmpfs mounts a small file system. Without the rights for it, dir is empty and the log says so.
func mountTmpfs(t *testing.T, size int64) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Logf("ATTENTION: no file system could be mounted here (%v): only the injected faults were tested", err)
		return "", func() {}
	}
	t.Logf("running on a real file system of %d MiB at %s", size>>20, dir)
	return dir, func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}
}

func testRealENOSPC(t *testing.T, dir string) {
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, filepath.Join(dir, "raft"))
	cfg.seams.free = func(string) (uint64, error) { return 1 << 40, nil } // so that the wall is hit
	f := new(fatals)
	cfg.OnFatal = f.add
	s := mustOpen(t, cfg)
	defer abandon(s)

	const size = 20 << 10 // goes to the value log, so that it is the value log that hits the wall
	acked := uint64(0)
	var failure error
	for failure == nil && acked < 10_000 {
		if failure = s.Logs().StoreLogs(entries(acked+1, acked+8, 1, size)); failure == nil {
			acked += 8
		}
	}
	if !errors.Is(failure, ErrFailed) || acked == 0 {
		t.Fatalf("after %d entries: %v, want a failure of the disk", acked, failure)
	}
	t.Logf("%d entries were acknowledged, then: %v", acked, failure)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := s.Logs().StoreLog(entry(acked+1, 1, size)); err == nil {
			t.Fatal("an append was acknowledged after the disk had failed")
		}
	}
	if _, last := s.Bounds(); last != acked {
		t.Fatalf("last index is %d, acknowledged were %d", last, acked)
	}
	if n := len(f.all()); n != 1 {
		t.Fatalf("OnFatal was called %d times", n)
	}

	// The next start, here on a copy as a dead process leaves it, has all that was acknowledged.
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, testConfig(t, copied))
	if first, last := again.Bounds(); first != 1 || last < acked {
		t.Fatalf("after the restart the log has %d..%d, acknowledged were 1..%d", first, last, acked)
	}
	checkRange(t, again.Logs(), 1, acked, 1, size)
}

// TestReadErrorLatches: an entry that should be there and cannot be read is the end too.
func TestReadErrorLatches(t *testing.T) {
	for name, fault := range map[string]struct{ err, want error }{
		"I/O error": {syscall.EIO, ErrCorrupt},
		"missing":   {raft.ErrLogNotFound, ErrHole},
	} {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Bool
			cfg := testConfig(t, t.TempDir())
			cfg.CacheBytes = -1
			s, f := faulty(t, cfg, func(_, call string) error {
				if broken.Load() && call == "get" {
					return fault.err
				}
				return nil
			})
			mustStore(t, s.Logs(), entries(1, 5, 1, 10))
			broken.Store(true)
			var log raft.Log
			if err := s.Logs().GetLog(3, &log); !errors.Is(err, fault.want) {
				t.Fatalf("GetLog: %v, want %v", err, fault.want)
			}
			broken.Store(false)
			wantLatched(t, s, f, fault.want)
		})
	}
}

// TestStalledWriteLatches: a write that hangs ends the process, since raft keeps leading on heartbeats
// alone, and its late success is not acknowledged.
func TestStalledWriteLatches(t *testing.T) {
	hang, hung := make(chan struct{}), make(chan struct{})
	var on atomic.Bool
	cfg := testConfig(t, t.TempDir())
	cfg.StallTimeout = 500 * time.Millisecond
	s, f := faulty(t, cfg, func(_, call string) error {
		if on.Load() && call == "append" {
			close(hung)
			<-hang
		}
		return nil
	})
	mustStore(t, s.Logs(), entries(1, 5, 1, 10))
	if got := f.all(); len(got) != 0 {
		t.Fatalf("latched without a stall: %v", got)
	}
	on.Store(true)
	result := make(chan error, 1)
	go func() { result <- s.Logs().StoreLogs(entries(6, 6, 1, 10)) }()
	<-hung
	eventually(t, 5*time.Second, "the watchdog notices", func() bool { return len(f.all()) == 1 })
	if err := s.Close(); !errors.Is(err, ErrStalled) {
		t.Errorf("Close with a hung write: %v", err) // and it must not wait for it
	}
	close(hang)
	if err := <-result; !errors.Is(err, ErrStalled) {
		t.Errorf("the hung write was answered %v after it went through", err)
	}
	if err := s.Err(); !errors.Is(err, ErrStalled) {
		t.Errorf("Err: %v", err)
	}
}

// TestCloseNoticesStall: the watchdog is there until the last write has ended.
func TestCloseNoticesStall(t *testing.T) {
	hang, hung := make(chan struct{}), make(chan struct{})
	cfg := testConfig(t, t.TempDir())
	cfg.StallTimeout = 300 * time.Millisecond
	s, f := faulty(t, cfg, func(db, call string) error {
		if db == "stable" && call == "set" {
			close(hung)
			<-hang
		}
		return nil
	})
	var writer sync.WaitGroup
	writer.Go(func() {
		if err := s.Stable().Set([]byte("k"), []byte("v")); !errors.Is(err, ErrStalled) {
			t.Errorf("Set: %v", err)
		}
	})
	<-hung
	if err := s.Close(); !errors.Is(err, ErrStalled) {
		t.Errorf("Close: %v", err)
	}
	if n := len(f.all()); n != 1 {
		t.Errorf("OnFatal was called %d times", n)
	}
	close(hang)
	writer.Wait()
}

// TestFreeSpaceFloors: growth is discouraged early, stopped before compaction can hit the wall, and a
// store is not even opened there (Invariant B2).
func TestFreeSpaceFloors(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 40)
	f := new(fatals)
	cfg := testConfig(t, t.TempDir())
	cfg.MinFreeBytes = 100 << 20
	cfg.StallTimeout = 4 * time.Second // looks twice a second
	cfg.OnFatal = f.add
	cfg.seams.free = func(string) (uint64, error) { return free.Load(), nil }
	s := mustOpen(t, cfg)
	defer abandon(s)
	mustStore(t, s.Logs(), entries(1, 10, 1, 100))
	if s.Full() {
		t.Fatal("full with a terabyte free")
	}

	free.Store(99 << 20)
	mustStore(t, s.Logs(), entries(11, 20, 1, 100)) // raft's appends still work
	if !s.Full() {
		t.Fatal("not full below MinFreeBytes")
	}
	free.Store(101 << 20)
	eventually(t, 10*time.Second, "the watchdog looks again", func() bool { return !s.Full() })

	free.Store(50<<20 + 1000)
	err := s.Logs().StoreLogs(entries(21, 40, 1, 100)) // would cross the hard floor
	if !errors.Is(err, ErrDiskFull) {
		t.Fatalf("append across the hard floor: %v", err)
	}
	wantLatched(t, s, f, ErrDiskFull)

	cfg.Dir = t.TempDir()
	mustClose(t, mustOpen(t, cfg))
	free.Store(50<<20 - 1)
	cfg.Dir = t.TempDir()
	if _, err := Open(cfg); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("open below the hard floor: %v", err)
	}
}
