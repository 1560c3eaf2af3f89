package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// modelKeys are chosen so that prefixes, bounds and neighbours meet.
var modelKeys = []string{"a", "a\x00", "a/1", "a/2", "b/", "b/1", "b0", "\xff", "\xff\xff", "c", "d/x", "d/y/z"}

// model is what a state machine should hold, and how it should decide.
type model struct {
	rev    kv.Revision
	clock  uint64
	keys   map[string]kv.Item
	past   map[kv.Revision]map[string]kv.Item
	once   map[string]modelOutcome
	pins   []kv.Pin
	keyed  map[string]modelKeyed
	oldest kv.Revision
}

// modelKeyed is what is remembered of a pin with an idempotency key.
type modelKeyed struct {
	request [32]byte
	decided uint64
	pin     kv.Pin
}

func (o *model) keyedLive(key string) (modelKeyed, bool) {
	k, ok := o.keyed[key]
	return k, ok && k.decided+onceKeep > o.clock
}

type modelOutcome struct {
	request [32]byte
	decided uint64
	res     kv.TxnResult
	code    kv.Code
}

func newModel() *model {
	return &model{clock: 1_000_000, keys: map[string]kv.Item{}, past: map[kv.Revision]map[string]kv.Item{0: {}}, once: map[string]modelOutcome{}, keyed: map[string]modelKeyed{}}
}

// txn decides about a transaction. A code other than "" is the error it ends with.
func (o *model) txn(tx kv.Txn) (kv.TxnResult, kv.Code) {
	if k := tx.Once.Key; k != "" {
		if _, live := o.keyedLive(k); live {
			return kv.TxnResult{Revision: o.rev}, kv.CodeConflict
		}
		if was, ok := o.once[k]; ok && was.decided+onceKeep > o.clock {
			if was.request != tx.Once.Request {
				return kv.TxnResult{Revision: o.rev}, kv.CodeConflict
			}
			was.res.Replayed = true
			return was.res, was.code
		}
	}
	res, code := o.decide(tx)
	if k := tx.Once.Key; k != "" {
		o.once[k] = modelOutcome{tx.Once.Request, o.clock, res, code}
	}
	return res, code
}

func (o *model) decide(tx kv.Txn) (kv.TxnResult, kv.Code) {
	res := kv.TxnResult{Succeeded: true}
	for _, c := range tx.If {
		it, exists := o.keys[c.Key]
		var ok bool
		switch c.Target {
		case kv.CondModRevision:
			ok = compare(uint64(it.ModRevision), c.Op, c.Number)
		case kv.CondExists:
			ok = exists == (c.Number == 1)
		case kv.CondValue:
			ok = exists && bytes.Equal(it.Value, c.Value)
		}
		if !ok {
			res.Succeeded, res.FailedRevision = false, it.ModRevision
			break
		}
	}
	ops := tx.Then
	if !res.Succeeded {
		ops = tx.Else
	}
	w := &modelWork{o: o, next: maps.Clone(o.keys), touched: map[string]bool{}}
	for i := range ops {
		r, code := w.op(&ops[i])
		if code != "" {
			return kv.TxnResult{Revision: o.rev}, code
		}
		res.Ops = append(res.Ops, r)
	}
	next := o.rev + 1
	o.commit(w)
	res.Revision = o.rev
	if o.rev < next {
		// Nothing has the next revision: what the results say of it is of the last.
		past := func(revs ...*kv.Revision) {
			for _, r := range revs {
				*r = min(*r, o.rev)
			}
		}
		for i := range res.Ops {
			r := &res.Ops[i]
			past(&r.ModRevision)
			for _, it := range []*kv.Item{r.Item, r.Previous} {
				if it != nil {
					past(&it.ModRevision, &it.CreateRevision)
				}
			}
			for j := range r.Items {
				past(&r.Items[j].ModRevision, &r.Items[j].CreateRevision)
			}
		}
	}
	return res, ""
}

func (o *model) commit(w *modelWork) {
	for k := range w.touched {
		_, before := o.keys[k]
		if _, after := w.next[k]; before || after {
			o.rev++
			o.keys = w.next
			o.past[o.rev] = w.next
			return
		}
	}
}

