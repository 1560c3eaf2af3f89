package raftstore

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mustCopy(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// flip turns bits of the byte at offset at.
func flip(t *testing.T, path string, at int, mask byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= mask
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ballot is a term and a vote.
type ballot struct {
	term uint64
	cand string
}

func (b ballot) cast(t *testing.T, s *Store) {
	t.Helper()
	if err := errors.Join(s.Stable().SetUint64([]byte("CurrentTerm"), b.term),
		s.Stable().SetUint64([]byte("LastVoteTerm"), b.term), s.Stable().Set([]byte("LastVoteCand"), []byte(b.cand))); err != nil {
		t.Fatal(err)
	}
}

func (b ballot) check(t *testing.T, s *Store) {
	t.Helper()
	term, err1 := s.Stable().GetUint64([]byte("CurrentTerm"))
	voted, err2 := s.Stable().GetUint64([]byte("LastVoteTerm"))
	cand, err3 := s.Stable().Get([]byte("LastVoteCand"))
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatalf("want %+v: %v", b, err)
	}
	if term != b.term || voted != b.term || string(cand) != b.cand {
		t.Fatalf("term %d, vote %s in term %d; want %+v", term, cand, voted, b)
	}
}

// voter is a folder as a killed process leaves it after the second of two ballots, and the same after the
// first.
type voter struct{ dir, before string }

var oldBallot, newBallot = ballot{3, "server-a"}, ballot{7, "server-b"}

func newVoter(t *testing.T) voter {
	t.Helper()
	s := mustOpen(t, testConfig(t, t.TempDir()))
	oldBallot.cast(t, s)
	v := voter{before: mustCopy(t, s.cfg.Dir)}
	newBallot.cast(t, s)
	v.dir = mustCopy(t, s.cfg.Dir)
	return v
}

// replaceWith puts name of the folder from in the place of that of dir.
func replaceWith(t *testing.T, dir, from, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join(from, name)))
	} else {
		var b []byte
		if b, err = os.ReadFile(filepath.Join(from, name)); err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestLostVoteIsNoticed: whatever becomes of the database of the stable values, a server does not come back
// with an older term or vote.
func TestLostVoteIsNoticed(t *testing.T) {
	v := newVoter(t)
	vlog := func(dir string) string { return filepath.Join(dir, "stable", "000000.vlog") }
	size := func(dir string) int {
		info, err := os.Stat(vlog(dir))
		if err != nil {
			t.Fatal(err)
		}
		return int(info.Size())
	}
	cases := map[string]func(dir string){
		"gone":  func(dir string) { os.RemoveAll(filepath.Join(dir, "stable")) }, //nolint:errcheck // seen below
		"older": func(dir string) { replaceWith(t, dir, v.before, "stable") },
		"cut off": func(dir string) {
			if err := os.Truncate(vlog(dir), int64(size(dir)*6/10)); err != nil {
				t.Fatal(err)
			}
		},
		"log gone": func(dir string) {
			if err := os.Remove(vlog(dir)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for percent := 5; percent < 100; percent += 19 {
		cases[fmt.Sprintf("flipped at %d %%", percent)] = func(dir string) { flip(t, vlog(dir), size(dir)*percent/100, 0xff) }
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			dir := mustCopy(t, v.dir)
			damage(dir)
			var out bytes.Buffer
			cfg := testConfig(t, dir)
			cfg.Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := mustOpen(t, cfg)
			newBallot.check(t, s)
			if !strings.Contains(out.String(), "taken from the file of votes") || !strings.Contains(out.String(), "CurrentTerm") {
				t.Errorf("the repair was not told: %s", out.String())
			}
			mustClose(t, s)

			out.Reset()
			s = mustOpen(t, cfg)
			newBallot.check(t, s)
			if out.Len() > 0 {
				t.Errorf("after the repair: %s", out.String())
			}
		})
	}
}

// TestDamageOfVotes goes through what can be wrong with the two copies.
func TestDamageOfVotes(t *testing.T) {
	v := newVoter(t)
	file := map[string]func(t *testing.T, dir string){
		"sound": func(*testing.T, string) {},
		"missing": func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, votesName)); err != nil {
				t.Fatal(err)
			}
		},
		"flipped": func(t *testing.T, dir string) { flip(t, filepath.Join(dir, votesName), 40, 1) },
		"empty": func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, votesName), 0); err != nil {
				t.Fatal(err)
			}
		},
		"older": func(t *testing.T, dir string) { replaceWith(t, dir, v.before, votesName) },
	}
	database := map[string]func(t *testing.T, dir string){
		"sound": func(*testing.T, string) {},
		"missing": func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "stable")); err != nil {
				t.Fatal(err)
			}
		},
		"flipped": func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "stable", "000000.vlog"), 150, 0xff) },
		"manifest flipped": func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "stable", "MANIFEST"), 2, 0xff)
		},
		"older": func(t *testing.T, dir string) { replaceWith(t, dir, v.before, "stable") },
	}
	for _, c := range []struct {
		file, database string
		want           *ballot
		fresh          bool // else, without want: ErrCorrupt
	}{
		{file: "sound", database: "sound", want: &newBallot},
		{file: "sound", database: "missing", want: &newBallot},
		{file: "sound", database: "flipped", want: &newBallot},
		{file: "sound", database: "manifest flipped", want: &newBallot},
		{file: "sound", database: "older", want: &newBallot}, // a crash between the two writes looks like this
		{file: "older", database: "sound"},
		{file: "missing", database: "sound"},
		{file: "missing", database: "older"},
		{file: "missing", database: "flipped"},
		{file: "missing", database: "manifest flipped"},
		{file: "missing", database: "missing", fresh: true}, // the caller knows whether it may be
		{file: "flipped", database: "sound"},
		{file: "flipped", database: "older"},
		{file: "flipped", database: "missing"},
		{file: "flipped", database: "flipped"},
		{file: "empty", database: "sound"},
		{file: "empty", database: "missing"},
	} {
		t.Run(fmt.Sprintf("file %s, database %s", c.file, c.database), func(t *testing.T) {
			dir := mustCopy(t, v.dir)
			file[c.file](t, dir)
			database[c.database](t, dir)
			s, err := Open(testConfig(t, dir))
			if c.want == nil && !c.fresh {
				if err == nil {
					s.Close()
				}
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("open: %v, want ErrCorrupt", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if c.fresh {
				if term, err := s.Stable().GetUint64([]byte("CurrentTerm")); !errors.Is(err, ErrNotFound) {
					t.Fatalf("term %d, %v in a fresh store", term, err)
				}
				return
			}
			c.want.check(t, s)
		})
	}
}

// TestCrashBetweenTheCopies: at every moment of a Set a crash leaves the value before it or after it, and
// a store that opens; the file is never behind the database.
func TestCrashBetweenTheCopies(t *testing.T) {
	var crashed string
	cfg := testConfig(t, t.TempDir())
	armed := false
	cfg.seams.fileWritten = func() error {
		if armed {
			crashed = mustCopy(t, cfg.Dir)
		}
		return nil
	}
	s := mustOpen(t, cfg)
	oldBallot.cast(t, s)
	armed = true
	if err := s.Stable().SetUint64([]byte("CurrentTerm"), 8); err != nil {
		t.Fatal(err)
	}
	// A later write may have begun too.
	if err := os.WriteFile(filepath.Join(crashed, votesName+votesTmpSuffix), []byte("SETTVO"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg = testConfig(t, crashed)
	for range 2 {
		s = mustOpen(t, cfg)
		if term, err := s.Stable().GetUint64([]byte("CurrentTerm")); err != nil || term != 8 {
			t.Fatalf("term %d, %v", term, err)
		}
		if cand, err := s.Stable().Get([]byte("LastVoteCand")); err != nil || string(cand) != oldBallot.cand {
			t.Fatalf("vote %q, %v", cand, err)
		}
		mustClose(t, s)
	}
	if _, err := os.Stat(filepath.Join(crashed, votesName+votesTmpSuffix)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// TestCrashWhileBootstrapIsUndone: the one number that ever goes down may be cut off between the copies too.
func TestCrashWhileBootstrapIsUndone(t *testing.T) {
	for _, c := range []struct {
		from    uint64
		corrupt bool
	}{{1, false}, {2, true}} {
		var crashed string
		cfg := testConfig(t, t.TempDir())
		cfg.seams.fileWritten = func() error {
			crashed = mustCopy(t, cfg.Dir)
			return nil
		}
		s := mustOpen(t, cfg)
		for _, term := range []uint64{c.from, 0} {
			if err := s.Stable().SetUint64([]byte("CurrentTerm"), term); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(testConfig(t, crashed))
		if errors.Is(err, ErrCorrupt) != c.corrupt || (err == nil) == c.corrupt {
			t.Fatalf("from %d: %v", c.from, err)
		}
		if err != nil {
			continue
		}
		if term, err := s.Stable().GetUint64([]byte("CurrentTerm")); err != nil || term != 0 {
			t.Errorf("term %d, %v", term, err)
		}
		mustClose(t, s)
	}
}

// TestEitherCopyFailingLatches: no vote is acknowledged unless both are durable.
func TestEitherCopyFailingLatches(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		arrange func(cfg *Config)
		cause   error
	}{
		"file": {func(cfg *Config) {
			if err := os.MkdirAll(filepath.Join(cfg.Dir, votesName+votesTmpSuffix, "in the way"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, nil},
		"between": {func(cfg *Config) { cfg.seams.fileWritten = func() error { return boom } }, boom},
		"database": {func(cfg *Config) {
			cfg.seams.wrap = func(_ string, in inner) inner {
				return &hooked{inner: in, before: func(call string) error {
					if call == "set" {
						return boom
					}
					return nil
				}}
			}
		}, boom},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir())
			f := new(fatals)
			cfg.OnFatal = f.add
			if name != "file" { // the folder in the way is made below, after Open has cleared it
				c.arrange(&cfg)
			}
			s := mustOpen(t, cfg)
			defer abandon(s)
			if name == "file" {
				c.arrange(&cfg)
			}
			err := s.Stable().SetUint64([]byte("CurrentTerm"), 1)
			if err == nil || c.cause != nil && !errors.Is(err, c.cause) {
				t.Fatalf("Set: %v", err)
			}
			cause := c.cause
			if cause == nil {
				cause = ErrFailed
			}
			wantLatched(t, s, f, cause)
		})
	}
}

func goldenVotes() votes {
	v := votes{}
	for _, w := range []struct{ key, val string }{
		{"CurrentTerm", "\x00\x00\x00\x00\x00\x00\x00\x06"}, {"LastVoteTerm", "\x00\x00\x00\x00\x00\x00\x00\x07"},
		{"LastVoteCand", "0b5c1a7e-server"}, {"CurrentTerm", "\x00\x00\x00\x00\x00\x00\x00\x07"}, {"empty", ""},
	} {
		v = v.with([]byte(w.key), []byte(w.val))
	}
	return v
}

func TestVotesGolden(t *testing.T) {
	path := filepath.Join("testdata", "votes-v1.golden")
	b := goldenVotes().encode()
	if *update {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("encodes as\n%x, the file has\n%x", b, want)
	}
	v, err := decodeVotes(want)
	if err != nil || v.seq != 5 || len(v.values) != 4 || !bytes.Equal(v.encode(), want) {
		t.Fatalf("%+v, %v", v, err)
	}
}

// TestVotesDecode: every flipped bit, every cut and anything added is noticed.
func TestVotesDecode(t *testing.T) {
	whole := goldenVotes().encode()
	for i := range whole {
		for bit := range 8 {
			b := slices.Clone(whole)
			b[i] ^= 1 << bit
			if _, err := decodeVotes(b); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
		if _, err := decodeVotes(whole[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := decodeVotes(append(slices.Clone(whole), 0)); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	// A newer format is not damage: a node must not throw its votes away after a downgrade.
	newer := slices.Clone(whole[:len(whole)-4])
	newer[8] = 2
	if _, err := decodeVotes(sealed(newer)); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("newer format: %v", err)
	}
	// Lengths that lie under a right checksum.
	for _, at := range []int{12, votesPreludeBytes + 8, votesPreludeBytes + 12} {
		b := slices.Clone(whole[:len(whole)-4])
		b[at]++
		if _, err := decodeVotes(sealed(b)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("length at %d: %v", at, err)
		}
	}
}

// TestTooManyVotesAreRefused: without a failure, and without losing anything.
func TestTooManyVotesAreRefused(t *testing.T) {
	s := mustOpen(t, testConfig(t, t.TempDir()))
	big := make([]byte, maxStableValueBytes-10)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		err = s.Stable().Set(fmt.Appendf(nil, "key-%d", n), big)
	}
	if err == nil || s.Err() != nil {
		t.Fatalf("after %d: %v, %v", n, err, s.Err())
	}
	newBallot.cast(t, s)
	newBallot.check(t, s)
}
