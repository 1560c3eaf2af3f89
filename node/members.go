package node

import (
	"context"

	"github.com/settkv/sett/cluster"
	"github.com/settkv/sett/kv"
)

// clusterView is what the HTTP API sees of membership.
type clusterView struct{ n *Node }

func (v clusterView) Self() string                   { return v.n.cfg.ID }
func (v clusterView) ClusterID() string              { return v.n.cluster.ClusterID() }
func (v clusterView) IsLeader() bool                 { return v.n.consensus.IsLeader() }
func (v clusterView) LeaderChanged() <-chan struct{} { return v.n.cluster.LeaderChanged() }

func (v clusterView) Leader() (id, httpAddr string, ok bool) {
	id, httpAddr, ok = v.n.cluster.Leader()
	return id, httpAddr, ok && httpAddr != ""
}

func (v clusterView) Info(ctx context.Context) (kv.ClusterInfo, error) {
	n := v.n
	leader, _, _ := n.cluster.Leader()
	return kv.ClusterInfo{
		ID: n.cluster.ClusterID(), Name: n.cfg.ClusterName, Leader: leader, Term: n.consensus.Term(),
		Members: n.cluster.Members(ctx), Settings: n.Settings(),
	}, nil
}

func (v clusterView) HasMember(id string) bool { return v.n.cluster.HasMember(id) }

func (v clusterView) AddMember(ctx context.Context, m kv.MemberSpec) (kv.Member, error) {
	return v.n.cluster.AddMember(ctx, m)
}

func (v clusterView) RemoveMember(ctx context.Context, id string, force bool) error {
	return v.n.cluster.RemoveMember(ctx, id, force)
}

func (v clusterView) Promote(ctx context.Context, id string) (kv.Member, error) {
	return v.n.cluster.Promote(ctx, id)
}

func (v clusterView) Demote(ctx context.Context, id string, force bool) (kv.Member, error) {
	return v.n.cluster.Demote(ctx, id, force)
}

func (v clusterView) Transfer(ctx context.Context, to string) (string, error) {
	return v.n.cluster.Transfer(ctx, to)
}

var _ cluster.Directory = (*Node)(nil)