// expire deletes the keys that are due, oldest first.
func (o *model) expire(limit int) int {
	var due []kv.Item
	for _, it := range o.keys {
		if !it.ExpiresAt.IsZero() && millis(it.ExpiresAt) < o.clock {
			due = append(due, it)
		}
	}
	slices.SortFunc(due, func(a, b kv.Item) int {
		if c := a.ExpiresAt.Compare(b.ExpiresAt); c != 0 {
			return c
		}
		return strings.Compare(a.Key, b.Key)
	})
	due = due[:min(limit, len(due))]
	w := &modelWork{o: o, next: maps.Clone(o.keys), touched: map[string]bool{}}
	for _, it := range due {
		delete(w.next, it.Key)
		w.touched[it.Key] = true
	}
	o.commit(w)
	return len(due)
}

func (o *model) advance(ms uint64) {
	o.clock += ms
	o.pins = slices.DeleteFunc(o.pins, func(p kv.Pin) bool { return millis(p.ExpiresAt) < o.clock })
}

func (o *model) compact(rev kv.Revision) kv.Revision {
	for _, p := range o.pins {
		rev = min(rev, p.Revision)
	}
	o.oldest = max(o.oldest, rev)
	return o.oldest
}

// modelWork is a transaction under way.
type modelWork struct {
	o       *model
	next    map[string]kv.Item
	touched map[string]bool
}

func (w *modelWork) creates(key string) bool {
	_, before := w.o.keys[key]
	_, now := w.next[key]
	return !before && !now
}

func (w *modelWork) set(key string, it kv.Item) kv.Revision {
	it.Key, it.CreateRevision, it.ModRevision, it.Version = key, w.o.rev+1, w.o.rev+1, 1
	if old, ok := w.o.keys[key]; ok {
		it.CreateRevision, it.Version = old.CreateRevision, old.Version+1
	}
	w.next[key] = it
	w.touched[key] = true
	return it.ModRevision
}

