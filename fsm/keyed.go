package fsm

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/settkv/sett/kv"
)

// Commands that change small state (pins, compaction, settings) may carry an idempotency key like
// transactions do. What they decided is remembered in the small state itself and not with the data
// (ADR 0015): a restart applies them again, onto data that may be further than they are, and they must
// decide as they did then.
//
// A leader that does something else under a key, such as a change of members, has noted that it begins, and
// then how it ended (ADR 0016).
const (
	// maxKeyed and maxKeyedBytes bound these outcomes. They are constants of the format (Invariant 10a).
	maxKeyed      = 4000
	maxKeyedBytes = 1 << 20
	// operationRoom and operationRoomBytes are what there is beyond for operations, so that nobody can keep
	// an administrator out with pins.
	operationRoom      = 500
	operationRoomBytes = 256 << 10
	// maxEndBytes bounds the answer of one operation that is noted; one that is longer is not.
	maxEndBytes = 16 << 10
)

// keyedOutcome is a remembered decision about the small state.
type keyedOutcome struct {
	Hash    onceHash        `json:"hash"`
	Request onceHash        `json:"request"`
	Decided uint64          `json:"decided"` // cluster milliseconds
	Answer  json.RawMessage `json:"answer"`  // a keyedAnswer
}

// keyedAnswer is what is remembered of a Result.
type keyedAnswer struct {
	NotFound   string              `json:"not_found,omitempty"` // the message of that error
	Pin        *kv.Pin             `json:"pin,omitempty"`
	Compaction *kv.Compaction      `json:"compaction,omitempty"`
	Settings   *kv.ClusterSettings `json:"settings,omitempty"`
	Operation  *kv.Operation       `json:"operation,omitempty"`
}

func (h onceHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

func (h *onceHash) UnmarshalText(b []byte) error {
	if len(b) != 2*onceHashBytes {
		return errMalformed
	}
	_, err := hex.Decode(h[:], b)
	return err
}

func (o *keyedOutcome) bytes() int { return len(o.Answer) + outcomeOverheadBytes }

// keyed returns what is remembered under h, nil if nothing is.
func (s *small) keyed(h onceHash) *keyedOutcome {
	if o := s.keyedBy[h]; o != nil && o.Decided+onceKeep > s.clock {
		return o
	}
	return nil
}

func (s *small) keep(o *keyedOutcome) {
	s.keyedList = append(s.keyedList, o)
	s.keyedBy[o.Hash] = o
	s.keyedBytes += o.bytes()
}

// change gives was another answer. The label of a snapshot may be reading the old list.
func (s *small) change(was *keyedOutcome, a *keyedAnswer) error {
	answer, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode outcome: %w", err)
	}
	o := *was
	o.Answer = answer
	s.keyedList = slices.Clone(s.keyedList)
	s.keyedList[slices.Index(s.keyedList, was)] = &o
	s.keyedBy[o.Hash] = &o
	s.keyedBytes += o.bytes() - was.bytes()
	return nil
}

// forgetKeyed takes one away before its time.
func (s *small) forgetKeyed(was *keyedOutcome) {
	s.keyedList = slices.DeleteFunc(slices.Clone(s.keyedList), func(o *keyedOutcome) bool { return o == was })
	delete(s.keyedBy, was.Hash)
	s.keyedBytes -= was.bytes()
}

// dropKeyed takes away what is past its time.
func (s *small) dropKeyed() {
	n := 0
	for n < len(s.keyedList) && s.keyedList[n].Decided+onceKeep <= s.clock {
		o := s.keyedList[n]
		if s.keyedBy[o.Hash] == o {
			delete(s.keyedBy, o.Hash)
		}
		s.keyedBytes -= o.bytes()
		n++
	}
	s.keyedList = s.keyedList[n:]
}

// EncodeBegin is the command that notes, before a leader does something that is none of the state machine's,
// that it begins. member says that the member it is about is one. It makes sense in EncodeKeyed only.
func EncodeBegin(member bool) []byte {
	if member {
		return []byte{cmdBegin, 1}
	}
	return []byte{cmdBegin, 0}
}

// EncodeEnd is the command that notes how that ended. With status 0 the key is free again, unless
// the operation was begun again meanwhile.
func EncodeEnd(end kv.Ending) []byte {
	e := encoder{b: make([]byte, 0, len(end.Body)+4)}
	e.byte(cmdEnd)
	e.uvarint(end.Began)
	e.uvarint(uint64(end.Status))
	e.b = append(e.b, end.Body...)
	return EncodeKeyed(end.Once, 0, e.b)
}

// EncodeKeyed gives a command of EncodeSettings, EncodeCompact, EncodePin, EncodeUnpin or EncodeBegin an
// idempotency key. born is as in EncodeTxn.
func EncodeKeyed(o kv.Once, born uint64, cmd []byte) []byte {
	e := encoder{b: make([]byte, 0, len(cmd)+64)}
	e.byte(cmdKeyed)
	e.once(o, born)
	e.b = append(e.b, cmd...)
	return e.b
}

