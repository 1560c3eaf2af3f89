package node

import (
	"context"
	"net/http"
	"time"

	"github.com/settkv/sett/cluster"
	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/relay"
)

// relayPath is where streams of proposals begin.
const relayPath = "/internal/v1/proposals"

// peers is the protocol of nodes among themselves: membership, and streams of proposals.
func (n *Node) peers(c *cluster.Cluster) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(relayPath, c.ForMembers(n.relayed))
	mux.Handle("/", c.Handler())
	return mux
}

func (n *Node) relayHeader() http.Header {
	return http.Header{cluster.HeaderClusterID: {n.state.ClusterID()}}
}

// Relay implements httpapi.Relay: the leader at addr proposes t.
func (n *Node) Relay(ctx context.Context, addr string, t kv.Txn, timing *kv.Timing) (kv.TxnResult, error) {
	// The leader stamps it: this node's clock has no say.
	cmd, err := fsm.EncodeTxn(t, 0)
	if err != nil {
		return kv.TxnResult{}, err
	}
	start := time.Now()
	a, err := n.relays.Propose(ctx, addr, cmd)
	*timing = a.Timing
	timing.Forward = max(0, time.Since(start)-a.Timing.Queue-a.Timing.Replicate-a.Timing.Apply)
	if err != nil {
		return kv.TxnResult{}, err
	}
	r, err := fsm.DecodeResult(a.Result)
	if err != nil {
		return kv.TxnResult{}, kv.Unknown(err, "the write was decided, but the leader's answer can't be read; run the same version of sett on all nodes")
	}
	if r.Err != nil {
		return r.Txn, r.Err
	}
	return r.Txn, nil
}

// onRelayed proposes a command that another node was asked for.
func (n *Node) onRelayed(ctx context.Context, cmd []byte) (relay.Answer, error) {
	t, cmd, err := n.fsm.Relayed(cmd)
	if err != nil {
		return relay.Answer{}, err
	}
	if err := n.mayWrite(t); err != nil {
		return relay.Answer{}, err
	}
	var a relay.Answer
	r, err := n.propose(ctx, cmd, &a.Timing)
	if err != nil && r.Err == nil {
		return relay.Answer{}, err
	}
	a.Result = fsm.EncodeResult(&r)
	return a, nil
}

// runRelays ends the stream to a leader that leads no more.
func (n *Node) runRelays() {
	for {
		changed := n.cluster.LeaderChanged()
		if _, addr, ok := n.cluster.Leader(); ok {
			n.relays.LeaderIs(addr)
		}
		select {
		case <-n.life.Done():
			return
		case <-changed:
		}
	}
}
