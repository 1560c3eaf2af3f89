package fsm

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/snapshot"
)

// RaftFSM adapts an FSM to hashicorp/raft; this file is the package's only door to it.
type RaftFSM struct{ FSM *FSM }

var (
	_ raft.BatchingFSM = RaftFSM{}
	_ raft.FSMSnapshot = labelSnapshot{}
	_ snapshot.Source  = (*FSM)(nil)
	_ raft.FSM         = RaftFSM{}
)

// ApplyBatch implements raft.BatchingFSM. The response to an entry is a []any with
// one Result for each command in it.
func (a RaftFSM) ApplyBatch(logs []*raft.Log) []any {
	in := make([]Log, len(logs))
	for i, l := range logs {
		in[i] = Log{Index: l.Index, Term: l.Term, Data: l.Data, Configuration: l.Type == raft.LogConfiguration}
	}
	out := make([]any, len(logs))
	for i, results := range a.FSM.ApplyBatch(in) {
		boxed := make([]any, len(results))
		for j, r := range results {
			boxed[j] = r
		}
		out[i] = boxed
	}
	return out
}

// Apply implements raft.FSM.
func (a RaftFSM) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM: it describes the state and copies nothing.
func (a RaftFSM) Snapshot() (raft.FSMSnapshot, error) {
	if a.FSM.store.Streaming() {
		// Invariant 20: a follower is installing one and will need the log after it.
		return nil, raft.ErrNothingNewToSnapshot
	}
	l, eng, err := a.FSM.Label()
	if err != nil {
		return nil, err
	}
	return labelSnapshot{label: l, engine: eng, phase: a.FSM.phase}, nil
}

// Restore implements raft.FSM: it switches to an installed generation.
func (a RaftFSM) Restore(rc io.ReadCloser) error { return a.FSM.Install(rc) }

type labelSnapshot struct {
	label  snapshot.Label
	engine *engine.Engine // that the label describes
	phase  func(string, bool)
}

// Persist implements raft.FSMSnapshot.
func (s labelSnapshot) Persist(sink raft.SnapshotSink) error {
	s.phase("snapshot", true)
	defer s.phase("snapshot", false)
	own, ok := sink.(*snapshot.Sink)
	if !ok {
		return fmt.Errorf("persist: sink is a %T", sink)
	}
	if err := own.Commit(s.label, s.engine); err != nil {
		_ = own.Cancel()
		return fmt.Errorf("persist: %w", err)
	}
	return own.Close()
}

// Release implements raft.FSMSnapshot.
func (s labelSnapshot) Release() {}
