package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/snapshot"
)

// Config is what a state machine needs.
type Config struct {
	// Store holds the database and the label of the last Raft snapshot. The caller
	// closes it after Raft has stopped.
	Store *snapshot.Store
	// LiveAfter is the index of the last entry that was in the log when this process
	// started.
	LiveAfter uint64
	// ServerID is written into labels.
	ServerID string
	Logger   *slog.Logger
	// OnFatal is called once, from any goroutine, when the database fails: the
	// process must then end, for nothing can be acknowledged any more.
	OnFatal func(error)
	// Phase, if not nil, is told when work of the named phase begins and ends.
	Phase func(phase string, begin bool)
}

// ErrLostData says that the database does not hold what it must: it lost changes
// that it once had on stable storage. The node may not go on under its identity.
var ErrLostData = errors.New("the data store lost changes that were on stable storage")

// FSM is the state machine. Apply, Snapshot and Restore are called by Raft from one
// goroutine; everything else is safe for concurrent use.
type FSM struct {
	store    *snapshot.Store
	serverID string
	log      *slog.Logger
	onFatal  func(error)
	phase    func(string, bool)

	failed atomic.Pointer[error]
	// expiryLow is a key of the expiry index before which there is none: where scans of it
	// begin, which else would run through all that has expired. It only saves work and
	// is no part of the state.
	expiryLow atomic.Pointer[[]byte]
	// trimmed is the same for Trim.
	trimmed atomic.Uint64
	pub     atomic.Pointer[published]
	hub     *hub

	// anchor is the leader's clock: cluster time at a monotonic instant.
	anchor atomic.Pointer[clockAnchor]
	// heard is the cluster's clock at a monotonic instant, as this node knows it. See
	// Elapsed.
	heard     atomic.Pointer[clockAnchor]
	liveAfter uint64

	// mu is held while entries are applied, and by whoever needs the state to stand
	// still at an index.
	mu     sync.Mutex
	small  *small
	digest *digest
	limits onceLimits
	totals
	rev kv.Revision // newest, perhaps not published
	// checkpoint is the revision of the newest digest checkpoint on disk, and since
	// the changes after it.
	checkpoint kv.Revision
	since      int
	// fresh has the events of revisions that are not published yet, for watchers.
	fresh []*revisionEvents
	// compacted is the compaction revision in the newest change record.
	compacted kv.Revision

	// applied is D: what the data has. Invariant 11: entries up to it are skipped.
	applied position
	// delivered is how far Raft has delivered; it starts at the label's index and so
	// may be below applied.delivered for a while after a start.
	delivered     uint64
	deliveredTerm uint64

	configuration      []byte
	configurationIndex uint64

	// generation counts the databases that took each other's place; switching says
	// that one is about to.
	generation uint64
	switching  bool
}

// position is a place in the log: the first sub commands of entry index are done.
type position struct {
	index, term, sub uint64
}

// published is what readers see: immutable, replaced at the end of each batch.
type published struct {
	rev, oldest kv.Revision
	delivered   uint64
	applied     uint64
	keys        uint64
	clock       uint64
	settings    kv.ClusterSettings
	clusterID   string
	clusterName string
	records     map[string]kv.MemberRecord
	term        uint64 // of the last delivered entry
	generation  uint64
	switching   bool
	changed     chan struct{}
}

type clockAnchor struct {
	clock uint64
	at    time.Time
}

// Close ends all watches. The store stays open: it is the caller's.
func (f *FSM) Close() { f.hub.close() }

// Open reads the state from the store: the newest whole revision, its digest and
// the small state of the label. Its cost does not grow with the data. ErrLostData
// says that the store may not be used under this identity.
func Open(cfg Config) (*FSM, error) {
	f := &FSM{liveAfter: cfg.LiveAfter, limits: defaultOnceLimits(), hub: newHub(), store: cfg.Store, serverID: cfg.ServerID, log: cfg.Logger, onFatal: cfg.OnFatal, phase: cfg.Phase}
	if f.phase == nil {
		f.phase = func(string, bool) {}
	}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("open state machine: %w", err)
	}
	cfg.Store.SetSource(f)
	return f, nil
}

// startWalkEvents is how many of the newest revisions a start checks for holes: more
// than can be in flight at once when a process dies.
const startWalkEvents = 4096

