package raftstore

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	raftbadger "github.com/BBVA/raft-badger"
	badger "github.com/dgraph-io/badger/v2"
	"github.com/hashicorp/raft"

	"github.com/settkv/sett/internal/badgerkit"
)

// subject is an implementation under the conformance suite, opened once.
type subject struct {
	raft.LogStore
	raft.StableStore
	close func() error // nil if it cannot be closed
}

// implementation is what the suite runs against. fails names the cases that it is known to fail and why;
// the suite fails if it passes one of them, because then the reason for this package has changed.
type implementation struct {
	name  string
	open  func(dir string) (*subject, error)
	fails map[string]string
}

func implementations() []implementation {
	return []implementation{
		{
			name: "raftstore",
			open: func(dir string) (*subject, error) {
				s, err := Open(Config{Dir: dir, MemTableBytes: 8 << 20, MinFreeBytes: 1, OnFatal: func(error) {}})
				if err != nil {
					return nil, err
				}
				return &subject{s.Logs(), s.Stable(), s.Close}, nil
			},
		},
		{
			name: "raft.InmemStore",
			open: func(string) (*subject, error) {
				s := raft.NewInmemStore()
				return &subject{s, s, nil}, nil
			},
			fails: map[string]string{
				"append with a gap":         "takes it",
				"append with a gap inside":  "takes it",
				"append over what is there": "overwrites",
				"append of index 0":         "takes it",
				"delete in the middle":      "leaves a hole",
				"monotonic":                 "does not say so",
				"unknown number":            "reads as 0",
				"number of wrong length":    "keeps numbers apart, reads as 0",
				"survives a reopen":         "memory",
				"survives a crash":          "memory",
				"torn tail":                 "memory",
				"calls after close":         "has no close",
				"close ends its goroutines": "has no close",
			},
		},
		{
			name: "bare raft-badger",
			open: openBare,
			fails: map[string]string{
				"append with a gap":         "takes it: raft panics at the next start",
				"append with a gap inside":  "takes it",
				"append over what is there": "overwrites, and keeps what follows",
				"append of index 0":         "takes it",
				"append of a big batch":     "one transaction for all: refused for ever, replication stops",
				"delete in the middle":      "leaves a hole",
				"delete beside stable keys": "runs into the stable keys and wipes the whole log",
				"read into a used entry":    "decodes into the buffer of the earlier entry",
				"monotonic":                 "does not say so: stale entries stay after an installed snapshot",
				"number of wrong length":    "panics",
				"torn tail":                 "does not open any more",
				"calls after close":         "panics",
				"close ends its goroutines": "its collector stays for ever",
			},
		},
	}
}

// openBare opens the library as its documentation has it, one store for both, with its collector on. The
// tables are small so that the limits of a transaction are met with few entries.
func openBare(dir string) (*subject, error) {
	o := badger.DefaultOptions(filepath.Join(dir, "bare")).WithLogger(badgerkit.Logger(nil, "")).
		WithMaxTableSize(1 << 16).WithValueThreshold(64).WithValueLogFileSize(16 << 20).WithNumMemtables(2)
	s, err := raftbadger.New(raftbadger.Options{Path: dir, BadgerOptions: &o, ValueLogGC: true})
	if err != nil {
		return nil, err
	}
	return &subject{s, s, s.Close}, nil
}

// fixture is one case's subject in its folder.
type fixture struct {
	*subject
	dir        string
	open       func(dir string) (*subject, error)
	goroutines int // of stores that were there before
}

func (f *fixture) reopen() error {
	if f.close != nil {
		if err := f.close(); err != nil {
			return err
		}
	}
	return f.openAt(f.dir)
}

func (f *fixture) openAt(dir string) error {
	s, err := f.open(dir)
	if err != nil {
		return err
	}
	f.subject, f.dir = s, dir
	return nil
}

