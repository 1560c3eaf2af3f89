package fsm

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/settkv/sett/kv"
)

// Staged chunks of big commands are bounded, deterministically: beyond either
// limit the oldest command is dropped, and its committing entry then changes
// nothing. A leader that gives a command up, or loses its term, thus leaves no leak
// (Invariant 10a).
const (
	maxStagedBytes   = MaxCommandBytes + 16<<20
	maxStagedEntries = 100_000 // log entries between first chunk and commit
)

// small is the replicated state that is not keyed data. It lives in memory and is a
// function of the last snapshot's label and the entries after it.
type small struct {
	clusterID   string
	clusterName string
	settings    kv.ClusterSettings
	records     map[string]kv.MemberRecord // by server id
	clock       uint64                     // cluster time, milliseconds
	compact     kv.Revision                // history below it may be gone
	term        uint64                     // highest term of an applied entry
	leader      string                     // server id of that term's leader, if it said so

	pins []pin // in the order in which they were made

	// waiting has the outcomes that changed nothing, oldest first: they are written with
	// the next revision.
	waiting      []*outcome
	waitingBy    map[onceHash]*outcome
	waitingBytes int

	// keyedList has the outcomes of commands on this state, oldest first.
	keyedList  []*keyedOutcome
	keyedBy    map[onceHash]*keyedOutcome
	keyedBytes int

	staged      map[uint64]*stagedCommand // by chunk id, of the current term only
	stagedOrder []uint64                  // oldest first
	stagedBytes int
}

// stagedCommand is a big command whose committing chunk has not come.
type stagedCommand struct {
	first uint64 // log index of its first chunk
	next  uint64 // sequence number expected
	parts [][]byte
	size  int // of all parts, in bytes
}

func newSmall() *small {
	return &small{records: map[string]kv.MemberRecord{}, staged: map[uint64]*stagedCommand{}, waitingBy: map[onceHash]*outcome{}, keyedBy: map[onceHash]*keyedOutcome{}}
}

// enter is called for each entry before its commands: it moves the clock, forwards
// only, and drops what a deposed leader had staged.
func (s *small) enter(index, term, stamp uint64) {
	if stamp > s.clock {
		s.clock = stamp
	}
	s.dropPins()
	if term > s.term {
		s.term = term
		s.leader = ""
		s.staged, s.stagedOrder, s.stagedBytes = map[uint64]*stagedCommand{}, nil, 0
	}
	for len(s.stagedOrder) > 0 {
		oldest := s.stagedOrder[0]
		if s.stagedBytes <= maxStagedBytes && index-s.staged[oldest].first <= maxStagedEntries {
			break
		}
		s.unstage(oldest)
	}
}

// stage adds a chunk, whose bytes it keeps until the command is whole. With the last one it returns the whole command; ok is false
// if an earlier chunk is missing, and the command is then dropped.
func (s *small) stage(index uint64, en *entry) (cmd []byte, ok bool) {
	st := s.staged[en.chunkID]
	if st == nil {
		if en.chunkSeq != 0 {
			return nil, false
		}
		st = &stagedCommand{first: index}
		s.staged[en.chunkID] = st
		s.stagedOrder = append(s.stagedOrder, en.chunkID)
	}
	if st.next != en.chunkSeq || st.size+len(en.chunk) > MaxCommandBytes {
		s.unstage(en.chunkID)
		return nil, false
	}
	st.next++
	st.parts = append(st.parts, en.chunk)
	st.size += len(en.chunk)
	s.stagedBytes += len(en.chunk)
	if !en.chunkLast {
		return nil, true
	}
	s.unstage(en.chunkID)
	return slices.Concat(st.parts...), true
}

func (s *small) unstage(id uint64) {
	st := s.staged[id]
	if st == nil {
		return
	}
	delete(s.staged, id)
	s.stagedBytes -= st.size
	for i, v := range s.stagedOrder {
		if v == id {
			s.stagedOrder = append(s.stagedOrder[:i:i], s.stagedOrder[i+1:]...)
			break
		}
	}
}

// totals are the counters that go with a revision.
type totals struct {
	keys    uint64 // live keys
	written uint64 // bytes of keys and values of all changes so far
	once    onceTable
}