// load builds the in-memory state from the current generation. Called with mu held
// or before f is shared.
func (f *FSM) load() error {
	f.small, f.digest = newSmall(), new(digest)
	f.rev, f.totals, f.applied, f.checkpoint, f.since, f.compacted = 0, totals{}, position{}, 0, 0, 0
	f.delivered, f.deliveredTerm, f.configuration, f.configurationIndex = 0, 0, nil, 0

	label, labelled := f.store.Label()
	var labelTotals totals
	if labelled {
		s, t, g, err := decodeSmall(label.State)
		if err != nil {
			return fmt.Errorf("label of snapshot %d: %w", label.Index, err)
		}
		f.small, f.digest, labelTotals = s, g, t
		f.delivered, f.deliveredTerm = label.Index, label.Term
		f.configuration, f.configurationIndex = label.Configuration, label.ConfigurationIndex
		f.checkpoint = kv.Revision(label.Revision)
	}
	f.expiryLow.Store(nil)
	f.trimmed.Store(0)
	eng := f.store.Engine()
	r, err := eng.ReadAt(math.MaxUint64)
	if err != nil {
		return fmt.Errorf("read newest state: %w", err)
	}
	defer r.Close()
	newest, err := f.newestEvent(r)
	if err != nil {
		return err
	}
	switch {
	case newest != nil:
		f.totals = totals{newest.keys, newest.written, newest.once}
		f.applied = position{newest.index, newest.term, newest.sub}
		f.compacted = newest.compact
	case labelled:
		f.totals = labelTotals
	}
	if labelled {
		// Invariant 13: what a snapshot covers was synced before it was published.
		if uint64(f.rev) < label.Revision {
			return fmt.Errorf("%w: newest revision %d, snapshot %d is at revision %d", ErrLostData, f.rev, label.Index, label.Revision)
		}
		if label.Index > f.applied.index {
			f.applied = position{label.Index, label.Term, math.MaxUint64}
		}
		if uint64(f.rev) > label.Revision {
			// The first revision after the label wrote them.
			f.small.forgetWaiting()
		}
	}
	if err := f.replayDigest(r); err != nil {
		return err
	}
	eng.Publish(uint64(f.rev))
	f.publish()
	f.setDiscard()
	return nil
}

// newestEvent finds the newest whole revision, sets f.rev, and checks that the
// revisions before it have no hole (research: pipelined commits after an error).
func (f *FSM) newestEvent(r *engine.Reader) (*event, error) {
	it := r.Scan(engine.ScanOptions{Start: []byte{prefixEvent}, End: []byte{prefixEvent + 1}, Reverse: true})
	defer it.Close()
	var newest *event
	var last kv.Revision
	seen := 0
	for seen < startWalkEvents && it.Next() {
		rev, part, ok := decodeEventKey(it.Key())
		if !ok {
			return nil, kv.Errorf(kv.CodeCorruption, "a change record has a malformed key")
		}
		if part != finalPart {
			// Parts of a revision whose final record never came are not a revision:
			// the entry is evaluated again and writes the same.
			continue
		}
		if newest == nil {
			ev, err := decodeEvent(it.Value())
			if err != nil {
				return nil, damaged(err, "revision %d cannot be read", rev)
			}
			newest, f.rev = ev, rev
		} else if rev != last-1 {
			return nil, fmt.Errorf("%w: revision %d is followed by %d", ErrLostData, rev, last)
		}
		last = rev
		seen++
		if rev <= newest.compact {
			break // older records may be trimmed
		}
	}
	return newest, it.Err()
}

// replayDigest brings the digest from its newest checkpoint to f.rev.
func (f *FSM) replayDigest(r *engine.Reader) error {
	// Find the newest checkpoint: the label's, or a record's.
	start := f.checkpoint
	it := r.Scan(engine.ScanOptions{Start: eventKey(start+1, 0), End: eventKey(f.rev+1, 0), Reverse: true})
	for it.Next() {
		rev, part, _ := decodeEventKey(it.Key())
		if part != finalPart {
			continue
		}
		ev, err := decodeEvent(it.Value())
		if err != nil {
			it.Close()
			return damaged(err, "revision %d cannot be read", rev)
		}
		if ev.checkpoint != nil {
			f.digest, start = ev.checkpoint, rev
			break
		}
	}
	err := it.Err()
	it.Close()
	if err != nil {
		return err
	}
	f.checkpoint = start
	for rev := start + 1; rev <= f.rev; rev++ {
		changes, err := readChanges(r, rev)
		if err != nil {
			return err
		}
		if err := f.redigest(rev, changes); err != nil {
			return err
		}
		f.since += len(changes)
	}
	return nil
}

