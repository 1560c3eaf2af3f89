package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"testing"
	"time"
)

// TestDiskStaysBounded overwrites few keys for long, with the discard timestamp
// following, while scans overlap so that an iterator is open at every moment: tables
// and log must become small again after each part (Invariants B4 and B5). How far the
// writer gets ahead of the collection meanwhile is up to the machine.
func TestDiskStaysBounded(t *testing.T) {
	e := open(t, freshDir(t), func(c *Config) {
		c.GCEnabled = true
		c.GCInterval = 50 * time.Millisecond
		c.ValueLogFileBytes = 4 << 20
		c.pollInterval = 10 * time.Millisecond
	})
	const (
		revisions = 8_000
		keys      = 100
		valueSize = 16 << 10
		live      = keys * valueSize
		written   = revisions * valueSize
		part      = 1_000 // revisions
		bound     = 48 << 20
	)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	value := make([]byte, valueSize)
	rng.Read(value)

	var wg sync.WaitGroup
	stop := make(chan struct{})
	started := make(chan struct{}, 2)
	for range 2 {
		wg.Go(func() {
			var previous *Iterator
			for {
				r, err := e.ReadAt(e.Published())
				if err != nil {
					if errors.Is(err, ErrDiscarded) {
						continue // published moved on
					}
					t.Error(err)
					return
				}
				it := r.Scan(ScanOptions{})
				it.Next()
				if previous != nil {
					previous.r.Close()
				}
				previous = it
				select {
				case <-stop:
					r.Close()
					return
				case started <- struct{}{}:
				default:
				}
			}
		})
	}
	e.Publish(0)
	<-started
	var most uint64
	for ts := uint64(1); ts <= revisions; ts++ {
		must(t, e.Commit(ts, []Entry{{Key: fmt.Appendf(nil, "d%03d", rng.Intn(keys)), Value: value}}, event(ts)))
		if ts%100 == 0 {
			e.Publish(ts)
			e.SetDiscard(ts)
			var old [][]byte
			var versions []uint64
			for v := ts - 99; v < ts; v++ {
				old, versions = append(old, event(v).Key), append(versions, v)
			}
			if err := e.DeleteAt(old, versions); err != nil && !errors.Is(err, ErrHeld) {
				t.Fatal(err)
			}
		}
		if ts%part == 0 {
			lsm, vlog := e.Sizes()
			most = max(most, lsm+vlog)
			eventually(t, fmt.Sprintf("%d MiB on disk, of %d MiB written, become less than %d", (lsm+vlog)>>20, ts*valueSize>>20, bound>>20), func() bool {
				lsm, vlog := e.Sizes()
				return lsm+vlog <= bound
			})
		}
	}
	must(t, e.Flush())
	s := e.Stats()
	t.Logf("written %d MiB, live %d MiB, at most %d MiB on disk, at the end %d+%d; %d log files freed, %d flattens",
		written>>20, live>>20, most>>20, s.LSMBytes>>20, s.ValueLogBytes>>20, s.GCRuns, s.Flattens)
	if s.GCRuns == 0 {
		t.Error("no log file was freed")
	}
	must(t, e.Compact(context.Background()))
	if lsm, vlog := e.Sizes(); lsm+vlog > bound/2 {
		t.Errorf("%d MiB on disk after Compact", (lsm+vlog)>>20)
	}
	close(stop)
	wg.Wait()
}

// TestFlattenByItself: history that may go goes without a Compact, once it is worth
// it, although nothing is written any more.
func TestFlattenByItself(t *testing.T) {
	dir := freshDir(t)
	e := open(t, dir, func(c *Config) {
		c.GCEnabled = true
		c.GCInterval = 20 * time.Millisecond
	})
	value := make([]byte, 64<<10)
	rand.New(rand.NewSource(1)).Read(value)
	var ts uint64
	write := func(n int) {
		for range n {
			ts++
			must(t, e.Commit(ts, []Entry{{Key: fmt.Appendf(nil, "d%02d", ts%20), Value: value}}, event(ts)))
		}
		e.Publish(ts)
	}
	write(1000)
	before, _ := e.Sizes()
	if s := e.Stats(); s.Flattens != 0 {
		t.Fatalf("%d flattens before anything may go", s.Flattens)
	}
	e.SetDiscard(ts)
	eventually(t, "a flatten", func() bool { return e.Stats().Flattens > 0 })
	eventually(t, "the tree shrinks", func() bool { after, _ := e.Sizes(); return after < before/2 })
	n := e.Stats().Flattens
	write(1)
	e.SetDiscard(ts)
	must(t, e.compact(context.Background(), e.flattenPays(), false))
	if s := e.Stats(); s.Flattens != n {
		t.Error("flattened for one small revision")
	}
}

