package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// Outcomes of writes with an idempotency key are remembered by the state machine, so
// that a repeat is answered as the first one was (ADR 0011). One that changed something
// is written in that revision's transaction; one that changed nothing waits in the
// small state for the next revision. Everything here is a function of state and log.
const (
	onceHashBytes  = 16
	outcomeVersion = 1
	// onceKeep is how long an outcome is remembered, in cluster milliseconds: a little
	// longer than promised.
	onceKeep   = uint64((kv.OnceWindow + 10*time.Second) / time.Millisecond)
	onceWindow = uint64(kv.OnceWindow / time.Millisecond)
	// outcomeOverheadBytes is what an outcome counts besides its content.
	outcomeOverheadBytes = 96
	// groupOutcomes is how many outcomes stand in one group at most.
	groupOutcomes = 2000
)

// onceLimits bound the table; they are constants of the format (Invariant 10a). Tests
// make them small.
type onceLimits struct {
	outcomes     uint64
	bytes        uint64
	waiting      int // outcomes that changed nothing since the last revision
	waitingBytes int
}

func defaultOnceLimits() onceLimits {
	return onceLimits{outcomes: 16 << 20, bytes: 2 << 30, waiting: 64_000, waitingBytes: 8 << 20}
}

// onceTable is what the outcomes on disk come to; it is part of a revision's state.
// Groups head to tail-1 are there.
type onceTable struct {
	Count uint64 `json:"count"`
	Bytes uint64 `json:"bytes"`
	Head  uint64 `json:"head"`
	Tail  uint64 `json:"tail"`
}

func (e *encoder) onceTable(t onceTable) {
	for _, n := range [...]uint64{t.Count, t.Bytes, t.Head, t.Tail} {
		e.uvarint(n)
	}
}

func (d *decoder) onceTable() onceTable {
	return onceTable{Count: d.uvarint(), Bytes: d.uvarint(), Head: d.uvarint(), Tail: d.uvarint()}
}

type onceHash [onceHashBytes]byte

// hashOnce names an idempotency key in 16 bytes: to meet another's takes 2^64 tries,
// and then the request's hash still differs.
func hashOnce(key string) onceHash {
	sum := sha256.Sum256([]byte(key))
	return onceHash(sum[:onceHashBytes])
}

// outcome is a remembered decision.
type outcome struct {
	hash    onceHash
	request onceHash
	decided uint64 // cluster milliseconds
	seq     uint64 // of its group, once it is written
	size    uint64 // of the body, in bytes
	body    []byte // nil if it is in pieces and not loaded
}

func (o *outcome) live(clock uint64) bool { return o.decided+onceKeep > clock }

func (o *outcome) bytes() uint64 { return o.size + outcomeOverheadBytes }

// encode returns the outcome's record with the given body beside it, which is empty if
// the body is in pieces.
func (o *outcome) encode(body []byte) []byte {
	e := encoder{b: make([]byte, 0, 64+len(body))}
	e.byte(outcomeVersion)
	e.b = append(e.b, o.hash[:]...)
	e.b = append(e.b, o.request[:]...)
	e.uvarint(o.decided)
	e.uvarint(o.seq)
	e.uvarint(o.size)
	e.b = append(e.b, body...)
	return e.b
}

func decodeOutcome(b []byte) (*outcome, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != outcomeVersion {
		return nil, fmt.Errorf("outcome format version %d: %w", v, kv.ErrUnknownVersion)
	}
	o := &outcome{}
	o.hash, o.request = d.onceHash(), d.onceHash()
	o.decided, o.seq, o.size = d.uvarint(), d.uvarint(), d.uvarint()
	switch {
	case d.err != nil:
		return nil, fmt.Errorf("decode outcome: %w", d.err)
	case uint64(len(d.b)) == o.size:
		o.body = d.b
	case len(d.b) != 0 || o.size <= pieceBytes:
		return nil, fmt.Errorf("decode outcome: %w", errMalformed)
	}
	return o, nil
}

