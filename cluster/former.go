package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/settkv/sett/kv"
)

// former carries the messages of the formation machine over HTTP, and starts Raft
// once there is a decision.
type former struct {
	c    *Cluster
	wake chan struct{}

	mu       sync.Mutex
	machine  *formation
	inflight map[string]bool // kind and target of calls under way

	wg sync.WaitGroup // calls
}

func newFormer(c *Cluster) *former {
	cfg := &c.cfg
	return &former{
		c: c, wake: make(chan struct{}, 1), inflight: map[string]bool{},
		machine: &formation{
			self:   founder{ID: cfg.ServerID, Name: cfg.Name, RaftAddr: cfg.RaftAddr, HTTPAddr: cfg.HTTPAddr},
			expect: cfg.BootstrapExpect, eligible: cfg.BootstrapExpect > 0 && !cfg.Nonvoter,
			ledger: c.state, newID: uuid.NewString, rng: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		},
	}
}

func (f *former) run(ctx context.Context) {
	t := time.NewTicker(f.c.cfg.Timing.Formation)
	defer t.Stop()
	for {
		f.step(ctx)
		if f.done() {
			// The machine still answers other founders; there is nothing left to start.
			t.Reset(10 * f.c.cfg.Timing.Formation)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-f.wake:
		}
	}
}

func (f *former) wait() { f.wg.Wait() }

func (f *former) done() bool {
	d := f.c.state.load()
	f.mu.Lock()
	defer f.mu.Unlock()
	return d.ClusterID != "" && d.Started && !f.machine.telling
}

func (f *former) step(ctx context.Context) {
	before := f.c.state.load()
	f.mu.Lock()
	out, err := f.machine.tick(time.Now(), f.view())
	f.mu.Unlock()
	f.report(err)
	f.send(ctx, out)
	f.startRaft()
	f.changed(before)
}

func (f *former) view() view { return view{peers: f.c.gossip.alive()} }

func (f *former) report(err error) {
	if err != nil && f.c.warn.allow("formation state") {
		f.c.log.Error("formation state not written", "err", err)
	}
}

// changed tells gossip if the durable state is not what it was.
func (f *former) changed(before *durable) {
	after := f.c.state.load()
	if after == before {
		return
	}
	switch {
	case after.ClusterID != before.ClusterID:
		f.c.log.Info("this node belongs to a cluster", "cluster", after.ClusterID, "founders", len(after.Founders))
	case after.Promise != nil && before.Promise == nil:
		f.c.log.Info("formation: promised", "proposer", after.Promise.proposer().Name, "cluster", after.Promise.ClusterID)
	case after.Promise == nil && before.Promise != nil:
		f.c.log.Info("formation: proposal given up", "proposer", before.Promise.proposer().Name, "cluster", before.Promise.ClusterID)
	}
	f.c.gossip.announce()
}

// startRaft gives Raft its first configuration, once. A crash between Bootstrap and
// the mark is healed at the next start: there is state then, and only the mark is
// missing.
func (f *former) startRaft() {
	d := f.c.state.load()
	if d.ClusterID == "" || d.Started {
		return
	}
	if !f.c.cfg.Consensus.HasState() {
		if len(d.Founders) == 0 {
			return // adopted: the leader brings the configuration
		}
		servers := make([]kv.Server, len(d.Founders))
		for i, x := range d.Founders {
			servers[i] = kv.Server{ID: x.ID, Addr: x.RaftAddr, Voter: true}
		}
		if err := f.c.cfg.Consensus.Bootstrap(servers); err != nil {
			if f.c.warn.allow("bootstrap") {
				f.c.log.Error("first configuration not stored", "err", err)
			}
			return
		}
		f.c.log.Info("cluster formed", "cluster", d.ClusterID, "servers", len(servers))
	}
	f.report(f.c.state.update(func(d *durable) error {
		d.Started = true
		return nil
	}))
}

// send delivers messages concurrently, at most one of a kind to a target at a time.
func (f *former) send(ctx context.Context, out []message) {
	for _, m := range out {
		key := m.Kind + " " + m.Target
		f.mu.Lock()
		busy := f.inflight[key]
		f.inflight[key] = true
		f.mu.Unlock()
		if busy || ctx.Err() != nil {
			continue
		}
		f.wg.Go(func() { f.deliver(ctx, m, key) })
	}
}