func (w *modelWork) within(r kv.Range, reverse bool) []string {
	var keys []string
	for k := range w.next {
		if r.Contains(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	if reverse {
		slices.Reverse(keys)
	}
	return keys
}

func (w *modelWork) expiry(op *kv.Op) time.Time {
	switch {
	case !op.ExpiresAt.IsZero():
		return timeOf(max(millis(op.ExpiresAt), w.o.clock+1))
	case op.TTL == 0:
		return time.Time{}
	}
	return timeOf(w.o.clock + uint64(op.TTL/time.Millisecond))
}

func (w *modelWork) op(op *kv.Op) (kv.OpResult, kv.Code) {
	r := kv.OpResult{Kind: op.Kind}
	old, exists := w.next[op.Key]
	if exists && op.Kind == kv.OpGet {
		r.Item = &old
	}
	if exists && op.Previous && !isRange(op.Kind) {
		r.Previous = &old
	}
	switch op.Kind {
	case kv.OpPut:
		r.Created = w.creates(op.Key)
		w.set(op.Key, kv.Item{Value: append([]byte{}, op.Value...), ContentType: op.ContentType, ExpiresAt: w.expiry(op)})
	case kv.OpDelete:
		if exists {
			r.Deleted = 1
			delete(w.next, op.Key)
			w.touched[op.Key] = true
		}
	case kv.OpAppend:
		r.Created = w.creates(op.Key)
		it := kv.Item{Value: append(slices.Clone(old.Value), op.Value...), ContentType: op.ContentType}
		if exists {
			it.ContentType, it.ExpiresAt = old.ContentType, old.ExpiresAt
		}
		w.set(op.Key, it)
	case kv.OpIncr:
		if exists {
			var err error
			if r.Number, err = strconv.ParseInt(string(old.Value), 10, 64); err != nil || len(old.Value) > 20 {
				return r, kv.CodeConflict
			}
		}
		r.Created = w.creates(op.Key)
		r.Number += op.By
		w.set(op.Key, kv.Item{Value: strconv.AppendInt(nil, r.Number, 10), ContentType: old.ContentType, ExpiresAt: old.ExpiresAt})
	case kv.OpTouch:
		if !exists {
			return r, kv.CodeNotFound
		}
		w.set(op.Key, kv.Item{Value: old.Value, ContentType: old.ContentType, ExpiresAt: w.expiry(op)})
	case kv.OpRange:
		for i, k := range w.within(op.Range, op.Reverse) {
			if i == op.Limit {
				r.More = true
				break
			}
			it := w.next[k]
			if op.KeysOnly {
				it.Value = nil
			}
			r.Items = append(r.Items, it)
		}
	case kv.OpDeleteRange:
		for i, k := range w.within(op.Range, false) {
			if op.Limit > 0 && i == op.Limit {
				r.More = true
				break
			}
			delete(w.next, k)
			w.touched[k] = true
			r.Deleted++
		}
	}
	if it, ok := w.next[op.Key]; ok && !isRange(op.Kind) && op.Kind != kv.OpGet {
		r.ModRevision = it.ModRevision
	}
	return r, ""
}

func randomRange(rng *rand.Rand) kv.Range {
	key := func() string { return modelKeys[rng.IntN(len(modelKeys))] }
	switch rng.IntN(4) {
	case 0:
		return kv.PrefixRange(key()[:1])
	case 1:
		return kv.PrefixRange(key())
	case 2:
		return kv.Range{Start: key()}
	}
	return kv.Range{Start: key(), End: key()}
}

func randomOps(rng *rand.Rand) []kv.Op {
	ops := make([]kv.Op, 1+rng.IntN(4))
	for i := range ops {
		op := kv.Op{Key: modelKeys[rng.IntN(len(modelKeys))], Previous: rng.IntN(6) == 0}
		switch rng.IntN(14) {
		case 0, 1, 2:
			op.Kind, op.Value, op.ContentType = kv.OpPut, []byte(strconv.Itoa(rng.IntN(1000))), "t/"+strconv.Itoa(rng.IntN(3))
		case 3:
			// One in four is stored in pieces.
			op.Kind, op.Value = kv.OpPut, bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(1+pieceBytes*4/3))
		case 4:
			op.Kind, op.Value, op.TTL = kv.OpPut, []byte("t"), time.Duration(1+rng.IntN(400))*time.Second
			if rng.IntN(3) == 0 { // around the model's clock
				op.TTL, op.ExpiresAt = 0, timeOf(1_000_000+rng.Uint64N(1_500_000))
			}
		case 5, 6:
			op.Kind = kv.OpDelete
		case 7:
			op.Kind, op.By = kv.OpIncr, rng.Int64N(100)
		case 8:
			op.Kind, op.Value = kv.OpAppend, []byte("+")
		case 9:
			op.Kind, op.TTL = kv.OpTouch, time.Duration(1+rng.IntN(1000))*time.Second
		case 10:
			op.Kind, op.Previous = kv.OpGet, false
		case 11, 12:
			op = kv.Op{Kind: kv.OpRange, Range: randomRange(rng), Limit: 1 + rng.IntN(8), Reverse: rng.IntN(2) == 0, KeysOnly: rng.IntN(2) == 0}
		case 13:
			op = kv.Op{Kind: kv.OpDeleteRange, Range: randomRange(rng), Limit: rng.IntN(4)}
		}
		ops[i] = op
	}
	return ops
}

// randomTxn may repeat one of those before it, under the same idempotency key.
func randomTxn(rng *rand.Rand, before []kv.Txn) kv.Txn {
	if len(before) > 0 && rng.IntN(5) == 0 {
		return before[rng.IntN(len(before))]
	}
	tx := kv.Txn{Then: randomOps(rng)}
	if rng.IntN(3) == 0 {
		tx.If, tx.Else = []kv.Cond{{Key: modelKeys[rng.IntN(len(modelKeys))], Target: kv.CondExists, Op: kv.CmpEqual, Number: rng.Uint64N(2)}}, randomOps(rng)
	}
	if rng.IntN(2) == 0 {
		tx.Once = kv.Once{Key: "key " + strconv.Itoa(rng.IntN(30)), Request: [32]byte{byte(rng.Uint32()), byte(rng.Uint32())}}
	}
	return tx
}

// TestModel runs random operations of every kind against a model, with restarts,
// crashes, snapshots and installs in between, and compares every answer and every kept
// revision. SETT_SEEDS says how many seeds, SETT_SEED repeats one.
func TestModel(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	if s := os.Getenv("SETT_SEEDS"); s != "" {
		var err error
		if seeds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SETT_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		runModel(t, seed)
		return
	}
	first := rand.Uint64()
	t.Logf("%d seeds from %d", seeds, first)
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("SETT_SEED=%d", seed), func(t *testing.T) {
			t.Parallel()
			runModel(t, seed)
		})
	}
}