// crash goes on with a copy of the folder as a killed process would have left it; change may alter it.
func (f *fixture) crash(change func(dir string) error) error {
	copied := f.dir + "-crashed"
	if err := os.CopyFS(copied, os.DirFS(f.dir)); err != nil {
		return err
	}
	if f.close != nil {
		if err := f.close(); err != nil {
			return err
		}
	}
	if change != nil {
		if err := change(copied); err != nil {
			return err
		}
	}
	return f.openAt(copied)
}

func (f *fixture) wantBounds(first, last uint64) error {
	a, err := f.FirstIndex()
	if err != nil {
		return err
	}
	b, err := f.LastIndex()
	if err != nil {
		return err
	}
	if a != first || b != last {
		return fmt.Errorf("bounds are %d..%d, want %d..%d", a, b, first, last)
	}
	return nil
}

// wantLog checks bounds and the content of every entry, and that there is nothing beside.
func (f *fixture) wantLog(first, last, term uint64) error {
	if err := f.wantBounds(first, last); err != nil {
		return err
	}
	for i := first; i != 0 && i <= last; i++ {
		var got raft.Log
		if err := f.GetLog(i, &got); err != nil {
			return fmt.Errorf("GetLog(%d): %w", i, err)
		}
		if err := sameEntry(&got, entry(i, term, caseSize)); err != nil {
			return err
		}
	}
	for _, i := range []uint64{0, first - 1, last + 1} {
		var got raft.Log
		if i >= first && i <= last && i != 0 {
			continue
		}
		if err := f.GetLog(i, &got); !errors.Is(err, raft.ErrLogNotFound) {
			return fmt.Errorf("GetLog(%d) outside of %d..%d: %v", i, first, last, err)
		}
	}
	return nil
}

func (f *fixture) refuse(what string, err error, first, last uint64) error {
	if err == nil {
		return fmt.Errorf("%s was taken", what)
	}
	return f.wantLog(first, last, 1)
}

const caseSize = 40

// fill appends first..last with term 1 in small batches.
func (f *fixture) fill(first, last uint64) error {
	for i := first; i <= last; i += 20 {
		if err := f.StoreLogs(entries(i, min(last, i+19), 1, caseSize)); err != nil {
			return err
		}
	}
	return nil
}

