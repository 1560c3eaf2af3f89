package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// Log is a Raft log entry as far as the state machine sees it.
type Log struct {
	Index, Term uint64
	// Configuration says that Data is an encoded Raft configuration.
	Configuration bool
	Data          []byte
}

// batch is the work on one delivery of entries: reads come from the revision at its
// start and from what it wrote since.
type batch struct {
	f       *FSM
	reader  *engine.Reader
	overlay map[string]*record // nil record: deleted
	once    onceOverlay
}

func (f *FSM) newBatch() (*batch, error) {
	r, err := f.store.Engine().ReadAt(uint64(f.rev))
	if err != nil {
		return nil, fmt.Errorf("read revision %d: %w", f.rev, err)
	}
	return &batch{f: f, reader: r, overlay: map[string]*record{}, once: newOnceOverlay()}, nil
}

func (b *batch) close() { b.reader.Close() }

// record implements source.
func (b *batch) record(key string) (*record, error) {
	if r, ok := b.overlay[key]; ok {
		return r, nil
	}
	return readRecord(b.reader, key)
}

// load implements source.
func (b *batch) load(key string, r *record) ([]byte, error) {
	if o := b.overlay[key]; o != nil && o.mod == r.mod && o.loaded {
		return o.value, nil
	}
	return readValue(b.reader, key, r)
}

// scan implements source. What the batch has written must be readable: see rebase.
func (b *batch) scan(r kv.Range, reverse, values bool) recordScan {
	start, end := dataRange(r)
	return &diskScan{values: values, it: b.reader.Scan(engine.ScanOptions{Start: start, End: end, Reverse: reverse})}
}

// diskScan implements recordScan.
type diskScan struct {
	it     *engine.Iterator
	values bool
}

func (s *diskScan) next() (string, *record, error) {
	if !s.it.Next() {
		return "", nil, s.it.Err()
	}
	r, err := decodeRecord(s.it.Value(), s.it.Version())
	if err != nil {
		return "", nil, damaged(err, "a key's record cannot be read")
	}
	switch {
	case !s.values:
		r.value, r.loaded = nil, false
	case r.loaded:
		r.value = bytes.Clone(r.value)
	}
	return string(s.it.Key()[1:]), r, nil
}

func (s *diskScan) close() { s.it.Close() }

// ApplyBatch applies committed entries in order. Each entry of commands is answered
// by one Result a command (a chunk that commits nothing: none). When it returns,
// everything is visible and survives the death of the process.
func (f *FSM) ApplyBatch(logs []Log) [][]Result {
	out := make([][]Result, len(logs))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.phase("apply", true)
	defer f.phase("apply", false)
	start := time.Now()
	err := f.err()
	if err == nil {
		if err = f.applyLocked(logs, out); err != nil {
			f.fatal(err)
		}
		f.hear(start)
	}
	if err != nil {
		for i := range out {
			out[i] = []Result{{Err: kv.Unknown(err, "the leader's data store failed before the write was acknowledged")}}
		}
	}
	took := time.Since(start)
	for _, results := range out {
		for i := range results {
			results[i].Took = took
		}
	}
	return out
}

