package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// wantEvents is what a watch from the first revision must tell, by the model.
func (o *model) wantEvents(w kv.Watch, upTo kv.Revision) (out []string) {
	for rev := max(w.From, 1); rev <= upTo; rev++ {
		var lines []string
		for _, k := range modelKeys {
			if !w.Range.Contains(k) {
				continue
			}
			old, before := o.past[rev-1][k]
			cur, after := o.past[rev][k]
			e := &kv.Event{Revision: rev, Item: kv.Item{Key: k}}
			switch {
			case after && cur.ModRevision == rev:
				e.Type, e.Item = kv.EventPut, cur
			case before && !after:
				e.Type = kv.EventDelete
			default:
				continue
			}
			if before {
				e.Previous = &old
			}
			lines = append(lines, showEvent(e, w.Previous))
		}
		slices.Sort(lines)
		out = append(out, lines...)
	}
	return out
}

func showEvent(e *kv.Event, previous bool) string {
	kind := e.Type.String()
	if e.Type == kv.EventExpire {
		kind = "delete" // the model does not tell them apart
	}
	show := func(it *kv.Item) string {
		if it == nil {
			return "nil"
		}
		return fmt.Sprintf("%q=%d:%.20q %d %d %d %s %v", it.Key, len(it.Value), it.Value, it.CreateRevision, it.ModRevision, it.Version, it.ContentType, it.ExpiresAt)
	}
	s := fmt.Sprintf("%06d %s %s", e.Revision, kind, show(&e.Item))
	if previous {
		s += " was " + show(e.Previous)
	}
	return s
}

// follower consumes a watch and holds it to the promises: order, whole revisions, and
// progress that is true.
type follower struct {
	w    kv.Watch
	got  []string
	next kv.Revision // first revision not told of
	err  error
}

// take reads batches until everything up to rev has been told.
func (v *follower) take(ctx context.Context, f *FSM, rev kv.Revision) error {
	w, err := f.Watch(v.w)
	if err != nil {
		return err
	}
	defer w.Close()
	v.next = max(v.w.From, 1)
	for v.next <= rev {
		batch, err := w.Next(ctx)
		if err != nil {
			return err
		}
		var lines []string
		last := kv.Revision(0)
		flush := func() {
			slices.Sort(lines)
			v.got = append(v.got, lines...)
			lines = nil
		}
		for _, e := range batch.Events {
			if e.Revision < v.next || e.Revision < last {
				return fmt.Errorf("revision %d after %d was told up to %d", e.Revision, last, v.next-1)
			}
			if e.Revision != last {
				flush()
			}
			last = e.Revision
			lines = append(lines, showEvent(e, v.w.Previous))
		}
		flush()
		if last > batch.Revision || batch.Revision+1 < v.next {
			return fmt.Errorf("progress to %d with an event of %d, after %d", batch.Revision, last, v.next-1)
		}
		v.next = batch.Revision + 1
	}
	return nil
}

func (v *follower) check(t *testing.T, o *model, rev kv.Revision) {
	t.Helper()
	if v.err != nil {
		t.Fatalf("%+v: %v", v.w, v.err)
	}
	var got []string
	for _, line := range v.got {
		if line[:6] <= fmt.Sprintf("%06d", rev) {
			got = append(got, line)
		}
	}
	want := o.wantEvents(v.w, rev)
	if !slices.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Fatalf("%+v: %d events, want %d; they differ from %d on:\n%s\nwant\n%s", v.w, len(got), len(want), i,
			strings.Join(got[i:min(i+3, len(got))], "\n"), strings.Join(want[i:min(i+3, len(want))], "\n"))
	}
}