// applyKeyed applies a command of EncodeKeyed, unless its outcome is remembered: then it is answered with
// that. It looks at the small state only; that the key names no transaction is for the leader to see to
// (OnceUsed).
func (f *FSM) applyKeyed(pos position, body []byte) (Result, error) {
	d := decoder{b: body}
	head := d.once()
	if d.err != nil || len(d.b) == 0 {
		return Result{}, fmt.Errorf("decode command: %w", errMalformed)
	}
	refuse := func(e *kv.Error) (Result, error) {
		return Result{Err: e, Txn: kv.TxnResult{Revision: f.rev}}, nil
	}
	f.small.dropKeyed()
	was := f.small.keyed(head.hash)
	switch kind := d.b[0]; {
	case was != nil && was.Request != head.request:
		return refuse(errOnceOther())
	case kind == cmdEnd:
		return f.applyEnd(was, d.b[1:])
	case was != nil:
		return f.replayKeyed(was, kind)
	}
	if head.late(f.small.clock) {
		return refuse(errOnceLate())
	}
	kind, most, mostBytes := d.b[0], maxKeyed, maxKeyedBytes
	if kind == cmdBegin {
		most, mostBytes = most+operationRoom, mostBytes+operationRoomBytes
	}
	if len(f.small.keyedList) >= most || f.small.keyedBytes >= mostBytes {
		return refuse(errOnceFull())
	}
	r, err := f.applySmall(pos, kind, d.b[1:])
	if err != nil {
		return Result{}, err
	}
	a, final := keyedAnswerOf(kind, &r)
	if !final {
		return r, nil
	}
	answer, err := json.Marshal(a)
	if err != nil {
		return Result{}, fmt.Errorf("encode outcome: %w", err)
	}
	f.small.keep(&keyedOutcome{Hash: head.hash, Request: head.request, Decided: f.small.clock, Answer: answer})
	return r, nil
}

// keyedAnswerOf is what is remembered of r; final is false if it is nothing, because the same command may
// succeed later.
func keyedAnswerOf(kind byte, r *Result) (a keyedAnswer, final bool) {
	switch {
	case r.Err != nil:
		a.NotFound = r.Err.Msg
		return a, r.Err.Code == kv.CodeNotFound
	case kind == cmdPin:
		a.Pin = &r.Pin
	case kind == cmdCompact:
		a.Compaction = &r.Compaction
	case kind == cmdSettings:
		a.Settings = &r.Settings
	case kind == cmdBegin:
		a.Operation = &r.Operation
	}
	return a, true
}

// applyEnd notes how an operation ended. was is what is remembered of it: nil if it is past its time. The first
// answer stays.
func (f *FSM) applyEnd(was *keyedOutcome, body []byte) (Result, error) {
	d := decoder{b: body}
	began, status := d.uvarint(), d.uvarint()
	if d.err != nil || status > 999 {
		return Result{}, fmt.Errorf("decode end: %w", errMalformed)
	}
	done := Result{Txn: kv.TxnResult{Succeeded: true, Revision: f.rev}}
	if was == nil {
		return done, nil
	}
	var a keyedAnswer
	if err := json.Unmarshal(was.Answer, &a); err != nil {
		return Result{}, damaged(err, "a remembered outcome cannot be read")
	}
	switch {
	case a.Operation == nil || a.Operation.Began != began || a.Operation.Status != 0 || len(d.b) > maxEndBytes:
		return done, nil
	case status == 0 && a.Operation.Tries == 1:
		f.small.forgetKeyed(was)
		return done, nil
	case status == 0:
		return done, nil
	}
	a.Operation.Status, a.Operation.Body = int(status), d.b
	return done, f.small.change(was, &a)
}

// replayKeyed answers with what is remembered. An operation that has no answer yet is begun again.
func (f *FSM) replayKeyed(o *keyedOutcome, kind byte) (Result, error) {
	var a keyedAnswer
	if err := json.Unmarshal(o.Answer, &a); err != nil {
		return Result{}, damaged(err, "a remembered outcome cannot be read")
	}
	r := Result{Txn: kv.TxnResult{Revision: f.rev, Succeeded: true, Replayed: true}}
	if a.NotFound != "" {
		r.Txn.Succeeded, r.Err = false, kv.NotApplied(kv.CodeNotFound, "%s", a.NotFound)
	}
	if a.Pin != nil {
		r.Pin = *a.Pin
	}
	if a.Compaction != nil {
		r.Compaction = *a.Compaction
	}
	if a.Settings != nil {
		r.Settings = *a.Settings
	}
	if a.Operation != nil {
		if kind == cmdBegin && a.Operation.Status == 0 {
			a.Operation.Tries++
			if err := f.small.change(o, &a); err != nil {
				return Result{}, err
			}
		}
		r.Operation = *a.Operation
	}
	return r, nil
}

// OnceUsed is the conflict that there is if the newest applied state remembers a transaction under this
// idempotency key, nil otherwise.
func (f *FSM) OnceUsed(key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.err(); err != nil {
		return err
	}
	b, err := f.newBatch()
	if err != nil {
		return err
	}
	defer b.close()
	o, err := f.remembered(b, hashOnce(key))
	if err == nil && o != nil {
		err = errOnceOther()
	}
	return err
}
