package fsm

import (
	"bytes"
	"crypto/sha256"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/google/btree"

	"github.com/settkv/sett/kv"
)

// Result is what the state machine answers to one command. Err is set if the
// command was decided against: nothing changed then.
type Result struct {
	Txn kv.TxnResult
	Err *kv.Error
	// Pin, Compaction and Settings answer the commands of those names, Operation that of EncodeBegin.
	Pin        kv.Pin
	Compaction kv.Compaction
	Settings   kv.ClusterSettings
	Operation  kv.Operation
	// Took is how long this node spent on the delivery that the command was part of;
	// for people, and not part of the state.
	Took time.Duration
}

// source reads the state that a transaction starts from.
type source interface {
	// record returns the key's record, nil if absent. Its value may not be loaded.
	record(key string) (*record, error)
	// load returns the record's whole value.
	load(key string, r *record) ([]byte, error)
	// scan walks the records of a range, without their values unless asked for them.
	scan(r kv.Range, reverse, values bool) recordScan
}

// recordScan is a walk over records. next returns a nil record at the end.
type recordScan interface {
	next() (key string, r *record, err error)
	close()
}

// pending is a key's state before and inside a transaction.
type pending struct {
	old, cur *record // nil: absent
	touched  bool    // an operation changed it, perhaps to the same
	valueSet bool    // an operation gave it a value
	expire   bool
}

// txn evaluates one transaction on a source. It is pure: what it decides depends on
// the source, the clock, the settings and the operations only (Invariant 14).
type txn struct {
	src      source
	rev      kv.Revision // the revision it will have if it changes anything
	clock    uint64
	maxValue uint64

	keys  map[string]*pending
	order []string
	bytes int
	// held is the size of the old values that are kept until the end, and visited the
	// number of keys that ranges came by; ranges is how many there were.
	held    int
	visited int
	ranges  int
	// sorted has the keys of the map in order; nil without range operations.
	sorted *btree.BTreeG[string]
}

func newTxn(src source, rev kv.Revision, s *small) *txn {
	return &txn{src: src, rev: rev, clock: s.clock, maxValue: s.settings.MaxValueBytes, keys: map[string]*pending{}}
}

func (t *txn) at(key string) (*pending, error) {
	if p := t.keys[key]; p != nil {
		return p, nil
	}
	r, err := t.src.record(key)
	if err != nil {
		return nil, err
	}
	return t.enter(key, r), nil
}

// maxHeldBytes is how much of old values a transaction keeps in memory; beyond it they
// are read again where they are needed, which changes no decision.
const maxHeldBytes = 4 << 20

// enter notes a key with its record as it is before the transaction.
func (t *txn) enter(key string, r *record) *pending {
	if r != nil && r.loaded {
		if t.held += len(r.value); t.held > maxHeldBytes {
			bare := *r
			bare.value, bare.loaded = nil, false
			r = &bare
		}
	}
	p := &pending{old: r, cur: r}
	t.keys[key] = p
	t.order = append(t.order, key)
	if t.sorted != nil {
		t.sorted.ReplaceOrInsert(key)
	}
	return p
}

// value returns the whole value of the key's current record.
func (t *txn) value(key string, p *pending) ([]byte, error) {
	if p.cur == nil {
		return nil, nil
	}
	if p.cur.loaded {
		return p.cur.value, nil
	}
	v, err := t.src.load(key, p.cur)
	if err != nil {
		return nil, err
	}
	r := *p.cur
	r.value, r.loaded = v, true
	if p.old == p.cur && t.held+len(v) <= maxHeldBytes {
		t.held += len(v)
		p.old = &r
	}
	p.cur = &r
	return v, nil
}

func (t *txn) item(key string, p *pending) (*kv.Item, error) {
	if p.cur == nil {
		return nil, nil
	}
	if _, err := t.value(key, p); err != nil {
		return nil, err
	}
	return p.cur.item(key), nil
}

