package fsm

import (
	"github.com/settkv/sett/kv"
)

// rangeCost is what opening a second or later range counts, as keys: it is that much
// dearer than one.
const rangeCost = 4

func hasRanges(tx *kv.Txn) bool {
	for _, ops := range [][]kv.Op{tx.Then, tx.Else} {
		for i := range ops {
			if isRange(ops[i].Kind) {
				return true
			}
		}
	}
	return false
}

// visit counts n keys that a range comes by (Invariant 10b: before anything is done
// with them).
func (t *txn) visit(n int) error {
	if t.visited += n; t.visited > maxTouchedKeys {
		return kv.NotApplied(kv.CodeTooLarge, "the ranges of one transaction may come by %d keys at most; name smaller ranges; a delete of its own can also go in pages (atomic=0)", maxTouchedKeys)
	}
	return nil
}

// merge walks the keys of a range as the transaction sees them: those of the store,
// and over them its own.
type merge struct {
	t       *txn
	rng     kv.Range
	reverse bool

	scan recordScan
	// key and rec are the store's next record; rec is nil at its end.
	key string
	rec *record
	// own is the transaction's next key; there is none if more is false.
	own  string
	more bool
}

func (t *txn) merge(r kv.Range, reverse, values bool) (*merge, error) {
	if t.ranges++; t.ranges > 1 {
		if err := t.visit(rangeCost); err != nil {
			return nil, err
		}
	}
	m := &merge{t: t, rng: r, reverse: reverse, scan: t.src.scan(r, reverse, values)}
	if err := m.nextStored(); err != nil {
		m.close()
		return nil, err
	}
	m.nextOwn("", false)
	return m, nil
}

func (m *merge) close() { m.scan.close() }

func (m *merge) nextStored() (err error) {
	m.key, m.rec, err = m.scan.next()
	return err
}

// nextOwn finds the transaction's next key after last, or its first in the range.
func (m *merge) nextOwn(last string, after bool) {
	m.own, m.more = "", false
	take := func(k string) bool {
		if after && k == last {
			return true
		}
		m.own, m.more = k, m.rng.Contains(k)
		return false
	}
	switch {
	case !m.reverse && after:
		m.t.sorted.AscendGreaterOrEqual(last, take)
	case !m.reverse:
		m.t.sorted.AscendGreaterOrEqual(m.rng.Start, take)
	case after:
		m.t.sorted.DescendLessOrEqual(last, take)
	case m.rng.End == "":
		m.t.sorted.Descend(take)
	default:
		last, after = m.rng.End, true
		m.t.sorted.DescendLessOrEqual(last, take)
	}
}

// next returns the next key that exists, and what the transaction holds of it; p is nil
// if that is nothing yet, and rec the store's record then. key is empty at the end.
func (m *merge) next() (key string, p *pending, rec *record, err error) {
	for {
		var own bool
		switch {
		case m.rec == nil && !m.more:
			return "", nil, nil, nil
		case m.rec == nil:
			own = true
		case !m.more:
		case m.reverse:
			own = m.own >= m.key
		default:
			own = m.own <= m.key
		}
		if err := m.t.visit(1); err != nil {
			return "", nil, nil, err
		}
		if !own {
			key, rec = m.key, m.rec
			return key, nil, rec, m.nextStored()
		}
		key = m.own
		if m.rec != nil && m.key == key {
			if err := m.nextStored(); err != nil {
				return "", nil, nil, err
			}
		}
		m.nextOwn(key, true)
		if p := m.t.keys[key]; p.cur != nil {
			return key, p, nil, nil
		}
	}
}

func (t *txn) readRange(op *kv.Op) (kv.OpResult, error) {
	res := kv.OpResult{Kind: op.Kind}
	m, err := t.merge(op.Range, op.Reverse, !op.KeysOnly)
	if err != nil {
		return res, err
	}
	defer m.close()
	for {
		key, p, rec, err := m.next()
		if err != nil || key == "" {
			return res, err
		}
		if len(res.Items) == op.Limit {
			res.More = true
			return res, nil
		}
		if p != nil {
			rec = p.cur
		}
		t.bytes += len(key)
		if !op.KeysOnly {
			t.bytes += int(rec.size)
		}
		if t.bytes > maxTouchedBytes {
			return res, errTouched()
		}
		r := *rec
		switch {
		case op.KeysOnly:
			r.value = nil
		case !r.loaded:
			if r.value, err = t.src.load(key, rec); err != nil {
				return res, err
			}
		}
		it := r.item(key)
		if op.KeysOnly {
			it.Value = nil
		}
		res.Items = append(res.Items, *it)
	}
}

func (t *txn) deleteRange(op *kv.Op) (kv.OpResult, error) {
	res := kv.OpResult{Kind: op.Kind}
	// Without the values: 100 000 keys may have gigabytes of them, and all that a delete
	// needs of one is its hash.
	m, err := t.merge(op.Range, false, false)
	if err != nil {
		return res, err
	}
	defer m.close()
	for {
		key, p, rec, err := m.next()
		if err != nil || key == "" {
			return res, err
		}
		if op.Limit > 0 && res.Deleted == uint64(op.Limit) {
			res.More = true
			return res, nil
		}
		if p == nil {
			p = t.enter(key, rec)
		}
		if t.bytes += len(key); t.bytes > maxTouchedBytes {
			return res, errTouched()
		}
		p.cur, p.touched = nil, true
		res.Deleted++
	}
}