func outcomeKey(h onceHash) []byte { return append([]byte{prefixOutcome}, h[:]...) }

func outcomePieceKey(h onceHash, i uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte{prefixOutcomePiece}, h[:]...), i)
}

func (o *outcome) piece(i uint32) []byte { return outcomePieceKey(o.hash, i) }

func groupKey(seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixOutcomeGroup}, seq)
}

// group lists the outcomes that were written together.
type group struct {
	decided uint64 // of the newest of them
	hashes  []onceHash
}

func (g *group) encode() []byte {
	e := encoder{b: make([]byte, 0, 16+len(g.hashes)*onceHashBytes)}
	e.byte(outcomeVersion)
	e.uvarint(g.decided)
	e.uvarint(uint64(len(g.hashes)))
	for i := range g.hashes {
		e.b = append(e.b, g.hashes[i][:]...)
	}
	return e.b
}

func decodeGroup(b []byte) (*group, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != outcomeVersion {
		return nil, fmt.Errorf("outcome group format version %d: %w", v, kv.ErrUnknownVersion)
	}
	g := &group{decided: d.uvarint()}
	n := d.count(onceHashBytes)
	for range n {
		g.hashes = append(g.hashes, onceHash(d.b[:onceHashBytes]))
		d.b = d.b[onceHashBytes:]
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("decode outcome group: %w", err)
	}
	return g, nil
}

// onceOverlay is what a batch has written of the table and the reader does not see. A
// nil pointer is something that was taken away.
type onceOverlay struct {
	outcomes map[onceHash]*outcome
	groups   map[uint64]*group
}

func newOnceOverlay() onceOverlay {
	return onceOverlay{outcomes: map[onceHash]*outcome{}, groups: map[uint64]*group{}}
}

// outcome returns what is remembered under h, nil if nothing is.
func (b *batch) outcome(h onceHash) (o *outcome, err error) {
	if o, ok := b.once.outcomes[h]; ok {
		return o, nil
	}
	_, err = b.reader.GetFunc(outcomeKey(h), func(v []byte, _ uint64) error {
		if o, err = decodeOutcome(v); err != nil {
			return damaged(err, "a remembered outcome cannot be read")
		}
		return nil
	})
	return o, err
}

// outcomeBody returns the whole of what o remembers.
func (b *batch) outcomeBody(o *outcome) ([]byte, error) {
	if o.body != nil || o.size == 0 {
		return o.body, nil
	}
	return readPieces(b.reader, o.size, o.piece)
}

func (b *batch) group(seq uint64) (g *group, err error) {
	if g, ok := b.once.groups[seq]; ok {
		return g, nil
	}
	found, err := b.reader.GetFunc(groupKey(seq), func(v []byte, _ uint64) error {
		if g, err = decodeGroup(v); err != nil {
			return damaged(err, "a group of remembered outcomes cannot be read")
		}
		return nil
	})
	if err == nil && !found {
		err = kv.Errorf(kv.CodeCorruption, "group %d of the remembered outcomes is missing", seq)
	}
	return g, err
}

// wait keeps an outcome that changed nothing until the next revision.
func (s *small) wait(o *outcome) {
	s.waiting = append(s.waiting, o)
	s.waitingBy[o.hash] = o
	s.waitingBytes += int(o.bytes())
}

func (s *small) forgetWaiting() {
	s.waiting, s.waitingBy, s.waitingBytes = nil, map[onceHash]*outcome{}, 0
}

// dropWaiting takes away what waits for longer than it is remembered.
func (s *small) dropWaiting() {
	n := 0
	for n < len(s.waiting) && !s.waiting[n].live(s.clock) {
		o := s.waiting[n]
		if s.waitingBy[o.hash] == o {
			delete(s.waitingBy, o.hash)
		}
		s.waitingBytes -= int(o.bytes())
		n++
	}
	s.waiting = s.waiting[n:]
}

func errOnceFull() *kv.Error {
	e := kv.NotApplied(kv.CodeOverloaded, "the cluster remembers as many outcomes of idempotency keys as it can; try again later, or without a key")
	e.RetryAfter = 5 * time.Second
	return e
}