// run evaluates tx. A *kv.Error is the state machine's decision; another error is a
// failure of the database.
func (t *txn) run(tx *kv.Txn) (kv.TxnResult, error) {
	res := kv.TxnResult{Succeeded: true}
	// Invariant 10b: count first.
	if n := len(tx.If) + max(len(tx.Then), len(tx.Else)); n > maxTouchedKeys {
		return res, errManyOps(n)
	}
	if hasRanges(tx) {
		t.sorted = btree.NewOrderedG[string](32)
	}
	for i := range tx.If {
		ok, mod, err := t.holds(&tx.If[i])
		if err != nil {
			return res, err
		}
		if !ok {
			res.Succeeded, res.FailedRevision = false, mod
			break
		}
	}
	ops := tx.Then
	if !res.Succeeded {
		ops = tx.Else
	}
	for i := range ops {
		r, err := t.op(&ops[i])
		if err != nil {
			return res, err
		}
		res.Ops = append(res.Ops, r)
		if t.bytes > maxTouchedBytes {
			return res, errTouched()
		}
	}
	return res, nil
}

func errTouched() error {
	return kv.NotApplied(kv.CodeTooLarge, "a transaction may touch %d bytes at most; split it", maxTouchedBytes)
}

func (t *txn) holds(c *kv.Cond) (ok bool, mod kv.Revision, err error) {
	p, err := t.at(c.Key)
	if err != nil {
		return false, 0, err
	}
	var create, version uint64
	if p.cur != nil {
		mod, create, version = p.cur.mod, uint64(p.cur.create), p.cur.version
	}
	switch c.Target {
	case kv.CondModRevision:
		ok = compare(uint64(mod), c.Op, c.Number)
	case kv.CondCreateRevision:
		ok = compare(create, c.Op, c.Number)
	case kv.CondVersion:
		ok = compare(version, c.Op, c.Number)
	case kv.CondExists:
		ok = (p.cur != nil) == (c.Number == 1)
	case kv.CondValue:
		if p.cur != nil && p.cur.size == uint64(len(c.Value)) {
			v, err := t.value(c.Key, p)
			if err != nil {
				return false, mod, err
			}
			ok = bytes.Equal(v, c.Value)
		}
	}
	return ok, mod, nil
}

func compare(a uint64, op kv.CondOp, b uint64) bool {
	switch op {
	case kv.CmpEqual:
		return a == b
	case kv.CmpNotEqual:
		return a != b
	case kv.CmpLess:
		return a < b
	case kv.CmpGreater:
		return a > b
	case kv.CmpLessEqual:
		return a <= b
	case kv.CmpGreaterEqual:
		return a >= b
	}
	return false
}

func (t *txn) op(op *kv.Op) (kv.OpResult, error) {
	res := kv.OpResult{Kind: op.Kind}
	switch op.Kind {
	case kv.OpRange:
		return t.readRange(op)
	case kv.OpDeleteRange:
		return t.deleteRange(op)
	}
	p, err := t.at(op.Key)
	if err != nil {
		return res, err
	}
	if op.Previous || op.Kind == kv.OpGet {
		// Counted before it is read: the limit bounds the work and the answer.
		if p.cur != nil {
			if t.bytes += int(p.cur.size); t.bytes > maxTouchedBytes {
				return res, errTouched()
			}
		}
		it, err := t.item(op.Key, p)
		if err != nil {
			return res, err
		}
		if op.Kind == kv.OpGet {
			res.Item = it
			return res, nil
		}
		res.Previous = it
	}
	switch op.Kind {
	case kv.OpPut:
		res.Created = t.creates(p)
		err = t.set(op.Key, p, record{contentType: op.ContentType, expires: t.expiry(op), value: op.Value})
	case kv.OpDelete:
		if p.cur != nil {
			res.Deleted = 1
			t.bytes += len(op.Key)
			p.cur, p.touched = nil, true
		}
	case kv.OpIncr:
		res.Number, res.Created, err = t.incr(op, p)
	case kv.OpAppend:
		res.Created = t.creates(p)
		err = t.appendValue(op, p)
	case kv.OpTouch:
		if p.cur == nil {
			return res, kv.NotApplied(kv.CodeNotFound, "touch: there is no such key")
		}
		// A value beside its header is written again with it.
		if p.cur.pieces() == 0 {
			if _, err := t.value(op.Key, p); err != nil {
				return res, err
			}
		}
		r := *p.cur
		r.expires = t.expiry(op)
		t.change(op.Key, p, &r)
	}
	if p.cur != nil {
		res.ModRevision = p.cur.mod
	}
	return res, err
}

// creates says whether a change of p makes a key: the net effect counts, so one that was
// there before the transaction is never made.
func (*txn) creates(p *pending) bool { return p.old == nil && p.cur == nil }

