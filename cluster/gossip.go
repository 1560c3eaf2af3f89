package cluster

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// gossip owns the memberlist. What it knows of peers it keeps in a table of its own,
// fed by memberlist's events: the nodes that memberlist hands out are changed under
// its lock.
type gossip struct {
	c    *Cluster
	ml   *memberlist.Memberlist
	addr string // advertised
	// dirty asks runUpdates to tell the others about changed metadata.
	dirty chan struct{}

	mu    sync.RWMutex
	peers map[string]peer // alive ones, by server id, without this node
	seeds []string        // learned while running
}

func openGossip(ctx context.Context, c *Cluster) (*gossip, error) {
	g := &gossip{c: c, dirty: make(chan struct{}, 1), peers: map[string]peer{}}
	// What comes in later is counted now: it must always fit.
	m := g.localMeta()
	m.ClusterID, m.Promised, m.Expect = strings.Repeat("-", 36), true, maxFounders
	if _, err := m.encode(); err != nil {
		return nil, err
	}
	conf, err := g.config(ctx)
	if err != nil {
		return nil, err
	}
	if g.ml, err = memberlist.Create(conf); err != nil {
		return nil, fmt.Errorf("listen on gossip-addr %s: %w: free the port, or choose another gossip-addr", c.cfg.GossipAddr, err)
	}
	g.addr = g.ml.LocalNode().Address()
	return g, nil
}

func (g *gossip) config(ctx context.Context) (*memberlist.Config, error) {
	cfg, t := &g.c.cfg, &g.c.cfg.Timing
	conf := memberlist.DefaultLANConfig()
	conf.Name = cfg.ServerID
	conf.Label = cfg.ClusterName
	conf.ProbeInterval, conf.ProbeTimeout = t.Probe, t.Probe/2
	conf.GossipInterval, conf.PushPullInterval = t.Gossip, t.PushPull
	conf.TCPTimeout = t.Call
	conf.GossipToTheDeadTime = 30 * time.Second
	// A node that comes back elsewhere is accepted as soon as its old address is dead.
	conf.DeadNodeReclaimTime = time.Nanosecond
	conf.Delegate, conf.Events, conf.Alive, conf.Merge = g, g, g, g
	conf.Logger = log.New(&logBridge{log: g.c.log, limit: g.c.warn}, "", 0)

	host, port, err := splitAddr(cfg.GossipAddr)
	if err != nil {
		return nil, fmt.Errorf("gossip-addr: %w", err)
	}
	if conf.BindAddr, err = resolveIP(ctx, host); err != nil {
		return nil, fmt.Errorf("gossip-addr: %w", err)
	}
	conf.BindPort, conf.AdvertisePort = port, port
	if cfg.GossipAdvertise != "" {
		host, port, err := splitAddr(cfg.GossipAdvertise)
		if err != nil {
			return nil, fmt.Errorf("gossip-advertise: %w", err)
		}
		if conf.AdvertiseAddr, err = resolveIP(ctx, host); err != nil {
			return nil, fmt.Errorf("gossip-advertise: %w", err)
		}
		if port != 0 {
			conf.AdvertisePort = port
		}
	}
	if len(cfg.GossipKeys) > 0 {
		if conf.Keyring, err = memberlist.NewKeyring(cfg.GossipKeys, cfg.GossipKeys[0]); err != nil {
			return nil, fmt.Errorf("gossip-key: %w", err)
		}
	}
	return conf, nil
}

func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not a port", p)
	}
	return host, int(n), nil
}

// resolveIP turns a host name into an address, IPv4 first; memberlist wants one.
func resolveIP(ctx context.Context, host string) (string, error) {
	if host == "" {
		return "0.0.0.0", nil
	}
	if net.ParseIP(host) != nil {
		return host, nil
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return "", err
	}
	if len(addrs) == 0 {
		return "", fmt.Errorf("%s has no address", host)
	}
	for _, a := range addrs {
		if a.IP.To4() != nil {
			return a.IP.String(), nil
		}
	}
	return addrs[0].IP.String(), nil
}

// close says farewell, for at most d, and shuts gossip down.
func (g *gossip) close(d time.Duration) error {
	if err := g.ml.Leave(d); err != nil {
		g.c.log.Debug("gossip farewell not confirmed", "err", err)
	}
	return g.ml.Shutdown()
}

