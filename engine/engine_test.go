package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// TestReadsAtEachRevision writes a small history and reads all of it, before and
// after a reopen and a flatten.
func TestReadsAtEachRevision(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir)
	h := newHistory()
	for ts, entries := range [][]Entry{
		1: {put("da", "1"), put("db", ""), put("dc", "x")},
		2: {put("da", "2"), del("dc")},
		3: {del("da"), put("db\x00", "nul")},
		4: {put("da", "4"), put("dc", "again")},
		5: {del("never"), del("db")},
	} {
		if ts == 0 {
			continue
		}
		must(t, e.Commit(uint64(ts), entries, event(uint64(ts))))
		h.commit(uint64(ts), entries)
	}
	e.Publish(5)

	ranges := []ScanOptions{
		{},
		{Reverse: true},
		{KeysOnly: true},
		{Start: []byte("d"), End: []byte("e")},
		{Start: []byte("d"), End: []byte("e"), Reverse: true},
		{Start: []byte("da"), End: []byte("db")},
		{Start: []byte("da"), End: []byte("db"), Reverse: true},
		{Start: []byte("db"), End: []byte("dc"), Reverse: true},
		{Start: []byte("db"), End: []byte("db\x00")},
		{Start: []byte("dab"), End: []byte("dbb")},
		{Start: []byte("dd"), End: []byte("da")},
		{Start: []byte("dc"), Reverse: true},
		{End: []byte("dc")},
		{End: []byte("dc"), Reverse: true},
	}
	check := func(t *testing.T, e *Engine) {
		for ts := uint64(0); ts <= 5; ts++ {
			r := readAt(t, e, ts)
			for _, k := range append(h.sorted(), "absent") {
				want, ok := h.get(k, ts)
				v, ver, found, err := r.Get([]byte(k))
				if err != nil || found != ok || !bytes.Equal(v, want.value) || ver != want.ts {
					t.Errorf("get %q at %d: %q %d %v %v, want %q %d %v", k, ts, v, ver, found, err, want.value, want.ts, ok)
				}
			}
			for _, opt := range ranges {
				if got, want := scan(t, r, opt), h.scan(ts, opt); !reflect.DeepEqual(got, want) {
					t.Errorf("scan %+v at %d: %q, want %q", opt, ts, got, want)
				}
			}
			r.Close()
		}
	}
	t.Run("memtable", func(t *testing.T) { check(t, e) })
	must(t, e.Close())
	e = open(t, dir)
	e.Publish(5)
	t.Run("tables", func(t *testing.T) { check(t, e) })
	must(t, e.Compact(context.Background()))
	t.Run("compacted", func(t *testing.T) { check(t, e) })
	for floor := uint64(0); floor <= 5; floor++ {
		copied := restored(t, e, 5, floor)
		r := readAt(t, copied, 5)
		for _, k := range h.sorted() {
			want, ok := h.get(k, 5)
			if v, _, found, err := r.Get([]byte(k)); err != nil || found != ok || !bytes.Equal(v, want.value) {
				t.Errorf("restored above %d: get %q: %q %v %v", floor, k, v, found, err)
			}
		}
		must(t, copied.Close())
	}
}

// restored exports e at ts above floor, restores that into a new folder and opens it.
func restored(t testing.TB, e *Engine, ts, floor uint64) *Engine {
	t.Helper()
	r, err := e.ReadAt(ts)
	must(t, err)
	defer r.Close()
	dir := freshDir(t)
	w, err := CreateRestore(testConfig(t, dir))
	must(t, err)
	defer w.Abort()
	must(t, r.Export(floor, func(rec Record) error { return w.Write([]Record{rec}) }))
	must(t, w.Close())
	copied := open(t, dir)
	copied.Publish(ts)
	copied.SetDiscard(floor)
	return copied
}

