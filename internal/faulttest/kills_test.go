package faulttest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

// The phases that kills are drawn across, as the nodes' metrics name them.
const (
	phaseAppend   = "append"
	phaseApply    = "apply"
	phaseSnapshot = "snapshot"
	phaseInstall  = "install"
	phaseGC       = "gc"
)

var phases = []string{phaseAppend, phaseApply, phaseSnapshot, phaseInstall, phaseGC}

// target says who is killed.
type target string

const (
	follower target = "a follower"
	leader   target = "the leader"
	all      target = "all three at once"
	twice    target = "a follower, twice in a row"
)

var targets = []target{follower, leader, all, twice}

// event is one planned fault: the instant is within a phase of one node, the
// victim; what is killed is the target.
type event struct {
	phase  string
	target target
}

// plan draws n events in random order. The phases come in turn; the targets are
// dealt like cards, so that each comes as often as the others. Only a follower can
// be installing.
func plan(n int, rng *rand.Rand) []event {
	var deck []target
	deal := func(phase string) target {
		for {
			for i, card := range deck {
				if phase != phaseInstall || card != leader {
					deck = slices.Delete(deck, i, i+1)
					return card
				}
			}
			for _, i := range rng.Perm(len(targets)) {
				deck = append(deck, targets[i])
			}
		}
	}
	events := make([]event, n)
	for i := range events {
		phase := phases[i%len(phases)]
		events[i] = event{phase: phase, target: deal(phase)}
	}
	rng.Shuffle(n, func(i, j int) { events[i], events[j] = events[j], events[i] })
	return events
}

// trailingLogs is small, so that a node that was away needs an install soon.
const trailingLogs = 64

// killArgs make snapshots, installs and collections frequent.
func killArgs() []string {
	return []string{
		"--snapshot-threshold", "400",
		"--trailing-logs", fmt.Sprint(trailingLogs),
		"--badger-mem-table-size", fmt.Sprint(8 << 20),
		"--badger-value-log-file-size", fmt.Sprint(2 << 20),
		"--badger-value-log-gc-interval-in-seconds", "1",
	}
}

// TestFaultKills kills nodes under load, again and again, within each of the
// phases that a crash could hurt. At the end every acknowledged write is there
// through every node, and every node came back by itself as the server it was.
func TestFaultKills(t *testing.T) {
	kills, fillKeys := 6, 1500
	if inCI(t) {
		kills, fillKeys = 50, 4000
	}
	kills = setting(t, "SETT_FAULT_KILLS", kills)
	if kills < len(phases) {
		t.Fatalf("%d kills do not reach %d phases", kills, len(phases))
	}
	seed := uint64(setting(t, "SETT_FAULT_SEED", int(time.Now().UnixNano()>>10)))
	t.Logf("seed %d (SETT_FAULT_SEED=%d repeats the plan)", seed, seed)
	rng := rand.New(rand.NewPCG(seed, seed))

	c := newCluster(t, killArgs()...)
	identities := c.serverIDs()
	c.must(blackbox.Fill(c.within(2*time.Minute), c.urls, "fill", fillKeys, 8<<10))
	ledger, stop := c.load(blackbox.Load{Rate: 250})
	c.goesOn(ledger, 50)

	k := &killer{cluster: c, rng: rng, ledger: ledger, perPhase: map[string]int{}, perTarget: map[target]int{}}
	for i, e := range plan(kills, rng) {
		k.run(i+1, e)
	}
	stop()

	t.Logf("kills per phase: %s", tally(phases, k.perPhase))
	t.Logf("half-received snapshots left behind by kills: %d", k.received)
	t.Logf("kills per target: %s", tally(targets, k.perTarget))
	t.Logf("slowest return to ready: %v", k.slowest.Round(time.Millisecond))
	for _, p := range phases {
		if k.perPhase[p] == 0 {
			t.Errorf("no kill fell into phase %s", p)
		}
	}
	if again := c.serverIDs(); fmt.Sprint(again) != fmt.Sprint(identities) {
		t.Errorf("servers were %v, are %v: a node did not come back as itself", identities, again)
	}
	c.judge(ledger)
}

func tally[K ~string](order []K, counts map[K]int) string {
	var parts []string
	for _, k := range order {
		parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
	}
	return strings.Join(parts, ", ")
}

type killer struct {
	*cluster
	rng       *rand.Rand
	ledger    *blackbox.Ledger
	perPhase  map[string]int
	perTarget map[target]int
	received  int // kills that left a half-received snapshot behind
	slowest   time.Duration
}

// run does one event and waits until the cluster is whole again.
func (k *killer) run(number int, e event) {
	k.t.Helper()
	victim := k.victim(e)
	if e.phase == phaseInstall {
		k.holdBack(victim)
	}
	seen := k.awaitPhase(victim, e.phase)
	// A little later, so that the instants spread over the phase.
	k.wait(time.Duration(k.rng.Int64N(int64(spread(e.phase)))))
	killed := []*node{victim}
	if e.target == all {
		killed = k.nodes
	}
	for _, n := range killed {
		// First all signals, then the waiting, so that they fall at one instant.
		_ = n.cmd.Process.Kill() // it may have ended; mustRun looked before
	}
	gap := time.Since(seen)
	for _, n := range killed {
		n.kill()
	}
	if e.phase == phaseInstall && k.halfReceived(victim) {
		k.received++
	}
	k.perPhase[e.phase]++
	k.perTarget[e.target]++

	started := time.Now()
	for _, n := range killed {
		n.start(k.t)
	}
	if e.target == twice {
		k.wait(time.Duration(k.rng.Int64N(int64(400 * time.Millisecond))))
		victim.kill()
		started = time.Now()
		victim.start(k.t)
	}
	k.must(blackbox.AwaitReady(k.within(40*time.Second), k.urls...))
	took := time.Since(started)
	k.slowest = max(k.slowest, took)
	k.mustRun()
	k.goesOn(k.ledger, 20)
	k.t.Logf("kill %2d: %s, %v after %s was in %s; ready after %v",
		number, e.target, gap.Round(10*time.Microsecond), victim.id, e.phase, took.Round(time.Millisecond))
}