// localMeta is what this node says of itself.
func (g *gossip) localMeta() meta {
	cfg, d := &g.c.cfg, g.c.state.load()
	return meta{
		Name: cfg.Name, ClusterID: d.ClusterID, RaftAddr: cfg.RaftAddr, HTTPAddr: cfg.HTTPAddr, Version: cfg.Version,
		Expect: cfg.BootstrapExpect, Nonvoter: cfg.Nonvoter, Promised: d.Promise != nil, Removed: d.Removed,
		Started: d.Started, Waits: d.ClusterID == "" && len(cfg.Join) == 0 && cfg.BootstrapExpect == 0,
	}
}

// announce makes the others hear of changed metadata, soon.
func (g *gossip) announce() {
	select {
	case g.dirty <- struct{}{}:
	default:
	}
}

func (g *gossip) runUpdates(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.dirty:
			// The news is queued at once; waiting for it to be sent only paces the loop.
			if err := g.ml.UpdateNode(5 * g.c.cfg.Timing.Gossip); err != nil {
				g.c.log.Debug("gossip update not confirmed", "err", err)
			}
		}
	}
}

// peer returns an alive peer.
func (g *gossip) peer(serverID string) (peer, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	p, ok := g.peers[serverID]
	if !ok || g.foreign(p.meta) {
		return peer{}, false
	}
	return p, true
}

// alive returns the peers that gossip sees, without this node, by server id.
func (g *gossip) alive() []peer {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]peer, 0, len(g.peers))
	for _, p := range g.peers {
		if !g.foreign(p.meta) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b peer) int { return strings.Compare(a.ServerID, b.ServerID) })
	return out
}

// addSeeds remembers more gossip addresses to try.
func (g *gossip) addSeeds(addrs []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range addrs {
		if a != "" && len(g.seeds) < maxSeeds && !slices.Contains(g.seeds, a) {
			g.seeds = append(g.seeds, a)
		}
	}
}

