package consensus

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/kv"
)

// meteredLogs counts what is appended, so that snapshots and trailing entries can
// be bounded in bytes: raft counts entries only, and one may be tiny or 256 KiB.
type meteredLogs struct {
	raft.LogStore
	bytes   atomic.Uint64 // appended since start
	entries atomic.Uint64
}

func newMeteredLogs(under raft.LogStore) *meteredLogs { return &meteredLogs{LogStore: under} }

// StoreLog implements raft.LogStore.
func (m *meteredLogs) StoreLog(l *raft.Log) error { return m.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (m *meteredLogs) StoreLogs(logs []*raft.Log) error {
	if err := m.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	size := 0
	for _, l := range logs {
		size += len(l.Data) + logEntryOverheadBytes
	}
	m.bytes.Add(uint64(size))
	m.entries.Add(uint64(len(logs)))
	return nil
}

// logEntryOverheadBytes is roughly what an entry takes besides its data.
const logEntryOverheadBytes = 64

// IsMonotonic implements raft.MonotonicLogStore if the store below does; without
// this method the wrapper would hide it, and an installed snapshot would leave
// stale entries behind.
func (m *meteredLogs) IsMonotonic() bool {
	below, ok := m.LogStore.(raft.MonotonicLogStore)
	return ok && below.IsMonotonic()
}

const (
	keeperInterval = time.Second
	// catchUpGrace is how long after an install its log is kept for the follower
	// to catch up.
	catchUpGrace = time.Minute
	// minTrailing is how many entries stay in any case.
	minTrailing = 128
)

// logKeeper decides when to take a snapshot by bytes, and how much log stays.
type logKeeper struct {
	mu       sync.Mutex
	installs map[string]*install // by server id
}

type install struct {
	startBytes uint64 // meteredLogs.bytes when it began
	running    int
	ended      time.Time
}

// installing notes that a snapshot is being sent to server id; call done at the end.
//
// Invariant 20: while a follower installs, the log it will need next is kept.
func (c *Consensus) installing(id string) (done func()) {
	k := &c.keep
	k.mu.Lock()
	if k.installs == nil {
		k.installs = make(map[string]*install)
	}
	in := k.installs[id]
	if in == nil {
		in = &install{startBytes: c.logs.bytes.Load()}
		k.installs[id] = in
	}
	in.running++
	k.mu.Unlock()
	c.setTrailing()
	return func() {
		k.mu.Lock()
		in.running--
		in.ended = time.Now()
		k.mu.Unlock()
	}
}

// opening is the id under which a snapshot counts from its opening, which may take
// long and fixes what it holds, until the first of its bytes goes to a follower.
const opening = ""

// opened ends what opening began.
func (c *Consensus) opened() {
	c.keep.mu.Lock()
	defer c.keep.mu.Unlock()
	if in := c.keep.installs[opening]; in != nil && in.running == 0 {
		delete(c.keep.installs, opening)
	}
}

// keepingSnapshots is the snapshot store that raft sees.
type keepingSnapshots struct {
	raft.SnapshotStore
	c *Consensus
}

// Open implements raft.SnapshotStore.
func (s *keepingSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	select {
	case <-s.c.trans.ready:
		if s.c.IsLeader() {
			done := s.c.installing(opening)
			defer done()
		}
	default: // raft restores at its start
	}
	return s.SnapshotStore.Open(id)
}

// holding says whether some follower needs the log after its snapshot, and forgets
// those that do no longer: that caught up, took too long, or for which more log
// piled up than a new snapshot would cost.
func (c *Consensus) holding() bool {
	k := &c.keep
	k.mu.Lock()
	defer k.mu.Unlock()
	bytes, last := c.logs.bytes.Load(), c.raft.LastIndex()
	for id, in := range k.installs {
		match, ok := c.Match(id)
		switch {
		case bytes-in.startBytes > maxHeldFactor*c.cfg.SnapshotThresholdBytes,
			!c.IsLeader(),
			in.running == 0 && ok && match+minTrailing > last,
			in.running == 0 && time.Since(in.ended) > catchUpGrace:
			delete(k.installs, id)
		}
	}
	return len(k.installs) > 0
}

// maxHeldFactor bounds the log kept for an install, in SnapshotThresholdBytes.
const maxHeldFactor = 4

// setTrailing tells raft how many entries to leave at its next compaction.
func (c *Consensus) setTrailing() {
	want := c.cfg.TrailingLogs
	if entries := c.logs.entries.Load(); entries > 0 {
		average := max(c.logs.bytes.Load()/entries, 1)
		want = min(want, max(c.cfg.SnapshotThresholdBytes/2/average, minTrailing))
	}
	if c.holding() {
		want = 1 << 60 // everything; holding bounds it
	}
	rc := c.raft.ReloadableConfig()
	if rc.TrailingLogs == want {
		return
	}
	rc.TrailingLogs = want
	if err := c.raft.ReloadConfig(rc); err != nil {
		c.log.Error("can't tell raft how much log to keep", "error", err)
	}
}

// runLogKeeper takes a snapshot whenever enough bytes of log came since the last.
func (c *Consensus) runLogKeeper() {
	tick := time.NewTicker(keeperInterval)
	defer tick.Stop()
	var taken uint64 // meteredLogs.bytes at the last snapshot
	for {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		c.setTrailing()
		bytes := c.logs.bytes.Load()
		if bytes-taken < c.cfg.SnapshotThresholdBytes {
			continue
		}
		if _, err := c.Snapshot(c.ctx); err != nil {
			if c.ctx.Err() == nil {
				c.log.Warn("can't take a snapshot", "error", err)
			}
			continue
		}
		taken = bytes
	}
}

// Snapshot makes this server take its Raft snapshot now and returns the index of
// the newest one, also if nothing new was there to take. It returns when ctx ends,
// but the snapshot may still be taken then.
func (c *Consensus) Snapshot(ctx context.Context) (index uint64, err error) {
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- c.raft.Snapshot().Error() }() // blocks while another is taken
	select {
	case err = <-done:
	case <-ctx.Done():
		return 0, readError(kv.CodeTimeout, context.Cause(ctx), "the snapshot was not taken in time")
	case <-c.stopped:
		return 0, readError(kv.CodeNotReady, errStopping, "this node is shutting down")
	}
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return 0, readError(kv.CodeNotReady, err, "the snapshot could not be taken now; try again")
	}
	c.metrics.snapshotSeconds.Observe(time.Since(start).Seconds())
	return c.SnapshotIndex(), nil
}