// halfReceived looks whether a dead node holds a generation of its data beside the
// one that counts: it died while it received one, or while it switched.
func (k *killer) halfReceived(n *node) bool {
	k.t.Helper()
	generations, err := filepath.Glob(filepath.Join(n.dir, "state", "gen-*"))
	k.must(err)
	return len(generations) > 1
}

// spread is the greatest delay between seeing a phase and the kill: less than the
// phase usually lasts.
func spread(phase string) time.Duration {
	switch phase {
	case phaseInstall:
		return 30 * time.Millisecond
	case phaseSnapshot, phaseGC:
		return 2 * time.Millisecond
	default:
		return 200 * time.Microsecond
	}
}

// victim chooses the node whose phase counts.
func (k *killer) victim(e event) *node {
	k.t.Helper()
	l := k.leader()
	if e.target == leader {
		return l
	}
	others := slices.DeleteFunc(slices.Clone(k.nodes), func(n *node) bool { return n == l })
	return others[k.rng.IntN(len(others))]
}

// holdBack keeps a node down until the others have dropped the log that it would
// need, and starts it again: it can only come back by an install.
func (k *killer) holdBack(n *node) {
	k.t.Helper()
	status, err := blackbox.FetchStatus(k.within(10*time.Second), n.url)
	k.must(err)
	n.kill()
	beyond := status.LastLogIndex + 2*trailingLogs
	for _, other := range k.nodes {
		if other == n {
			continue
		}
		k.must(blackbox.Await(k.within(30*time.Second), other.id+" to drop its log", func(ctx context.Context) error {
			s, err := blackbox.FetchStatus(ctx, other.url)
			if err == nil && s.SnapshotIndex < beyond {
				_, err = blackbox.Fetch(ctx, http.MethodPost, other.url+"/v1/snapshot")
				if err == nil {
					err = fmt.Errorf("its snapshot is at %d, wanted %d", s.SnapshotIndex, beyond)
				}
			}
			return err
		}))
	}
	n.start(k.t)
}

// awaitPhase returns at once when the node says that it is in the phase: the time
// at which it was asked.
func (k *killer) awaitPhase(n *node, phase string) time.Time {
	k.t.Helper()
	ctx := k.within(20 * time.Second)
	stop := func() {}
	if phase == phaseSnapshot {
		stop = k.keepSnapshotting(ctx, n)
	}
	defer stop()
	sample := fmt.Sprintf("sett_phase{phase=%q}", phase)
	var last error
	for ctx.Err() == nil {
		asked := time.Now()
		v, present, err := blackbox.Metric(ctx, n.url, sample)
		switch {
		case err == nil && !present:
			k.t.Fatalf("%s has no metric %s", n.id, sample)
		case err == nil && v > 0:
			return asked
		case !n.running():
			k.t.Fatalf("%s ended by itself: %v", n.id, n.err)
		case err != nil:
			// It is not listening yet; ask again soon.
			last = err
			k.wait(time.Millisecond)
		}
	}
	k.t.Fatalf("%s was never seen in phase %s; last error: %v", n.id, phase, last)
	return time.Time{}
}

// keepSnapshotting asks a node for snapshots, one after the other, until the
// returned function is called, which waits for the last one only if it can end.
func (k *killer) keepSnapshotting(ctx context.Context, n *node) func() {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			// Refused or cut off, it is asked for again.
			_, _ = blackbox.Fetch(ctx, http.MethodPost, n.url+"/v1/snapshot")
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// wait passes time: here it is part of the fault, not a synchronisation.
func (k *killer) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-k.t.Context().Done():
	}
}

// TestPlanReachesAll holds the plan to what it promises for any seed.
func TestPlanReachesAll(t *testing.T) {
	for seed := range uint64(200) {
		for _, n := range []int{6, 50} {
			byPhase, byTarget := map[string]int{}, map[target]int{}
			for _, e := range plan(n, rand.New(rand.NewPCG(seed, seed))) {
				byPhase[e.phase]++
				byTarget[e.target]++
				if e.phase == phaseInstall && e.target == leader {
					t.Fatalf("seed %d: the leader cannot be installing", seed)
				}
			}
			if len(byPhase) != len(phases) || len(byTarget) != len(targets) {
				t.Fatalf("seed %d, %d kills: %v, %v", seed, n, byPhase, byTarget)
			}
			if n == 50 && (byPhase[phaseGC] != 10 || byTarget[all] < 12 || byTarget[twice] < 12 || byTarget[leader] < 10) {
				t.Fatalf("seed %d, %d kills: %v, %v", seed, n, byPhase, byTarget)
			}
		}
	}
}
