package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/hashicorp/raft"

	"github.com/settkv/sett/internal/badgerkit"
)

func TestConfigIsChecked(t *testing.T) {
	ok := func() Config { return Config{Dir: t.TempDir(), MinFreeBytes: 1, OnFatal: func(error) {}} }
	for name, change := range map[string]func(*Config){
		"no folder":           func(c *Config) { c.Dir = "" },
		"no OnFatal":          func(c *Config) { c.OnFatal = nil },
		"memtable too small":  func(c *Config) { c.MemTableBytes = 8<<20 - 1 },
		"value log too small": func(c *Config) { c.ValueLogFileBytes = 1000 },
		"value log too big":   func(c *Config) { c.ValueLogFileBytes = 2 << 30 },
		"negative stall":      func(c *Config) { c.StallTimeout = -1 },
		"negative interval":   func(c *Config) { c.GCInterval = -1 },
	} {
		c := ok()
		change(&c)
		if s, err := Open(c); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		}
	}
	c := ok()
	mustClose(t, mustOpen(t, c))
}

// TestLimitsOfOptions: one transaction takes a full batch whatever the memtable, and both databases sync.
func TestLimitsOfOptions(t *testing.T) {
	for _, mem := range []int64{8 << 20, 16 << 20, 64 << 20} {
		c, err := Config{Dir: "x", MemTableBytes: mem, OnFatal: func(error) {}}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		o := c.logOptions()
		if got, limit := int64(64*o.ValueThreshold), o.MaxTableSize*15/100; got >= limit {
			t.Errorf("memtable %d: 64 entries below the threshold are %d bytes, a transaction takes %d", mem, got, limit)
		}
		for _, o := range []badger.Options{o, c.stableOptions()} {
			if !o.SyncWrites || !o.Truncate || o.Logger == nil || o.CompactL0OnClose || o.DetectConflicts {
				t.Errorf("unsafe options for %s", o.Dir)
			}
		}
	}
}

// TestCacheIsBounded: replication reads recent entries from memory, and memory is bounded in bytes.
func TestCacheIsBounded(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.CacheBytes = 100 << 10
	var reads atomic.Int64
	cfg.seams.wrap = func(_ string, in inner) inner {
		return &hooked{inner: in, before: func(call string) error {
			if call == "get" {
				reads.Add(1)
			}
			return nil
		}}
	}
	s := mustOpen(t, cfg)
	const size = 1000
	for i := uint64(1); i <= 1000; i += 50 {
		mustStore(t, s.Logs(), entries(i, i+49, 1, size))
		if st := s.Stats(); st.CacheBytes > cfg.CacheBytes {
			t.Fatalf("cache holds %d bytes, the bound is %d", st.CacheBytes, cfg.CacheBytes)
		}
	}
	st := s.Stats()
	if st.CacheEntries < 80 || st.CacheEntries > 100 {
		t.Fatalf("cache holds %d entries of about %d bytes in %d", st.CacheEntries, size, cfg.CacheBytes)
	}
	checkRange(t, s.Logs(), 1000-uint64(st.CacheEntries)+1, 1000, 1, size)
	if n := reads.Load(); n != 0 {
		t.Fatalf("%d reads of cached entries went to the database", n)
	}
	checkRange(t, s.Logs(), 1, 50, 1, size)
	if n := reads.Load(); n != 50 {
		t.Fatalf("%d reads of the database for 50 old entries", n)
	}

	// What replaces a deleted suffix is what is read.
	if err := s.Logs().DeleteRange(991, 1000); err != nil {
		t.Fatal(err)
	}
	var log raft.Log
	if err := s.Logs().GetLog(995, &log); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("a deleted entry reads with %v", err)
	}
	mustStore(t, s.Logs(), entries(991, 1000, 2, size))
	checkRange(t, s.Logs(), 980, 990, 1, size)
	checkRange(t, s.Logs(), 991, 1000, 2, size)
	if term, err := s.Term(1000); err != nil || term != 2 {
		t.Fatalf("Term: %d, %v", term, err)
	}

	// An entry bigger than the cache is not cached, and empties it.
	mustStore(t, s.Logs(), entries(1001, 1001, 2, 200<<10))
	if st := s.Stats(); st.CacheBytes != 0 || st.CacheEntries != 0 {
		t.Fatalf("cache: %d entries, %d bytes", st.CacheEntries, st.CacheBytes)
	}
	checkRange(t, s.Logs(), 1001, 1001, 2, 200<<10)
}

func TestEntryTooBigIsRefused(t *testing.T) {
	s := mustOpen(t, testConfig(t, t.TempDir()))
	mustStore(t, s.Logs(), entries(1, 3, 1, 10))
	big := &raft.Log{Index: 5, Term: 1, Data: make([]byte, MaxEntryBytes+1)}
	if err := s.Logs().StoreLogs([]*raft.Log{entry(4, 1, 10), big}); !errors.Is(err, ErrEntryTooBig) {
		t.Fatalf("got %v", err)
	}
	checkBounds(t, s.Logs(), 1, 3) // nothing of the batch was written
	mustStore(t, s.Logs(), entries(4, 5, 1, 10))
}

