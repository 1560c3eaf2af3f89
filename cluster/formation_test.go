package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var errCrash = errors.New("the process died")

// simDisk is a node's cluster.json in memory. An armed crash happens at the next
// write: before it, or after it and before anybody hears of it.
type simDisk struct {
	d     *durable
	armed int // 0 no, 1 before the write, 2 after it
}

func (s *simDisk) load() *durable { return s.d }

func (s *simDisk) update(fn func(*durable) error) error {
	next := s.d.clone()
	if err := fn(next); err != nil {
		return err
	}
	arm := s.armed
	s.armed = 0
	if arm == 1 {
		return errCrash
	}
	s.d = next
	if arm == 2 {
		return errCrash
	}
	return nil
}

type simNode struct {
	self    founder
	disk    *simDisk
	machine *formation // nil: down
	started string     // the configuration that its Raft was bootstrapped with
}

// letter is a message or an answer on its way.
type letter struct {
	m      message
	answer *answer
}

// sim runs several nodes through partitions, crashes, and lost, repeated and late
// messages.
type sim struct {
	t      *testing.T
	seed   uint64
	rng    *rand.Rand
	expect int
	nodes  map[string]*simNode
	ids    []string
	side   map[string]int // partition: only nodes of one side hear each other
	mail   []letter
	now    time.Time
	made   int
	stale  map[string]peer // what gossip last said of each node
	formed map[string]bool // distinct configurations that any Raft was given
}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 28)), nodes: map[string]*simNode{}, side: map[string]int{},
		now: time.Unix(0, 0), stale: map[string]peer{}, formed: map[string]bool{},
	}
	s.expect = 2 + s.rng.IntN(3)
	// Fewer than 2N: more can found two clusters of N, each rightly.
	total := s.expect + s.rng.IntN(s.expect)
	for i := range total {
		id := fmt.Sprintf("server-%d", i)
		n := &simNode{self: founder{ID: id, Name: fmt.Sprintf("n%d", i), RaftAddr: fmt.Sprintf("r%d", i), HTTPAddr: fmt.Sprintf("h%d", i)}, disk: &simDisk{d: &durable{}}}
		s.nodes[id] = n
		s.ids = append(s.ids, id)
		s.start(n)
		s.gossip(n)
	}
	return s
}

func (s *sim) start(n *simNode) {
	n.machine = &formation{
		self: n.self, expect: s.expect, eligible: true, ledger: n.disk, rng: s.rng,
		newID: func() string { s.made++; return fmt.Sprintf("cluster-%d", s.made) },
	}
}

// gossip refreshes what the others may hear of a node.
func (s *sim) gossip(n *simNode) {
	d := n.disk.d
	s.stale[n.self.ID] = peer{ServerID: n.self.ID, meta: meta{
		Name: n.self.Name, RaftAddr: n.self.RaftAddr, HTTPAddr: n.self.HTTPAddr, Expect: s.expect, ClusterID: d.ClusterID, Promised: d.Promise != nil,
	}}
}

// view is what a node sees: old news of any of the nodes on its side, noisily.
func (s *sim) view(n *simNode, noise int) view {
	var v view
	for _, id := range s.ids {
		if id != n.self.ID && s.side[id] == s.side[n.self.ID] && (noise == 0 || s.rng.IntN(noise) > 0) {
			v.peers = append(v.peers, s.stale[id])
		}
	}
	return v
}

// after handles what a step of a machine returned: a crash kills the node, anything
// else goes out.
func (s *sim) after(n *simNode, out []message, err error) bool {
	if err != nil {
		if !errors.Is(err, errCrash) {
			s.t.Fatalf("seed %d: %v", s.seed, err)
		}
		n.machine = nil
		return false
	}
	for _, m := range out {
		s.mail = append(s.mail, letter{m: m})
	}
	s.bootstrap(n)
	return true
}