func steps(fs ...func() error) error {
	for i, f := range fs {
		if err := f(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

var conformance = map[string]func(f *fixture) error{
	"empty": func(f *fixture) error {
		return f.wantLog(0, 0, 1)
	},
	"append and read": func(f *fixture) error {
		return steps(
			func() error { return f.StoreLog(entry(1, 1, caseSize)) },
			func() error { return f.fill(2, 50) },
			func() error { return f.StoreLogs(nil) },
			func() error { return f.wantLog(1, 50, 1) })
	},
	"first index is free": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1000, 1020) },
			func() error { return f.wantLog(1000, 1020, 1) })
	},
	"append with a gap": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 10) },
			func() error { return f.refuse("a gap", f.StoreLog(entry(12, 1, caseSize)), 1, 10) })
	},
	"append with a gap inside": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 10) },
			func() error {
				return f.refuse("a gap", f.StoreLogs([]*raft.Log{entry(11, 1, caseSize), entry(13, 1, caseSize)}), 1, 10)
			})
	},
	"append over what is there": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 10) },
			func() error { return f.refuse("an old index", f.StoreLog(entry(5, 2, caseSize)), 1, 10) })
	},
	"append of index 0": func(f *fixture) error {
		return f.refuse("index 0", f.StoreLog(entry(0, 1, caseSize)), 0, 0)
	},
	"append of a big batch": func(f *fixture) error {
		return steps(
			func() error { return f.StoreLogs(entries(1, 20_000, 1, caseSize)) },
			func() error { return f.wantLog(1, 20_000, 1) })
	},
	"append of big entries": func(f *fixture) error {
		var logs []*raft.Log
		for i := uint64(1); i <= 8; i++ {
			logs = append(logs, entry(i, 1, 300<<10))
		}
		if err := f.StoreLogs(logs); err != nil {
			return err
		}
		for _, want := range logs {
			var got raft.Log
			if err := f.GetLog(want.Index, &got); err != nil {
				return err
			}
			if err := sameEntry(&got, want); err != nil {
				return err
			}
		}
		return nil
	},
	"read into a used entry": func(f *fixture) error {
		var log raft.Log
		return steps(
			func() error { return f.fill(1, 200) },
			func() error { return f.reopenIfPossible() },
			func() error { return f.GetLog(1, &log) },
			func() error {
				kept := log.Data
				if err := f.GetLog(2, &log); err != nil {
					return err
				}
				return sameEntry(&raft.Log{Index: 1, Term: 1, Type: log.Type, Data: kept,
					Extensions: entry(1, 1, 0).Extensions, AppendedAt: entry(1, 1, 0).AppendedAt}, entry(1, 1, caseSize))
			})
	},
	"delete a prefix": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 1000) },
			func() error { return f.DeleteRange(1, 600) },
			func() error { return f.wantLog(601, 1000, 1) },
			func() error { return f.fill(1001, 1010) },
			func() error { return f.wantLog(601, 1010, 1) })
	},
	"delete a suffix": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 1000) },
			func() error { return f.DeleteRange(401, 1000) },
			func() error { return f.wantLog(1, 400, 1) },
			func() error { return f.fill(401, 410) },
			func() error { return f.wantLog(1, 410, 1) })
	},
	"delete all of a short log": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 50) },
			func() error { return f.DeleteRange(1, 50) },
			func() error { return f.wantLog(0, 0, 1) },
			func() error { return f.fill(91, 100) },
			func() error { return f.wantLog(91, 100, 1) })
	},
	"delete all of a long log": func(f *fixture) error {
		return steps(
			func() error { return f.Set([]byte("kept"), []byte("value")) },
			func() error { return f.fill(1, 1000) },
			func() error { return f.DeleteRange(1, 1000) },
			func() error { return f.wantLog(0, 0, 1) },
			func() error { return f.fill(5001, 5010) },
			func() error { return f.wantLog(5001, 5010, 1) },
			func() error {
				v, err := f.Get([]byte("kept"))
				if err == nil && string(v) != "value" {
					err = fmt.Errorf("stable value became %q", v)
				}
				return err
			})
	},
	"delete more than there is": func(f *fixture) error {
		return steps(
			func() error { return f.fill(11, 30) },
			func() error { return f.DeleteRange(1, 15) },
			func() error { return f.wantLog(16, 30, 1) },
			func() error { return f.DeleteRange(26, 1<<20) },
			func() error { return f.wantLog(16, 25, 1) })
	},
	"delete nothing": func(f *fixture) error {
		return steps(
			func() error { return f.DeleteRange(1, 10) },
			func() error { return f.wantLog(0, 0, 1) },
			func() error { return f.fill(11, 20) },
			func() error { return f.DeleteRange(1, 10) },
			func() error { return f.DeleteRange(21, 30) },
			func() error { return f.DeleteRange(15, 14) },
			func() error { return f.wantLog(11, 20, 1) })
	},
	"delete in the middle": func(f *fixture) error {
		return steps(
			func() error { return f.fill(1, 20) },
			func() error { return f.refuse("a deletion in the middle", f.DeleteRange(5, 10), 1, 20) })
	},
	"delete beside stable keys": func(f *fixture) error {
		for _, k := range []string{"CurrentTerm", "LastVoteTerm"} {
			if err := f.SetUint64([]byte(k), 7); err != nil {
				return err
			}
		}
		if err := f.fill(1, 10); err != nil {
			return err
		}
		for n := uint64(80); n < 120; n++ {
			if err := steps(
				func() error { return f.fill(11, 10+n) },
				func() error { return f.DeleteRange(11, 10+n) },
				func() error { return f.wantBounds(1, 10) }); err != nil {
				return fmt.Errorf("suffix of %d: %w", n, err)
			}
		}
		return nil
	},
	"read while others write": readWhileWriting,
	"monotonic": func(f *fixture) error {
		if m, ok := f.LogStore.(raft.MonotonicLogStore); !ok || !m.IsMonotonic() {
			return errors.New("does not say that it is monotonic")
		}
		return nil
	},
	"stable values": func(f *fixture) error {
		for _, v := range []string{"one", "two", strings.Repeat("x", 4000)} {
			if err := f.Set([]byte("k"), []byte(v)); err != nil {
				return err
			}
			if got, err := f.Get([]byte("k")); err != nil || string(got) != v {
				return fmt.Errorf("got %q, %v, want %q", got, err, v)
			}
		}
		for _, n := range []uint64{0, 1, 1 << 63} {
			if err := f.SetUint64([]byte("n"), n); err != nil {
				return err
			}
			if got, err := f.GetUint64([]byte("n")); err != nil || got != n {
				return fmt.Errorf("got %d, %v, want %d", got, err, n)
			}
		}
		return nil
	},
	"unknown value": func(f *fixture) error {
		_, err := f.Get([]byte("nothing"))
		if err == nil || err.Error() != "not found" {
			return fmt.Errorf("got %v, raft wants the text \"not found\"", err)
		}
		return nil
	},
	"unknown number": func(f *fixture) error {
		_, err := f.GetUint64([]byte("nothing"))
		if err == nil || err.Error() != "not found" {
			return fmt.Errorf("got %v, raft wants the text \"not found\"", err)
		}
		return nil
	},
	"survives a reopen": func(f *fixture) error {
		return steps(
			func() error { return f.SetUint64([]byte("CurrentTerm"), 9) },
			func() error { return f.fill(1, 300) },
			func() error { return f.DeleteRange(1, 100) },
			func() error { return f.reopen() },
			func() error { return f.wantLog(101, 300, 1) },
			func() error { return f.wantNumber("CurrentTerm", 9) })
	},
	"survives a crash": func(f *fixture) error {
		return steps(
			func() error { return f.SetUint64([]byte("CurrentTerm"), 9) },
			func() error { return f.fill(1, 300) },
			func() error { return f.crash(nil) },
			func() error { return f.wantLog(1, 300, 1) },
			func() error { return f.wantNumber("CurrentTerm", 9) })
	},
	"torn tail": func(f *fixture) error {
		return steps(
			func() error { return f.SetUint64([]byte("CurrentTerm"), 9) },
			func() error { return f.fill(1, 300) },
			func() error { return f.crash(tearTails) },
			func() error { return f.wantLog(1, 300, 1) },
			func() error { return f.wantNumber("CurrentTerm", 9) },
			func() error { return f.fill(301, 310) },
			func() error { return f.wantLog(1, 310, 1) })
	},
	"calls after close": func(f *fixture) error {
		if f.close == nil {
			return errors.New("has no close")
		}
		if err := f.fill(1, 10); err != nil {
			return err
		}
		if err := f.close(); err != nil {
			return err
		}
		var log raft.Log
		for what, err := range map[string]error{
			"GetLog":      f.GetLog(1, &log),
			"StoreLog":    f.StoreLog(entry(11, 1, caseSize)),
			"DeleteRange": f.DeleteRange(1, 5),
			"Set":         f.Set([]byte("k"), []byte("v")),
		} {
			if err == nil {
				return fmt.Errorf("%s works after close", what)
			}
		}
		_, err := f.FirstIndex()
		if err == nil {
			return errors.New("FirstIndex works after close")
		}
		return f.close() // once more does nothing
	},
	"close ends its goroutines": func(f *fixture) error {
		if f.close == nil {
			return errors.New("has no close")
		}
		if err := f.close(); err != nil {
			return err
		}
		deadline := time.Now().Add(500 * time.Millisecond)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			left := storeGoroutines()
			if len(left) <= f.goroutines {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%d goroutines before, after close %v", f.goroutines, left)
			}
			<-tick.C
		}
	},
	"number of wrong length": func(f *fixture) error {
		if err := f.Set([]byte("n"), []byte("abc")); err != nil {
			return err
		}
		if n, err := f.GetUint64([]byte("n")); err == nil {
			return fmt.Errorf("three bytes read as the number %d", n)
		}
		return nil
	},
}