// modelRun is a machine and the model that it is held to.
type modelRun struct {
	t      *testing.T
	rng    *rand.Rand
	m      *machine
	o      *model
	before []kv.Txn
}

func runModel(t *testing.T, seed uint64) {
	r := &modelRun{t: t, rng: rand.New(rand.NewPCG(seed, 1)), m: newMachine(t), o: newModel()}
	for range 20 + r.rng.IntN(30) {
		r.batch()
		r.event()
	}
	r.m.checkDigest()
	r.compareHistory()
}

// batch delivers some entries at once and compares the answers.
func (r *modelRun) batch() {
	r.t.Helper()
	var logs []Log
	var want [][]Result
	for range 1 + r.rng.IntN(4) {
		var cmds [][]byte
		var rs []Result
		r.o.advance(uint64(r.rng.IntN(3000)))
		if r.rng.IntN(25) == 0 {
			r.o.advance(onceKeep / 2) // some outcomes pass their time
		}
		for range 1 + r.rng.IntN(5) {
			if r.rng.IntN(8) == 0 {
				limit := 1 + r.rng.IntN(3)
				cmds = append(cmds, EncodeExpire(limit))
				n := r.o.expire(limit)
				rs = append(rs, Result{Txn: kv.TxnResult{Succeeded: true, Revision: r.o.rev, Ops: []kv.OpResult{{Kind: kv.OpDelete, Deleted: uint64(n)}}}})
				continue
			}
			tx := randomTxn(r.rng, r.before)
			r.before = append(r.before, tx)
			cmd, err := EncodeTxn(tx, r.o.clock)
			if err != nil {
				r.t.Fatal(err)
			}
			cmds = append(cmds, cmd)
			res, code := r.o.txn(tx)
			w := Result{Txn: res}
			if code != "" {
				w.Err = &kv.Error{Code: code}
			}
			rs = append(rs, w)
		}
		logs = append(logs, r.m.entry(r.o.clock, cmds...))
		want = append(want, rs)
	}
	for i, rs := range r.m.ApplyBatch(logs) {
		for j, got := range rs {
			w := want[i][j]
			got.Took = 0
			if got.Err != nil && w.Err != nil && got.Err.Code == w.Err.Code && got.Err.Outcome == kv.OutcomeNotApplied {
				got.Err, w.Err = nil, nil
				got.Txn = kv.TxnResult{Revision: got.Txn.Revision, Replayed: got.Txn.Replayed}
			}
			if !reflect.DeepEqual(got, w) {
				r.t.Fatalf("entry %d, command %d: %s\nwant %s", logs[i].Index, j, showResult(got), showResult(w))
			}
		}
	}
	if got := r.m.Info().Revision; got != r.o.rev {
		r.t.Fatalf("revision %d, the model is at %d", got, r.o.rev)
	}
}

func showResult(r Result) string {
	s := fmt.Sprintf("%+v", r)
	return s[:min(len(s), 2000)]
}

// event does something beside the writes.
func (r *modelRun) event() {
	m, o := r.m, r.o
	switch r.rng.IntN(14) {
	case 0:
		m.restart()
	case 1:
		m.snapshot()
		m.restart()
	case 2:
		m.snapshot()
	case 3:
		m.crash()
	case 4, 5:
		if o.rev < 3 {
			return
		}
		rev := o.rev - kv.Revision(r.rng.IntN(3))
		if got, want := m.apply(EncodeCompact(rev))[0].Compaction.To, o.compact(rev); got != want {
			r.t.Fatalf("compacted to %d, want %d", got, want)
		}
		if _, err := m.Trim(); err != nil {
			r.t.Fatal(err)
		}
		if err := m.store.Engine().Compact(context.Background()); err != nil {
			r.t.Fatal(err)
		}
	case 6:
		rev := o.oldest + kv.Revision(r.rng.Uint64N(uint64(o.rev-o.oldest)+1))
		ttl := time.Duration(1+r.rng.IntN(20)) * time.Second
		res := m.apply(EncodePin(rev, ttl))[0]
		if res.Err != nil || res.Pin.Revision != rev || millis(res.Pin.ExpiresAt) != o.clock+uint64(ttl/time.Millisecond) {
			r.t.Fatalf("pin of %d: %+v", rev, res)
		}
		o.pins = append(o.pins, res.Pin)
	case 7:
		if len(o.pins) > 0 {
			if res := m.apply(EncodeUnpin(o.pins[0].ID))[0]; res.Err != nil {
				r.t.Fatal(res.Err)
			}
			o.pins = o.pins[1:]
		}
	case 8:
		m.install(r.t)
	case 9, 10:
		r.keyedPin()
	}
	var have []string
	for _, p := range m.small.pins {
		have = append(have, p.ID)
	}
	var want []string
	for _, p := range o.pins {
		want = append(want, p.ID)
	}
	if !slices.Equal(have, want) {
		r.t.Fatalf("pins %v, want %v", have, want)
	}
}