// bootstrap does what former.startRaft does.
func (s *sim) bootstrap(n *simNode) {
	d := n.disk.d
	if d.ClusterID == "" || d.Started || len(d.Founders) == 0 {
		return
	}
	ids := make([]string, len(d.Founders))
	for i, f := range d.Founders {
		ids[i] = f.ID
	}
	n.started = d.ClusterID + " of " + strings.Join(ids, " ")
	s.formed[n.started] = true
	if len(ids) != s.expect || !slices.Contains(ids, n.self.ID) {
		s.t.Fatalf("seed %d: %s started Raft with %s, expecting %d founders", s.seed, n.self.ID, n.started, s.expect)
	}
	if len(s.formed) > 1 {
		s.t.Fatalf("seed %d: formation split: %v", s.seed, s.formed)
	}
	next := d.clone()
	next.Started = true
	n.disk.d = next
}

func (s *sim) deliver(l letter) {
	from, to := l.m.From, l.m.Target
	if l.answer != nil {
		from, to = to, from
	}
	n := s.nodes[to]
	if n.machine == nil || s.side[from] != s.side[to] {
		return
	}
	if l.answer != nil {
		out, err := n.machine.onAnswer(s.now, l.m, *l.answer)
		s.after(n, out, err)
		return
	}
	a, err := n.machine.handle(l.m, s.view(n, 4))
	if s.after(n, nil, err) {
		s.mail = append(s.mail, letter{m: l.m, answer: &a})
	}
}

func (s *sim) step() {
	n := s.nodes[s.ids[s.rng.IntN(len(s.ids))]]
	switch p := s.rng.IntN(100); {
	case p < 35:
		s.now = s.now.Add(time.Duration(s.rng.Int64N(int64(400 * time.Millisecond))))
		if n.machine != nil {
			out, err := n.machine.tick(s.now, s.view(n, 6))
			s.after(n, out, err)
		}
	case p < 80 && len(s.mail) > 0:
		i := s.rng.IntN(len(s.mail))
		l := s.mail[i]
		if s.rng.IntN(10) > 0 { // else it comes again
			s.mail = slices.Delete(s.mail, i, i+1)
		}
		if s.rng.IntN(8) > 0 { // else it is lost
			s.deliver(l)
		}
	case p < 88:
		s.gossip(n)
	case p < 91:
		n.machine = nil
	case p < 93:
		n.disk.armed = 1 + s.rng.IntN(2)
	case p < 98:
		if n.machine == nil {
			s.start(n)
		}
	default: // partition: up to three sides, or none
		sides := 1 + s.rng.IntN(3)
		for _, id := range s.ids {
			s.side[id] = s.rng.IntN(sides)
		}
	}
}

// heal ends all faults and runs until every founder has started Raft.
func (s *sim) heal() bool {
	clear(s.side)
	for _, n := range s.nodes {
		n.disk.armed = 0
		if n.machine == nil {
			s.start(n)
		}
	}
	for range 1200 {
		s.now = s.now.Add(100 * time.Millisecond)
		for _, id := range s.ids {
			n := s.nodes[id]
			s.gossip(n)
			out, err := n.machine.tick(s.now, s.view(n, 0))
			s.after(n, out, err)
		}
		for len(s.mail) > 0 {
			l := s.mail[0]
			s.mail = s.mail[1:]
			s.deliver(l)
		}
		started := 0
		for _, n := range s.nodes {
			if n.started != "" {
				started++
			}
		}
		if started == s.expect {
			return true
		}
	}
	return false
}

// TestFormationCannotSplit is Invariant 28: whatever is lost, late, repeated, cut or
// killed, at most one configuration of one cluster id ever starts; and once the
// faults end, one does.
func TestFormationCannotSplit(t *testing.T) {
	base := rand.Uint64()
	const runs = 1500
	early := 0
	for i := range uint64(runs) {
		seed := base + i
		s := newSim(t, seed)
		for range 150 + s.rng.IntN(400) {
			s.step()
		}
		if len(s.formed) > 0 {
			early++
		}
		if !s.heal() {
			for _, id := range s.ids {
				t.Logf("%s: %+v", id, s.nodes[id].disk.d)
			}
			t.Fatalf("seed %d: nothing was formed after the faults ended", seed)
		}
	}
	t.Logf("seeds %d to %d: %d of %d formed while there were faults", base, base+runs-1, early, runs)
	if early < runs/20 || early == runs {
		t.Errorf("%d of %d formed while there were faults: the simulation tries too little", early, runs)
	}
}

