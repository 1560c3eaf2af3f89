package consensus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/settkv/sett/internal/faultnet"
	"github.com/settkv/sett/kv"
)

// lockedBuffer is a log's sink.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newLayer(t *testing.T, nw *faultnet.Network, id, cluster string) (*streamLayer, *lockedBuffer) {
	t.Helper()
	under, err := nw.Listen(id, id+":1")
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedBuffer{}
	s := &streamLayer{
		under: under, log: slog.New(slog.NewTextHandler(log, nil)), serverID: id,
		clusterID: func() string { return cluster }, ioTimeout: time.Second,
	}
	s.start()
	t.Cleanup(func() { _ = s.Close() })
	return s, log
}

func TestHandshakeRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name               string
		theirs, ours, meet string // cluster ids, and whom the dialer expects
		refusal, logged    string
	}{
		{"same cluster", "A", "A", "b", "", ""},
		{"foreign cluster", "A", "B", "b", "another cluster", "refused a raft connection from another cluster"},
		{"acceptor without a cluster", "A", "", "b", "another cluster, or to none", "belongs to no cluster yet"},
		{"dialer without a cluster", "", "B", "b", "no cluster yet", ""},
		{"address of another server", "A", "A", "c", "server b answers there", "meant for another server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nw := faultnet.New(1)
			a, _ := newLayer(t, nw, "a", tt.theirs)
			b, log := newLayer(t, nw, "b", tt.ours)
			accepted := make(chan net.Conn, 1)
			go func() {
				if c, err := b.Accept(); err == nil {
					accepted <- c
				}
			}()
			c, err := a.Dial(joinTarget(tt.meet, "b:1"), time.Second)
			if tt.refusal == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				far := <-accepted
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 1)
				if _, err := io.ReadFull(far, got); err != nil || got[0] != 'x' {
					t.Fatalf("%q, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.refusal) {
				t.Errorf("dial: %v, want %q", err, tt.refusal)
			}
			if !strings.Contains(log.String(), tt.logged) {
				t.Errorf("log: %s, want %q", log, tt.logged)
			}
			select {
			case <-accepted:
				t.Error("raft got the connection")
			default:
			}
		})
	}
	t.Run("no server id", func(t *testing.T) {
		a, _ := newLayer(t, faultnet.New(1), "a", "A")
		for _, target := range []raft.ServerAddress{"b:1", "@b:1", "b@", ""} {
			if _, err := a.Dial(target, time.Second); err == nil {
				t.Errorf("dialed %q", target)
			}
		}
	})
}

// TestRefusalsAreNotAFlood: a stranger that knocks often fills no log.
func TestRefusalsAreNotAFlood(t *testing.T) {
	nw := faultnet.New(1)
	a, _ := newLayer(t, nw, "a", "A")
	_, log := newLayer(t, nw, "b", "B")
	for range 50 {
		if _, err := a.Dial("b@b:1", time.Second); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines:\n%s", n, log)
	}
}

// TestSilentAndGarbageConnections: whoever does not shake hands costs little, is
// thrown out, and does not keep others waiting.
func TestSilentAndGarbageConnections(t *testing.T) {
	t.Parallel()
	nw := faultnet.New(1)
	a, _ := newLayer(t, nw, "a", "A")
	b, _ := newLayer(t, nw, "b", "A")
	stranger, err := nw.Listen("stranger", "stranger:1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxHandshakes {
		c, err := stranger.Dial("b:1", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			_, _ = c.Write(bytes.Repeat([]byte{0xff}, 1000)) // garbage
		} else {
			_, _ = c.Write([]byte(handshakeMagic)) // and then silence
		}
	}
	// The silent ones hold half of the places until their time is up.
	go func() {
		for {
			if _, err := b.Accept(); err != nil {
				return
			}
		}
	}()
	var c net.Conn
	deadline := time.Now().Add(testPatience)
	for c == nil && time.Now().Before(deadline) {
		c, err = a.Dial("b@b:1", time.Second)
	}
	if err != nil {
		t.Fatalf("a good peer is kept out: %v", err)
	}
	_ = c.Close()
}

// TestInboundIsBounded: connections with a good handshake are bounded too, and
// closing one makes room.
func TestInboundIsBounded(t *testing.T) {
	nw := faultnet.New(1)
	a, _ := newLayer(t, nw, "a", "A")
	b, _ := newLayer(t, nw, "b", "A")
	far := make(chan net.Conn, 2*maxInbound)
	go func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			far <- c
		}
	}()
	for range maxInbound {
		if _, err := a.Dial("b@b:1", time.Second); err != nil {
			t.Fatal(err)
		}
		<-far2(t, far, b)
	}
	if _, err := a.Dial("b@b:1", time.Second); err == nil {
		// The handshake may end well; the connection is closed then.
		if n := b.inwardCount(); n > maxInbound {
			t.Errorf("%d connections", n)
		}
	}
	b.closeOne()
	c, err := a.Dial("b@b:1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{9}); err != nil {
		t.Fatal(err)
	}
	<-far2(t, far, b)
}

func far2(t *testing.T, far chan net.Conn, b *streamLayer) chan net.Conn {
	t.Helper()
	select {
	case c := <-far:
		one := make(chan net.Conn, 1)
		one <- c
		return one
	case <-time.After(testPatience):
		t.Fatalf("not accepted; %d are open", b.inwardCount())
		return nil
	}
}

func (s *streamLayer) inwardCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inward
}

func (s *streamLayer) closeOne() {
	s.mu.Lock()
	var one *conn
	for c := range s.conns {
		if c.counted {
			one = c
			break
		}
	}
	s.mu.Unlock()
	_ = one.Close()
}

