package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/settkv/sett/fsm"
	"github.com/settkv/sett/internal/histories"
	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/snapshot"
)

// TestLinearizable lets clients work on all nodes while leaders are cut off, killed
// and moved, and networks are split in every way; then the history must be
// linearizable and all nodes must hold the same.
func TestLinearizable(t *testing.T) {
	l := linearizable{faults: 14, enough: 2000, workers: 6, work: (*histories.Recorder).RegisterWorker, model: histories.Registers.ToModel()}
	if testing.Short() {
		l.faults, l.enough = 5, 300
	}
	l.check(t)
}

// forHistories is the cluster as the recorders of histories work on it.
func (c *Cluster) forHistories() histories.Cluster {
	return histories.Cluster{Nodes: len(c.Nodes), Do: func(ctx context.Context, i int, r Request) (Answer, error) { return c.Do(ctx, c.Nodes[i], r) }}
}

// TestLinearizableTransactions: transactions and reads of ranges over several keys,
// range deletes and single writes among them, are one history.
func TestLinearizableTransactions(t *testing.T) {
	l := linearizable{faults: 9, enough: 1500, workers: 5, work: (*histories.Recorder).TrioWorker, model: histories.Trios.ToModel()}
	if testing.Short() {
		l.faults, l.enough = 3, 250
	}
	l.check(t)
}

// linearizable is a test of histories: what the workers do while there are faults must
// fit the model.
type linearizable struct {
	faults  int
	enough  int64 // operations with a known outcome
	workers int
	work    func(*histories.Recorder, context.Context, histories.Cluster, *rand.Rand, *atomic.Int64)
	model   porcupine.Model
}

func (l linearizable) check(t *testing.T) {
	t.Helper()
	seed := seedOf(t)
	c := Start(t, 3, seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	rec := histories.NewRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	var number atomic.Int64
	for i := range l.workers {
		wrng := rand.New(rand.NewPCG(seed, uint64(100+i)))
		wg.Go(func() { l.work(rec, ctx, c.forHistories(), wrng, &number) })
	}
	progress := getOn(c, &rec.Done)
	progress(50)
	counts := storm(t, c, rng, l.faults, progress)
	for rec.Done.Load() < l.enough {
		progress(min(50, l.enough-rec.Done.Load()))
	}
	cancel()
	wg.Wait()
	ops := rec.Operations()
	t.Logf("faults: %v; %d operations, %d with a known outcome", counts, len(ops), rec.Done.Load())

	result, info := porcupine.CheckOperationsVerbose(l.model, ops, time.Minute)
	if result != porcupine.Ok {
		path := filepath.Join(os.TempDir(), fmt.Sprintf("sett-%s-%d.html", t.Name(), seed))
		t.Errorf("history is %s; picture in %s: %v", result, path, porcupine.VisualizePath(l.model, info, path))
	}
	sameContent(t, c)
}

// seedOf draws a test's seed, or takes SETT_SEED, and says how to repeat it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("SETT_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d: SETT_SEED=%d go test -run '^%s$' ./internal/testcluster", seed, seed, t.Name())
	return seed
}

// getOn returns what waits until done has grown by n.
func getOn(c *Cluster, done *atomic.Int64) func(n int64) {
	return func(n int64) {
		c.t.Helper()
		from := done.Load()
		c.Await(30*time.Second, "the clients to get on", func() error {
			if got := done.Load() - from; got < n {
				return fmt.Errorf("%d of %d operations", got, n)
			}
			return nil
		})
	}
}

// storm does one bad thing to the cluster after the other, and lets it recover between
// them. It returns how often it did each.
func storm(t *testing.T, c *Cluster, rng *rand.Rand, faults int, progress func(int64)) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range faults {
		counts[fault(t, c, rng, progress)]++
		c.Net.Heal()
		c.AwaitReady(30 * time.Second)
		progress(30)
	}
	return counts
}