// pair makes a machine alone, for the tables below.
func testMachine(id string, expect int, d *durable) (*formation, *simDisk) {
	disk := &simDisk{d: d}
	n := 0
	return &formation{
		self: testFounder(id), expect: expect, eligible: true, ledger: disk, rng: rand.New(rand.NewPCG(1, 2)),
		newID: func() string { n++; return fmt.Sprintf("%s-makes-%d", id, n) },
	}, disk
}

func testFounder(id string) founder {
	return founder{ID: id, Name: "name-" + id, RaftAddr: id + ":7000", HTTPAddr: id + ":8080"}
}

func testPeer(id string, expect int) peer {
	f := testFounder(id)
	return peer{ServerID: id, GossipAddr: id + ":7946", meta: meta{Name: f.Name, RaftAddr: f.RaftAddr, HTTPAddr: f.HTTPAddr, Expect: expect}}
}

func TestPromiseIsGivenOnce(t *testing.T) {
	founders := []founder{testFounder("a"), testFounder("b"), testFounder("c")}
	ask := func(from, cluster string) message {
		return message{Kind: msgPromise, From: from, Proposer: from, Target: "b", ClusterID: cluster, Founders: founders}
	}
	held := &durable{Promise: &promise{Proposer: "a", ClusterID: "X", Founders: founders}}
	formedView := view{peers: []peer{func() peer { p := testPeer("z", 3); p.ClusterID = "Z"; return p }()}}
	tests := []struct {
		name string
		d    *durable
		m    message
		v    view
		want string
		to   string // PromisedTo
	}{
		{"first", &durable{}, ask("a", "X"), view{}, ansGranted, ""},
		{"again", held, ask("a", "X"), view{}, ansGranted, ""},
		{"another of the same proposer", held, ask("a", "Y"), view{}, ansRefused, "a"},
		{"another proposer", held, ask("c", "Y"), view{}, ansRefused, "a"},
		{"same id from another", held, ask("c", "X"), view{}, ansRefused, "a"},
		{"kept long ago", &durable{ClusterID: "X"}, ask("a", "X"), view{}, ansGranted, ""},
		{"member of another cluster", &durable{ClusterID: "Z"}, ask("a", "X"), view{}, ansRefused, ""},
		{"sees a cluster", &durable{}, ask("a", "X"), formedView, ansRefused, ""},
		{"not for it", &durable{}, message{Kind: msgPromise, From: "a", Proposer: "a", Target: "c", ClusterID: "X", Founders: founders}, view{}, ansRefused, ""},
		{"other size", &durable{}, message{Kind: msgPromise, From: "a", Proposer: "a", Target: "b", ClusterID: "X", Founders: founders[:2]}, view{}, ansRefused, ""},
		{"not a founder", &durable{}, message{Kind: msgPromise, From: "a", Proposer: "a", Target: "b", ClusterID: "X", Founders: []founder{founders[0], founders[2], testFounder("d")}}, view{}, ansRefused, ""},
		{"proposer not a founder", &durable{}, ask("d", "X"), view{}, ansRefused, ""},
		{"no cluster id", &durable{}, ask("a", ""), view{}, ansRefused, ""},
		{"old addresses", &durable{}, message{Kind: msgPromise, From: "a", Proposer: "a", Target: "b", ClusterID: "X", Founders: []founder{founders[0], {ID: "b", Name: "name-b", RaftAddr: "old", HTTPAddr: "b:8080"}, founders[2]}}, view{}, ansRefused, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, disk := testMachine("b", 3, tt.d.clone())
			a, err := f.handle(tt.m, tt.v)
			if err != nil || a.Kind != tt.want || a.PromisedTo != tt.to {
				t.Fatalf("answer %+v, %v; want %s, promised to %q", a, err, tt.want, tt.to)
			}
			if tt.want == ansGranted && disk.d.ClusterID == "" && (disk.d.Promise == nil || disk.d.Promise.ClusterID != tt.m.ClusterID) {
				t.Errorf("granted, and the promise on disk is %+v", disk.d.Promise)
			}
			if tt.want == ansRefused && disk.d.Promise != nil && disk.d.Promise.ClusterID == tt.m.ClusterID && tt.d.Promise == nil {
				t.Error("refused, and promised")
			}
		})
	}
}