// TestWatch follows random transactions with many watchers, from all starts, with a
// memory so small that they fall back to history, and compares with the model.
func TestWatch(t *testing.T) {
	for _, ring := range []int{ringBytes, 4000, 0} {
		t.Run(fmt.Sprintf("ring of %d", ring), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 21))
			m, o := newMachine(t), newModel()
			t.Cleanup(func() { m.FSM.Close() })
			m.hub.ringMax = ring
			m.hub.crowd = 1000 // see TestPacedWatch
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()

			const rounds, watchers = 40, 60
			// The model is run first: what the watchers are to see at the end is known then.
			var batches [][]Log
			for range rounds {
				var logs []Log
				for range 1 + rng.IntN(5) {
					tx := kv.Txn{Then: randomOps(rng)}
					cmd, err := EncodeTxn(tx, 0)
					if err != nil {
						t.Fatal(err)
					}
					o.txn(tx)
					logs = append(logs, m.entry(o.clock, cmd))
				}
				batches = append(batches, logs)
			}
			var wg sync.WaitGroup
			var followers []*follower
			for range watchers {
				v := &follower{w: kv.Watch{Range: randomRange(rng), From: 1, Previous: rng.IntN(2) == 0, Progress: time.Millisecond}}
				if rng.IntN(4) == 0 {
					key := modelKeys[rng.IntN(len(modelKeys))]
					v.w.Range = kv.Range{Start: key, End: key + "\x00"}
				}
				if v.w.Range.Empty() {
					v.w.Range = kv.Range{}
				}
				followers = append(followers, v)
			}
			for i, logs := range batches {
				for n, v := range followers {
					if n%rounds == i { // they begin one after the other
						v.w.From = 1 + kv.Revision(rng.Uint64N(uint64(m.Info().Revision)+1))
						wg.Go(func() { v.err = v.take(ctx, m.FSM, o.rev) })
					}
				}
				m.ApplyBatch(logs)
			}
			wg.Wait()
			for _, v := range followers {
				v.check(t, o, o.rev)
			}
		})
	}
}

