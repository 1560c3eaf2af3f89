package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// raftStore shows a Store to raft: one snapshot, the label of the current
// generation, whose content is the live database.
type raftStore struct{ s *Store }

// Raft returns raft's view of the store. List and Create are immediate; Open of the
// current snapshot reads all its data once, to know its exact size.
func (s *Store) Raft() raft.SnapshotStore { return raftStore{s} }

// decodeConfiguration is raft.DecodeConfiguration, which panics, with an error.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = corrupt("raft configuration in a label is damaged: %v", p)
		}
	}()
	return raft.DecodeConfiguration(b), nil
}

// Servers returns the Raft configuration that goes with the label.
func (l Label) Servers() ([]kv.Server, error) {
	c, err := decodeConfiguration(l.Configuration)
	if err != nil {
		return nil, err
	}
	out := make([]kv.Server, len(c.Servers))
	for i, s := range c.Servers {
		out[i] = kv.Server{ID: string(s.ID), Addr: string(s.Address), Voter: s.Suffrage == raft.Voter}
	}
	return out, nil
}

func metaOf(id string, h Header) (*raft.SnapshotMeta, error) {
	c, err := decodeConfiguration(h.Label.Configuration)
	if err != nil {
		return nil, err
	}
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: id,
		Index: h.Label.Index, Term: h.Label.Term,
		Configuration: c, ConfigurationIndex: h.Label.ConfigurationIndex,
		Size: int64(h.Size),
	}, nil
}

// List returns the current snapshot, or nothing if none was taken yet. Its Size is
// 0: it is known once it is opened.
func (r raftStore) List() ([]*raft.SnapshotMeta, error) {
	r.s.mu.Lock()
	name, label, ok := r.s.current.name, r.s.current.label, r.s.current.labeled
	r.s.mu.Unlock()
	if !ok {
		return nil, nil
	}
	meta, err := metaOf(name, Header{Label: label})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return []*raft.SnapshotMeta{meta}, nil
}

// Open returns the snapshot called id. For the current one that is the live
// database as it is at this moment, and meta describes exactly that, not the label
// on disk. For an installed one that waits for Switch it is its name (see PendingID).
func (r raftStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	r.s.mu.Lock()
	pending := r.s.pending
	r.s.mu.Unlock()
	if pending != nil && pending.name == id {
		name := encodePending(id)
		meta, err := metaOf(id, Header{Label: pending.label, Size: uint64(len(name))})
		if err != nil {
			return nil, nil, fmt.Errorf("open snapshot: %w", err)
		}
		return meta, io.NopCloser(bytes.NewReader(name)), nil
	}
	st, err := r.s.openLive(id)
	if err != nil {
		return nil, nil, err
	}
	meta, err := metaOf(id, st.header)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open snapshot: %w", err), st.Close())
	}
	return meta, st, nil
}

// Create returns a Sink that is not decided yet: see there.
//
//nolint:revive // argument-limit: the signature is raft's
func (r raftStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, kv.Errorf(kv.CodeInvalidArgument, "raft snapshot version %d is not supported", version)
	}
	return &Sink{
		store: r.s, name: newGenerationName(), configuration: configuration,
		label: Label{
			Index: index, Term: term, Configuration: raft.EncodeConfiguration(configuration),
			ConfigurationIndex: configurationIndex,
		},
	}, nil
}

// Sink is where raft puts a snapshot. raft uses the same call for two things, and
// the first use decides: Commit makes it a local snapshot, which is only a label;
// Write makes it an install, whose bytes are another server's stream. Close or
// Cancel ends it; raft always calls one of them.
type Sink struct {
	store *Store
	name  string
	// label and configuration are what raft said to Create.
	label         Label
	configuration raft.Configuration

	mu      sync.Mutex
	engine  *engine.Engine // set by Commit
	install *install       // set by the first Write
	ended   bool
	err     error // of Close
}

var errEnded = errors.New("snapshot sink is closed")

// ID returns the name under which Open will know the snapshot.
func (k *Sink) ID() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.name
}

// Commit makes this a local snapshot of eng, the database that the state machine
// was using when raft asked it for the snapshot. It syncs the database; Close then
// writes l as the label. Index, Term and configuration are raft's, given to Create;
// l.Index is how far l.State has got, and must not be above raft's. The cost does not
// depend on the size of the data. It fails with ErrSwitched if the database was
// replaced meanwhile and with ErrStreaming while a follower installs.
func (k *Sink) Commit(l Label, eng *engine.Engine) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.ended:
		return fmt.Errorf("commit snapshot: %w", errEnded)
	case k.install != nil || k.engine != nil:
		return kv.Errorf(kv.CodeInternal, "snapshot sink is in use already")
	case l.Index > k.label.Index:
		return kv.Errorf(kv.CodeInternal, "label at index %d for a snapshot at %d", l.Index, k.label.Index)
	}
	l.Index, l.Term = k.label.Index, k.label.Term
	l.Configuration, l.ConfigurationIndex = k.label.Configuration, k.label.ConfigurationIndex
	if err := k.store.prepareLabel(l, eng); err != nil {
		return fmt.Errorf("commit snapshot: %w", err)
	}
	k.label, k.engine = l, eng
	return nil
}

// Write hands over the next bytes of a stream to install. It blocks while the disk
// is behind and returns the error that ended the install, if one did.
func (k *Sink) Write(p []byte) (int, error) {
	in, err := k.installing()
	if err != nil {
		return 0, err
	}
	return in.Write(p)
}

func (k *Sink) installing() (*install, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.ended:
		return nil, errEnded
	case k.engine != nil:
		return nil, kv.Errorf(kv.CodeInternal, "snapshot sink holds a local snapshot")
	case k.install == nil:
		in, err := k.store.startInstall(k.name, k.check)
		if err != nil {
			return nil, err
		}
		k.install = in
	}
	return k.install, nil
}

// check compares a stream's own label with what raft was told by the sender.
//
// Invariant 16: label and content never differ. raft goes by its own numbers after
// the install, so a difference would lose or repeat entries.
func (k *Sink) check(h Header) error {
	l := h.Label
	c, err := decodeConfiguration(l.Configuration)
	if err != nil {
		return err
	}
	if l.Index != k.label.Index || l.Term != k.label.Term || l.ConfigurationIndex != k.label.ConfigurationIndex ||
		!slices.Equal(c.Servers, k.configuration.Servers) {
		return corrupt("stream is of index %d term %d configuration %d, raft announced index %d term %d configuration %d",
			l.Index, l.Term, l.ConfigurationIndex, k.label.Index, k.label.Term, k.label.ConfigurationIndex)
	}
	return nil
}

// Close finishes the snapshot: a local one becomes the current label, durably; an
// installed one is verified, made durable, and waits for Switch. On an error nothing
// of it is left. It is idempotent and returns the first result again.
func (k *Sink) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return k.err
	}
	k.ended = true
	switch {
	case k.engine != nil:
		k.name, k.err = k.store.publishLabel(k.label, k.engine)
	case k.install != nil:
		k.err = k.install.finish()
	default:
		k.err = kv.Errorf(kv.CodeInvalidArgument, "snapshot is empty")
	}
	return k.err
}

// Cancel gives the snapshot up and removes what there is of it. After Close it does
// nothing.
func (k *Sink) Cancel() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return nil
	}
	k.ended, k.err = true, errCancelled
	if k.install != nil {
		k.install.abort(errCancelled)
	}
	return nil
}