func TestOnlyTheProposerReleases(t *testing.T) {
	founders := []founder{testFounder("a"), testFounder("b"), testFounder("c")}
	held := &durable{Promise: &promise{Proposer: "a", ClusterID: "X", Founders: founders}}
	status := func(target string) message {
		return message{Kind: msgStatus, From: "b", Proposer: "a", Target: target, ClusterID: "X", Founders: founders}
	}
	t.Run("by abort", func(t *testing.T) {
		for _, tt := range []struct {
			from, cluster string
			released      bool
		}{{"a", "X", true}, {"c", "X", false}, {"b", "X", false}, {"a", "Y", false}} {
			f, disk := testMachine("b", 3, held.clone())
			if _, err := f.handle(message{Kind: msgAbort, From: tt.from, Proposer: tt.from, Target: "b", ClusterID: tt.cluster}, view{}); err != nil {
				t.Fatal(err)
			}
			if got := disk.d.Promise == nil; got != tt.released {
				t.Errorf("abort of %s by %s: released %v", tt.cluster, tt.from, got)
			}
		}
	})
	t.Run("by answer", func(t *testing.T) {
		for _, tt := range []struct {
			target, kind string
			released     bool
			cluster      string
		}{
			{"a", ansAborted, true, ""}, {"c", ansAborted, false, ""}, {"c", ansUnknown, false, ""}, {"a", ansPending, false, ""},
			{"c", ansDecided, true, "X"}, {"a", ansDecided, true, "X"},
		} {
			f, disk := testMachine("b", 3, held.clone())
			if _, err := f.onAnswer(time.Unix(9, 0), status(tt.target), answer{Kind: tt.kind}); err != nil {
				t.Fatal(err)
			}
			if got := disk.d.Promise == nil; got != tt.released || disk.d.ClusterID != tt.cluster {
				t.Errorf("%s from %s: released %v, cluster %q", tt.kind, tt.target, got, disk.d.ClusterID)
			}
		}
	})
	t.Run("what is answered", func(t *testing.T) {
		for _, tt := range []struct {
			id   string
			d    *durable
			want string
		}{
			{"a", &durable{}, ansAborted}, {"c", &durable{}, ansUnknown}, {"a", held, ansPending}, {"c", held, ansPending},
			{"a", &durable{ClusterID: "X"}, ansDecided}, {"c", &durable{ClusterID: "X"}, ansDecided}, {"c", &durable{ClusterID: "Z"}, ansUnknown},
		} {
			f, _ := testMachine(tt.id, 3, tt.d.clone())
			if a, err := f.handle(status(tt.id), view{}); err != nil || a.Kind != tt.want {
				t.Errorf("%s with %+v answers %+v, %v; want %s", tt.id, tt.d, a, err, tt.want)
			}
		}
	})
}

func TestWhoProposes(t *testing.T) {
	peers := func(ps ...peer) view { return view{peers: ps} }
	with := func(p peer, change func(*peer)) peer { change(&p); return p }
	b, c, d := testPeer("b", 3), testPeer("c", 3), testPeer("d", 3)
	tests := []struct {
		name   string
		self   string
		expect int
		v      view
		want   string // founders, "" for no proposal
	}{
		{"lowest of enough", "a", 3, peers(b, c), "a b c"},
		{"exactly N of more", "a", 3, peers(b, c, d), "a b c"},
		{"too few", "a", 3, peers(b), ""},
		{"not the lowest", "c", 3, peers(b, d), ""},
		{"alone", "a", 1, peers(b, c), "a"},
		{"never", "a", 0, peers(b, c), ""},
		{"another expects another number", "a", 3, peers(b, with(c, func(p *peer) { p.Expect = 5 })), ""},
		{"nonvoters don't count", "a", 3, peers(b, with(c, func(p *peer) { p.Nonvoter = true })), ""},
		{"the promised don't count", "a", 3, peers(b, with(c, func(p *peer) { p.Promised = true }), d), "a b d"},
		{"one name twice", "a", 3, peers(b, with(c, func(p *peer) { p.Name = b.Name }), d), "a b d"},
		{"one address twice", "a", 3, peers(b, with(c, func(p *peer) { p.RaftAddr = b.RaftAddr })), ""},
		{"there is a cluster", "a", 3, peers(b, c, with(d, func(p *peer) { p.ClusterID = "Z" })), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, disk := testMachine(tt.self, tt.expect, &durable{})
			f.eligible = tt.expect > 0
			for at := range 10 {
				if _, err := f.tick(time.Unix(100, int64(at)*int64(100*time.Millisecond)), tt.v); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for _, x := range disk.d.founders() {
				got = append(got, x.ID)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("proposed %q, want %q", s, tt.want)
			}
			if decided := disk.d.ClusterID != ""; decided != (tt.expect == 1) {
				t.Errorf("decided: %v", decided)
			}
		})
	}
}

