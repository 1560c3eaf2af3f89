package badgerkit

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	badger "github.com/dgraph-io/badger/v2"
)

func testOptions(dir string) badger.Options {
	return BaseOptions(dir, 1<<20, Logger(nil, "test")).WithValueThreshold(1 << 10).WithValueLogFileSize(4 << 20)
}

// fill writes n keys in transactions of ten and returns the database, still open.
func fill(t *testing.T, dir string, n int) *badger.DB {
	t.Helper()
	db, err := badger.Open(testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for i := 0; i < n; i += 10 {
		if err := db.Update(func(txn *badger.Txn) error {
			for j := i; j < i+10; j++ {
				if err := txn.Set(key(j), bytes.Repeat([]byte{byte(j)}, 100)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func key(i int) []byte { return fmt.Appendf(nil, "key-%06d", i) }

// crashed is a copy of dir as a killed process leaves it.
func crashed(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "db")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func count(t *testing.T, dir string) int {
	t.Helper()
	db, err := badger.Open(testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	return countIn(t, db)
}

func countIn(t *testing.T, db *badger.DB) int {
	t.Helper()
	n := 0
	if err := db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte("key-")})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRecoverLeavesNothingToReplay: after it everything is in tables, and the next open replays nothing.
func TestRecoverLeavesNothingToReplay(t *testing.T) {
	const n = 30_000 // several memtables
	dir := t.TempDir()
	fill(t, dir, n)
	dir = crashed(t, dir)
	if WasCleanClose(dir) {
		t.Fatal("a crashed database looks cleanly closed")
	}
	inspected := false
	if err := RecoverInspect(testOptions(dir), func(db *badger.DB) error {
		inspected = true
		if got := countIn(t, db); got != n {
			t.Errorf("inspect sees %d keys, want %d", got, n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !inspected {
		t.Fatal("not inspected")
	}
	if !WasCleanClose(dir) {
		t.Fatal("a recovered database is not cleanly closed")
	}
	if err := CheckTables(dir, true); err != nil {
		t.Fatal(err)
	}
	// Without the value logs, all keys are still there: their values are below the threshold.
	vlogs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil || len(vlogs) == 0 {
		t.Fatal(vlogs, err)
	}
	for _, v := range vlogs {
		if err := os.Remove(v); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(t, dir); got != n {
		t.Fatalf("%d keys after the recovery, want %d", got, n)
	}
}

// TestRecoverKeepsHistory: no version of a managed database is purged by it.
func TestRecoverKeepsHistory(t *testing.T) {
	dir := t.TempDir()
	opt := testOptions(dir)
	db, err := badger.OpenManaged(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const versions = 200
	for ts := uint64(1); ts <= versions; ts++ {
		txn := db.NewTransactionAt(math.MaxUint64, true)
		if err := txn.Set([]byte("k"), fmt.Appendf(nil, "%d", ts)); err != nil {
			t.Fatal(err)
		}
		if err := txn.CommitAt(ts, nil); err != nil {
			t.Fatal(err)
		}
		txn.Discard()
	}
	dir = crashed(t, dir)
	opt = testOptions(dir)
	for range 2 {
		if err := Recover(opt); err != nil {
			t.Fatal(err)
		}
	}
	db, err = badger.OpenManaged(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for ts := uint64(1); ts <= versions; ts++ {
		txn := db.NewTransactionAt(ts, false)
		item, err := txn.Get([]byte("k"))
		if err != nil {
			t.Fatalf("version %d: %v", ts, err)
		}
		v, err := item.ValueCopy(nil)
		if err != nil || string(v) != fmt.Sprint(ts) {
			t.Fatalf("version %d reads %q, %v", ts, v, err)
		}
		txn.Discard()
	}
}

func TestRecoverOfNothing(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	for _, d := range []string{dir, missing} {
		if err := RecoverInspect(testOptions(d), func(*badger.DB) error {
			t.Error("inspect was called")
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := CheckTables(d, true); err != nil {
			t.Fatal(err)
		}
		if !WasCleanClose(d) {
			t.Error("not clean")
		}
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made: %v", err)
	}
}

func TestRecoverReportsInspection(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 10).Close()
	boom := errors.New("boom")
	if err := RecoverInspect(testOptions(dir), func(*badger.DB) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := Recover(testOptions(dir)); err != nil { // it was closed all the same
		t.Fatal(err)
	}
}

// TestRecoveryMemtable: it is at least eight times the ordinary one, and no bigger than can be filled.
func TestRecoveryMemtable(t *testing.T) {
	for _, c := range []struct {
		memtables   int
		table, vlog int64
		want        int64
	}{
		{2, 16 << 20, 0, 16 << 20},
		{2, 16 << 20, 4 << 20, 32 << 20},
		{2, 16 << 20, 1 << 30, 128 << 20},
		{2, 64 << 20, 1 << 30, 512 << 20},
		{5, 64 << 20, 1 << 30, 11 * 64 << 20},
		{2, 8 << 20, 1 << 30, 128 << 20}, // was perhaps 16 MiB when the log was written
	} {
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "000001.vlog"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(c.vlog), f.Close()); err != nil {
			t.Fatal(err)
		}
		o, err := recoveryOptions(BaseOptions(dir, c.table, Logger(nil, "")).WithMaxTableSize(c.table).WithNumMemtables(c.memtables))
		if err != nil {
			t.Fatal(err)
		}
		if o.MaxTableSize != c.want {
			t.Errorf("%+v: memtable of %d", c, o.MaxTableSize)
		}
		if o.NumCompactors != 0 || o.CompactL0OnClose || !o.Truncate || o.NumLevelZeroTablesStall < 1<<20 {
			t.Errorf("%+v: %+v", c, o)
		}
	}
}

func TestCheckTables(t *testing.T) {
	for _, c := range []struct {
		name    string
		damage  func(dir, table string) error
		clean   bool
		corrupt bool
	}{
		{"sound", func(string, string) error { return nil }, true, false},
		{"missing table", func(_, table string) error { return os.Remove(table) }, false, true},
		{"missing table, clean", func(_, table string) error { return os.Remove(table) }, true, true},
		{"unnamed table after a crash", addTable, false, false},
		{"unnamed table after a clean close", addTable, true, true},
		{"no manifest", func(dir, _ string) error { return os.Remove(filepath.Join(dir, badger.ManifestFilename)) }, false, true},
		{"damaged manifest", func(dir, _ string) error {
			path := filepath.Join(dir, badger.ManifestFilename)
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			data[len(data)-3] ^= 1
			return os.WriteFile(path, data, 0o600)
		}, false, true},
		{"other files", func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "notes.sst"), nil, 0o600)
		}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir, 100).Close()
			tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
			if err != nil || len(tables) == 0 {
				t.Fatal(tables, err)
			}
			if err := c.damage(dir, tables[0]); err != nil {
				t.Fatal(err)
			}
			err = CheckTables(dir, c.clean)
			if errors.Is(err, ErrCorrupt) != c.corrupt || (err != nil) != c.corrupt {
				t.Errorf("got %v, corrupt should be %v", err, c.corrupt)
			}
		})
	}
}

func addTable(dir, _ string) error {
	return os.WriteFile(filepath.Join(dir, "000777.sst"), []byte("half a table"), 0o600)
}

func TestFlippedBitIsCorruption(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 1000).Close()
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal(tables, err)
	}
	data, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 4
	if err := os.WriteFile(tables[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Recover(testOptions(dir)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := Logger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})), "data")
	l.Debugf("quiet %d", 1)
	l.Infof("All %d tables opened", 3)
	l.Infof("Truncating vlog file %s to offset: %d", "f", 7)
	l.Warningf("odd\n")
	l.Errorf("bad %s", "thing")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := []string{`WARN msg="badger: Truncating vlog file f to offset: 7" database=data`, `WARN msg="badger: odd" database=data`, `ERROR msg="badger: bad thing" database=data`}
	if len(lines) != len(want) {
		t.Fatalf("got %q", lines)
	}
	for i := range want {
		if !strings.HasSuffix(lines[i], want[i]) {
			t.Errorf("got %q, want %q", lines[i], want[i])
		}
	}
	Logger(nil, "x").Errorf("goes nowhere")
}

func TestSpace(t *testing.T) {
	dir := t.TempDir()
	free, err := FreeBytes(dir)
	if err != nil || free == 0 {
		t.Fatal(free, err)
	}
	if _, err := FreeBytes(filepath.Join(dir, "missing")); err == nil {
		t.Error("a missing folder has free space")
	}
}

func TestDirBytes(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"a.sst": 10, "b.vlog": 200, "sub/c.sst": 3000, "LOCK": 4} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []uint64
	for _, exts := range [][]string{nil, {".sst"}, {".vlog"}, {".sst", ".vlog"}, {".none"}} {
		n, err := DirBytes(dir, exts...)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, n)
	}
	if want := []uint64{3214, 3010, 200, 3210, 0}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if n, err := DirBytes(filepath.Join(dir, "missing")); n != 0 || err != nil {
		t.Errorf("missing folder: %d, %v", n, err)
	}
}