// onceHead is what stands before a command with an idempotency key.
type onceHead struct {
	hash    onceHash
	request onceHash
	born    uint64 // cluster milliseconds at which the leader took it; 0: not known
}

func (e *encoder) once(o kv.Once, born uint64) {
	h := hashOnce(o.Key)
	e.b = append(e.b, h[:]...)
	e.b = append(e.b, o.Request[:onceHashBytes]...)
	e.uvarint(born)
}

func (d *decoder) onceHash() (h onceHash) {
	if len(d.b) < onceHashBytes {
		d.fail()
		return h
	}
	copy(h[:], d.b)
	d.b = d.b[onceHashBytes:]
	return h
}

func (d *decoder) once() onceHead {
	return onceHead{hash: d.onceHash(), request: d.onceHash(), born: d.uvarint()}
}

// late says that an earlier try of the command may be forgotten.
func (h *onceHead) late(clock uint64) bool { return h.born > 0 && clock > h.born+onceWindow }

func errOnceOther() *kv.Error {
	return kv.NotApplied(kv.CodeConflict, "the idempotency key was used for another request; choose a new one")
}

func errOnceLate() *kv.Error {
	return kv.NotApplied(kv.CodeTimeout, "the write came too late for its idempotency key: an earlier try may be forgotten; read before trying again")
}

// applyOnce applies a transaction with an idempotency key, unless its outcome is
// remembered: then it is answered with that.
func (f *FSM) applyOnce(b **batch, pos position, cmd []byte) (Result, error) {
	d := decoder{b: cmd}
	head := d.once()
	if d.err != nil {
		return Result{}, fmt.Errorf("decode command: %w", d.err)
	}
	o := &outcome{hash: head.hash, request: head.request, decided: f.small.clock}
	refuse := func(e *kv.Error) (Result, error) {
		return Result{Err: e, Txn: kv.TxnResult{Revision: f.rev}}, nil
	}

	if f.small.keyed(o.hash) != nil {
		return refuse(errOnceOther())
	}
	f.small.dropWaiting()
	was, err := f.remembered(*b, o.hash)
	if err != nil {
		return Result{}, err
	}
	if was != nil {
		if was.request != o.request {
			return refuse(errOnceOther())
		}
		return f.replay(*b, was)
	}
	switch full, err := f.onceFull(*b); {
	case err != nil:
		return Result{}, err
	case head.late(f.small.clock):
		return refuse(errOnceLate())
	case full:
		return refuse(errOnceFull())
	}

	t, res, err := f.evaluate(b, d.b)
	if err != nil {
		return Result{}, err
	}
	changes := t != nil && t.changes()
	if changes {
		res.Txn.Revision = t.rev
	}
	o.body = EncodeResult(&res)
	o.size = uint64(len(o.body))
	if changes {
		return res, f.commit(*b, t, pos, o)
	}
	if len(f.small.waiting) >= f.limits.waiting || f.small.waitingBytes+int(o.bytes()) > f.limits.waitingBytes {
		return refuse(errOnceFull())
	}
	f.small.wait(o)
	return res, nil
}

// remembered returns the outcome of a transaction under h, nil if there is none or it is past its time.
func (f *FSM) remembered(b *batch, h onceHash) (*outcome, error) {
	o := f.small.waitingBy[h]
	if o == nil {
		var err error
		if o, err = b.outcome(h); err != nil {
			return nil, err
		}
	}
	if o == nil || !o.live(f.small.clock) {
		return nil, nil
	}
	return o, nil
}

func (f *FSM) replay(b *batch, o *outcome) (Result, error) {
	body, err := b.outcomeBody(o)
	if err != nil {
		return Result{}, err
	}
	res, err := DecodeResult(body)
	if err != nil {
		return Result{}, damaged(err, "a remembered outcome cannot be read")
	}
	res.Txn.Replayed = true
	return res, nil
}