func (f *FSM) applyLocked(logs []Log, out [][]Result) error {
	b, err := f.newBatch()
	if err != nil {
		return err
	}
	defer func() { b.close() }()
	for i, l := range logs {
		if l.Index <= f.delivered {
			// Raft never does this; an entry applied twice would be a wrong answer.
			return fmt.Errorf("entry %d was delivered again after %d", l.Index, f.delivered)
		}
		if l.Configuration {
			f.configuration, f.configurationIndex = l.Data, l.Index
		} else if out[i], err = f.applyEntry(&b, l); err != nil {
			return fmt.Errorf("apply entry %d: %w", l.Index, err)
		}
		f.delivered, f.deliveredTerm = l.Index, l.Term
	}
	eng := f.store.Engine()
	if err := eng.Flush(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	eng.Publish(uint64(f.rev))
	f.publish()
	f.setDiscard()
	return nil
}

// applyEntry applies one entry. It may replace *b.
func (f *FSM) applyEntry(b **batch, l Log) ([]Result, error) {
	en, err := decodeEntry(l.Data)
	if err != nil {
		return nil, err
	}
	f.small.enter(l.Index, l.Term, en.stamp)
	cmds := en.commands
	if en.kind == entryChunk {
		cmd, ok := f.small.stage(l.Index, &en)
		switch {
		case !ok && en.chunkLast:
			return []Result{{Err: kv.NotApplied(kv.CodeOverloaded, "parts of the write were dropped before it was complete; try again")}}, nil
		case !ok || !en.chunkLast:
			return nil, nil
		}
		cmds = [][]byte{cmd}
	}
	results := make([]Result, len(cmds))
	for i, c := range cmds {
		pos := position{l.Index, l.Term, uint64(i) + 1}
		if results[i], err = f.applyCommand(b, pos, c); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// applyCommand applies one command. Small state always follows the log; data is
// skipped where the database has it already (Invariant 11).
func (f *FSM) applyCommand(b **batch, pos position, cmd []byte) (Result, error) {
	if len(cmd) == 0 {
		return Result{}, fmt.Errorf("decode command: %w", errMalformed)
	}
	kind, body := cmd[0], cmd[1:]
	done := pos.index < f.applied.index || (pos.index == f.applied.index && pos.sub <= f.applied.sub)
	if mutantApplyAgain {
		done = false
	}
	switch kind {
	case cmdTxn:
		if done {
			return Result{}, nil
		}
		return f.applyTxn(b, pos, body)
	case cmdOnce:
		if done {
			return Result{}, nil
		}
		return f.applyOnce(b, pos, body)
	case cmdExpire:
		if done {
			return Result{}, nil
		}
		return f.applyExpire(b, pos, body)
	case cmdKeyed:
		return f.applyKeyed(pos, body)
	case cmdSettings, cmdCompact, cmdPin, cmdUnpin:
		return f.applySmall(pos, kind, body)
	case cmdLead:
		var c leadCommand
		if err := json.Unmarshal(body, &c); err != nil {
			return Result{}, fmt.Errorf("decode lead: %w", err)
		}
		f.small.clock = max(f.small.clock, c.Clock)
		f.small.leader = c.ServerID
	case cmdInit:
		var c initCommand
		if err := json.Unmarshal(body, &c); err != nil {
			return Result{}, fmt.Errorf("decode init: %w", err)
		}
		if f.small.clusterID == "" {
			f.small.clusterID, f.small.clusterName, f.small.settings = c.ClusterID, c.ClusterName, c.Settings
		}
	case cmdMember:
		var r kv.MemberRecord
		if err := json.Unmarshal(body, &r); err != nil {
			return Result{}, fmt.Errorf("decode member: %w", err)
		}
		// Readers hold the old map.
		m := maps.Clone(f.small.records)
		m[r.ServerID] = r
		f.small.records = m
	default:
		// A command that this version does not know must not be skipped: the nodes
		// would no longer be equal.
		return Result{}, fmt.Errorf("command kind %d: %w", kind, kv.ErrUnknownVersion)
	}
	return Result{Txn: kv.TxnResult{Succeeded: true, Revision: f.rev}}, nil
}

// applySmall applies a command that somebody may give an idempotency key and that changes the small
// state. What it decides depends on nothing else (Invariant 11).
func (f *FSM) applySmall(pos position, kind byte, body []byte) (Result, error) {
	r := Result{Txn: kv.TxnResult{Succeeded: true, Revision: f.rev}}
	d := decoder{b: body}
	switch kind {
	case cmdSettings:
		var s kv.ClusterSettings
		if err := json.Unmarshal(body, &s); err != nil {
			return Result{}, fmt.Errorf("decode settings: %w", err)
		}
		f.small.settings, r.Settings = s, s
	case cmdCompact:
		rev := kv.Revision(d.uvarint())
		if err := d.end(); err != nil {
			return Result{}, fmt.Errorf("decode compact: %w", err)
		}
		r.Compaction = f.small.compactTo(rev)
	case cmdPin:
		rev, ttl := kv.Revision(d.uvarint()), d.uvarint()
		if err := d.end(); err != nil {
			return Result{}, fmt.Errorf("decode pin: %w", err)
		}
		r.Pin, r.Err = f.small.pin(pos, rev, ttl)
	case cmdUnpin:
		if !f.small.unpin(string(body)) {
			r.Err = kv.NotApplied(kv.CodeNotFound, "there is no such pin; it may have ended by itself")
		}
	case cmdBegin:
		if len(body) != 1 {
			return Result{}, fmt.Errorf("decode begin: %w", errMalformed)
		}
		r.Operation = kv.Operation{Term: pos.term, Began: pos.index, Member: body[0] == 1, Tries: 1}
	default:
		return Result{}, fmt.Errorf("command kind %d with an idempotency key: %w", kind, kv.ErrUnknownVersion)
	}
	return r, nil
}

func (f *FSM) applyTxn(b **batch, pos position, body []byte) (Result, error) {
	t, res, err := f.evaluate(b, body)
	if err != nil || res.Err != nil {
		return res, err
	}
	if err := f.commit(*b, t, pos, nil); err != nil {
		return Result{}, err
	}
	res.Txn.Revision = f.rev
	return res, nil
}

// evaluate decides about a transaction and changes nothing. Result.Err is the state
// machine's decision against it; t is what is to be committed otherwise.
func (f *FSM) evaluate(b **batch, body []byte) (t *txn, res Result, err error) {
	tx, err := decodeTxn(&decoder{b: body})
	if err != nil {
		return nil, Result{}, err
	}
	if hasRanges(&tx) {
		if err := f.rebase(b); err != nil {
			return nil, Result{}, err
		}
	}
	t = newTxn(*b, f.rev+1, f.small)
	r, err := t.run(&tx)
	if err != nil {
		var e *kv.Error
		if errors.As(err, &e) && e.Outcome == kv.OutcomeNotApplied {
			return nil, Result{Err: e, Txn: kv.TxnResult{Revision: f.rev}}, nil
		}
		return nil, Result{}, err
	}
	r.Revision = f.rev
	if !t.changes() {
		t.unmade(&r, f.rev)
	}
	return t, Result{Txn: r}, nil
}

// applyExpire deletes the keys that are due, oldest first: those whose time is before the clock, since at the same
// millisecond a part of it may be left. It scans the expiry index,
// so what the batch has written must be visible first.
func (f *FSM) applyExpire(b **batch, pos position, body []byte) (Result, error) {
	d := decoder{b: body}
	limit := d.uvarint()
	if err := d.end(); err != nil || limit < 1 || limit > MaxExpire {
		return Result{}, fmt.Errorf("decode expire: %w", errMalformed)
	}
	if err := f.rebase(b); err != nil {
		return Result{}, err
	}
	t := newTxn(*b, f.rev+1, f.small)
	it := (*b).reader.Scan(engine.ScanOptions{Start: f.expiryStart(), End: expiryKey(f.small.clock, ""), KeysOnly: true})
	var due []string
	low := expiryKey(f.small.clock, "")
	for it.Next() {
		_, key, ok := decodeExpiryKey(it.Key())
		if ok && len(due) == int(limit) {
			low = bytes.Clone(it.Key())
			break
		}
		if !ok {
			it.Close()
			return Result{}, errors.New("the expiry index has a malformed key")
		}
		due = append(due, key)
	}
	err := it.Err()
	it.Close()
	if err != nil {
		return Result{}, err
	}
	for _, key := range due {
		p, err := t.at(key)
		if err != nil {
			return Result{}, err
		}
		if p.cur == nil || p.cur.expires == 0 || p.cur.expires >= f.small.clock {
			// Equal on all nodes if it ever happens, so not damage of this one's disk.
			return Result{}, fmt.Errorf("the expiry index names a key that does not expire before %d", f.small.clock)
		}
		p.cur, p.touched, p.expire = nil, true, true
	}
	if err := f.commit(*b, t, pos, nil); err != nil {
		return Result{}, err
	}
	f.raiseExpiryLow(low)
	return Result{Txn: kv.TxnResult{Succeeded: true, Revision: f.rev, Ops: []kv.OpResult{{Kind: kv.OpDelete, Deleted: uint64(len(due))}}}}, nil
}

// rebase makes everything the batch wrote readable in the database.
func (f *FSM) rebase(b **batch) error {
	if len((*b).overlay) == 0 {
		return nil
	}
	if err := f.store.Engine().Flush(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	// Only the engine may be asked for these revisions: readers go by f.pub.
	f.store.Engine().Publish(uint64(f.rev))
	next, err := f.newBatch()
	if err != nil {
		return err
	}
	(*b).close()
	*b = next
	return nil
}

// commit writes what t changes as the next revision: data, change index, the state
// that goes with it (Invariant 10), the outcomes that waited for a revision, and o, if
// not nil. A transaction that changes nothing writes nothing.
func (f *FSM) commit(b *batch, t *txn, pos position, o *outcome) error {
	keys := t.changed()
	if len(keys) == 0 {
		return nil
	}
	var entries []engine.Entry
	changes := make([]change, 0, len(keys))
	for _, key := range keys {
		p := t.keys[key]
		entries = appendChangeEntries(entries, key, p)
		c := change{kind: changePut, key: key}
		if p.cur == nil {
			c.kind = changeDelete
			if p.expire {
				c.kind = changeExpire
			}
		}
		changes = append(changes, c)
		f.written += uint64(len(key))
		if p.cur != nil {
			f.written += p.cur.size
		}
		switch {
		case p.old == nil:
			f.keys++
		case p.cur == nil:
			f.keys--
		}
		if p.old != nil {
			f.digest.remove(key, p.old)
		}
		if p.cur != nil {
			f.digest.add(key, p.cur)
		}
		b.overlay[key] = p.cur
	}
	f.rev = t.rev
	f.applied = pos
	if f.hub.watching.Load() > 0 {
		f.fresh = append(f.fresh, f.hub.collect(t, keys))
	}
	entries, err := f.remember(b, entries, o)
	if err != nil {
		return err
	}
	f.since += len(changes)
	ev := &event{
		index: pos.index, term: pos.term, sub: pos.sub,
		stamp: f.small.clock, compact: f.small.compact, keys: f.keys, written: f.written, once: f.once,
	}
	if f.since >= checkpointChanges {
		ev.checkpoint = f.digest
		f.since, f.checkpoint = 0, f.rev
	}
	f.compacted = f.small.compact
	parts, final := encodeEvent(ev, changes)
	for i, p := range parts {
		entries = append(entries, engine.Entry{Key: eventKey(f.rev, uint32(i)), Value: p})
	}
	return f.store.Engine().Commit(uint64(f.rev), entries, engine.Entry{Key: eventKey(f.rev, finalPart), Value: final})
}

// appendChangeEntries appends what the database must write for one key.
func appendChangeEntries(entries []engine.Entry, key string, p *pending) []engine.Entry {
	old, cur := p.old, p.cur
	pieceOf := func(i uint32) []byte { return pieceKey(key, i) }
	var oldPieces, curPieces uint32
	var oldExpires, curExpires uint64
	if old != nil {
		oldPieces, oldExpires = old.pieces(), old.expires
	}
	if cur == nil {
		entries = append(entries, engine.Entry{Key: dataKey(key), Delete: true})
	} else {
		curPieces, curExpires = cur.pieces(), cur.expires
		entries = append(entries, engine.Entry{Key: dataKey(key), Value: encodeRecord(cur)})
		// A touch leaves the value alone: its pieces stay as they are, loaded or not.
		if p.valueSet {
			entries = appendPieces(entries, cur.value, curPieces, pieceOf)
		}
	}
	entries = appendPieceDeletes(entries, curPieces, oldPieces, pieceOf)
	if oldExpires != curExpires {
		if oldExpires != 0 {
			entries = append(entries, engine.Entry{Key: expiryKey(oldExpires, key), Delete: true})
		}
		if curExpires != 0 {
			entries = append(entries, engine.Entry{Key: expiryKey(curExpires, key)})
		}
	}
	return entries
}

// appendPieces appends the first n pieces of b, which are all it has or none.
func appendPieces(entries []engine.Entry, b []byte, n uint32, key func(i uint32) []byte) []engine.Entry {
	for i := range n {
		lo := int(i) * pieceBytes
		entries = append(entries, engine.Entry{Key: key(i), Value: b[lo:min(lo+pieceBytes, len(b))]})
	}
	return entries
}

// appendPieceDeletes appends the end of the pieces from one number to another.
func appendPieceDeletes(entries []engine.Entry, from, to uint32, key func(i uint32) []byte) []engine.Entry {
	for i := from; i < to; i++ {
		entries = append(entries, engine.Entry{Key: key(i), Delete: true})
	}
	return entries
}
