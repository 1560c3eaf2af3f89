package relay_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
	"github.com/settkv/sett/relay"
)

// rig is a client and a server with a handler.
type rig struct {
	client *relay.Client
	server *relay.Server
	addr   string
	http   *httptest.Server
	dials  atomic.Int64

	mu    sync.Mutex
	conns []net.Conn
}

func newRig(t *testing.T, h relay.Handler) *rig {
	t.Helper()
	g := &rig{server: relay.NewServer(h)}
	g.http = httptest.NewServer(g.server)
	g.addr = strings.TrimPrefix(g.http.URL, "http://")
	g.client = relay.NewClient("/x", g.dial, func() http.Header { return http.Header{"A": {"b"}} })
	t.Cleanup(func() {
		g.client.Close()
		g.http.Close()
		g.server.Close()
	})
	return g
}

func (g *rig) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	g.dials.Add(1)
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err == nil {
		g.mu.Lock()
		g.conns = append(g.conns, c)
		g.mu.Unlock()
	}
	return c, err
}

// cut breaks the newest connection.
func (g *rig) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.conns[len(g.conns)-1].Close()
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func wantError(t *testing.T, err error, code kv.Code, outcome kv.Outcome) {
	t.Helper()
	var e *kv.Error
	if !errors.As(err, &e) || e.Code != code || e.Outcome != outcome {
		t.Fatalf("%v, want %s with outcome %q", err, code, outcome)
	}
}

