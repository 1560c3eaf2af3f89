package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// sealed adds the checksum of a file of votes.
func sealed(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// TestFlippedBytes: whatever byte of whatever file is damaged, an open either succeeds with everything that
// was acknowledged or reports ErrCorrupt. Big entries, which stay in the value log, may be noticed when
// they are read.
func TestFlippedBytes(t *testing.T) {
	const small, n = 300, 260
	s := mustOpen(t, testConfig(t, t.TempDir()))
	want := entries(1, n, 1, small)
	for i := range want {
		if i%20 == 10 {
			want[i] = entry(uint64(i+1), 1, 40<<10)
		}
	}
	newBallot.cast(t, s)
	mustStore(t, s.Logs(), want[:150])
	mustClose(t, s) // part of it is in tables
	s = mustOpen(t, s.cfg)
	for from := 150; from < n; from += 10 {
		mustStore(t, s.Logs(), want[from:from+10])
	}
	crashed := mustCopy(t, s.cfg.Dir)
	mustClose(t, s)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, c := range []struct{ name, dir string }{{"killed", crashed}, {"closed", s.cfg.Dir}} {
		for _, pattern := range []string{"log/*.sst", "log/*.vlog", "log/MANIFEST", "log/KEYREGISTRY", "stable/*.sst", "stable/*.vlog", "stable/MANIFEST"} {
			t.Run(c.name+" "+pattern, func(t *testing.T) {
				files, err := filepath.Glob(filepath.Join(c.dir, pattern))
				if err != nil || len(files) == 0 {
					if filepath.Dir(pattern) == "stable" && c.name == "killed" {
						return // nothing was closed yet
					}
					t.Fatal(files, err)
				}
				corrupt := 0
				for _, file := range files {
					info, err := os.Stat(file)
					if err != nil {
						t.Fatal(err)
					}
					size := int(info.Size())
					offsets := []int{0, size / 3, size - 1, size - 5, size - 6, size - 20, rnd.IntN(size), rnd.IntN(size)}
					for _, at := range offsets {
						if at < 0 || at >= size {
							continue
						}
						dir := mustCopy(t, c.dir)
						mask := byte(1 + rnd.IntN(255))
						rel, err := filepath.Rel(c.dir, file)
						if err != nil {
							t.Fatal(err)
						}
						flip(t, filepath.Join(dir, rel), at, mask)
						if openDamaged(t, dir, want, fmt.Sprintf("%s, byte %d of %d ^ %#x", rel, at, size, mask)) {
							corrupt++
						}
						os.RemoveAll(dir) //nolint:errcheck // space only
					}
				}
				t.Logf("%d files, %d times ErrCorrupt", len(files), corrupt)
			})
		}
	}
}

// openDamaged says whether damage was reported, and fails the test if it was met with silence or with
// another error.
func openDamaged(t *testing.T, dir string, want []*raft.Log, what string) (reported bool) {
	t.Helper()
	cfg := testConfig(t, dir)
	cfg.OnFatal = func(err error) {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: latched with %v", what, err)
		}
	}
	s, err := Open(cfg)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		return true
	}
	defer abandon(s)
	newBallot.check(t, s)
	if first, last := s.Bounds(); first != want[0].Index || last != want[len(want)-1].Index {
		t.Errorf("%s: the log has %d to %d without an error", what, first, last)
		return false
	}
	for _, w := range want {
		var got raft.Log
		if err := s.Logs().GetLog(w.Index, &got); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: read entry %d: %v", what, w.Index, err)
			}
			return true
		}
		if err := sameEntry(&got, w); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	return false
}

// TestTornAppendIsNoDamage: what a crash leaves of the last append, cut anywhere, opens, with everything
// before it.
func TestTornAppendIsNoDamage(t *testing.T) {
	s := mustOpen(t, testConfig(t, t.TempDir()))
	newBallot.cast(t, s)
	mustStore(t, s.Logs(), entries(1, 20, 1, 100))
	path := filepath.Join("log", "000000.vlog")
	before, err := os.Stat(filepath.Join(s.cfg.Dir, path))
	if err != nil {
		t.Fatal(err)
	}
	mustStore(t, s.Logs(), entries(21, 24, 1, 200))
	crashed := mustCopy(t, s.cfg.Dir)
	after, err := os.Stat(filepath.Join(crashed, path))
	if err != nil {
		t.Fatal(err)
	}
	step := (after.Size() - before.Size()) / 9
	for size := before.Size(); size < after.Size(); size += step {
		for _, zeros := range []int64{0, 500} {
			dir := mustCopy(t, crashed)
			if err := errors.Join(os.Truncate(filepath.Join(dir, path), size), os.Truncate(filepath.Join(dir, path), size+zeros)); err != nil {
				t.Fatal(err)
			}
			s, err := Open(testConfig(t, dir))
			if err != nil {
				t.Fatalf("cut at %d of %d to %d, then %d zeros: %v", size, before.Size(), after.Size(), zeros, err)
			}
			if _, last := s.Bounds(); last != 20 {
				t.Errorf("cut at %d: the log ends with %d", size, last)
			}
			checkRange(t, s.Logs(), 1, 20, 1, 100)
			mustClose(t, s)
		}
	}
}

// TestDamagedEntryLatchesAsCorrupt: damage that comes up while the store runs, in an entry that is in the
// value log only.
func TestDamagedEntryLatchesAsCorrupt(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.CacheBytes = -1
	f := new(fatals)
	cfg.OnFatal = f.add
	s := mustOpen(t, cfg)
	defer abandon(s)
	mustStore(t, s.Logs(), entries(1, 3, 1, 50<<10))
	flip(t, filepath.Join(cfg.Dir, "log", "000000.vlog"), 60<<10, 0x20)
	// Badger writes what one transaction holds in no certain order: it is one of the three.
	var err error
	for i := uint64(1); i <= 3 && err == nil; i++ {
		var log raft.Log
		err = s.Logs().GetLog(i, &log)
	}
	if !errors.Is(err, ErrCorrupt) || !errors.Is(err, ErrFailed) {
		t.Fatalf("GetLog: %v", err)
	}
	wantLatched(t, s, f, ErrCorrupt)
}
