package httpapi

import (
	"context"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/settkv/sett/kv"
)

// fakeStore is a small model of the store in memory, with its history. Its hooks, if
// set, answer instead unless they return errGoOn.
type fakeStore struct {
	onTxn   func(ctx context.Context, t kv.Txn) (kv.TxnResult, error)
	onGet   func(ctx context.Context, key string, o kv.ReadOptions) (kv.Item, kv.Revision, error)
	onScan  func(ctx context.Context, q kv.Scan, o kv.ReadOptions) (Scanner, error)
	onWatch func(ctx context.Context, w kv.Watch) (Watcher, error)
	// fail is what everything that the store does fails with.
	fail error
	// afterTxn sees each decision and may lose it on its way.
	afterTxn func(t kv.Txn, r kv.TxnResult, err error) error

	mu     sync.Mutex
	rev    kv.Revision
	oldest kv.Revision
	hist   map[string][]fakeVersion // of a key, the oldest first
	once   map[string]fakeOutcome
	keyed  map[string]keyedOutcome
	// afterKeyed may lose the answer of what has an idempotency key and is no transaction.
	afterKeyed func() error
	// loseEnds has it note no ends of operations; term is that of the leader.
	loseEnds bool
	term     uint64
	pins     map[string]kv.Pin
	settings kv.ClusterSettings
	txns     []kv.Txn
	reads    []kv.ReadOptions
	now      time.Time
	changed  chan struct{} // closed at the next revision
	watchers int
}

// fakeVersion is a key from a revision on; item is nil if it was deleted then.
type fakeVersion struct {
	rev  kv.Revision
	item *kv.Item
	kind kv.EventType
}

type fakeOutcome struct {
	request [32]byte
	result  kv.TxnResult
	err     error
}

func newFakeStore() *fakeStore {
	return &fakeStore{
		term: 3,
		hist: map[string][]fakeVersion{}, once: map[string]fakeOutcome{}, keyed: map[string]keyedOutcome{}, pins: map[string]kv.Pin{},
		now: time.Date(2030, 1, 2, 3, 4, 5, 678e6, time.UTC), changed: make(chan struct{}),
		settings: kv.ClusterSettings{HistoryRetention: time.Hour, MaxKeyBytes: 64, MaxValueBytes: 1 << 20, MaxRequestBytes: 2 << 20},
	}
}

// set puts items as they are at one revision, rev+1.
func (f *fakeStore) set(items ...kv.Item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	for _, it := range items {
		it.ModRevision = f.rev
		if it.CreateRevision == 0 {
			it.CreateRevision, it.Version = f.rev, 1
		}
		f.hist[it.Key] = append(f.hist[it.Key], fakeVersion{f.rev, &it, kv.EventPut})
	}
	f.announceLocked()
}

// reset forgets every key.
func (f *fakeStore) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hist = map[string][]fakeVersion{}
}

func (f *fakeStore) announceLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// expire deletes keys as the state machine does when they are due.
func (f *fakeStore) expire(keys ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	for _, k := range keys {
		f.hist[k] = append(f.hist[k], fakeVersion{f.rev, nil, kv.EventExpire})
	}
	f.announceLocked()
}

// atLocked is the key at a revision, nil if there is none.
func (f *fakeStore) atLocked(key string, rev kv.Revision) *kv.Item {
	var it *kv.Item
	for _, v := range f.hist[key] {
		if v.rev <= rev {
			it = v.item
		}
	}
	return it
}

func (f *fakeStore) has(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.atLocked(key, f.rev) != nil
}

func (f *fakeStore) value(key string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if it := f.atLocked(key, f.rev); it != nil {
		return string(it.Value)
	}
	return "(none)"
}

// fakeTxn is a transaction under way: what it changed lies over the store.
type fakeTxn struct {
	f       *fakeStore
	changes map[string]*kv.Item
}

func (x *fakeTxn) at(key string) *kv.Item {
	if it, ok := x.changes[key]; ok {
		return it
	}
	return x.f.atLocked(key, x.f.rev)
}