// TestGarbageAfterHandshake: a peer that knows the cluster sends raft nonsense,
// length bombs included. Nothing may panic, and memory must not follow what the
// lengths claim.
func TestGarbageAfterHandshake(t *testing.T) {
	tc := newCluster(t, 1, nil)
	tc.leader()
	nw := tc.net
	evil, err := nw.Listen("evil", "evil:1")
	if err != nil {
		t.Fatal(err)
	}
	layer := &streamLayer{
		under: evil, log: slog.New(slog.DiscardHandler), serverID: "evil",
		clusterID: func() string { return tc.clusterID }, ioTimeout: time.Second,
	}
	layer.start()
	defer func() { _ = layer.Close() }()
	huge := []byte{0xff, 0xff, 0xff, 0xff}
	field := func(name string, value ...byte) []byte {
		b := append([]byte{0, 0x81, 0xa0 | byte(len(name))}, name...) // AppendEntries, a map of one
		return append(b, value...)
	}
	bombs := map[string][]byte{
		"unknown type":      {99, 1, 2, 3},
		"not a map":         {0, 0xc1, 0xc1},
		"long bytes":        field("Leader", append([]byte{0xc6}, huge...)...),
		"long string":       field("Leader", append([]byte{0xdb}, huge...)...),
		"long array":        field("Entries", append([]byte{0xdd}, huge...)...),
		"long map":          append([]byte{0, 0xdf}, huge...),
		"long ext":          field("Leader", append([]byte{0xc9}, append(huge, 5)...)...),
		"long unknown ext":  field("Unknown", append([]byte{0xc9}, append(huge, 5)...)...),
		"long unknown data": field("Unknown", append([]byte{0xc6}, huge...)...),
		"deep":              field("Unknown", bytes.Repeat([]byte{0x91}, 1<<20)...),
	}
	time32 := append([]byte{0x91, 0x81, 0xaa}, "AppendedAt"...)
	bombs["long time"] = field("Entries", append(time32, append([]byte{0xc9}, append(huge, 0xff)...)...)...)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, bomb := range bombs {
		c, err := layer.Dial("n0@n0:7000", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		raw := c.(*conn).Conn
		_ = raw.SetDeadline(time.Now().Add(2 * time.Second))
		_, _ = raw.Write(bomb)
		if _, err := io.Copy(io.Discard, io.LimitReader(raw, 1<<20)); err != nil && !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "timeout") {
			t.Logf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		if grown := int64(after.TotalAlloc-before.TotalAlloc) >> 20; grown > 64 {
			t.Errorf("%s: %d MiB were allocated", name, grown)
		}
		runtime.ReadMemStats(&before)
		_ = c.Close()
	}
	// One message without end is cut off.
	c, err := layer.Dial("n0@n0:7000", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	raw := c.(*conn).Conn
	_ = raw.SetDeadline(time.Now().Add(testPatience))
	_, _ = raw.Write(field("Leader", append([]byte{0xc6}, huge...)...))
	sent := 0
	for chunk := make([]byte, 1<<20); sent < 64<<20; sent += len(chunk) {
		if _, err = raw.Write(chunk); err != nil {
			break
		}
	}
	if err == nil {
		t.Errorf("a message of %d MiB was taken", sent>>20)
	}
	tc.put("still alive")
}

func FuzzHandshake(f *testing.F) {
	good, err := hello{Cluster: "c", From: "f", To: "t"}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(encodeAnswer(statusWrongServer, "x"))
	f.Add([]byte(handshakeMagic))
	f.Add(append([]byte(handshakeMagic), 1, 255, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		if h, err := readHello(r); err == nil {
			again, err := h.encode()
			if err != nil || !bytes.Equal(again, in[:len(in)-r.Len()]) {
				t.Errorf("%q was read as %+v, which is written as %q, %v", in, h, again, err)
			}
		}
		r.Reset(in)
		if status, from, err := readAnswer(r); err == nil {
			if again := encodeAnswer(status, from); !bytes.Equal(again, in[:len(in)-r.Len()]) {
				t.Errorf("%q was read as %d, %q, which is written as %q", in, status, from, again)
			}
		}
	})
}

// TestTCP runs a cluster on real sockets, two nodes of it behind an advertised name.
func TestTCP(t *testing.T) {
	t.Parallel()
	addrs := map[string]string{}
	tc := newEmptyCluster(t, func(id string, cfg *Config) {
		_ = cfg.Stream.Close()
		l, err := ListenTCP("127.0.0.1:0", "")
		if err != nil {
			t.Fatal(err)
		}
		addrs[id] = l.Addr().String()
		if id != "n0" {
			_, port, _ := net.SplitHostPort(addrs[id])
			l.(*tcpStream).addr = namedAddr("localhost:" + port)
			addrs[id] = l.Addr().String()
		}
		cfg.Stream = l
	})
	var servers []kv.Server
	for _, id := range []string{"n0", "n1", "n2"} {
		tc.start(id)
		servers = append(servers, kv.Server{ID: id, Addr: addrs[id], Voter: true})
	}
	for _, n := range tc.nodes {
		if err := n.c.Bootstrap(servers); err != nil {
			t.Fatal(err)
		}
	}
	tc.put("x")
	tc.sameEverywhere()
	for _, bad := range []string{"256.0.0.1:0", addrs["n0"]} {
		if _, err := ListenTCP(bad, ""); err == nil {
			t.Errorf("listens on %s", bad)
		}
	}
	if l, err := ListenTCP("127.0.0.1:0", "node.example:7000"); err != nil || l.Addr().String() != "node.example:7000" {
		t.Errorf("advertised address: %v, %v", l, err)
	} else {
		_ = l.Close()
	}
}