// TestCloseDuringUpkeep closes while collections, reads and syncs are under way.
func TestCloseDuringUpkeep(t *testing.T) {
	for range 5 {
		e := open(t, freshDir(t), func(c *Config) {
			c.GCEnabled = true
			c.GCInterval = time.Millisecond
			c.pollInterval = time.Millisecond
			c.ValueLogFileBytes = 1 << 20
		})
		value := make([]byte, 10_000)
		for ts := uint64(1); ts <= 1500; ts++ {
			must(t, e.Commit(ts, []Entry{{Key: []byte("da"), Value: value}}, event(ts)))
		}
		e.Publish(1500)
		e.SetDiscard(1500)
		ok := func(err error) bool {
			return err == nil || errors.Is(err, ErrClosed) || errors.Is(err, context.Canceled)
		}
		var wg sync.WaitGroup
		for _, step := range []func() error{
			func() error { return e.Compact(context.Background()) },
			e.Sync,
			func() error {
				r, err := e.ReadAt(1500)
				if err != nil {
					return err
				}
				defer r.Close()
				v, _, _, err := r.Get([]byte("da"))
				if err == nil && !bytes.Equal(v, value) {
					return errors.New("wrong value")
				}
				return err
			},
			func() error { e.Stats(); e.SetDiscard(1500); return e.Err() },
		} {
			wg.Go(func() {
				for !e.closing.Load() {
					if err := step(); !ok(err) {
						t.Error(err)
					}
				}
			})
		}
		must(t, e.Close())
		wg.Wait()
	}
}

// TestCompactEndsWithItsContext: the caller can give up waiting for its turn.
func TestCompactEndsWithItsContext(t *testing.T) {
	e := open(t, freshDir(t))
	<-e.upkeep.turn
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.Compact(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	e.upkeep.turn <- struct{}{}
	must(t, e.Compact(context.Background()))
}

// TestCommitsAreBounded: commits wait once too much is queued, and go on.
func TestCommitsAreBounded(t *testing.T) {
	release := make(chan struct{})
	e := open(t, freshDir(t), func(c *Config) {
		c.commitFault = func(uint64) error { <-release; return nil }
	})
	done := make(chan error, 1)
	go func() {
		for ts := uint64(1); ts <= maxPendingCommits+10; ts++ {
			if err := e.Commit(ts, nil, event(ts)); err != nil {
				done <- err
				return
			}
		}
		done <- e.Flush()
	}()
	eventually(t, "the bound", func() bool { return e.Stats().PendingCommits == maxPendingCommits })
	select {
	case err := <-done:
		t.Fatalf("not bounded: %v", err)
	default:
	}
	close(release)
	must(t, <-done)
	if s := e.Stats(); s.PendingCommits != 0 || s.PendingBytes != 0 {
		t.Errorf("pending %d, %d bytes", s.PendingCommits, s.PendingBytes)
	}
}

// TestCollectionRests: it rests while there are few files, not when somebody waits for it, and not at the end.
func TestCollectionRests(t *testing.T) {
	for files, want := range map[int]int{0: 3, calmFiles: 3, calmFiles + 1: 1, 2 * calmFiles: 1, 2*calmFiles + 1: 0, 100: 0} {
		if got := restFactor(files); got != want {
			t.Errorf("%d files: %d, want %d", files, got, want)
		}
	}
	e := open(t, freshDir(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if !e.rest(ctx, time.Hour) {
		t.Error("the end is no haste")
	}
	// A round rests, as if for hours, and has the turn.
	<-e.upkeep.turn
	rested := make(chan bool)
	go func() { rested <- e.rest(context.Background(), time.Hour) }()
	done := make(chan error)
	go func() { done <- e.Compact(context.Background()) }()
	if <-rested {
		t.Error("it went on resting with somebody waiting")
	}
	e.upkeep.turn <- struct{}{}
	must(t, <-done)
	// What was asked for in vain wakes no later round.
	select {
	case <-e.upkeep.haste:
		t.Error("haste is left")
	default:
	}
	// Short of space there is no rest.
	e.upkeep.free.Store(0)
	if !e.rest(context.Background(), time.Hour) {
		t.Error("no space, and it rested")
	}
}
