package fsm

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/snapshot"
)

// errCatchingUp refuses a snapshot while Raft still delivers entries that the
// database already has: the small state would be older than the data.
var errCatchingUp = errors.New("the state machine is still being delivered entries that it has; try again later")

// labelLocked describes the state as it stands.
func (f *FSM) labelLocked() (snapshot.Label, error) {
	if err := f.err(); err != nil {
		return snapshot.Label{}, err
	}
	if f.delivered < f.applied.index {
		return snapshot.Label{}, errCatchingUp
	}
	return snapshot.Label{
		Index: f.delivered, Term: f.deliveredTerm,
		Configuration: f.configuration, ConfigurationIndex: f.configurationIndex,
		Revision: uint64(f.rev), CompactRevision: uint64(max(f.small.compact, 1)) - 1,
		State: f.small.encode(f.totals, f.digest), ClusterID: f.small.clusterID, ServerID: f.labelServer(), Time: time.Now().UTC(),
	}, nil
}

// labelServer names the server that a label comes from. One that repeats the label of an
// installed snapshot is still that one's: no log stands behind it here.
func (f *FSM) labelServer() string {
	if old, ok := f.store.Label(); ok && old.Index >= f.delivered {
		return old.ServerID
	}
	return f.serverID
}

// Label describes the state machine's state for a Raft snapshot, and names the
// database that holds it. Nothing is copied: the data is there already (Invariant 19).
func (f *FSM) Label() (snapshot.Label, *engine.Engine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.labelLocked()
	return l, f.store.Engine(), err
}

// Capture implements snapshot.Source: a reader at the newest revision, and the label
// of exactly that content (Invariant 16).
func (f *FSM) Capture() (snapshot.Label, *engine.Reader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, err := f.labelLocked()
	if err != nil {
		return l, nil, err
	}
	r, err := f.store.Engine().ReadAt(uint64(f.rev))
	if err != nil {
		return l, nil, fmt.Errorf("capture revision %d: %w", f.rev, err)
	}
	// The label promises the history above its compaction revision.
	if err := r.Hold(l.CompactRevision); err != nil {
		r.Close()
		return l, nil, fmt.Errorf("capture history above %d: %w", l.CompactRevision, err)
	}
	return l, r, nil
}

// Install switches to the generation that a received snapshot was written to, named
// by the stream. An error before the switch leaves the old state; one after it is
// fatal (Invariant 17).
func (f *FSM) Install(stream io.Reader) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.phase("install", true)
	defer f.phase("install", false)
	if err := f.err(); err != nil {
		return err
	}
	id, err := snapshot.PendingID(stream)
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	// Readers must not take a revision of the old database to the new one, whose
	// history may begin later: from here on they are told to try again.
	f.switching = true
	f.generation++
	f.publish()
	_, err = f.store.Switch(id, func() {})
	f.switching = false
	if err != nil {
		f.publish()
		return fmt.Errorf("install: %w", err)
	}
	if err := f.load(); err != nil {
		err = fmt.Errorf("load installed snapshot: %w", err)
		f.fatal(err)
		return err
	}
	return nil
}

// errHeld ends a trim that an export holds back; the next one goes on.
var errHeld = errors.New("held by an export")

// Trim drops change-index records that no start, watch or increment can need: those
// below the compaction revision. It returns how many went.
func (f *FSM) Trim() (int, error) {
	f.mu.Lock()
	limit := f.purgeable()
	f.mu.Unlock()
	if limit == 0 {
		return 0, nil
	}
	eng := f.store.Engine()
	r, err := eng.ReadAt(eng.Published())
	if err != nil {
		return 0, fmt.Errorf("trim: %w", err)
	}
	defer r.Close()
	it := r.Scan(engine.ScanOptions{Start: eventKey(kv.Revision(f.trimmed.Load()), 0), End: eventKey(limit, 0), KeysOnly: true})
	defer it.Close()
	const chunk = 1000
	var keys [][]byte
	var versions []uint64
	n := 0
	flush := func() error {
		if len(keys) == 0 {
			return nil
		}
		// An export that runs must find the same records in both its passes.
		if err := eng.DeleteAt(keys, versions); errors.Is(err, engine.ErrHeld) {
			return errHeld
		} else if err != nil {
			return err
		}
		n += len(keys)
		keys, versions = nil, nil
		return nil
	}
	done := func(err error) (int, error) {
		if err == nil || errors.Is(err, errHeld) {
			return n, nil
		}
		return n, fmt.Errorf("trim: %w", err)
	}
	for it.Next() {
		k := append([]byte(nil), it.Key()...)
		rev, _, ok := decodeEventKey(k)
		if !ok {
			return n, kv.Errorf(kv.CodeCorruption, "a change record has a malformed key")
		}
		keys, versions = append(keys, k), append(versions, uint64(rev))
		if len(keys) == chunk {
			if err := flush(); err != nil {
				return done(err)
			}
		}
	}
	if err := it.Err(); err != nil {
		return done(err)
	}
	if err := flush(); err != nil {
		return done(err)
	}
	f.trimmed.Store(uint64(limit))
	return n, nil
}
