package node

import (
	"context"
	"time"

	"github.com/settkv/sett/cluster"
	"github.com/settkv/sett/kv"
)

// serving returns why this node answers no requests about data, nil if it does.
func (n *Node) serving() error {
	switch {
	case n.Err() != nil:
		return &kv.Error{Code: kv.CodeNotReady, Msg: "this node is stopping after a failure; ask another node", Err: n.Err(), Final: true}
	case n.cluster.Removed():
		e := notReady("this node was removed from its cluster; ask another node, or take it in again with sett join")
		e.Final = true
		return e
	case n.cluster.ClusterID() == "":
		return notReady("this node belongs to no cluster yet; see /readyz?verbose")
	}
	return nil
}

// diskFull says that this node must refuse growth.
func (n *Node) diskFull() bool { return n.logs.Full() || n.store.Engine().Full() }

func (n *Node) role() string {
	switch {
	case n.consensus.IsLeader():
		return kv.RoleLeader
	case n.consensus.Leader() == "":
		return kv.RoleCandidate
	}
	return kv.RoleFollower
}

// peerStatus is what this node tells its peers about itself.
func (n *Node) peerStatus() cluster.Status {
	return cluster.Status{AppliedIndex: n.fsm.Info().Applied, Role: n.role(), Version: n.opts.Version, DiskFull: n.diskFull()}
}

// Status implements httpapi.Health.
func (n *Node) Status(context.Context) (kv.Status, error) {
	i := n.fsm.Info()
	leader, _, _ := n.cluster.Leader()
	logs := n.logs.Stats()
	lsm, vlog := n.store.Engine().Sizes()
	return kv.Status{
		ID: n.cfg.ID, ServerID: n.identity.ServerID, Role: n.role(), Term: n.consensus.Term(), Leader: leader,
		CommitIndex: n.consensus.CommitIndex(), AppliedIndex: i.Applied, LastLogIndex: n.consensus.LastIndex(),
		SnapshotIndex: n.consensus.SnapshotIndex(), Revision: i.Revision, OldestRevision: i.Oldest, Keys: i.Keys,
		Digest: n.fsm.Digest(),
		Disk: kv.DiskStatus{
			DataBytes: lsm + vlog, LogBytes: n.logs.DiskBytes(), FreeBytes: logs.FreeBytes, Full: n.diskFull(),
		},
		Version: n.opts.Version, UptimeS: int64(time.Since(n.start) / time.Second),
	}, nil
}

// Live implements httpapi.Health.
func (n *Node) Live() error { return n.Err() }

// Ready implements httpapi.Health: each failing check says the cause and what to do.
func (n *Node) Ready() []kv.Check {
	check := func(name string, ok bool, detail string) kv.Check {
		if ok {
			detail = ""
		}
		return kv.Check{Name: name, OK: ok, Detail: detail}
	}
	failure := ""
	if err := n.Err(); err != nil {
		failure = "the node is stopping: " + err.Error()
	}
	out := []kv.Check{
		check("running", !n.draining.Load(), "the node is shutting down"),
		check("storage", failure == "", failure),
	}
	out = append(out, n.cluster.Ready()...)
	_, _, known := n.cluster.Leader()
	out = append(out,
		check("leader", known, "no leader is known: start, or reconnect, enough voters for a quorum"),
		check("caught-up", n.caughtUp.Load() != nil, "this node has not caught up with the cluster since it started: wait, or check that it reaches the leader"),
		check("disk", !n.diskFull(), "the disk is nearly full, so growth is refused: free space or delete keys"),
	)
	return out
}