// The label's state: version, length-prefixed JSON of the small fields, digest,
// number of keys, staged commands, outcomes that wait for a revision.
const smallVersion = 1

type smallJSON struct {
	ClusterID   string             `json:"cluster_id"`
	ClusterName string             `json:"cluster_name"`
	Settings    kv.ClusterSettings `json:"settings"`
	Records     []kv.MemberRecord  `json:"records"`
	Clock       uint64             `json:"clock"`
	Term        uint64             `json:"term"`
	Leader      string             `json:"leader"`
	Keys        uint64             `json:"keys"`
	Written     uint64             `json:"written"`
	Compact     kv.Revision        `json:"compact"`
	Pins        []pin              `json:"pins,omitempty"`
	Keyed       []*keyedOutcome    `json:"keyed,omitempty"`
	Once        onceTable          `json:"once"`
}

func (s *small) encode(t totals, g *digest) []byte {
	js := smallJSON{
		ClusterID: s.clusterID, ClusterName: s.clusterName, Settings: s.settings,
		Records: sortedRecords(s.records), Clock: s.clock, Term: s.term, Leader: s.leader, Keys: t.keys, Written: t.written,
		Compact: s.compact, Pins: s.pins, Keyed: s.keyedList, Once: t.once,
	}
	b, err := json.Marshal(js)
	if err != nil {
		panic(fmt.Sprintf("encode state: %v", err)) // plain fields only
	}
	var e encoder
	e.byte(smallVersion)
	e.bytes(b)
	e.b = g.append(e.b)
	e.uvarint(uint64(len(s.stagedOrder)))
	for _, id := range s.stagedOrder {
		st := s.staged[id]
		e.uvarint(id)
		e.uvarint(st.first)
		e.uvarint(st.next)
		e.uvarint(uint64(st.size))
		for _, p := range st.parts {
			e.b = append(e.b, p...)
		}
	}
	waiting := s.waiting
	if mutantWaitingDropped {
		waiting = nil
	}
	e.uvarint(uint64(len(waiting)))
	for _, o := range waiting {
		e.bytes(o.encode(o.body))
	}
	return e.b
}

func decodeSmall(b []byte) (s *small, t totals, g *digest, err error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != smallVersion {
		return nil, t, nil, fmt.Errorf("state format version %d: %w", v, kv.ErrUnknownVersion)
	}
	var js smallJSON
	raw := d.bytes()
	if d.err == nil {
		if err := json.Unmarshal(raw, &js); err != nil {
			return nil, t, nil, fmt.Errorf("decode state: %w", err)
		}
	}
	g = new(digest)
	if d.err == nil && !g.decode(d.b) {
		d.fail()
	}
	if d.err == nil {
		d.b = d.b[digestBytes:]
	}
	s = newSmall()
	s.clusterID, s.clusterName, s.settings = js.ClusterID, js.ClusterName, js.Settings
	s.clock, s.term, s.leader = js.Clock, js.Term, js.Leader
	for _, r := range js.Records {
		s.records[r.ServerID] = r
	}
	n := d.count(4)
	for range n {
		id := d.uvarint()
		st := &stagedCommand{first: d.uvarint(), next: d.uvarint()}
		part := append([]byte(nil), d.bytes()...)
		st.parts, st.size = [][]byte{part}, len(part)
		s.staged[id] = st
		s.stagedOrder = append(s.stagedOrder, id)
		s.stagedBytes += st.size
	}
	n = d.count(2)
	for range n {
		o, err := decodeOutcome(append([]byte(nil), d.bytes()...))
		if err != nil {
			return nil, t, nil, fmt.Errorf("decode state: %w", err)
		}
		s.wait(o)
	}
	if err := d.end(); err != nil {
		return nil, t, nil, fmt.Errorf("decode state: %w", err)
	}
	s.compact, s.pins = js.Compact, js.Pins
	for _, o := range js.Keyed {
		s.keep(o)
	}
	return s, totals{js.Keys, js.Written, js.Once}, g, nil
}

func sortedRecords(m map[string]kv.MemberRecord) []kv.MemberRecord {
	out := make([]kv.MemberRecord, 0, len(m))
	for _, id := range sortedKeys(maps.Keys(m)) {
		out = append(out, m[id])
	}
	return out
}