func (f *former) deliver(ctx context.Context, m message, key string) {
	var a answer
	addr := ""
	for _, x := range m.Founders {
		if x.ID == m.Target {
			addr = x.HTTPAddr
		}
	}
	if p, ok := f.c.gossip.peer(m.Target); ok {
		addr = p.HTTPAddr // it may have moved
	}
	err := f.c.client.call(ctx, target{server: m.Target, addr: addr}.post(pathFormation+m.Kind, m), &a)
	before := f.c.state.load()
	f.mu.Lock()
	delete(f.inflight, key)
	var more []message
	if err != nil {
		f.machine.unreachable(m, "no answer: "+rootCause(err))
	} else {
		more, err = f.machine.onAnswer(time.Now(), m, a)
		if err != nil {
			defer f.report(err)
		}
	}
	f.mu.Unlock()
	f.changed(before)
	f.send(ctx, more)
	f.poke()
}

func (f *former) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// receive answers a founder's message.
func (f *former) receive(m message) (answer, error) {
	before := f.c.state.load()
	f.mu.Lock()
	a, err := f.machine.handle(m, f.view())
	f.mu.Unlock()
	if err != nil {
		return answer{}, fmt.Errorf("formation: %w", err)
	}
	f.changed(before)
	f.poke()
	return a, nil
}

// adopt makes this node a member of a cluster that exists, on its leader's word.
func (f *former) adopt(in adoptRequest) error {
	before := f.c.state.load()
	f.mu.Lock()
	err := f.c.state.update(func(d *durable) error {
		switch {
		case d.ClusterID != "" && d.ClusterID != in.ClusterID:
			return kv.Errorf(kv.CodeConflict, "this node belongs to cluster %s", d.ClusterID)
		case d.Promise != nil && d.Promise.ClusterID != in.ClusterID:
			// Invariant 28: only the proposer releases a promise.
			return kv.Errorf(kv.CodeConflict, "this node %s", promiseAdvice(d.Promise))
		case d.Removed && !in.Rejoin:
			return kv.Errorf(kv.CodeConflict, "this node was removed; it comes back when an administrator adds it")
		}
		if d.Promise != nil {
			return keepPromise(d) // the very cluster it promised itself to
		}
		d.ClusterID, d.Removed = in.ClusterID, false
		d.Seeds = in.Seeds[:min(len(in.Seeds), maxSeeds)]
		return nil
	})
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.c.refusal.Store(nil)
	f.c.gossip.addSeeds(in.Seeds)
	f.changed(before)
	f.poke()
	return nil
}

func promiseAdvice(p *promise) string {
	x := p.proposer()
	return fmt.Sprintf("has promised itself to a first configuration of %s (server %s, http %s) and waits for it: bring that node back; "+
		"if it is lost for good, stop every node that says this, delete their data folders (they hold no data yet) and start them again", x.Name, x.ID, x.HTTPAddr)
}

// detail says for people what formation waits for.
func (f *former) detail() string {
	d := f.c.state.load()
	v := f.view()
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.machine
	if p := d.Promise; p != nil {
		if p.Proposer != m.self.ID {
			return "this node " + promiseAdvice(p)
		}
		var waits []string
		for _, x := range p.Founders {
			if m.granted == nil || !m.granted[x.ID] {
				why := m.troubles[x.ID]
				if why == "" {
					why = "asked"
				}
				waits = append(waits, fmt.Sprintf("%s (http %s): %s", x.Name, x.HTTPAddr, why))
			}
		}
		return "this node proposes the first configuration and waits for the promises of: " + strings.Join(waits, "; ")
	}
	if m.expect == 0 {
		return ""
	}
	cand := m.candidates(v)
	names := make([]string, len(cand))
	for i, x := range cand {
		names[i] = x.Name
	}
	s := fmt.Sprintf("waiting to form a cluster: %d of %d servers see each other (%s); check join, cluster-name, gossip-key and bootstrap-expect of the others",
		len(cand), m.expect, strings.Join(names, ", "))
	for _, p := range v.peers {
		switch {
		case p.Name == m.self.Name:
			s += fmt.Sprintf("; another node is called %s too (server %s, %s): give one of them another id", p.Name, p.ServerID, p.GossipAddr)
		case p.Promised:
			s += fmt.Sprintf("; %s holds a promise to a proposer", p.Name)
		}
	}
	return s
}
