package node

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/settkv/sett/cluster"
	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/raftstore"
	"github.com/settkv/sett/snapshot"
)

// minFreeBytes is the free disk space below which growth is refused.
const minFreeBytes = 192 << 20

// errLost says that this server may not go on under its identity: its log or its data
// lost what was acknowledged.
var errLost = errors.New("acknowledged entries or data are missing from this node's disk")

func lost(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errLost, fmt.Errorf(format, args...))
}

// isDamage says whether err means that what is on this disk can't be trusted.
func isDamage(err error) bool {
	if errors.Is(err, kv.ErrUnknownVersion) {
		return false // a newer version wrote it, and can read it
	}
	for _, damage := range []error{errLost, raftstore.ErrHole, raftstore.ErrCorrupt, fsm.ErrLostData, kv.ErrCorruption} {
		if errors.Is(err, damage) {
			return true
		}
	}
	return false
}

// openStores opens everything durable and checks that it fits together. If it does
// not, the node comes back as a new server (Invariants 12, 13, 27), unless it is the
// only voter: then nobody has the data, and it stops.
func (n *Node) openStores() error {
	err := n.tryStores()
	if err == nil || !errors.Is(err, errLost) {
		return err
	}
	n.closeStores()
	clusterID, solo := n.clusterOnDisk()
	if solo {
		return fmt.Errorf("%w; this node was its cluster's only voter, or knows of no others: restore a backup into an empty data folder, or set join if there are others", err)
	}
	if clusterID == "" {
		// Without the id the new server could help to form another cluster.
		return fmt.Errorf("%w; nor can it be read which cluster the data belongs to: move the data folder away and start again, the node then comes back as a new server", err)
	}
	n.log.Error("this node's data cannot be trusted: it is put aside and the node comes back as a new server", "reason", err, "server_id", n.identity.ServerID)
	if n.identity, err = n.folder.reseed(n.cfg.ID, clusterID); err != nil {
		return err
	}
	n.log.Warn("this node has a new identity", "server_id", n.identity.ServerID)
	return n.tryStores()
}

// clusterOnDisk tells which cluster the folder belonged to, and whether this server
// has nobody to get the data from, as far as that can be read.
func (n *Node) clusterOnDisk() (clusterID string, solo bool) {
	clusterID = n.identity.Rejoin
	solo = len(n.cfg.Join) == 0 && n.cfg.BootstrapExpect <= 1
	if st, err := cluster.OpenState(n.folder.dir); err == nil && st.ClusterID() != "" {
		clusterID = st.ClusterID()
		solo = solo && len(st.Seeds()) == 0
	}
	label, ok, err := snapshot.PeekLabel(n.folder.path(stateName))
	if err != nil || !ok {
		return clusterID, solo
	}
	if clusterID == "" {
		clusterID = label.ClusterID
	}
	if servers, err := label.Servers(); err == nil {
		voters, self := 0, false
		for _, s := range servers {
			if s.Voter {
				voters++
				self = self || s.ID == n.identity.ServerID
			}
		}
		solo = voters == 1 && self
	}
	return clusterID, solo
}

func (n *Node) closeStores() {
	if n.fsm != nil {
		n.fsm.Close()
		n.fsm = nil
	}
	if n.store != nil {
		n.logErr("close the data store", n.store.Close())
		n.store = nil
	}
	if n.logs != nil {
		n.logErr("close the log store", n.logs.Close())
		n.logs = nil
	}
}

// tryStores opens the stores; what makes them unfit for this identity matches errLost.
func (n *Node) tryStores() error {
	if note, err := os.ReadFile(n.folder.path(damagedName)); err == nil {
		return lost("an earlier run of this node found: %s", strings.TrimSpace(string(note)))
	}
	err := n.openAll()
	if err != nil && isDamage(err) && !errors.Is(err, errLost) {
		return lost("%w", err)
	}
	return err
}