// expiry is when what op writes ends. Never in the past: there the expiry index is not looked at again.
func (t *txn) expiry(op *kv.Op) uint64 {
	switch {
	case !op.ExpiresAt.IsZero():
		return max(millis(op.ExpiresAt), t.clock+1)
	case op.TTL <= 0:
		return 0
	}
	return t.clock + uint64(op.TTL/time.Millisecond)
}

func (t *txn) incr(op *kv.Op, p *pending) (n int64, created bool, err error) {
	r := record{}
	if p.cur != nil {
		// No int64 is longer than 20 characters: a big value is not even read.
		if p.cur.size > 20 {
			return 0, false, kv.NotApplied(kv.CodeConflict, "incr: the value is not a 64-bit decimal integer")
		}
		v, err := t.value(op.Key, p)
		if err != nil {
			return 0, false, err
		}
		if n, err = strconv.ParseInt(string(v), 10, 64); err != nil {
			return 0, false, kv.NotApplied(kv.CodeConflict, "incr: the value is not a 64-bit decimal integer")
		}
		r.contentType, r.expires = p.cur.contentType, p.cur.expires
	}
	if (op.By > 0 && n > math.MaxInt64-op.By) || (op.By < 0 && n < math.MinInt64-op.By) {
		return 0, false, kv.NotApplied(kv.CodeConflict, "incr: %d plus %d overflows a 64-bit integer", n, op.By)
	}
	n += op.By
	created = t.creates(p)
	r.value = strconv.AppendInt(nil, n, 10)
	return n, created, t.set(op.Key, p, r)
}

func (t *txn) appendValue(op *kv.Op, p *pending) error {
	r := record{contentType: op.ContentType, value: op.Value}
	if p.cur != nil {
		// Before the old value is read: the limit bounds the work.
		if t.maxValue > 0 && p.cur.size+uint64(len(op.Value)) > t.maxValue {
			return t.tooBig(p.cur.size + uint64(len(op.Value)))
		}
		v, err := t.value(op.Key, p)
		if err != nil {
			return err
		}
		t.bytes += len(v)
		r.value = append(v[:len(v):len(v)], op.Value...)
		r.contentType, r.expires = p.cur.contentType, p.cur.expires
	}
	return t.set(op.Key, p, r)
}

func (t *txn) tooBig(size uint64) error {
	return kv.NotApplied(kv.CodeTooLarge, "the value would take %d bytes, more than max-value-bytes (%d)", size, t.maxValue)
}

// set makes r, whose value is given, the key's record.
func (t *txn) set(key string, p *pending, r record) error {
	r.size = uint64(len(r.value))
	if t.maxValue > 0 && r.size > t.maxValue {
		return t.tooBig(r.size)
	}
	r.valueHash = sha256.Sum256(r.value)
	r.loaded = true
	t.bytes += len(r.value)
	p.valueSet = true
	t.change(key, p, &r)
	return nil
}

// change stores r with the attributes that follow from the net effect: several
// changes of one key are one change of what was there before the transaction.
func (t *txn) change(key string, p *pending, r *record) {
	r.mod, r.create, r.version = t.rev, t.rev, 1
	if p.old != nil {
		r.create, r.version = p.old.create, p.old.version+1
	}
	t.bytes += len(key)
	p.cur, p.touched = r, true
}

// unmade corrects what the results of a transaction that changes nothing in effect say of
// its revision: there is none, and the next transaction will have that number.
func (t *txn) unmade(r *kv.TxnResult, decided kv.Revision) {
	fix := func(revs ...*kv.Revision) {
		for _, rev := range revs {
			if *rev == t.rev {
				*rev = decided
			}
		}
	}
	for i := range r.Ops {
		o := &r.Ops[i]
		fix(&o.ModRevision)
		for _, it := range []*kv.Item{o.Item, o.Previous} {
			if it != nil {
				fix(&it.ModRevision, &it.CreateRevision)
			}
		}
		for j := range o.Items {
			fix(&o.Items[j].ModRevision, &o.Items[j].CreateRevision)
		}
	}
}

// changed lists the keys that the transaction changes in effect, in the order of
// their first mention. A key that was made and deleted inside it is none.
func (t *txn) changed() []string {
	out := t.order[:0:0]
	for _, k := range t.order {
		if t.keys[k].changed() {
			out = append(out, k)
		}
	}
	return out
}

// changes says whether there are any.
func (t *txn) changes() bool {
	return slices.ContainsFunc(t.order, func(k string) bool { return t.keys[k].changed() })
}

func (p *pending) changed() bool { return p.touched && (p.old != nil || p.cur != nil) }