// onceFull says that the table has no room, and nothing in it may be forgotten yet.
func (f *FSM) onceFull(b *batch) (bool, error) {
	if f.once.Count+uint64(len(f.small.waiting)) < f.limits.outcomes && f.once.Bytes+uint64(f.small.waitingBytes) < f.limits.bytes {
		return false, nil
	}
	if f.once.Head == f.once.Tail {
		return true, nil
	}
	g, err := b.group(f.once.Head)
	if err != nil {
		return false, err
	}
	return g.decided+onceKeep > f.small.clock, nil
}

// remember appends what the revision that is being made has to write of the table: the
// outcomes that waited, o, and the end of about twice as many that are past their time.
func (f *FSM) remember(b *batch, entries []engine.Entry, o *outcome) ([]engine.Entry, error) {
	f.small.dropWaiting()
	fresh := f.small.waiting
	if o != nil {
		fresh = append(fresh[:len(fresh):len(fresh)], o)
	}
	if len(fresh) == 0 || mutantOnceForgotten {
		return entries, nil
	}
	next := make(map[onceHash]*outcome, len(fresh))
	for _, o := range fresh {
		next[o.hash] = o
	}
	entries, err := f.forget(b, entries, next, 2*len(fresh))
	if err != nil {
		return nil, err
	}
	for len(fresh) > 0 {
		n := min(len(fresh), groupOutcomes)
		g := &group{decided: fresh[n-1].decided}
		for _, o := range fresh[:n] {
			o.seq = f.once.Tail
			g.hashes = append(g.hashes, o.hash)
			if entries, err = f.writeOutcome(b, entries, o); err != nil {
				return nil, err
			}
		}
		entries = append(entries, engine.Entry{Key: groupKey(f.once.Tail), Value: g.encode()})
		b.once.groups[f.once.Tail] = g
		f.once.Tail++
		fresh = fresh[n:]
	}
	f.small.forgetWaiting()
	return entries, nil
}

// writeOutcome appends one outcome. It may take the place of one that is past its time.
func (f *FSM) writeOutcome(b *batch, entries []engine.Entry, o *outcome) ([]engine.Entry, error) {
	old, err := b.outcome(o.hash)
	if err != nil {
		return nil, err
	}
	pieces := piecesOf(o.size)
	body := o.body
	if pieces > 0 {
		body = nil
	}
	entries = append(entries, engine.Entry{Key: outcomeKey(o.hash), Value: o.encode(body)})
	entries = appendPieces(entries, o.body, pieces, o.piece)
	if old != nil {
		entries = appendPieceDeletes(entries, pieces, piecesOf(old.size), o.piece)
		f.once.Count--
		f.once.Bytes -= old.bytes()
	}
	f.once.Count++
	f.once.Bytes += o.bytes()
	b.once.outcomes[o.hash] = o
	return entries, nil
}

// forget appends the end of the oldest outcomes that are past their time, about most of
// them, but not of those that next takes the place of.
func (f *FSM) forget(b *batch, entries []engine.Entry, next map[onceHash]*outcome, most int) ([]engine.Entry, error) {
	for done := 0; done < most && f.once.Head < f.once.Tail; f.once.Head++ {
		seq := f.once.Head
		g, err := b.group(seq)
		if err != nil {
			return nil, err
		}
		if g.decided+onceKeep > f.small.clock {
			break
		}
		for _, h := range g.hashes {
			done++
			o, err := b.outcome(h)
			if err != nil {
				return nil, err
			}
			if o == nil || o.seq != seq || next[h] != nil {
				continue
			}
			entries = append(entries, engine.Entry{Key: outcomeKey(h), Delete: true})
			entries = appendPieceDeletes(entries, 0, piecesOf(o.size), o.piece)
			f.once.Count--
			f.once.Bytes -= o.bytes()
			b.once.outcomes[h] = nil
		}
		entries = append(entries, engine.Entry{Key: groupKey(seq), Delete: true})
		b.once.groups[seq] = nil
	}
	return entries, nil
}