// fault does one thing to the cluster and returns its name.
func fault(t *testing.T, c *Cluster, rng *rand.Rand, progress func(int64)) string {
	t.Helper()
	pause := func(d time.Duration) {
		// Here time is the fault: how long it lasts.
		timer := time.NewTimer(d)
		defer timer.Stop()
		<-timer.C
	}
	var leader *Node
	c.Await(20*time.Second, "a leader", func() error {
		if leader = c.Leader(); leader == nil {
			return errors.New("none")
		}
		return nil
	})
	ids := c.IDs()
	others := c.others(leader.ID)
	short := time.Duration(100+rng.IntN(700)) * time.Millisecond
	switch rng.IntN(7) {
	case 0:
		// The client still reaches it: a deposed leader must not answer from old data.
		c.Net.Isolate(leader.ID, others...)
		progress(30)
		pause(short)
		return "leader cut off"
	case 1:
		c.Net.Isolate(others[rng.IntN(len(others))], ids...)
		progress(30)
		return "follower cut off"
	case 2:
		// One direction only: the leader hears nobody, but is heard.
		for _, o := range others {
			c.Net.Block(o, leader.ID)
		}
		pause(short)
		return "leader deaf"
	case 3:
		for _, o := range others {
			c.Net.Block(leader.ID, o)
		}
		progress(20)
		return "leader mute"
	case 4:
		if err := leader.Kill(); err != nil {
			t.Fatalf("kill %s: %v", leader.ID, err)
		}
		progress(30)
		if err := leader.Start(); err != nil {
			t.Fatalf("start %s: %v", leader.ID, err)
		}
		return "leader killed"
	case 5:
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := c.Do(ctx, leader, Request{Method: http.MethodPost, Path: "/v1/cluster/transfer", Body: "{}"}); err != nil {
			t.Logf("transfer: %v", err)
		}
		return "leadership moved"
	default:
		// Bridge: two followers do not see each other, the leader sees both.
		c.Net.Block(others[0], others[1])
		c.Net.Block(others[1], others[0])
		c.Net.SetResetRate(0.01)
		pause(short)
		c.Net.SetResetRate(0)
		return "bridge"
	}
}

// sameContent compares what all nodes hold at one revision: the digest that was kept,
// one computed from disk, and one from an export. Writes whose clients gave up, and
// keys that fall due, may still move a node on between two looks: it looks again until all
// agree, which those that differ never do.
func sameContent(t *testing.T, c *Cluster) {
	t.Helper()
	var want kv.Digest
	c.Await(30*time.Second, "equal content at one revision on all nodes", func() error {
		want = c.Nodes[0].Running().FSM().Digest()
		for _, n := range c.Nodes {
			if err := contentIs(n, want); err != nil {
				return fmt.Errorf("%s: %w", n.ID, err)
			}
		}
		return nil
	})
	t.Logf("revision %d, digest %s on all nodes", want.Revision, want.Hash[:16])
}

// contentIs compares a node's content with a digest, in three ways.
func contentIs(n *Node, want kv.Digest) error {
	m := n.Running().FSM()
	if got := m.Digest(); got != want {
		return fmt.Errorf("digest %+v, want %+v", got, want)
	}
	disk, keys, err := m.Recompute(context.Background())
	if err != nil || disk != want || keys != m.Info().Keys {
		return fmt.Errorf("digest from disk %+v, want %+v; %d keys of %d: %w", disk, want, keys, m.Info().Keys, err)
	}
	l, r, err := m.Capture()
	if err != nil {
		return err
	}
	defer r.Close()
	var stream bytes.Buffer
	if _, err := snapshot.WriteStream(&stream, l, r); err != nil {
		return err
	}
	exported, _, err := fsm.DigestOf(&stream)
	if err != nil || exported != want {
		return fmt.Errorf("digest of an export %+v, want %+v: %w", exported, want, err)
	}
	return nil
}