// TestWatchStarts: where a watch may begin.
func TestWatchStarts(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.FSM.Close() })
	for i := range 10 {
		m.mustTxn(put("k", fmt.Sprint(i)))
	}
	m.apply(EncodeCompact(5))
	m.mustTxn(put("k", "10"))
	m.snapshot()
	m.mustTxn(put("k", "11")) // revision 12; what the label covers may be purged
	if err := m.store.Engine().Compact(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Trim(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from kv.Revision
		want error
	}{{4, kv.ErrCompacted}, {14, kv.ErrInvalidArgument}, {5, nil}, {12, nil}, {13, nil}, {0, nil}} {
		w, err := m.Watch(kv.Watch{From: c.from})
		if !errors.Is(err, c.want) {
			t.Errorf("from %d: %v, want %v", c.from, err, c.want)
		}
		if err == nil {
			if w.Revision() != 12 {
				t.Errorf("a watch began at %d", w.Revision())
			}
			w.Close()
			w.Close()
		}
	}
	// The oldest revision is whole: what was before it can still be told.
	w, err := m.Watch(kv.Watch{From: 5, Previous: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b, err := w.Next(context.Background())
	if err != nil || len(b.Events) != 8 || b.Events[0].Previous == nil || string(b.Events[0].Previous.Value) != "3" || b.Revision != 12 {
		t.Fatalf("%+v: %v", b, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if b, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%+v: %v", b, err)
	}
}

// TestWatchIsCompacted: a watcher that history leaves behind is told so.
func TestWatchIsCompacted(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.FSM.Close() })
	m.hub.ringMax = 0
	m.mustTxn(put("k", "0"))
	w, err := m.Watch(kv.Watch{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 9 {
		m.mustTxn(put("k", fmt.Sprint(i)))
	}
	m.apply(EncodeCompact(6))
	m.mustTxn(put("k", "last"))
	var e *kv.Error
	if b, err := w.Next(context.Background()); !errors.As(err, &e) || e.Code != kv.CodeCompacted || e.OldestRevision != 6 {
		t.Fatalf("%+v: %v", b, err)
	}
}

// TestWatchThroughInstall: a snapshot that takes the database's place shows to no
// watcher: what it brings is told from the history in it.
func TestWatchThroughInstall(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 22))
	leader, lagging, o := newMachine(t), newMachine(t), newModel()
	t.Cleanup(func() { lagging.FSM.Close() })
	step := func(both bool) {
		tx := kv.Txn{Then: randomOps(rng)}
		cmd, err := EncodeTxn(tx, 0)
		if err != nil {
			t.Fatal(err)
		}
		o.txn(tx)
		leader.ApplyBatch([]Log{leader.entry(o.clock, cmd)})
		if both {
			lagging.ApplyBatch([]Log{lagging.entry(o.clock, cmd)})
		}
	}
	for range 30 {
		step(true)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for range 60 {
		step(false)
	}
	upTo := o.rev
	var wg sync.WaitGroup
	var followers []*follower
	for i := range 6 {
		v := &follower{w: kv.Watch{From: 1 + kv.Revision(i*3), Previous: i%2 == 0, Progress: time.Millisecond}}
		followers = append(followers, v)
		wg.Go(func() { v.err = v.take(ctx, lagging.FSM, upTo) })
	}
	leader.snapshot()
	meta, rc, err := openSnapshot(leader.store)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := createSink(lagging.store, meta)
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := io.Copy(io.MultiWriter(sink, &stream), rc); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(rc.Close(), sink.Close()); err != nil {
		t.Fatal(err)
	}
	if err := restoreSink(lagging, sink.ID()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for _, v := range followers {
		v.check(t, o, upTo)
	}
}

// TestBigRevisionIsWatchedWhole: one revision is one batch, whatever its size.
func TestBigRevisionIsWatchedWhole(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.FSM.Close() })
	w, err := m.Watch(kv.Watch{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const n = 30_000
	for i := range n / 10_000 {
		ops := make([]kv.Op, 10_000)
		for j := range ops {
			ops[j] = put(fmt.Sprintf("key-%08d", i*10_000+j), "v")
		}
		m.mustTxn(ops...)
	}
	r := m.mustTxn(kv.Op{Kind: kv.OpDeleteRange, Range: kv.PrefixRange("key-")})
	if r.Ops[0].Deleted != n {
		t.Fatalf("%d deleted", r.Ops[0].Deleted)
	}
	puts, deletes := 0, 0
	for deletes == 0 {
		b, err := w.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			if e.Type == kv.EventPut {
				puts++
			} else {
				deletes++
			}
		}
	}
	if puts != n || deletes != n {
		t.Errorf("%d puts and %d deletes, want %d of each", puts, deletes, n)
	}
}

// TestWatchesEndWithTheMachine: a watch does not outlive what it watches.
func TestWatchesEndWithTheMachine(t *testing.T) {
	m := newMachine(t)
	w, err := m.Watch(kv.Watch{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	done := make(chan error)
	go func() {
		_, err := w.Next(context.Background())
		done <- err
	}()
	m.FSM.Close()
	if err := <-done; !errors.Is(err, kv.ErrNotReady) {
		t.Errorf("%v", err)
	}
	if _, err := m.Watch(kv.Watch{}); !errors.Is(err, kv.ErrNotReady) {
		t.Errorf("%v", err)
	}
}

// TestWatchEndsWhenTheStoreIsGone: a watcher that still has history to read does not try
// for ever.
func TestWatchEndsWhenTheStoreIsGone(t *testing.T) {
	m := newMachine(t)
	m.mustTxn(put("a", "1"))
	watch := func() *Watcher {
		w, err := m.Watch(kv.Watch{From: 1})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w, late := watch(), watch()
	defer w.Close()
	defer late.Close()
	if err := m.store.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if b, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the store closed: %+v, %v", b, err)
	}
	m.FSM.Close()
	if b, err := late.Next(context.Background()); !errors.Is(err, kv.ErrNotReady) {
		t.Errorf("with the machine closed: %+v, %v", b, err)
	}
}

// TestClosedWatcherLeavesTheHub: whenever Close comes, nothing of the watcher stays.
func TestClosedWatcherLeavesTheHub(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.FSM.Close() })
	m.mustTxn(put("a", "1"))
	w, err := m.Watch(kv.Watch{Range: kv.PrefixRange("a")})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if b, err := w.Next(context.Background()); !errors.Is(err, kv.ErrNotReady) {
		t.Errorf("%+v: %v", b, err)
	}
	if m.hub.idle != 0 || m.hub.watching.Load() != 0 {
		t.Errorf("%d idle of %d watchers are left", m.hub.idle, m.hub.watching.Load())
	}
}

// TestWatchMissesNoPart: a revision that lost a part of its list is not told as whole.
func TestWatchMissesNoPart(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.FSM.Close() })
	var puts []kv.Op
	for i := range 5000 {
		puts = append(puts, put(fmt.Sprintf("some/rather/long/key/%06d", i), "v"))
	}
	m.mustTxn(puts...)
	m.mustTxn(kv.Op{Kind: kv.OpDeleteRange})
	m.store.Engine().SetDiscard(2)
	if err := m.store.Engine().DeleteAt([][]byte{eventKey(2, 0)}, []uint64{2}); err != nil {
		t.Fatal(err)
	}
	w, err := m.Watch(kv.Watch{From: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if b, err := w.Next(context.Background()); !errors.Is(err, kv.ErrCorruption) {
		t.Errorf("%d events: %v", len(b.Events), err)
	}
}

// TestPacedWatch: a crowd of watchers is told everything too, only later.
func TestPacedWatch(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { m.FSM.Close() })
	m.hub.crowd, m.hub.ringMax = 2, 4000
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const revisions, watchers = 60, 20
	var wg sync.WaitGroup
	errs := make([]error, watchers)
	for i := range errs {
		v := &follower{w: kv.Watch{Range: kv.PrefixRange("k"), From: 1, Progress: time.Millisecond}}
		wg.Go(func() {
			if errs[i] = v.take(ctx, m.FSM, revisions); errs[i] == nil && len(v.got) != revisions {
				errs[i] = fmt.Errorf("%d events of %d", len(v.got), revisions)
			}
		})
	}
	for i := range revisions {
		m.mustTxn(put("k", fmt.Sprint(i)))
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestWatchBigRevision: a revision that is too big for memory is told in parts, each
// event once, and nothing is called told before all of it is.
func TestWatchBigRevision(t *testing.T) {
	m := newMachine(t)
	const keys = 40
	value := strings.Repeat("v", 1<<20)
	for i := range keys {
		m.mustTxn(put(fmt.Sprintf("a/%02d", i), value), put(fmt.Sprintf("b/%02d", i), "small"))
	}
	// The change itself is small: what is big is what was there before.
	r := m.mustTxn(kv.Op{Kind: kv.OpDeleteRange, Range: kv.PrefixRange("a/")}, put("b/end", "x"))
	m.mustTxn(put("b/after", "x"))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m.hub.crowd = 0 // it has to wait its turn, and progress is due each time
	w, err := m.Watch(kv.Watch{Range: kv.PrefixRange(""), From: r.Revision, Previous: true, Progress: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var told []string
	parts, open := 0, false
	for upTo := kv.Revision(0); upTo <= r.Revision; {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, e := range b.Events {
			size += eventBytes(e)
			told = append(told, fmt.Sprintf("%d %s", e.Revision, e.Item.Key))
			if e.Type == kv.EventDelete && (e.Previous == nil || len(e.Previous.Value) != len(value)) {
				t.Errorf("%s: previous %v", e.Item.Key, e.Previous == nil)
			}
		}
		if size > revisionBytes+2<<20 {
			t.Errorf("a batch of %d bytes", size)
		}
		if open && len(b.Events) == 0 {
			t.Error("progress was told within a revision")
		}
		if open = b.Partial; open {
			parts++
			if b.Revision != r.Revision-1 {
				t.Errorf("a part of revision %d says that all up to %d was told", r.Revision, b.Revision)
			}
		}
		upTo = b.Revision
	}
	var want []string
	for i := range keys {
		want = append(want, fmt.Sprintf("%d a/%02d", r.Revision, i))
	}
	want = append(want, fmt.Sprintf("%d b/end", r.Revision), fmt.Sprintf("%d b/after", r.Revision+1))
	slices.Sort(want)
	got := slices.Sorted(slices.Values(told))
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if parts < 5 {
		t.Errorf("%d parts", parts)
	}
}