func (n *Node) openAll() error {
	var err error
	if n.state, err = cluster.OpenState(n.folder.dir); err != nil {
		return err
	}
	if n.identity.Rejoin != "" && n.state.ClusterID() == "" {
		if err := n.state.SetClusterID(n.identity.Rejoin); err != nil {
			return err
		}
	}
	_, statErr := os.Stat(n.folder.path(raftName))
	if n.state.Started() && errors.Is(statErr, os.ErrNotExist) {
		return lost("the folder %s is gone", n.folder.path(raftName))
	}
	b := n.cfg.Badger
	// Both at once: after a crash each reads its write-ahead log again.
	logs := make(chan error, 1)
	go func() {
		var err error
		n.logs, err = raftstore.Open(raftstore.Config{
			Dir: n.folder.path(raftName), MemTableBytes: max(b.MemTableBytes, 8<<20), MinFreeBytes: minFreeBytes,
			Logger: n.log.With("component", "raftstore"), OnFatal: n.fatal, Phase: n.metrics.phase,
		})
		logs <- err
	}()
	n.store, err = snapshot.OpenStore(snapshot.StoreConfig{
		Dir: n.folder.path(stateName),
		Engine: engine.Config{
			MemTableBytes: b.MemTableBytes, NumMemTables: b.NumMemTables,
			NumLevelZeroTables: b.NumLevelZeroTables, NumLevelZeroTablesStall: b.NumLevelZeroTablesStall,
			ValueLogFileBytes: b.ValueLogFileBytes, ValueLogMaxEntries: b.ValueLogMaxEntries, ValueThreshold: b.ValueThreshold,
			SyncWrites: b.SyncWrites, Compression: b.Compression, BlockCacheBytes: b.BlockCacheBytes, IndexCacheBytes: b.IndexCacheBytes,
			GCEnabled: b.GCEnabled, GCDiscardRatio: b.GCDiscardRatio, GCInterval: b.GCInterval,
			MinFreeBytes: minFreeBytes, Logger: n.log.With("component", "engine"), Phase: n.metrics.phase,
		},
		Logger: n.log.With("component", "snapshot"), OnFatal: n.fatal,
	})
	if logsErr := <-logs; logsErr != nil {
		return logsErr
	}
	if err != nil {
		return err
	}
	_, last := n.logs.Bounds()
	n.fsm, err = fsm.Open(fsm.Config{Store: n.store, LiveAfter: last, ServerID: n.identity.ServerID, Logger: n.log.With("component", "fsm"), OnFatal: n.fatal, Phase: n.metrics.phase})
	if err != nil {
		return err
	}
	return n.reconcileLog()
}

// reconcileLog compares the log with the snapshot S that the data covers and with the
// applied index D that the data has (Invariant 12).
func (n *Node) reconcileLog() error {
	label, labelled := n.store.Label()
	first, last := n.logs.Bounds()
	switch {
	case labelled && label.ServerID == n.identity.ServerID && last < label.Index:
		// A local snapshot keeps entries behind it; only an installed one stands alone.
		return lost("the log ends at entry %d, this server's own snapshot covers up to %d", last, label.Index)
	case !labelled && last == 0 && n.state.Started():
		return lost("the log is empty, and there is no snapshot")
	}
	if labelled && last > 0 {
		stale := last < label.Index
		if !stale && first <= label.Index {
			term, err := n.logs.Term(label.Index)
			if err != nil {
				return fmt.Errorf("read entry %d: %w", label.Index, err)
			}
			// Raft paper, figure 13, step 7: entries that do not continue the snapshot go.
			stale = term != label.Term
		}
		if stale {
			n.log.Warn("the log is older than the installed snapshot and is dropped", "first", first, "last", last, "snapshot", label.Index)
			if err := n.logs.Reset(); err != nil {
				return err
			}
			first, last = 0, 0
		}
	}
	if first > label.Index+1 {
		return lost("the log begins at entry %d, the newest snapshot covers up to %d", first, label.Index)
	}
	applied, term := n.fsm.Applied()
	if err := n.checkTerm(last, max(label.Term, term)); err != nil {
		return err
	}
	if applied > max(last, label.Index) {
		return lost("the data has entry %d applied, the log ends at %d", applied, max(last, label.Index))
	}
	if applied >= first && applied <= last && applied > label.Index {
		got, err := n.logs.Term(applied)
		if err != nil {
			return fmt.Errorf("read entry %d: %w", applied, err)
		}
		if got != term {
			return lost("entry %d has term %d in the log and %d in the data", applied, got, term)
		}
	}
	return nil
}

// checkTerm compares the stored term with the terms that are in the log and the data:
// it is written before any of them, so a lower one means that votes were lost.
func (n *Node) checkTerm(last, least uint64) error {
	current, err := n.logs.Stable().GetUint64([]byte("CurrentTerm"))
	if err != nil && err.Error() != raftstore.ErrNotFound.Error() {
		return fmt.Errorf("read the current term: %w", err)
	}
	if last > 0 {
		t, err := n.logs.Term(last)
		if err != nil {
			return fmt.Errorf("read entry %d: %w", last, err)
		}
		least = max(least, t)
	}
	if current < least {
		return lost("the stored term is %d, but there are entries of term %d: votes are lost", current, least)
	}
	return nil
}

func (n *Node) ownSettings() kv.ClusterSettings {
	return kv.ClusterSettings{
		HistoryRetention: n.cfg.HistoryRetention, HistoryRetentionBytes: n.cfg.HistoryRetentionBytes,
		MaxKeyBytes: n.cfg.MaxKeyBytes, MaxValueBytes: n.cfg.MaxValueBytes, MaxRequestBytes: n.cfg.MaxRequestBytes,
	}
}