func TestPublishing(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir)
	if got := e.Published(); got != 0 {
		t.Errorf("published %d before anything", got)
	}
	commit(t, e, 1, put("da", "1"))
	must(t, e.Commit(2, []Entry{put("da", "2")}, event(2)))
	must(t, e.Flush())
	if _, err := e.ReadAt(2); !errors.Is(err, ErrUnpublished) {
		t.Errorf("read above the published revision: %v", err)
	}
	if v, _, _, _ := readAt(t, e, 1).Get([]byte("da")); string(v) != "1" {
		t.Errorf("revision 1 has %q", v)
	}
	must(t, e.Close())
	e = open(t, dir)
	if v, ver, _, _ := readAt(t, e, unpublished).Get([]byte("da")); string(v) != "2" || ver != 2 {
		t.Errorf("before the first publish: %q at %d", v, ver)
	}
}

func TestRefusedWrites(t *testing.T) {
	e := open(t, freshDir(t))
	commit(t, e, 5, put("da", "1"))
	long := strings.Repeat("k", MaxKeyBytes+1)
	for _, c := range []struct {
		name  string
		ts    uint64
		entry Entry
	}{
		{"zero revision", 0, put("d", "")},
		{"same revision", 5, put("d", "")},
		{"older revision", 4, put("d", "")},
		{"last revision", unpublished, put("d", "")},
		{"empty key", 6, put("", "")},
		{"long key", 6, put(long, "")},
		{"badger's key", 6, put("!badger!head", "")},
		{"long value", 6, Entry{Key: []byte("d"), Value: make([]byte, MaxValueBytes+1)}},
		{"tombstone with a value", 6, Entry{Key: []byte("d"), Value: []byte("x"), Delete: true}},
	} {
		if err := e.Commit(c.ts, []Entry{put("db", "part"), c.entry}, event(6)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := e.Commit(c.ts, nil, c.entry); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s as final entry: %v", c.name, err)
		}
	}
	must(t, e.Flush())
	if _, _, found, _ := readAt(t, e, 5).Get([]byte("db")); found {
		t.Error("a refused write left something behind")
	}
	// The refusals were no failures.
	commit(t, e, 6, Entry{Key: []byte(long[1:]), Value: make([]byte, MaxValueBytes)})
	if v, _, _, err := readAt(t, e, 6).Get([]byte(long[1:])); err != nil || len(v) != MaxValueBytes {
		t.Errorf("the biggest entry: %d bytes, %v", len(v), err)
	}
}

func TestConfigErrorsNameTheSetting(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"badger.mem_table_size":             func(c *Config) { c.MemTableBytes = MinMemTableBytes - 1 },
		"badger.value_threshold":            func(c *Config) { c.ValueThreshold = MaxValueBytes },
		"badger.value_log_file_size":        func(c *Config) { c.ValueLogFileBytes = 1 },
		"badger.value_log_max_entries":      func(c *Config) { c.ValueLogMaxEntries = 1 },
		"badger.num_mem_tables":             func(c *Config) { c.NumMemTables = -1 },
		"badger.num_level0_tables":          func(c *Config) { c.NumLevelZeroTables = -1 },
		"badger.num_level0_tables_stall":    func(c *Config) { c.NumLevelZeroTablesStall = 3 },
		"badger.compression":                func(c *Config) { c.Compression = "lzma" },
		"badger.block_cache_size":           func(c *Config) { c.BlockCacheBytes = 10 },
		"badger.index_cache_size":           func(c *Config) { c.IndexCacheBytes = 10 },
		"badger.encryption_key_file":        func(c *Config) { c.EncryptionKey = make([]byte, 5) },
		"badger.value_log_gc_discard_ratio": func(c *Config) { c.GCDiscardRatio = 1 },
	} {
		cfg := testConfig(t, freshDir(t), change)
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), want+" ") {
			t.Errorf("open without naming %s: %v", want, err)
		}
		if _, err := CreateRestore(cfg); err == nil || !strings.Contains(err.Error(), want+" ") {
			t.Errorf("restore without naming %s: %v", want, err)
		}
	}
}