func (f *fixture) wantNumber(key string, want uint64) error {
	got, err := f.GetUint64([]byte(key))
	if err == nil && got != want {
		err = fmt.Errorf("%s is %d, want %d", key, got, want)
	}
	return err
}

// reopenIfPossible empties the caches of a durable store.
func (f *fixture) reopenIfPossible() error {
	if f.close == nil {
		return nil
	}
	return f.reopen()
}

// tearTails appends the beginning of a record to the newest value log of each database below dir, as a
// process leaves it that is killed within a write.
func tearTails(dir string) error {
	newest := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".vlog" && path > newest[filepath.Dir(path)] {
			newest[filepath.Dir(path)] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, path := range newest {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write([]byte{0x40, 0x00, 0x11, 0x80, 0x02, 0x00, 0x00, 0x00})
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// readWhileWriting has readers read all of a moving log: each read must give the entry or "not found",
// and an entry that is inside the bounds before and after must be there.
func readWhileWriting(f *fixture) error {
	if err := f.fill(1, 100); err != nil {
		return err
	}
	done := make(chan struct{})
	errs := make(chan error, 2)
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				first, err := f.FirstIndex()
				if err != nil {
					errs <- err
					return
				}
				for i := first; i < first+60; i++ {
					var got raft.Log
					err := f.GetLog(i, &got)
					if err == nil {
						err = sameEntry(&got, entry(i, 1, caseSize))
					} else if errors.Is(err, raft.ErrLogNotFound) {
						err = nil
						if now, ferr := f.FirstIndex(); ferr == nil && now <= i {
							if last, lerr := f.LastIndex(); lerr == nil && last >= i {
								err = fmt.Errorf("entry %d is missing in %d..%d", i, now, last)
							}
						}
					}
					if err != nil {
						errs <- err
						return
					}
				}
			}
		})
	}
	err := func() error {
		for i := uint64(101); i <= 1500; i += 20 {
			if err := f.fill(i, i+19); err != nil {
				return err
			}
			if i%100 == 1 && i > 201 {
				if err := f.DeleteRange(1, i-100); err != nil {
					return err
				}
			}
		}
		return nil
	}()
	close(done)
	readers.Wait()
	close(errs)
	return errors.Join(err, <-errs)
}

