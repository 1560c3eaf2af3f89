package fsm

import (
	"fmt"
	"math"
	"time"

	"github.com/settkv/sett/kv"
)

// resultVersion is the format of remembered results.
const resultVersion = 1

// The flags of a result.
const (
	resultFailed = 1 << iota
	resultSucceeded
	resultReplayed // only on its way to another node
)

// The flags of an operation's result.
const (
	opCreated = 1 << iota
	opMore
	opHasItem
	opHasPrevious
)

// EncodeResult writes a transaction's result, or the error that was decided, so that a
// repeat, or the node that forwarded the transaction, gets the same.
func EncodeResult(r *Result) []byte {
	var e encoder
	e.byte(resultVersion)
	var flags byte
	if r.Txn.Replayed {
		flags = resultReplayed
	}
	if r.Err != nil {
		e.byte(flags | resultFailed)
		e.uvarint(uint64(r.Txn.Revision))
		e.string(string(r.Err.Code))
		e.string(r.Err.Msg)
		e.uvarint(uint64(r.Err.CurrentRevision))
		e.uvarint(uint64(r.Err.OldestRevision))
		e.uvarint(uint64(r.Err.RetryAfter / time.Millisecond))
		return e.b
	}
	t := &r.Txn
	if t.Succeeded {
		flags |= resultSucceeded
	}
	e.byte(flags)
	e.uvarint(uint64(t.Revision))
	e.uvarint(uint64(t.FailedRevision))
	e.uvarint(uint64(len(t.Ops)))
	for i := range t.Ops {
		e.opResult(&t.Ops[i])
	}
	return e.b
}

func (e *encoder) opResult(o *kv.OpResult) {
	e.byte(byte(o.Kind))
	var flags byte
	if o.Created {
		flags |= opCreated
	}
	if o.More {
		flags |= opMore
	}
	if o.Item != nil {
		flags |= opHasItem
	}
	if o.Previous != nil {
		flags |= opHasPrevious
	}
	e.byte(flags)
	e.uvarint(uint64(o.ModRevision))
	e.uvarint(o.Deleted)
	e.varint(o.Number)
	for _, it := range []*kv.Item{o.Item, o.Previous} {
		if it != nil {
			e.item(it)
		}
	}
	e.uvarint(uint64(len(o.Items)))
	for i := range o.Items {
		e.item(&o.Items[i])
	}
}

func (e *encoder) item(it *kv.Item) {
	e.string(it.Key)
	e.bool(it.Value != nil)
	if it.Value != nil {
		e.bytes(it.Value)
	}
	e.uvarint(uint64(it.CreateRevision))
	e.uvarint(uint64(it.ModRevision))
	e.uvarint(it.Version)
	e.string(it.ContentType)
	var ms uint64
	if !it.ExpiresAt.IsZero() {
		ms = millis(it.ExpiresAt)
	}
	e.uvarint(ms)
}

// DecodeResult reads what EncodeResult wrote.
func DecodeResult(b []byte) (Result, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != resultVersion {
		return Result{}, fmt.Errorf("result format version %d: %w", v, kv.ErrUnknownVersion)
	}
	var r Result
	flags := d.byte()
	r.Txn.Replayed = flags&resultReplayed != 0
	r.Txn.Revision = kv.Revision(d.uvarint())
	if flags&resultFailed != 0 {
		e := &kv.Error{Code: kv.Code(d.string()), Outcome: kv.OutcomeNotApplied, Msg: d.string()}
		e.CurrentRevision, e.OldestRevision = kv.Revision(d.uvarint()), kv.Revision(d.uvarint())
		after := d.uvarint()
		if after > math.MaxInt32 {
			d.fail()
		}
		e.RetryAfter = time.Duration(after) * time.Millisecond
		r.Err = e
	} else {
		r.Txn.Succeeded = flags&resultSucceeded != 0
		r.Txn.FailedRevision = kv.Revision(d.uvarint())
		n := d.count(6)
		for range n {
			r.Txn.Ops = append(r.Txn.Ops, d.opResult())
		}
	}
	if err := d.end(); err != nil {
		return Result{}, fmt.Errorf("decode result: %w", err)
	}
	return r, nil
}

func (d *decoder) opResult() kv.OpResult {
	o := kv.OpResult{Kind: kv.OpKind(d.byte())}
	flags := d.byte()
	o.Created, o.More = flags&opCreated != 0, flags&opMore != 0
	o.ModRevision, o.Deleted, o.Number = kv.Revision(d.uvarint()), d.uvarint(), d.varint()
	if flags&opHasItem != 0 {
		it := d.item()
		o.Item = &it
	}
	if flags&opHasPrevious != 0 {
		it := d.item()
		o.Previous = &it
	}
	n := d.count(7)
	for range n {
		o.Items = append(o.Items, d.item())
	}
	return o
}

func (d *decoder) item() kv.Item {
	it := kv.Item{Key: d.string()}
	if d.bool() {
		it.Value = append([]byte{}, d.bytes()...)
	}
	it.CreateRevision, it.ModRevision, it.Version = kv.Revision(d.uvarint()), kv.Revision(d.uvarint()), d.uvarint()
	it.ContentType, it.ExpiresAt = d.string(), timeOf(d.uvarint())
	return it
}