func TestVariants(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"snappy":    func(c *Config) { c.Compression = "snappy" },
		"zstd":      func(c *Config) { c.Compression = "zstd" },
		"encrypted": func(c *Config) { c.EncryptionKey = []byte("0123456789abcdef0123456789abcdef") },
		"sync":      func(c *Config) { c.SyncWrites = true },
	} {
		t.Run(name, func(t *testing.T) {
			dir := freshDir(t)
			e := open(t, dir, change)
			for ts := uint64(1); ts <= 50; ts++ {
				commit(t, e, ts, put(fmt.Sprintf("d%02d", ts), strings.Repeat("v", 1000)))
			}
			must(t, e.Close())
			e = open(t, dir, change)
			e.Publish(50)
			if got := scan(t, readAt(t, e, 50), ScanOptions{Start: []byte("d"), End: []byte("e")}); len(got) != 50 {
				t.Errorf("%d keys of 50", len(got))
			}
			must(t, e.Sync())
		})
	}
}

func TestClosedEngine(t *testing.T) {
	e := open(t, freshDir(t))
	commit(t, e, 1, put("da", "1"))
	r := readAt(t, e, 1)
	it := r.Scan(ScanOptions{})
	if !it.Next() {
		t.Fatal("nothing to scan")
	}
	key, value := it.Key(), it.Value()
	// The reader is not closed: it is taken away.
	must(t, e.Close())
	must(t, e.Close())
	if string(key) != "da" || string(value) != "1" {
		t.Errorf("after close: %q %q", key, value)
	}
	if it.Next() || !errors.Is(it.Err(), ErrClosed) {
		t.Errorf("iterator: %v", it.Err())
	}
	it.Close()
	_, _, _, getErr := r.Get([]byte("da"))
	_, readErr := e.ReadAt(1)
	for name, err := range map[string]error{
		"get": getErr, "read": readErr, "commit": e.Commit(2, nil, event(2)), "sync": e.Sync(),
		"export": r.Export(0, func(Record) error { return nil }), "compact": e.Compact(context.Background()),
		"delete": e.DeleteAt(nil, nil), "hold": r.Hold(0),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
	r.Close()
	e.SetDiscard(1)
	e.Publish(1)
	if s := e.Stats(); s != (Stats{}) {
		t.Errorf("stats after close: %+v", s)
	}
}

// TestOneFolderOneEngine: a second open must fail and leave the first one alone.
func TestOneFolderOneEngine(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir)
	commit(t, e, 1, put("da", "1"))
	if _, err := Open(testConfig(t, dir)); err == nil {
		t.Fatal("opened twice")
	}
	commit(t, e, 2, put("da", "2"))
	must(t, e.Close())
	e = open(t, dir)
	e.Publish(2)
	if v, _, _, err := readAt(t, e, 2).Get([]byte("da")); string(v) != "2" || err != nil {
		t.Errorf("%q %v", v, err)
	}
}

func TestStats(t *testing.T) {
	e := open(t, freshDir(t))
	for ts := uint64(1); ts <= 3; ts++ {
		commit(t, e, ts, put("da", "1"))
	}
	e.SetDiscard(2)
	r := readAt(t, e, 2)
	e.SetDiscard(3)
	if _, _, _, err := r.Get([]byte("da")); err != nil {
		t.Fatal(err)
	}
	s := e.Stats()
	if s.Published != 3 || s.RequestedDiscard != 3 || s.EffectiveDiscard != 2 || s.Readers != 1 || s.OldestPin != 2 ||
		s.Commits != 3 || s.Reads != 1 || s.PendingCommits != 0 || s.ValueLogBytes == 0 || s.FreeBytes == 0 || s.CommittedBytes == 0 {
		t.Errorf("%+v", s)
	}
	r.Close()
	if s := e.Stats(); s.EffectiveDiscard != 3 || s.Readers != 0 || s.OldestPin != 0 {
		t.Errorf("after close: %+v", s)
	}
}