// redigest applies the changes of one revision that is on disk to the digest.
func (f *FSM) redigest(rev kv.Revision, changes []change) error {
	eng := f.store.Engine()
	before, err := eng.ReadAt(uint64(rev) - 1)
	if err != nil {
		return err
	}
	defer before.Close()
	after, err := eng.ReadAt(uint64(rev))
	if err != nil {
		return err
	}
	defer after.Close()
	for _, c := range changes {
		old, err := readRecord(before, c.key)
		if err != nil {
			return err
		}
		cur, err := readRecord(after, c.key)
		if err != nil {
			return err
		}
		if old != nil {
			f.digest.remove(c.key, old)
		}
		if cur != nil {
			f.digest.add(c.key, cur)
		}
	}
	return nil
}

// publish lets readers see the state as it stands. Called with mu held.
func (f *FSM) publish() {
	p := &published{
		rev: f.rev, oldest: max(f.small.compact, f.compacted), delivered: f.delivered, applied: max(f.delivered, f.applied.index), keys: f.keys,
		clock: f.small.clock, settings: f.small.settings, clusterID: f.small.clusterID, clusterName: f.small.clusterName,
		records: f.small.records, term: f.deliveredTerm, generation: f.generation, switching: f.switching,
		changed: make(chan struct{}),
	}
	if old := f.pub.Swap(p); old != nil {
		close(old.changed)
	}
	f.hub.publish(f.rev, f.fresh)
	f.fresh = nil
}

// purgeable returns the revision below which nothing needs history: it is compacted,
// and it is older than the newest snapshot's label, which is on stable storage and from
// whose digest a start can replay, after a power cut too.
func (f *FSM) purgeable() kv.Revision {
	label, ok := f.store.Label()
	if !ok {
		return 0
	}
	return min(f.compacted, kv.Revision(label.Revision))
}

// setDiscard keeps one revision below what can be read: a watch from the oldest one
// tells what was there before.
func (f *FSM) setDiscard() {
	if d := f.purgeable(); d > 1 {
		f.store.Engine().SetDiscard(uint64(d) - 1)
	}
}

// expiryStart is where a scan of the expiry index begins.
func (f *FSM) expiryStart() []byte {
	if low := f.expiryLow.Load(); low != nil {
		return *low
	}
	return []byte{prefixExpiry}
}

// raiseExpiryLow notes that the expiry index has no key before low. Those that are
// written later fall due after the clock, so low may lie beyond it by a millisecond at
// most.
func (f *FSM) raiseExpiryLow(low []byte) {
	for {
		old := f.expiryLow.Load()
		if old != nil && bytes.Compare(low, *old) <= 0 || f.expiryLow.CompareAndSwap(old, &low) {
			return
		}
	}
}

// fatal latches the first failure. Invariant 14: a database error in Apply ends the
// process.
func (f *FSM) fatal(err error) {
	if f.failed.CompareAndSwap(nil, &err) {
		f.log.Error("the state machine cannot go on; this node stops", "error", err)
		if f.onFatal != nil {
			f.onFatal(err)
		}
		if p := f.pub.Load(); p != nil {
			next := *p
			next.changed = make(chan struct{})
			if f.pub.CompareAndSwap(p, &next) {
				close(p.changed)
			}
		}
		f.hub.end()
	}
}

func (f *FSM) err() error {
	if e := f.failed.Load(); e != nil {
		return &kv.Error{Code: kv.CodeInternal, Msg: "this node's data store failed and the node is stopping; ask another node", Err: *e}
	}
	return nil
}