func (x *fakeTxn) keys(r kv.Range) []string {
	all := map[string]bool{}
	for k := range x.f.hist {
		all[k] = true
	}
	for k := range x.changes {
		all[k] = true
	}
	var keys []string
	for k := range all {
		if r.Contains(k) && x.at(k) != nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (x *fakeTxn) holds(c kv.Cond) bool {
	var it kv.Item
	have := false
	if p := x.at(c.Key); p != nil {
		it, have = *p, true
	}
	var n uint64
	switch c.Target {
	case kv.CondExists:
		return have == (c.Number == 1)
	case kv.CondValue:
		return have && string(it.Value) == string(c.Value)
	case kv.CondModRevision:
		n = uint64(it.ModRevision)
	case kv.CondCreateRevision:
		n = uint64(it.CreateRevision)
	case kv.CondVersion:
		n = it.Version
	}
	switch c.Op {
	case kv.CmpEqual:
		return n == c.Number
	case kv.CmpNotEqual:
		return n != c.Number
	case kv.CmpLess:
		return n < c.Number
	case kv.CmpGreater:
		return n > c.Number
	case kv.CmpLessEqual:
		return n <= c.Number
	case kv.CmpGreaterEqual:
		return n >= c.Number
	}
	return false
}

func (x *fakeTxn) put(key string, change func(*kv.Item)) (created bool) {
	next := kv.Item{Key: key}
	if old := x.at(key); old != nil {
		next = *old
	} else {
		created = true
	}
	change(&next)
	before := x.f.atLocked(key, x.f.rev)
	next.ModRevision, next.CreateRevision, next.Version = x.f.rev+1, x.f.rev+1, 1
	if before != nil {
		next.CreateRevision, next.Version = before.CreateRevision, before.Version+1
	}
	x.changes[key] = &next
	return created
}

func (x *fakeTxn) do(op kv.Op) (kv.OpResult, error) {
	r := kv.OpResult{Kind: op.Kind}
	old := x.at(op.Key)
	if op.Previous && old != nil {
		p := *old
		r.Previous = &p
	}
	switch op.Kind {
	case kv.OpPut:
		r.Created = x.put(op.Key, func(it *kv.Item) {
			it.Value, it.ContentType, it.ExpiresAt = op.Value, op.ContentType, time.Time{}
			if op.TTL > 0 {
				it.ExpiresAt = x.f.now.Add(op.TTL)
			}
			if !op.ExpiresAt.IsZero() {
				it.ExpiresAt = op.ExpiresAt
			}
		})
	case kv.OpAppend:
		r.Created = x.put(op.Key, func(it *kv.Item) { it.Value = append(append([]byte{}, it.Value...), op.Value...) })
	case kv.OpIncr:
		var n int64
		if old != nil {
			var err error
			if n, err = strconv.ParseInt(string(old.Value), 10, 64); err != nil {
				return r, kv.NotApplied(kv.CodeConflict, "the value is no 64-bit integer")
			}
		}
		if (op.By > 0 && n > math.MaxInt64-op.By) || (op.By < 0 && n < math.MinInt64-op.By) {
			return r, kv.NotApplied(kv.CodeConflict, "the sum is no 64-bit integer")
		}
		r.Number = n + op.By
		r.Created = x.put(op.Key, func(it *kv.Item) { it.Value = strconv.AppendInt(nil, r.Number, 10) })
	case kv.OpTouch:
		if old == nil {
			return r, kv.NotApplied(kv.CodeNotFound, "there is no such key")
		}
		x.put(op.Key, func(it *kv.Item) { it.ExpiresAt = x.f.now.Add(op.TTL) })
	case kv.OpDelete:
		if old != nil {
			x.changes[op.Key] = nil
			r.Deleted = 1
		}
		return r, nil
	case kv.OpGet:
		if old != nil {
			it := *old
			r.Item = &it
		}
		return r, nil
	case kv.OpRange:
		keys := x.keys(op.Range)
		if op.Reverse {
			slices.Reverse(keys)
		}
		for _, k := range keys {
			if len(r.Items) == op.Limit {
				r.More = true
				break
			}
			it := *x.at(k)
			if op.KeysOnly {
				it.Value = nil
			}
			r.Items = append(r.Items, it)
		}
		return r, nil
	case kv.OpDeleteRange:
		keys := x.keys(op.Range)
		if op.Limit == 0 && len(keys) > kv.MaxTouchedKeys {
			return r, kv.NotApplied(kv.CodeTooLarge, "too many keys")
		}
		for _, k := range keys {
			if op.Limit > 0 && int(r.Deleted) == op.Limit {
				r.More = true
				break
			}
			x.changes[k] = nil
			r.Deleted++
		}
		return r, nil
	}
	r.ModRevision = x.f.rev + 1
	return r, nil
}

func (f *fakeStore) Txn(ctx context.Context, t kv.Txn, timing *kv.Timing) (kv.TxnResult, error) {
	if f.fail != nil {
		return kv.TxnResult{}, f.fail
	}
	if f.onTxn != nil {
		if r, err := f.onTxn(ctx, t); !errors.Is(err, errGoOn) {
			return r, err
		}
	}
	r, err := f.decide(t, timing)
	if f.afterTxn != nil {
		if lost := f.afterTxn(t, r, err); lost != nil {
			return kv.TxnResult{}, lost
		}
	}
	return r, err
}

func (f *fakeStore) decide(t kv.Txn, timing *kv.Timing) (kv.TxnResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	timing.Replicate, timing.Apply = 20*time.Microsecond, 10*time.Microsecond
	f.txns = append(f.txns, t)
	if _, ok := f.keyed[t.Once.Key]; ok {
		return kv.TxnResult{Revision: f.rev}, kv.NotApplied(kv.CodeConflict, "the idempotency key was used for another request")
	}
	if o, ok := f.once[t.Once.Key]; ok && t.Once.Key != "" {
		if o.request != t.Once.Request {
			return kv.TxnResult{Revision: f.rev}, kv.NotApplied(kv.CodeConflict, "the idempotency key was used for another request")
		}
		o.result.Replayed = true
		return o.result, o.err
	}
	r, err := f.applyLocked(t)
	if t.Once.Key != "" {
		f.once[t.Once.Key] = fakeOutcome{t.Once.Request, r, err}
	}
	return r, err
}

func (f *fakeStore) applyLocked(t kv.Txn) (kv.TxnResult, error) {
	x := &fakeTxn{f: f, changes: map[string]*kv.Item{}}
	r := kv.TxnResult{Succeeded: true, Revision: f.rev}
	ops := t.Then
	for _, c := range t.If {
		if !x.holds(c) {
			r.Succeeded, ops = false, t.Else
			if it := x.at(c.Key); it != nil {
				r.FailedRevision = it.ModRevision
			}
			break
		}
	}
	for _, op := range ops {
		res, err := x.do(op)
		if err != nil {
			return kv.TxnResult{Revision: f.rev}, err
		}
		r.Ops = append(r.Ops, res)
	}
	changed := false
	for k, it := range x.changes {
		if it == nil && f.atLocked(k, f.rev) == nil {
			continue
		}
		kind := kv.EventPut
		if it == nil {
			kind = kv.EventDelete
		}
		f.hist[k] = append(f.hist[k], fakeVersion{f.rev + 1, it, kind})
		changed = true
	}
	if changed {
		f.rev++
		r.Revision = f.rev
		f.announceLocked()
	}
	return r, nil
}

// readableLocked is the revision that a read with o is of.
func (f *fakeStore) readableLocked(o kv.ReadOptions) (kv.Revision, error) {
	f.reads = append(f.reads, o)
	switch {
	case o.Revision == 0:
		return f.rev, nil
	case o.Revision > f.rev:
		return 0, kv.Errorf(kv.CodeInvalidArgument, "revision %d has not been reached", o.Revision)
	case o.Revision < f.oldest:
		return 0, &kv.Error{Code: kv.CodeCompacted, Msg: "that revision is compacted", OldestRevision: f.oldest}
	}
	return o.Revision, nil
}

func (f *fakeStore) Get(ctx context.Context, key string, o kv.ReadOptions, timing *kv.Timing) (kv.Item, kv.Revision, error) {
	if f.fail != nil {
		return kv.Item{}, 0, f.fail
	}
	if f.onGet != nil {
		if it, rev, err := f.onGet(ctx, key, o); !errors.Is(err, errGoOn) {
			return it, rev, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	timing.Read = time.Millisecond
	rev, err := f.readableLocked(o)
	if err != nil {
		return kv.Item{}, 0, err
	}
	it := f.atLocked(key, rev)
	if it == nil {
		return kv.Item{}, rev, kv.Errorf(kv.CodeNotFound, "no such key")
	}
	return *it, rev, nil
}

func (f *fakeStore) Scan(ctx context.Context, q kv.Scan, o kv.ReadOptions, timing *kv.Timing) (Scanner, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	if f.onScan != nil {
		if s, err := f.onScan(ctx, q, o); !errors.Is(err, errGoOn) {
			return s, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	timing.Read = time.Millisecond
	rev, err := f.readableLocked(o)
	if err != nil {
		return nil, err
	}
	return &fakeScanner{rev: rev, entries: f.scanLocked(q, rev)}, nil
}

func (f *fakeStore) scanLocked(q kv.Scan, rev kv.Revision) []kv.ScanEntry {
	var keys []string
	for k := range f.hist {
		if q.Range.Contains(k) && f.atLocked(k, rev) != nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if q.Reverse {
		slices.Reverse(keys)
	}
	var entries []kv.ScanEntry
	for _, k := range keys {
		if q.Delimiter != "" && len(k) >= len(q.Prefix) {
			if i := strings.Index(k[len(q.Prefix):], q.Delimiter); i >= 0 {
				p := k[:len(q.Prefix)+i+len(q.Delimiter)]
				if n := len(entries); n == 0 || entries[n-1].CommonPrefix != p {
					entries = append(entries, kv.ScanEntry{CommonPrefix: p})
				}
				continue
			}
		}
		it := *f.atLocked(k, rev)
		if q.KeysOnly {
			it.Value = nil
		}
		entries = append(entries, kv.ScanEntry{Item: it})
	}
	return entries
}

type fakeScanner struct {
	rev     kv.Revision
	entries []kv.ScanEntry
	at      int
	onNext  func(n int) error
	err     error
	closed  bool
}

func (s *fakeScanner) Revision() kv.Revision { return s.rev }
func (s *fakeScanner) Next() bool {
	if s.onNext != nil {
		if s.err = s.onNext(s.at); s.err != nil {
			return false
		}
	}
	if s.at == len(s.entries) {
		return false
	}
	s.at++
	return true
}
func (s *fakeScanner) Entry() *kv.ScanEntry { return &s.entries[s.at-1] }
func (s *fakeScanner) Err() error           { return s.err }
func (s *fakeScanner) Close()               { s.closed = true }

func (f *fakeStore) Watch(ctx context.Context, w kv.Watch) (Watcher, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	if f.onWatch != nil {
		if x, err := f.onWatch(ctx, w); !errors.Is(err, errGoOn) {
			return x, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	next := w.From
	switch {
	case next == 0:
		next = f.rev + 1
	case next > f.rev+1:
		return nil, kv.Errorf(kv.CodeInvalidArgument, "revision %d has not been reached", next)
	case next < f.oldest:
		return nil, &kv.Error{Code: kv.CodeCompacted, Msg: "that revision is compacted", OldestRevision: f.oldest}
	}
	f.watchers++
	return &fakeWatcher{f: f, w: w, began: f.rev, next: next}, nil
}

type fakeWatcher struct {
	f     *fakeStore
	w     kv.Watch
	began kv.Revision
	next  kv.Revision // the first that was not told
	once  sync.Once
}

func (w *fakeWatcher) Revision() kv.Revision { return w.began }

func (w *fakeWatcher) Next(ctx context.Context) (kv.WatchBatch, error) {
	var progress <-chan time.Time
	if w.w.Progress > 0 {
		t := time.NewTimer(w.w.Progress)
		defer t.Stop()
		progress = t.C
	}
	for {
		b, changed, err := w.look()
		if err != nil || len(b.Events) > 0 {
			return b, err
		}
		select {
		case <-changed:
		case <-progress:
			return b, nil
		case <-ctx.Done():
			return kv.WatchBatch{}, ctx.Err()
		}
	}
}

func (w *fakeWatcher) look() (kv.WatchBatch, <-chan struct{}, error) {
	f := w.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.next < f.oldest {
		return kv.WatchBatch{}, nil, &kv.Error{Code: kv.CodeCompacted, Msg: "fell behind", OldestRevision: f.oldest}
	}
	b := kv.WatchBatch{Revision: f.rev}
	for rev := w.next; rev <= f.rev; rev++ {
		var keys []string
		for k := range f.hist {
			if w.w.Range.Contains(k) {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			for _, v := range f.hist[k] {
				if v.rev != rev {
					continue
				}
				e := &kv.Event{Type: v.kind, Revision: rev, Item: kv.Item{Key: k}}
				if v.item != nil {
					e.Item = *v.item
				}
				if w.w.Previous {
					e.Previous = f.atLocked(k, rev-1)
				}
				b.Events = append(b.Events, e)
			}
		}
	}
	w.next = f.rev + 1
	return b, f.changed, nil
}

func (w *fakeWatcher) Close() {
	w.once.Do(func() {
		w.f.mu.Lock()
		defer w.f.mu.Unlock()
		w.f.watchers--
	})
}

func (f *fakeStore) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watchers
}

// keyedOutcome is what was decided under an idempotency key, about no transaction.
type keyedOutcome struct {
	request [32]byte
	v       any
	err     error
}

// keyed does what once names, unless it was done before. What is no decision is not remembered.
func keyed[T any](f *fakeStore, once kv.Once, do func() (T, error)) (v T, replayed bool, err error) {
	if f.fail != nil {
		return v, false, f.fail
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if once.Key == "" {
		v, err = do()
		return v, false, err
	}
	o, done := f.keyed[once.Key]
	if _, txn := f.once[once.Key]; txn || done && o.request != once.Request {
		return v, false, kv.NotApplied(kv.CodeConflict, "the key is another request's")
	}
	if done {
		return o.v.(T), true, o.err
	}
	v, err = do()
	if err == nil || kv.AsError(err).Code == kv.CodeNotFound {
		f.keyed[once.Key] = keyedOutcome{once.Request, v, err}
	}
	if f.afterKeyed != nil {
		if lost := f.afterKeyed(); lost != nil {
			return v, false, lost
		}
	}
	return v, false, err
}

func (f *fakeStore) setLoseEnds(lose bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loseEnds = lose
}

func (f *fakeStore) setTerm(term uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.term = term
}

func (f *fakeStore) Begin(_ context.Context, once kv.Once, member bool) (kv.Operation, error) {
	op, again, err := keyed(f, once, func() (kv.Operation, error) { return kv.Operation{Term: f.term, Member: member, Tries: 1}, nil })
	if err != nil || !again || op.Status != 0 {
		return op, err
	}
	op.Tries++
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.keyed[once.Key]
	o.v = op
	f.keyed[once.Key] = o
	return op, nil
}

func (f *fakeStore) End(_ context.Context, end kv.Ending) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loseEnds {
		return kv.NotApplied(kv.CodeNoLeader, "lost")
	}
	o := f.keyed[end.Once.Key]
	op := o.v.(kv.Operation)
	op.Status, op.Body = end.Status, end.Body
	o.v = op
	if end.Status != 0 {
		f.keyed[end.Once.Key] = o
	} else if op.Tries == 1 {
		delete(f.keyed, end.Once.Key)
	}
	return nil
}

func (f *fakeStore) Compact(_ context.Context, rev kv.Revision, once kv.Once) (kv.Compaction, bool, error) {
	return keyed(f, once, func() (kv.Compaction, error) {
		if rev > f.rev {
			return kv.Compaction{}, kv.Errorf(kv.CodeInvalidArgument, "revision %d has not been reached", rev)
		}
		c := kv.Compaction{To: max(rev, f.oldest)}
		for id, p := range f.pins {
			if p.Revision < c.To {
				c.To = p.Revision
				c.HeldBy = append(c.HeldBy, id)
			}
		}
		f.oldest = c.To
		return c, nil
	})
}

func (f *fakeStore) Pin(_ context.Context, rev kv.Revision, ttl time.Duration, once kv.Once) (kv.Pin, bool, error) {
	return keyed(f, once, func() (kv.Pin, error) {
		if rev < f.oldest {
			return kv.Pin{}, &kv.Error{Code: kv.CodeCompacted, Msg: "that revision is compacted", OldestRevision: f.oldest}
		}
		p := kv.Pin{ID: "pin-" + strconv.Itoa(len(f.pins)+1), Revision: rev, ExpiresAt: f.now.Add(ttl)}
		f.pins[p.ID] = p
		return p, nil
	})
}

func (f *fakeStore) Unpin(_ context.Context, id string, once kv.Once) (bool, error) {
	_, replayed, err := keyed(f, once, func() (struct{}, error) {
		if _, ok := f.pins[id]; !ok {
			return struct{}{}, kv.NotApplied(kv.CodeNotFound, "there is no such pin")
		}
		delete(f.pins, id)
		return struct{}{}, nil
	})
	return replayed, err
}

func (f *fakeStore) Settings() kv.ClusterSettings {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settings
}

func (f *fakeStore) SetSettings(_ context.Context, s kv.ClusterSettings, once kv.Once) (kv.ClusterSettings, bool, error) {
	return keyed(f, once, func() (kv.ClusterSettings, error) {
		f.settings = s
		return s, nil
	})
}

func (f *fakeStore) Revision() kv.Revision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev
}

func (f *fakeStore) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fakeStore) Snapshot(context.Context) (uint64, error) { return 77, f.fail }

func (f *fakeStore) txnCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.txns)
}