// storeGoroutines lists the goroutines that belong to a store: ours, Badger's, raft-badger's collector.
func storeGoroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var own []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		for _, fn := range []string{"runVlogGC", "(*Store).watch", "(*Store).collect", "badger/v2.(*DB).doWrites", "badger/v2.(*levelsController).runCompactor"} {
			if strings.Contains(g, fn) {
				own = append(own, fn)
			}
		}
	}
	return own
}

// attempt runs a case, with a panic as its failure.
func attempt(f *fixture, run func(*fixture) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return run(f)
}

// TestConformance runs every case against this package, raft's own store in memory, and the bare library.
// What the last fails is why this package exists.
func TestConformance(t *testing.T) {
	for _, impl := range implementations() {
		t.Run(impl.name, func(t *testing.T) {
			for name := range impl.fails {
				if conformance[name] == nil {
					t.Errorf("there is no case %q", name)
				}
			}
			for _, name := range slices.Sorted(maps.Keys(conformance)) {
				t.Run(name, func(t *testing.T) {
					f := &fixture{open: impl.open, goroutines: len(storeGoroutines())}
					if err := f.openAt(t.TempDir()); err != nil {
						t.Fatal(err)
					}
					err := attempt(f, conformance[name])
					if why, known := impl.fails[name]; known {
						if err == nil {
							t.Fatalf("passes, although it is known to fail: %s", why)
						}
						t.Logf("fails as known (%s): %v", why, err)
					} else if err != nil {
						t.Error(err)
					}
					if f.close != nil {
						attempt(f, func(f *fixture) error { return f.close() }) //nolint:errcheck // judged above
					}
				})
			}
		})
	}
}
