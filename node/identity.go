package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/uuid"
)

// The files of a data folder that belong to this package. The others belong to
// cluster (cluster.json), raftstore (raft/) and snapshot (state/).
const (
	lockName     = "LOCK"
	identityName = "node.json"
	runningName  = "RUNNING"
	damagedName  = "DAMAGED" // what an earlier run found; see Node.fatal
	oldName      = "node.json.old"
	raftName     = "raft"
	stateName    = "state"
	clusterName  = "cluster.json"
	lostPrefix   = "lost-"

	identityVersion = 1
)

// identity is who a node is. ServerID is its row in the Raft configuration: made
// with the data folder, never used again after the folder's log was lost
// (Invariant 27).
type identity struct {
	Version  int       `json:"version"`
	ServerID string    `json:"server_id"`
	ID       string    `json:"id"`
	Created  time.Time `json:"created"`
	// Rejoin is the id of the cluster to which this server must come back as a new
	// one, because its predecessor's data was lost: it never forms another.
	Rejoin string `json:"rejoin,omitempty"`
	// Reseeding says that the lost identity's data is being put aside: it must not be
	// used under this one.
	Reseeding bool `json:"reseeding,omitempty"`
	// Checksum is the CRC-32C of the JSON with this field 0.
	Checksum uint32 `json:"checksum"`
}

func (id identity) sum() (uint32, error) {
	id.Checksum = 0
	b, err := json.Marshal(id)
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)), err
}

// folder is a locked data folder.
type folder struct {
	dir  string
	lock *flock.Flock
}

// openFolder makes the folder if it is missing and locks it. A folder that holds
// files but is no data folder is refused: nothing foreign is ever touched.
func openFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w; choose another data-dir or fix its permissions", err)
	}
	if err := checkForeign(dir); err != nil {
		return nil, err
	}
	l := flock.New(filepath.Join(dir, lockName))
	ok, err := l.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w; choose another data-dir or fix its permissions", err)
	}
	if !ok {
		return nil, fmt.Errorf("data folder %s is in use by another process: stop that one, or give this node its own data-dir", dir)
	}
	return &folder{dir: dir, lock: l}, nil
}

func checkForeign(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, identityName)); err == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read data folder: %w", err)
	}
	for _, e := range entries {
		n := e.Name()
		// "lost+found" is what an empty ext4 volume holds.
		if n == lockName || n == identityName+".tmp" || n == "lost+found" || strings.HasPrefix(n, lostPrefix) {
			continue
		}
		if n == raftName || n == stateName {
			return fmt.Errorf("folder %s holds %q but no %s: if this was a Sett data folder, move it away and start again, the node then comes back as a new server; else choose an empty folder as data-dir", dir, n, identityName)
		}
		return fmt.Errorf("folder %s holds %q but no %s, so it is not a Sett data folder: choose an empty folder as data-dir", dir, n, identityName)
	}
	return nil
}

func (f *folder) path(name ...string) string {
	return filepath.Join(append([]string{f.dir}, name...)...)
}

func (f *folder) close() error { return f.lock.Close() }

// identify reads the identity, or makes one for a new folder.
func (f *folder) identify(name string) (id identity, err error) {
	b, err := os.ReadFile(f.path(identityName))
	if errors.Is(err, os.ErrNotExist) {
		return f.writeIdentity(newIdentity(name, ""))
	}
	if err != nil {
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	const remedy = "move the data folder away and start again, the node then comes back as a new server"
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&id); err != nil {
		return identity{}, fmt.Errorf("%s is damaged: %w; %s", f.path(identityName), err, remedy)
	}
	if id.Version != identityVersion {
		return identity{}, fmt.Errorf("%s has format version %d, which this version of sett does not know", f.path(identityName), id.Version)
	}
	if sum, err := id.sum(); err != nil || sum != id.Checksum {
		return identity{}, fmt.Errorf("%s is damaged: its checksum does not match; %s", f.path(identityName), remedy)
	}
	if id.ID != name {
		return identity{}, fmt.Errorf("data folder %s belongs to node %q, not %q: start it with id %q, or choose another data-dir", f.dir, id.ID, name, id.ID)
	}
	if id.Reseeding {
		return f.putAside(id)
	}
	return id, nil
}