// TestMaxEntryFits: what is just not too big goes in, beside small ones.
func TestMaxEntryFits(t *testing.T) {
	s := mustOpen(t, testConfig(t, t.TempDir()))
	logs := entries(1, 3, 1, 10)
	logs = append(logs, &raft.Log{Index: 4, Term: 1, Data: make([]byte, MaxEntryBytes)})
	mustStore(t, s.Logs(), append(logs, entries(5, 6, 1, 10)...))
	mustClose(t, s)
	s = mustOpen(t, testConfig(t, filepath.Dir(s.logDB.opt.Dir)))
	checkBounds(t, s.Logs(), 1, 6)
}

// TestHoleIsFoundAtOpen: a log that lost entries in its middle is told by a typed error.
func TestHoleIsFoundAtOpen(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, testConfig(t, dir))
	mustStore(t, s.Logs(), entries(1, 500, 1, 10))
	if err := s.logDB.in.DeleteRange(100, 101); err != nil { // past the layer
		t.Fatal(err)
	}
	mustClose(t, s)
	if _, err := Open(testConfig(t, dir)); !errors.Is(err, ErrHole) {
		t.Fatalf("open of a log with a hole: %v", err)
	}
}

// TestDamageIsFoundAtOpen: tables that are missing, flipped bits in tables, and tables that a compaction
// left behind are told by a typed error, and the evidence stays.
func TestDamageIsFoundAtOpen(t *testing.T) {
	for name, damage := range map[string]func(tables []string) error{
		"missing table": func(tables []string) error { return os.Remove(tables[0]) },
		"no manifest": func(tables []string) error {
			return os.Remove(filepath.Join(filepath.Dir(tables[0]), badger.ManifestFilename))
		},
		"unnamed table after a clean close": func(tables []string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(tables[0]), "000999.sst"), []byte("x"), 0o600)
		},
		"flipped bit": func(tables []string) error {
			data, err := os.ReadFile(tables[0])
			if err != nil {
				return err
			}
			data[len(data)/3] ^= 0x10
			return os.WriteFile(tables[0], data, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, testConfig(t, dir))
			mustStore(t, s.Logs(), entries(1, 2000, 1, 100))
			mustClose(t, s)
			tables, err := filepath.Glob(filepath.Join(dir, "log", "*.sst"))
			if err != nil || len(tables) == 0 {
				t.Fatalf("tables: %v, %v", tables, err)
			}
			if err := damage(tables); err != nil {
				t.Fatal(err)
			}
			s, err = Open(testConfig(t, dir))
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("not ErrCorrupt: %v", err)
			}
		})
	}
}

// TestLostValueIsFoundAtOpen: big entries are in the value log, and those at the end of the log are read
// back when it is opened.
func TestLostValueIsFoundAtOpen(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, testConfig(t, dir))
	mustStore(t, s.Logs(), entries(1, 10, 1, 50<<10))
	mustClose(t, s)
	vlogs, err := filepath.Glob(filepath.Join(dir, "log", "*.vlog"))
	if err != nil || len(vlogs) != 1 {
		t.Fatal(vlogs, err)
	}
	if err := os.Truncate(vlogs[0], 300<<10); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testConfig(t, dir)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrHole) {
		t.Fatalf("open with lost values: %v", err)
	}
}

// TestReset drops the log and keeps the vote.
func TestReset(t *testing.T) {
	for _, n := range []uint64{0, 5, 3000} {
		t.Run(fmt.Sprintf("%d entries", n), func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, testConfig(t, dir))
			if err := s.Stable().SetUint64([]byte("CurrentTerm"), 4); err != nil {
				t.Fatal(err)
			}
			if n > 0 {
				mustStore(t, s.Logs(), entries(1, n, 1, 100))
			}
			if err := s.Reset(); err != nil {
				t.Fatal(err)
			}
			checkBounds(t, s.Logs(), 0, 0)
			mustStore(t, s.Logs(), entries(7000, 7010, 2, 100))
			mustClose(t, s)

			s = mustOpen(t, testConfig(t, dir))
			checkBounds(t, s.Logs(), 7000, 7010)
			checkRange(t, s.Logs(), 7000, 7010, 2, 100)
			if term, err := s.Stable().GetUint64([]byte("CurrentTerm")); err != nil || term != 4 {
				t.Fatalf("term: %d, %v", term, err)
			}
			left, err := filepath.Glob(filepath.Join(dir, "*"+deletedName+"*"))
			if err != nil || len(left) > 0 {
				t.Fatalf("left behind: %v, %v", left, err)
			}
		})
	}
}