// missing returns the known gossip addresses at which nobody is seen.
func (g *gossip) missing() []string {
	all := slices.Clone(g.c.cfg.Join)
	all = append(all, g.c.state.load().Seeds...)
	if g.c.ClusterID() != "" {
		for _, r := range g.c.cfg.Directory.Records() {
			if !r.Removed && r.ServerID != g.c.cfg.ServerID && r.GossipAddr != "" {
				all = append(all, r.GossipAddr)
			}
		}
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	all = append(all, g.seeds...)
	seen := map[string]bool{"": true, g.addr: true, g.c.cfg.GossipAddr: true, g.c.cfg.GossipAdvertise: true}
	for _, p := range g.peers {
		seen[p.GossipAddr] = true
	}
	var out []string
	for _, a := range all {
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}

// runJoin tries the addresses at which nobody is seen, for ever: a node that starts
// before the others, and halves of a cluster that lost sight of each other, meet
// without help.
func (g *gossip) runJoin(ctx context.Context) {
	t := &g.c.cfg.Timing
	pause := t.JoinMin
	for {
		reached := false
		for _, addr := range g.missing() {
			if ctx.Err() != nil {
				return
			}
			if _, err := g.ml.Join([]string{addr}); err == nil {
				reached = true
			} else if pause > t.JoinMax/4 && g.c.warn.allow("join "+addr) {
				// Not at once: servers that start together miss each other at first.
				g.c.log.Warn("gossip address not reached; trying on", "addr", addr, "err", rootCause(err))
			}
		}
		if pause = min(pause*2, t.JoinMax); reached {
			pause = t.JoinMax
		}
		if g.lonely() {
			pause = min(pause, max(t.JoinMax/4, t.JoinMin))
		}
		timer := time.NewTimer(jitter(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func (g *gossip) lonely() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.peers) == 0
}

// stranger says why a node may not be talked to, "" if it may.
//
// Invariant 28: a node of another cluster is refused, whoever relayed its name, so
// that two clusters never merge.
func (g *gossip) stranger(n *memberlist.Node) (meta, string) {
	m, err := decodeMeta(n.Meta)
	if err != nil {
		return m, err.Error()
	}
	if g.foreign(m) {
		return m, "it belongs to cluster " + m.ClusterID + ", this node to " + g.c.ClusterID()
	}
	return m, ""
}

// foreign says whether a node belongs to another cluster than this one. One that was
// none becomes it when either of them gets its cluster.
func (g *gossip) foreign(m meta) bool {
	own := g.c.ClusterID()
	return own != "" && m.ClusterID != "" && m.ClusterID != own
}

// NotifyAlive implements memberlist.AliveDelegate. It runs under memberlist's lock.
func (g *gossip) NotifyAlive(n *memberlist.Node) error {
	if n.Name == g.c.cfg.ServerID {
		return nil
	}
	if _, why := g.stranger(n); why != "" {
		if g.c.warn.allow("stranger " + n.Name) {
			g.c.log.Warn("stranger in gossip refused", "server", n.Name, "addr", n.Address(), "why", why)
		}
		g.mu.Lock()
		delete(g.peers, n.Name) // it may have been none before
		g.mu.Unlock()
		return errors.New("refused: " + why)
	}
	return nil
}

// NotifyMerge implements memberlist.MergeDelegate. A merge is refused if the others
// belong to another cluster; single strangers among them are left to NotifyAlive.
func (g *gossip) NotifyMerge(nodes []*memberlist.Node) error {
	var why string
	for _, n := range nodes {
		_, w := g.stranger(n)
		if w == "" {
			return nil
		}
		why = w
	}
	if why == "" {
		return nil
	}
	if g.c.warn.allow("merge") {
		g.c.log.Warn("merge with another cluster refused: check join and cluster-name", "why", why)
	}
	return errors.New("merge refused: " + why)
}

// NotifyJoin implements memberlist.EventDelegate.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.notice(n, "gossip sees a node") }

// NotifyUpdate implements memberlist.EventDelegate.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.notice(n, "") }

func (g *gossip) notice(n *memberlist.Node, msg string) {
	if n.Name == g.c.cfg.ServerID {
		return
	}
	m, why := g.stranger(n)
	if why != "" {
		return // it turned into one between two notices
	}
	p := peer{meta: m, ServerID: n.Name, GossipAddr: n.Address()}
	g.mu.Lock()
	g.peers[p.ServerID] = p
	g.mu.Unlock()
	if msg != "" {
		g.c.log.Info(msg, "node", p.Name, "server", p.ServerID, "addr", p.GossipAddr)
	}
	g.c.wakeReconciler()
}

// NotifyLeave implements memberlist.EventDelegate. Nothing but the table changes:
// Invariant 26: gossip never votes anyone out.
func (g *gossip) NotifyLeave(n *memberlist.Node) {
	g.mu.Lock()
	p, ok := g.peers[n.Name]
	delete(g.peers, n.Name)
	g.mu.Unlock()
	if ok {
		g.c.log.Info("gossip lost sight of a node", "node", p.Name, "server", p.ServerID, "addr", p.GossipAddr)
	}
}

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(int) []byte {
	b, err := g.localMeta().encode()
	if err != nil {
		// Can't happen: openGossip checked it.
		g.c.log.Error("gossip metadata", "err", err)
	}
	return b
}

// NotifyMsg implements memberlist.Delegate; no user messages are used.
func (g *gossip) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (g *gossip) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (g *gossip) MergeRemoteState([]byte, bool) {}

// logBridge turns memberlist's lines into log records: its errors are warnings here,
// because it goes on by itself, and the same kind comes only once in a while.
type logBridge struct {
	log   *slog.Logger
	limit *limiter
}

// Write implements io.Writer.
func (b *logBridge) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	level, rest, ok := strings.Cut(line, "] ")
	if !ok {
		rest = line
	}
	rest = strings.TrimPrefix(rest, "memberlist: ")
	switch level {
	case "[ERR", "[WARN":
		// The other end, or this one, was just closed: no news.
		if !strings.Contains(rest, "use of closed network connection") && b.limit.allow(kindOf(rest)) {
			b.log.Warn("gossip: " + rest)
		}
	default:
		b.log.Debug("gossip: " + rest)
	}
	return len(p), nil
}