// TestEachGetsItsOwn: many callers, answers in any order, one connection.
func TestEachGetsItsOwn(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var most atomic.Int64
	var now atomic.Int64
	g := newRig(t, func(_ context.Context, cmd []byte) (relay.Answer, error) {
		for n := now.Add(1); n > most.Load(); {
			most.Store(n)
		}
		defer now.Add(-1)
		if cmd[0]%7 == 3 {
			return relay.Answer{}, kv.NotApplied(kv.CodeConflict, "%x", cmd)
		}
		return relay.Answer{Result: append([]byte("re "), cmd...), Timing: kv.Timing{Queue: 1, Replicate: time.Duration(cmd[0]), Apply: 3}}, nil
	})
	ctx := within(t, 30*time.Second)
	var wg sync.WaitGroup
	for i := range 32 {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for range 200 {
				cmd := make([]byte, 1+rng.IntN(300))
				if rng.IntN(50) == 0 {
					cmd = make([]byte, relay.MaxCommandBytes)
				}
				for i := range cmd {
					cmd[i] = byte(rng.Uint32())
				}
				a, err := g.client.Propose(ctx, g.addr, cmd)
				if cmd[0]%7 == 3 {
					if e := kv.AsError(err); e.Code != kv.CodeConflict || e.Msg != fmt.Sprintf("%x", cmd) {
						t.Errorf("%v for %x", err, cmd)
					}
					continue
				}
				if err != nil || string(a.Result) != "re "+string(cmd) || a.Timing.Replicate != time.Duration(cmd[0]) || a.Timing.Queue != 1 || a.Timing.Apply != 3 {
					t.Errorf("%d bytes: %d bytes, %+v: %v", len(cmd), len(a.Result), a.Timing, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if g.dials.Load() != 1 {
		t.Errorf("%d connections, want one", g.dials.Load())
	}
	t.Logf("at most %d at once", most.Load())
}

// TestErrorsTravel: all of an error that a client is told arrives.
func TestErrorsTravel(t *testing.T) {
	want := &kv.Error{
		Code: kv.CodeOverloaded, Outcome: kv.OutcomeNotApplied, Msg: "so\n\x00", CurrentRevision: 7, OldestRevision: 1 << 60,
		RetryAfter: 1500 * time.Millisecond, Leader: "n2",
	}
	g := newRig(t, func(context.Context, []byte) (relay.Answer, error) { return relay.Answer{}, want })
	_, err := g.client.Propose(within(t, 5*time.Second), g.addr, []byte("x"))
	if got := kv.AsError(err); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestNobodyThere: what was not sent is known not to be applied.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	g := newRig(t, nil)
	_, err = g.client.Propose(within(t, 5*time.Second), addr, []byte("x"))
	wantError(t, err, kv.CodeNoLeader, kv.OutcomeNotApplied)

	// Somebody is there who speaks otherwise.
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	_, err = g.client.Propose(within(t, 5*time.Second), strings.TrimPrefix(other.URL, "http://"), []byte("x"))
	wantError(t, err, kv.CodeNoLeader, kv.OutcomeNotApplied)

	// And later there is a leader.
	g2 := newRig(t, func(context.Context, []byte) (relay.Answer, error) { return relay.Answer{Result: []byte("y")}, nil })
	if a, err := g.client.Propose(within(t, 5*time.Second), g2.addr, []byte("x")); err != nil || string(a.Result) != "y" {
		t.Errorf("%q: %v", a.Result, err)
	}
}

// TestLostAnswer: a stream that breaks leaves what is under way unknown, and the next
// proposal opens another.
func TestLostAnswer(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	defer close(release) // whatever becomes of the test: the server waits for its handlers
	g := newRig(t, func(_ context.Context, cmd []byte) (relay.Answer, error) {
		if string(cmd) == "held" {
			close(arrived)
			<-release
		}
		return relay.Answer{Result: cmd}, nil
	})
	ctx := within(t, 20*time.Second)
	lost := make(chan error, 1)
	go func() {
		_, err := g.client.Propose(ctx, g.addr, []byte("held"))
		lost <- err
	}()
	<-arrived
	if _, err := g.client.Propose(ctx, g.addr, []byte("passes")); err != nil {
		t.Fatalf("one that waits holds up another: %v", err)
	}
	g.cut()
	wantError(t, <-lost, kv.CodeOutcomeUnknown, kv.OutcomeUnknown)
	if _, err := g.client.Propose(ctx, g.addr, []byte("again")); err != nil || g.dials.Load() != 2 {
		t.Fatalf("after the cut, %d connections: %v", g.dials.Load(), err)
	}
}

// TestTimeIsUp: the caller's time ends its wait, and the leader was told.
func TestTimeIsUp(t *testing.T) {
	ended := make(chan error, 1)
	g := newRig(t, func(ctx context.Context, _ []byte) (relay.Answer, error) {
		<-ctx.Done()
		ended <- ctx.Err()
		return relay.Answer{}, kv.Unknown(ctx.Err(), "no time left")
	})
	_, err := g.client.Propose(within(t, time.Second), g.addr, []byte("x"))
	wantError(t, err, kv.CodeOutcomeUnknown, kv.OutcomeUnknown)
	if kv.AsError(err).Msg != "no time left" {
		t.Errorf("%v: the leader ends first, so that its own word arrives", err)
	}
	<-ended

	ctx, cancel := context.WithCancel(within(t, time.Minute))
	cancel()
	if _, err := g.client.Propose(ctx, g.addr, []byte("x")); !errors.Is(err, kv.ErrNoLeader) && !errors.Is(err, kv.ErrOutcomeUnknown) {
		t.Errorf("%v", err)
	}
}

// TestAnotherLeads: a stream to a leader that leads no more ends, and with it the waits
// for answers that will never come.
func TestAnotherLeads(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	old := newRig(t, func(context.Context, []byte) (relay.Answer, error) {
		close(arrived)
		<-release
		return relay.Answer{}, nil
	})
	defer close(release)
	lost := make(chan error, 1)
	ctx := within(t, time.Minute)
	go func() {
		_, err := old.client.Propose(ctx, old.addr, []byte("x"))
		lost <- err
	}()
	<-arrived
	old.client.LeaderIs(old.addr) // still: nothing ends
	if _, err := old.client.Propose(within(t, 50*time.Millisecond), "127.0.0.1:1", nil); err == nil {
		t.Fatal("nobody listens there")
	}
	wantError(t, <-lost, kv.CodeOutcomeUnknown, kv.OutcomeUnknown)
}

// TestGarbage: what is no frame ends the stream, and takes no memory.
func TestGarbage(t *testing.T) {
	g := newRig(t, func(context.Context, []byte) (relay.Answer, error) {
		t.Error("a frame that is none was handled")
		return relay.Answer{}, nil
	})
	for name, frame := range map[string][]byte{
		"long":          binary.AppendUvarint(nil, 1<<40),
		"overflow":      []byte(strings.Repeat("\xff", 11)),
		"no number":     {0},
		"no budget":     {1, 7},
		"large budget":  append([]byte{10, 7}, binary.AppendUvarint(nil, 1<<60)...),
		"another proto": []byte("GET / HTTP/1.1\r\n\r\n"),
	} {
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: sett-proposals/1\r\n\r\n")
		_, _ = conn.Write(frame)
		if name == "another proto" {
			_ = conn.(*net.TCPConn).CloseWrite() // its length is within the bound: the rest never comes
		}
		b, err := io.ReadAll(conn)
		if err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.HasPrefix(string(b), "HTTP/1.1 101 ") || strings.Count(string(b), "\n") != 4 {
			t.Errorf("%s: answered %q", name, b)
		}
		_ = conn.Close()
	}
	resp, err := http.Get(g.http.URL + "/x")
	if err != nil || resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a plain request: %v, %v", resp, err)
	}
	_ = resp.Body.Close()
}

// TestClose: nothing goes on after it.
func TestClose(t *testing.T) {
	g := newRig(t, func(context.Context, []byte) (relay.Answer, error) { return relay.Answer{}, nil })
	ctx := within(t, 10*time.Second)
	if _, err := g.client.Propose(ctx, g.addr, nil); err != nil {
		t.Fatal(err)
	}
	g.client.Close()
	_, err := g.client.Propose(ctx, g.addr, nil)
	wantError(t, err, kv.CodeNoLeader, kv.OutcomeNotApplied)

	other := newRig(t, func(context.Context, []byte) (relay.Answer, error) { return relay.Answer{}, nil })
	other.server.Close()
	_, err = other.client.Propose(ctx, other.addr, nil)
	wantError(t, err, kv.CodeNoLeader, kv.OutcomeNotApplied)
}