// TestDropCutOff: a crash right after the rename of a dropped log leaves an empty log, and what is left of
// the old one goes at the next start.
func TestDropCutOff(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, testConfig(t, dir))
	mustStore(t, s.Logs(), entries(1, 1000, 1, 100))
	mustClose(t, s)
	if err := os.Rename(filepath.Join(dir, "log"), filepath.Join(dir, "log"+deletedName+"1")); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, testConfig(t, dir))
	checkBounds(t, s.Logs(), 0, 0)
	if left, _ := filepath.Glob(filepath.Join(dir, "*"+deletedName+"*")); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

// TestAppendsDuringPrefixDeletion: raft's snapshot goroutine deletes while its main goroutine appends.
func TestAppendsDuringPrefixDeletion(t *testing.T) {
	s := mustOpen(t, testConfig(t, t.TempDir()))
	mustStore(t, s.Logs(), entries(1, 5000, 1, 20))
	done := make(chan error, 1)
	go func() { done <- s.Logs().DeleteRange(1, 4900) }()
	next, between := uint64(5001), 0
	for finished := false; !finished; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			finished = true
		default:
			mustStore(t, s.Logs(), entries(next, next+4, 1, 20))
			next += 5
			if first, _ := s.Bounds(); first > 1 && first <= 4900 {
				between++
			}
		}
	}
	if between == 0 {
		t.Error("no append got in between the chunks")
	}
	checkBounds(t, s.Logs(), 4901, next-1)
	checkRange(t, s.Logs(), 4901, next-1, 1, 20)
}

// TestDiskStaysBounded shows Invariant 9 for small entries, which are in the tables, and big ones, which
// are in the value log: ten times more is appended than stays on disk.
func TestDiskStaysBounded(t *testing.T) {
	for _, c := range []struct {
		name                string
		size, batch         int
		window, appendBytes uint64 // entries kept, and how much is appended in all
		limit               uint64
	}{
		{"small entries", 500, 200, 4000, 60 << 20, 30 << 20},
		{"big entries", 40 << 10, 8, 100, 160 << 20, 60 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir())
			cfg.ValueLogFileBytes = 4 << 20
			cfg.GCInterval = 20 * time.Millisecond
			s := mustOpen(t, cfg)
			next, first, peak := uint64(1), uint64(1), uint64(0)
			data := entry(1, 1, c.size).Data
			for written := uint64(0); written < c.appendBytes; {
				var logs []*raft.Log
				for range c.batch {
					logs = append(logs, &raft.Log{Index: next, Term: 1, Data: data})
					next++
				}
				mustStore(t, s.Logs(), logs)
				written += uint64(c.batch * c.size)
				if next-first > 2*c.window {
					if err := s.Logs().DeleteRange(first, next-1-c.window); err != nil {
						t.Fatal(err)
					}
					first = next - c.window
					peak = max(peak, s.DiskBytes())
				}
			}
			eventually(t, 20*time.Second, "space is given back", func() bool { return s.DiskBytes() < c.limit })
			st := s.Stats()
			t.Logf("%d MiB appended, %d kept: peak %d MiB, at the end tables %d and value log %d MiB, %d files given back",
				c.appendBytes>>20, (c.window*uint64(c.size))>>20, peak>>20, st.Log.LSMBytes>>20, st.Log.ValueLogBytes>>20, st.Log.CollectedFiles)
			if st.Log.CollectedFiles == 0 {
				t.Error("no value-log file was given back")
			}
			f, l := s.Bounds()
			for i := f; i <= l; i += 37 {
				var log raft.Log
				if err := s.Logs().GetLog(i, &log); err != nil || len(log.Data) != c.size {
					t.Fatalf("entry %d: %d bytes, %v", i, len(log.Data), err)
				}
			}
			mustClose(t, s)
			checkSurvivors(t, cfg, f, l)
		})
	}
}

func checkSurvivors(t *testing.T, cfg Config, first, last uint64) {
	t.Helper()
	s := mustOpen(t, cfg)
	checkBounds(t, s.Logs(), first, last)
	mustClose(t, s)
	if !badgerkit.WasCleanClose(s.logDB.opt.Dir) || !badgerkit.WasCleanClose(s.stabDB.opt.Dir) {
		t.Error("not closed cleanly")
	}
}

func TestStats(t *testing.T) {
	s := mustOpen(t, testConfig(t, t.TempDir()))
	mustStore(t, s.Logs(), entries(3, 12, 1, 100))
	if err := s.Stable().Set([]byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	checkRange(t, s.Logs(), 3, 12, 1, 100)
	st := s.Stats()
	if st.First != 3 || st.Last != 12 || st.CacheEntries != 10 || st.CacheHits != 10 || st.Failed ||
		st.Log.Writes != 1 || st.Stable.Writes != 1 || st.Log.ValueLogBytes == 0 || st.FreeBytes == 0 ||
		st.Log.MaxWriteTime == 0 || st.Log.WriteTime < st.Log.MaxWriteTime || st.Log.PendingWrites != 0 {
		t.Fatalf("%+v", st)
	}
	if s.DiskBytes() < st.Log.ValueLogBytes {
		t.Fatal("DiskBytes is less than the value log")
	}
}