func newIdentity(name, rejoin string) identity {
	return identity{Version: identityVersion, ServerID: uuid.NewString(), ID: name, Created: time.Now().UTC().Truncate(time.Second), Rejoin: rejoin}
}

func (f *folder) writeIdentity(id identity) (identity, error) {
	var err error
	if id.Checksum, err = id.sum(); err != nil {
		return identity{}, fmt.Errorf("write identity: %w", err)
	}
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return identity{}, fmt.Errorf("write identity: %w", err)
	}
	if err := writeFile(f.path(identityName), append(b, '\n')); err != nil {
		return identity{}, fmt.Errorf("write identity: %w", err)
	}
	return id, nil
}

// reseed gives the node a new identity, which may only come back to the same
// cluster, and puts everything of the lost one aside. The new identity is written
// first: a crash in between must not leave the old one with an empty log, for it
// would vote again having forgotten its votes.
func (f *folder) reseed(name, clusterID string) (identity, error) {
	// The old identity is kept beside the old data, for whoever wants them back.
	if b, err := os.ReadFile(f.path(identityName)); err == nil {
		if err := writeFile(f.path(oldName), b); err != nil {
			return identity{}, fmt.Errorf("put lost data aside: %w", err)
		}
	}
	id := newIdentity(name, clusterID)
	id.Reseeding = true
	id, err := f.writeIdentity(id)
	if err != nil {
		return identity{}, err
	}
	return f.putAside(id)
}

func (f *folder) putAside(id identity) (identity, error) {
	aside := f.path(lostPrefix + time.Now().UTC().Format("20060102T150405.000Z"))
	if err := os.Mkdir(aside, 0o700); err != nil {
		return identity{}, fmt.Errorf("put lost data aside: %w", err)
	}
	for _, n := range []string{raftName, stateName, clusterName, damagedName, oldName} {
		if err := os.Rename(f.path(n), filepath.Join(aside, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return identity{}, fmt.Errorf("put lost data aside: %w", err)
		}
	}
	if err := syncDir(f.dir); err != nil {
		return identity{}, fmt.Errorf("put lost data aside: %w", err)
	}
	id.Reseeding = false
	return f.writeIdentity(id)
}

// running is the marker that stands while a node runs.
type running struct {
	BootID string `json:"boot_id"`
}

// lastRun returns whether the last run ended without taking its marker away, and
// whether the machine has gone down since.
func (f *folder) lastRun() (crashed, machineCrashed bool, err error) {
	old, err := os.ReadFile(f.path(runningName))
	if errors.Is(err, os.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("read running marker: %w", err)
	}
	var r running
	if json.Unmarshal(old, &r) != nil {
		r.BootID = "" // a marker that can't be read is one of another boot
	}
	return true, r.BootID != bootID(), nil
}

// markRunning leaves the marker.
func (f *folder) markRunning() error {
	b, err := json.Marshal(running{BootID: bootID()})
	if err == nil {
		err = writeFile(f.path(runningName), b)
	}
	if err != nil {
		return fmt.Errorf("write running marker: %w", err)
	}
	return nil
}

// bootID names this run of the machine. Without one every crash counts as one of the
// machine: the safe side.
func bootID() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return uuid.NewString()
	}
	return strings.TrimSpace(string(boot))
}

func (f *folder) unmarkRunning() error {
	if err := os.Remove(f.path(runningName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove running marker: %w", err)
	}
	return syncDir(f.dir)
}

// writeFile makes a file visible by rename, after its bytes are on stable storage.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