// wait returns the first published state for which ok holds.
func (f *FSM) wait(ctx context.Context, ok func(*published) bool) (*published, error) {
	for {
		p := f.pub.Load()
		if err := f.err(); err != nil {
			return nil, err
		}
		if ok(p) {
			return p, nil
		}
		select {
		case <-p.changed:
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
}

// WaitDelivered waits until every entry up to index that reaches the state machine
// has been applied (Invariant 23: not raft's applied index, which runs ahead). The
// index must be of an entry that does reach it. It returns ctx's error, or why the
// state machine failed.
func (f *FSM) WaitDelivered(ctx context.Context, index uint64) error {
	_, err := f.wait(ctx, func(p *published) bool { return p.delivered >= index })
	return err
}

// WaitRevision waits until the state machine has reached rev.
func (f *FSM) WaitRevision(ctx context.Context, rev kv.Revision) error {
	_, err := f.wait(ctx, func(p *published) bool { return p.rev >= rev })
	return err
}

// Info is a consistent view of the published state.
type Info struct {
	Revision, Oldest kv.Revision
	// Delivered is the newest log index that Raft delivered since the start; Applied
	// the newest one whose effects are there.
	Delivered, Applied, Term uint64
	Keys                     uint64
	Clock                    time.Time
	Settings                 kv.ClusterSettings
	ClusterID, ClusterName   string
}

// Info returns the published state.
func (f *FSM) Info() Info {
	p := f.pub.Load()
	return Info{
		Revision: p.rev, Oldest: p.oldestReadable(), Delivered: p.delivered, Applied: p.applied, Term: p.term, Keys: p.keys,
		Clock: timeOf(p.clock), Settings: p.settings, ClusterID: p.clusterID, ClusterName: p.clusterName,
	}
}

func (p *published) oldestReadable() kv.Revision {
	if p.oldest == 0 && p.rev > 0 {
		return 1
	}
	return p.oldest
}

// Applied returns D: the newest entry whose data is in the database, and its term.
func (f *FSM) Applied() (index, term uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied.index, f.applied.term
}

// Changed returns a channel that is closed when the state after the one that Info
// tells is published.
func (f *FSM) Changed() <-chan struct{} { return f.pub.Load().changed }

// Digest returns the set hashes at the newest revision.
func (f *FSM) Digest() kv.Digest {
	f.mu.Lock()
	g, rev := *f.digest, f.rev
	f.mu.Unlock()
	return g.report(rev)
}

// Record returns what is remembered of a server.
func (f *FSM) Record(serverID string) (kv.MemberRecord, bool) {
	r, ok := f.pub.Load().records[serverID]
	return r, ok
}

// Records returns all member records in the order of their server ids.
func (f *FSM) Records() []kv.MemberRecord { return sortedRecords(f.pub.Load().records) }

// Lead starts the leader's clock: from now on Stamp advances from the cluster's
// clock, as far as this node knows it. Follow stops it.
func (f *FSM) Lead() {
	c := f.pub.Load().clock
	if now, ok := f.Elapsed(); ok {
		c = max(c, millis(now))
	}
	f.anchor.Store(&clockAnchor{clock: c, at: time.Now()})
}

// Elapsed is the cluster's clock as it goes on from the newest entry that was stamped while
// this process ran, by the monotonic clock. It is never ahead of the leader's that stamped
// the entry, and behind by what it took to get here. ok is false if there was no such
// entry.
func (f *FSM) Elapsed() (now time.Time, ok bool) {
	a := f.heard.Load()
	if a == nil {
		return time.Time{}, false
	}
	return timeOf(a.now()), true
}

// hear notes the clock of entries whose application began at a time. Those that were in the
// log when this process started may have been stamped long ago.
func (f *FSM) hear(began time.Time) {
	if f.delivered <= f.liveAfter || f.small.clock == 0 {
		return
	}
	if a := f.heard.Load(); a == nil || f.small.clock > a.now() {
		f.heard.Store(&clockAnchor{clock: f.small.clock, at: began})
	}
}

func (a *clockAnchor) now() uint64 { return a.clock + uint64(time.Since(a.at)/time.Millisecond) }

// Follow stops the leader's clock: this node stamps no more entries.
func (f *FSM) Follow() { f.anchor.Store(nil) }

// Stamp returns the leader's cluster time in milliseconds, 0 on other nodes. It
// advances by the monotonic clock only (Invariant 14).
func (f *FSM) Stamp() uint64 {
	a := f.anchor.Load()
	if a == nil {
		return 0
	}
	return a.now()
}

// Command makes the command of a client's transaction, as EncodeTxn does, born now.
func (f *FSM) Command(t kv.Txn) ([]byte, error) { return EncodeTxn(t, f.Stamp()) }

// Relayed makes the command of a client's transaction from one that another node made
// with EncodeTxn, and returns the transaction too: born now, by this node's time. It
// takes no other command and nothing malformed, since what is in the log must apply.
func (f *FSM) Relayed(cmd []byte) (kv.Txn, []byte, error) {
	t, out, err := relayed(cmd, f.Stamp())
	if err != nil {
		return kv.Txn{}, nil, kv.NotApplied(kv.CodeInvalidArgument, "the node that was asked has sent a malformed command: %v; run the same version of sett on all nodes", err)
	}
	return t, out, nil
}

// Batch implements the consensus package's envelope: commands in one entry.
func (f *FSM) Batch(cmds [][]byte) []byte { return encodeBatch(f.Stamp(), cmds) }

// Chunk implements the consensus package's envelope: a part of a big command.
func (f *FSM) Chunk(id uint64, seq int, last bool, part []byte) []byte {
	return encodeChunk(f.Stamp(), id, seq, last, part)
}

func sortedKeys[K ~string](seq iter.Seq[K]) []K { return slices.Sorted(seq) }
