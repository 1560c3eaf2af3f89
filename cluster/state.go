package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/settkv/sett/kv"
)

// The file format of cluster.json.
const (
	stateFile     = "cluster.json"
	stateMagic    = "sett-cluster"
	stateVersion  = 1
	maxStateBytes = 1 << 20
	maxFounders   = 64
	maxSeeds      = 16
)

// founder is a member of a first configuration.
type founder struct {
	ID       string `json:"id"` // server id
	Name     string `json:"name"`
	RaftAddr string `json:"raft_addr"`
	HTTPAddr string `json:"http_addr"`
}

// promise is a node's word to take part in one first configuration and no other.
type promise struct {
	Proposer  string    `json:"proposer"` // server id, one of Founders
	ClusterID string    `json:"cluster_id"`
	Founders  []founder `json:"founders"`
}

func (p *promise) proposer() founder {
	for _, f := range p.Founders {
		if f.ID == p.Proposer {
			return f
		}
	}
	return founder{ID: p.Proposer}
}

// durable is the content of cluster.json. A value that was handed out is never
// changed; update replaces it.
type durable struct {
	// ClusterID is set once, by formation or adoption, and never changed.
	ClusterID string `json:"cluster_id,omitempty"`
	// Founders is the first configuration, if this node took part in forming it.
	Founders []founder `json:"founders,omitempty"`
	// Started says that there is Raft state on this disk, so that its loss is noticed.
	Started bool `json:"started,omitempty"`
	// Seeds are gossip addresses learned at adoption.
	Seeds []string `json:"seeds,omitempty"`
	// Promise is the outstanding one; nil once it was kept or released.
	Promise *promise `json:"promise,omitempty"`
	Removed bool     `json:"removed,omitempty"`
}

// founders returns whatever first configuration this node knows of.
func (d *durable) founders() []founder {
	if d.Promise != nil {
		return d.Promise.Founders
	}
	return d.Founders
}

// State is the durable part: the file cluster.json. Reads never wait for the disk.
type State struct {
	dir string

	mu  sync.Mutex // serializes writers
	cur atomic.Pointer[durable]
}

// OpenState reads cluster.json of the data folder dir, or starts with nothing if
// there is none. A file that can't be trusted is a kv corruption error.
func OpenState(dir string) (*State, error) {
	s := &State{dir: dir}
	d := &durable{}
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", stateFile, err)
	default:
		if d, err = decodeState(raw); errors.Is(err, kv.ErrUnknownVersion) {
			return nil, fmt.Errorf("read %s: %w", stateFile, err)
		} else if err != nil {
			return nil, &kv.Error{Code: kv.CodeCorruption, Msg: stateFile + " is damaged: move the data folder away and start again; the node comes back as a new server", Err: err}
		}
	}
	s.cur.Store(d)
	return s, nil
}

// ClusterID returns the cluster's id, "" before formation or adoption.
func (s *State) ClusterID() string { return s.load().ClusterID }

// Removed says whether this node was removed from its cluster.
func (s *State) Removed() bool { return s.load().Removed }

// Started says whether there was Raft state in this data folder.
func (s *State) Started() bool { return s.load().Started }

// Seeds returns the gossip addresses that were learned when this node was taken in.
func (s *State) Seeds() []string { return slices.Clone(s.load().Seeds) }

// SetClusterID names the cluster of an offline-made data folder. It refuses to
// change an id.
func (s *State) SetClusterID(id string) error {
	return s.update(func(d *durable) error {
		if d.ClusterID != "" && d.ClusterID != id {
			return kv.Errorf(kv.CodeConflict, "the data folder belongs to cluster %s", d.ClusterID)
		}
		d.ClusterID, d.Promise = id, nil
		return nil
	})
}

func (s *State) load() *durable { return s.cur.Load() }

// update runs fn on a copy and makes the result durable before anybody sees it. An
// error of fn, or of the disk, leaves everything as it was. Unchanged content is not
// written.
func (s *State) update(fn func(d *durable) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.load().clone()
	if err := fn(next); err != nil {
		return err
	}
	if reflect.DeepEqual(next, s.load()) {
		return nil
	}
	if err := writeFile(s.dir, stateFile, encodeState(next)); err != nil {
		return fmt.Errorf("write %s: %w", stateFile, err)
	}
	s.cur.Store(next)
	return nil
}

func (d *durable) clone() *durable {
	n := *d
	n.Founders, n.Seeds = slices.Clone(d.Founders), slices.Clone(d.Seeds)
	if d.Promise != nil {
		p := *d.Promise
		p.Founders = slices.Clone(p.Founders)
		n.Promise = &p
	}
	return &n
}

// The envelope keeps the body's exact bytes, so that the checksum covers them.
type stateEnvelope struct {
	Magic   string          `json:"magic"`
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Body    json.RawMessage `json:"body"`
}

func encodeState(d *durable) []byte {
	body, err := json.Marshal(d)
	if err != nil {
		panic(fmt.Sprintf("encode cluster state: %v", err)) // plain fields only
	}
	sum := sha256.Sum256(body)
	out, err := json.Marshal(stateEnvelope{Magic: stateMagic, Version: stateVersion, SHA256: hex.EncodeToString(sum[:]), Body: body})
	if err != nil {
		panic(fmt.Sprintf("encode cluster state: %v", err))
	}
	return append(out, '\n')
}

func decodeState(raw []byte) (*durable, error) {
	if len(raw) > maxStateBytes {
		return nil, fmt.Errorf("%d bytes is too long", len(raw))
	}
	var e stateEnvelope
	if err := strictJSON(raw, &e); err != nil {
		return nil, err
	}
	if e.Magic != stateMagic {
		return nil, fmt.Errorf("not a %s file", stateMagic)
	}
	sum := sha256.Sum256(e.Body)
	if e.SHA256 != hex.EncodeToString(sum[:]) {
		return nil, errors.New("the checksum does not match")
	}
	if e.Version > stateVersion {
		return nil, fmt.Errorf("format version %d: %w", e.Version, kv.ErrUnknownVersion)
	}
	if e.Version < stateVersion {
		return nil, fmt.Errorf("there never was a format version %d", e.Version)
	}
	d := &durable{}
	if err := strictJSON(e.Body, d); err != nil {
		return nil, err
	}
	if d.ClusterID != "" && d.Promise != nil {
		return nil, errors.New("both a cluster and a promise")
	}
	if p := d.Promise; p != nil && (p.ClusterID == "" || p.Proposer == "" || len(p.Founders) == 0) {
		return nil, errors.New("an incomplete promise")
	}
	return d, nil
}

func strictJSON(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("trailing data")
	}
	return nil
}

// writeFile replaces dir/name: visible only by a rename after the content is on
// stable storage, and then the folder is synced.
func writeFile(dir, name string, data []byte) (err error) {
	f, err := os.CreateTemp(dir, name+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // a leftover is harmless
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