// TestProposerContinuesAfterRestart: the durable promise to itself is the proposal.
func TestProposerContinuesAfterRestart(t *testing.T) {
	founders := []founder{testFounder("a"), testFounder("b"), testFounder("c")}
	f, disk := testMachine("a", 3, &durable{Promise: &promise{Proposer: "a", ClusterID: "X", Founders: founders}})
	now := time.Unix(50, 0)
	out, err := f.tick(now, view{}) // sees nobody yet
	if err != nil || len(out) != 2 || out[0].Kind != msgPromise || out[0].ClusterID != "X" {
		t.Fatalf("sends %+v, %v", out, err)
	}
	for i, m := range out {
		more, err := f.onAnswer(now, m, answer{Kind: ansGranted})
		if err != nil || (i == 1) != (len(more) == 2) {
			t.Fatalf("after %d promises it sends %+v, %v", i+1, more, err)
		}
	}
	if disk.d.ClusterID != "X" || disk.d.Promise != nil || len(disk.d.Founders) != 3 {
		t.Errorf("not decided: %+v", disk.d)
	}
}

// TestGivesUpDurably: refused for a lower proposer it gives up at once, for a higher
// one it waits its time; and what it gave up it says.
func TestGivesUpDurably(t *testing.T) {
	founders := []founder{testFounder("b"), testFounder("c"), testFounder("d")}
	for _, tt := range []struct {
		promisedTo string
		at         time.Duration
		held       bool
	}{{"a", 0, false}, {"c", time.Second, true}, {"c", giveUpAfter + time.Second, false}, {"", 0, false}} {
		f, disk := testMachine("b", 3, &durable{Promise: &promise{Proposer: "b", ClusterID: "X", Founders: founders}})
		now := time.Unix(50, 0)
		out, err := f.tick(now, view{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.onAnswer(now, out[0], answer{Kind: ansRefused, PromisedTo: tt.promisedTo, Reason: "no"}); err != nil {
			t.Fatal(err)
		}
		out, err = f.tick(now.Add(tt.at), view{})
		if err != nil {
			t.Fatal(err)
		}
		if held := disk.d.Promise != nil; held != tt.held {
			t.Errorf("refused for %q, %s later: holds its proposal %v", tt.promisedTo, tt.at, held)
		}
		if !tt.held {
			if len(out) != 2 || out[0].Kind != msgAbort {
				t.Errorf("tells %+v", out)
			}
			a, err := f.handle(message{Kind: msgStatus, From: "c", Proposer: "b", Target: "b", ClusterID: "X", Founders: founders}, view{})
			if err != nil || a.Kind != ansAborted {
				t.Errorf("says of it %+v, %v", a, err)
			}
			// A promise that comes too late decides nothing.
			if _, err := f.onAnswer(now, message{Kind: msgPromise, From: "b", Proposer: "b", Target: "c", ClusterID: "X", Founders: founders}, answer{Kind: ansGranted}); err != nil || disk.d.ClusterID != "" {
				t.Errorf("a late promise decided: %+v, %v", disk.d, err)
			}
		}
	}
}
