package fsm

import (
	"io"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/snapshot"
)

// What the tests need of raft's snapshot interfaces.

func testConfiguration() []byte {
	return raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "s", Address: "127.0.0.1:1"}}})
}

func commitLabel(s *snapshot.Store, l snapshot.Label, eng *engine.Engine) error {
	sink, err := s.Raft().Create(raft.SnapshotVersionMax, l.Index, l.Term, raft.DecodeConfiguration(l.Configuration), l.ConfigurationIndex, nil)
	if err != nil {
		return err
	}
	if err := sink.(*snapshot.Sink).Commit(l, eng); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func openSnapshot(s *snapshot.Store) (*raft.SnapshotMeta, io.ReadCloser, error) {
	list, err := s.Raft().List()
	if err != nil {
		return nil, nil, err
	}
	return s.Raft().Open(list[0].ID)
}

func createSink(s *snapshot.Store, m *raft.SnapshotMeta) (raft.SnapshotSink, error) {
	return s.Raft().Create(m.Version, m.Index, m.Term, m.Configuration, m.ConfigurationIndex, nil)
}

func restoreSink(m *machine, id string) error {
	_, rc, err := m.store.Raft().Open(id)
	if err != nil {
		return err
	}
	defer rc.Close()
	return RaftFSM{m.FSM}.Restore(rc)
}
