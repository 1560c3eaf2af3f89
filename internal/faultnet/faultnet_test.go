package faultnet

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 10 * time.Second

func pairOf(t *testing.T, n *Network) (near, far net.Conn) {
	t.Helper()
	a, err := n.Listen("a", "a:1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Listen("b", "b:1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	if near, err = a.Dial("b:1", time.Second); err != nil {
		t.Fatal(err)
	}
	if far, err = b.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// quiet checks that nothing arrives for a moment.
func quiet(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := c.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d, %v; nothing should have come", n, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestBlockIsOneWayAndLosesNothing(t *testing.T) {
	n := New(1)
	near, far := pairOf(t, n)
	send(t, near, "hello")
	expect(t, far, "hello")
	n.Block("a", "b")
	if !n.Blocked("a", "b") || n.Blocked("b", "a") || n.Reachable("a", "b") {
		t.Error("Blocked or Reachable is wrong")
	}
	send(t, near, "held up")
	quiet(t, far)
	send(t, far, "the other way")
	expect(t, near, "the other way")
	waiting := make(chan string, 1)
	go func() { // a read that waits already when the block is lifted
		b := make([]byte, 7)
		_ = far.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.ReadFull(far, b)
		waiting <- string(b)
	}()
	n.Unblock("a", "b")
	if got := <-waiting; got != "held up" {
		t.Errorf("read %q", got)
	}
}

func TestDialWaitsForBlockToBeLifted(t *testing.T) {
	n := New(1)
	pairOf(t, n)
	c, err := n.Listen("c", "c:1")
	if err != nil {
		t.Fatal(err)
	}
	n.Isolate("c", "a", "b")
	start := time.Now()
	if _, err := c.Dial("a:1", 30*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) < 30*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	var netErr net.Error
	if _, err := c.Dial("a:1", time.Millisecond); !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
	done := make(chan error, 1)
	go func() { _, err := c.Dial("a:1", patience); done <- err }()
	n.Heal()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := c.Dial("nowhere:1", patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial nobody: %v", err)
	}
	if _, err := n.Listen("d", "c:1"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen twice: %v", err)
	}
}

func TestPartitionGroups(t *testing.T) {
	n := New(1)
	n.Block("x", "y")
	n.Partition([]string{"a", "b"}, []string{"c"})
	for _, tt := range []struct {
		from, to string
		want     bool
	}{{"a", "b", false}, {"a", "c", true}, {"c", "b", true}, {"c", "c", false}, {"x", "y", false}, {"a", "x", false}} {
		if got := n.Blocked(tt.from, tt.to); got != tt.want {
			t.Errorf("%s → %s: blocked %v", tt.from, tt.to, got)
		}
	}
}

func TestDelayKeepsOrder(t *testing.T) {
	n := New(1)
	near, far := pairOf(t, n)
	n.SetDelay("a", "b", 30*time.Millisecond, 20*time.Millisecond)
	start := time.Now()
	send(t, near, "first ")
	n.SetDelay("a", "b", 0, 0)
	send(t, near, "second")
	expect(t, far, "first second")
	if took := time.Since(start); took < 30*time.Millisecond {
		t.Errorf("arrived after %v", took)
	}
}

func TestDropAndResetRate(t *testing.T) {
	n := New(1)
	near, far := pairOf(t, n)
	if got := n.Connections("b", "a"); got != 1 {
		t.Errorf("%d connections", got)
	}
	if got := n.Drop("b", "a"); got != 1 {
		t.Errorf("dropped %d", got)
	}
	for _, c := range []net.Conn{near, far} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
	}
	n = New(1)
	near, _ = pairOf(t, n)
	n.SetResetRate(1)
	if _, err := near.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write: %v", err)
	}
}

func TestCloseIsReadAfterTheData(t *testing.T) {
	n := New(1)
	near, far := pairOf(t, n)
	n.Block("a", "b")
	send(t, near, "last words")
	_ = near.Close()
	quiet(t, far)
	n.Unblock("a", "b")
	expect(t, far, "last words")
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := far.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to a closed peer: %v", err)
	}
	_ = far.Close()
	if got := n.Connections("a", "b"); got != 0 {
		t.Errorf("%d connections are left", got)
	}
}

func TestDeadlines(t *testing.T) {
	n := New(1)
	near, far := pairOf(t, n)
	_ = near.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	written, err := near.Write(make([]byte, windowBytes+1)) // nobody reads
	if written != windowBytes || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wrote %d, %v", written, err)
	}
	_ = far.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = far.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(far, make([]byte, windowBytes)); err != nil {
		t.Errorf("read after the deadline was lifted: %v", err)
	}
	waiting := make(chan error, 1)
	go func() { _, err := far.Read(make([]byte, 1)); waiting <- err }()
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // wakes a read that waits
	if err := <-waiting; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
}

// TestStreamSurvivesFaults sends a long stream through blocks and delays at random
// and compares what arrives, byte for byte.
func TestStreamSurvivesFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := New(seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	near, far := pairOf(t, n)
	want := make([]byte, 5<<20)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		_, _ = near.Write(want)
		_ = near.Close()
	})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if i%2 == 0 {
				n.Block("a", "b")
				n.SetDelay("a", "b", time.Millisecond, time.Millisecond)
			} else {
				n.Heal()
			}
		}
	})
	_ = far.SetReadDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(far)
	close(stop)
	wg.Wait()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes arrived, %v", len(got), len(want), err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	n := New(1)
	near, far := pairOf(t, n)
	a, err := n.Listen("a", "a:2")
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan error, 1)
	go func() { _, err := a.Accept(); accepting <- err }()
	_ = a.Close()
	_ = a.Close()
	if err := <-accepting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := a.Dial("b:1", patience); err == nil {
		t.Error("a closed stream dials")
	}
	send(t, near, "others go on")
	expect(t, far, "others go on")
}