// keyedPin makes a pin under an idempotency key that may have been used, also by a transaction.
func (r *modelRun) keyedPin() {
	r.t.Helper()
	m, o := r.m, r.o
	once := kv.Once{Key: "key " + strconv.Itoa(r.rng.IntN(30)), Request: [32]byte{byte(r.rng.IntN(2))}}
	was, byTxn := o.once[once.Key]
	byTxn = byTxn && was.decided+onceKeep > o.clock
	err := m.OnceUsed(once.Key)
	if used := err != nil && kv.AsError(err).Code == kv.CodeConflict; used != byTxn || (err != nil && !used) {
		r.t.Fatalf("the key of a transaction is in use: want %v: %v", byTxn, err)
	}
	if byTxn {
		return // the leader refuses it
	}
	known, replay := o.keyedLive(once.Key)
	res := m.apply(EncodeKeyed(once, o.clock, EncodePin(o.rev, time.Hour)))[0]
	switch {
	case replay && known.request != once.Request:
		if res.Err == nil || res.Err.Code != kv.CodeConflict {
			r.t.Fatalf("the key of another pin: %+v", res)
		}
	case replay:
		if res.Err != nil || !res.Txn.Replayed || res.Pin != known.pin {
			r.t.Fatalf("a pin again: %+v, want %+v", res, known.pin)
		}
	case res.Err != nil || res.Txn.Replayed || res.Pin.Revision != o.rev:
		r.t.Fatalf("a pin with a key: %+v", res)
	default:
		o.keyed[once.Key] = modelKeyed{once.Request, o.clock, res.Pin}
		o.pins = append(o.pins, res.Pin)
	}
}

// compareHistory reads every key at every kept revision.
func (r *modelRun) compareHistory() {
	r.t.Helper()
	m, o := r.m, r.o
	for rev := max(o.oldest, 1); rev <= o.rev; rev++ {
		for _, key := range modelKeys {
			got, _, err := m.Get(context.Background(), key, rev)
			want, exists := o.past[rev][key]
			if !exists {
				if !errors.Is(err, kv.ErrNotFound) {
					r.t.Fatalf("%q at %d: %v, want not-found", key, rev, err)
				}
				continue
			}
			if err != nil || !reflect.DeepEqual(got, want) {
				r.t.Fatalf("%q at %d: %+v, want %+v: %v", key, rev, short(got), short(want), err)
			}
		}
	}
	if o.oldest > 1 {
		var e *kv.Error
		if _, _, err := m.Get(context.Background(), "a", o.oldest-1); !errors.As(err, &e) || e.Code != kv.CodeCompacted || e.OldestRevision != o.oldest {
			r.t.Fatalf("below the oldest revision %d: %v", o.oldest, err)
		}
	}
}

func short(it kv.Item) kv.Item {
	it.Value = it.Value[:min(8, len(it.Value))]
	return it
}

// crash goes on with a copy of the folder as it is while the machine runs: what a killed
// process leaves.
func (m *machine) crash() {
	m.t.Helper()
	dir := filepath.Join(m.t.TempDir(), "state")
	if err := os.CopyFS(dir, os.DirFS(m.dir)); err != nil {
		m.t.Fatal(err)
	}
	if err := m.store.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.dir = dir
	m.open()
	m.redeliver()
}
