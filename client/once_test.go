package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

// writes are all calls that carry an idempotency key.
func writes(key string) map[string]func(*client.Client, *testing.T) error {
	o := client.WriteOptions{IdempotencyKey: key}
	return map[string]func(*client.Client, *testing.T) error{
		"put":    func(c *client.Client, t *testing.T) error { _, err := c.Put(t.Context(), "k", nil, o); return err },
		"delete": func(c *client.Client, t *testing.T) error { _, err := c.Delete(t.Context(), "k", o); return err },
		"append": func(c *client.Client, t *testing.T) error { _, err := c.Append(t.Context(), "k", nil, o); return err },
		"touch": func(c *client.Client, t *testing.T) error {
			_, err := c.Touch(t.Context(), "k", time.Hour, o)
			return err
		},
		"incr": func(c *client.Client, t *testing.T) error { _, err := c.Incr(t.Context(), "k", 1, o); return err },
		"txn": func(c *client.Client, t *testing.T) error {
			_, err := c.TxnJSON(t.Context(), []byte("{}"), key)
			return err
		},
		"delete range": func(c *client.Client, t *testing.T) error {
			_, err := c.DeleteRange(t.Context(), kv.PrefixRange("k"), client.DeleteRangeOptions{IdempotencyKey: key})
			return err
		},
	}
}

// A write whose answer is lost goes out again under the same key, to other endpoints
// too, until somebody knows.
func TestLostAnswers(t *testing.T) {
	unknown := problem(504, map[string]any{"code": "outcome-unknown", "outcome": "unknown"})
	for _, key := range []string{"", "mine"} {
		for name, do := range writes(key) {
			t.Run(name+" "+key, func(t *testing.T) {
				t.Parallel()
				ok := answerWith(200, "0", "Sett-Revision", "7", "Sett-Replayed", "true")
				if name == "delete range" {
					ok = answerWith(200, "{}")
				}
				n := newNode(t, breakOff, refusal(kv.CodeNoLeader, 503), ok)
				m := newNode(t, unknown, answerWith(502, "bad gateway"), ok)
				if err := do(dial(t, 20*time.Second, n.URL, m.URL), t); err != nil {
					t.Fatal(err)
				}
				keys := map[string]int{}
				for _, c := range append(n.seen(), m.seen()...) {
					keys[c.header.Get("Idempotency-Key")]++
				}
				if len(keys) != 1 || keys[""] != 0 || key != "" && keys[key] == 0 {
					t.Errorf("keys %v", keys)
				}
				if len(n.seen()) < 2 || len(m.seen()) < 2 {
					t.Errorf("%d and %d requests", len(n.seen()), len(m.seen()))
				}
			})
		}
	}
}

func TestKeysAreOfOneCall(t *testing.T) {
	n := newNode(t, created)
	c := dial(t, 5*time.Second, n.URL)
	for range 2 {
		if _, err := c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	calls := n.seen()
	if a, b := calls[0].header.Get("Idempotency-Key"), calls[1].header.Get("Idempotency-Key"); a == b || len(a) < 20 {
		t.Errorf("%q and %q", a, b)
	}
}

func TestReplayed(t *testing.T) {
	n := newNode(t, breakOff, answerWith(204, "", "Sett-Revision", "7", "Sett-Replayed", "true"), created)
	c := dial(t, 5*time.Second, n.URL)
	if r, err := c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil || !r.Replayed || r.Revision != 7 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil || r.Replayed {
		t.Errorf("%+v, %v", r, err)
	}
}

// What was certainly not applied later says nothing about an attempt whose answer was
// lost; what the state machine decides does.
func TestDoubtStays(t *testing.T) {
	tests := []struct {
		name string
		then http.HandlerFunc
		out  kv.Outcome
		code kv.Code
	}{
		{"no leader until the end", refusal(kv.CodeNoLeader, 503), kv.OutcomeUnknown, kv.CodeOutcomeUnknown},
		{"overloaded until the end", refusal(kv.CodeOverloaded, 429), kv.OutcomeUnknown, kv.CodeOutcomeUnknown},
		{"lost again", breakOff, kv.OutcomeUnknown, kv.CodeOutcomeUnknown},
		{"forbidden", refusal(kv.CodeForbidden, 403), kv.OutcomeUnknown, kv.CodeOutcomeUnknown},
		{"disk full", refusal(kv.CodeDiskFull, 507), kv.OutcomeUnknown, kv.CodeOutcomeUnknown},
		{"precondition", refusal(kv.CodePreconditionFailed, 412), kv.OutcomeNotApplied, kv.CodePreconditionFailed},
		{"not found", refusal(kv.CodeNotFound, 404), kv.OutcomeNotApplied, kv.CodeNotFound},
		{"conflict", refusal(kv.CodeConflict, 409), kv.OutcomeNotApplied, kv.CodeConflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, breakOff, tt.then)
			_, err := dial(t, 400*time.Millisecond, n.URL).Put(t.Context(), "k", nil, client.WriteOptions{IdempotencyKey: "mine"})
			e := kv.AsError(err)
			if e.Code != tt.code || e.Outcome != tt.out {
				t.Errorf("%#v", err)
			}
			if said := strings.Contains(e.Msg, "mine"); said != (tt.out == kv.OutcomeUnknown) {
				t.Errorf("the key is to be told: %s", e.Msg)
			}
		})
	}
	t.Run("nobody listens any more", func(t *testing.T) {
		t.Parallel()
		var n *node
		n = newNode(t, func(http.ResponseWriter, *http.Request) {
			n.Listener.Close()
			panic(http.ErrAbortHandler)
		})
		_, err := dial(t, 400*time.Millisecond, n.URL).Put(t.Context(), "k", nil, client.WriteOptions{})
		if !errors.Is(err, kv.ErrOutcomeUnknown) || kv.AsError(err).Outcome != kv.OutcomeUnknown {
			t.Errorf("%#v", err)
		}
	})
}

// A node that hangs does not use up the time of a call that others could answer.
func TestHangingNode(t *testing.T) {
	bad, good := newNode(t, hang), newNode(t, answerWith(204, "", "Sett-Revision", "7"))
	began := time.Now()
	c := dial(t, 9*time.Second, bad.URL, good.URL)
	if r, err := c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil || r.Revision != 7 {
		t.Errorf("%+v, %v after %s", r, err, time.Since(began))
	}
	if err := c.RemoveMember(t.Context(), "n1", client.MemberOptions{}); err != nil {
		t.Errorf("the node that hung was asked first again: %v", err)
	}
}

func TestReadsGoRound(t *testing.T) {
	var nodes []*node
	var urls []string
	for i := range 3 {
		id := fmt.Sprintf("n%d", i)
		n := newNode(t, answerWith(200, "v", "Sett-Revision", "9", "ETag", `"7"`, "Sett-Create-Revision", "5", "Sett-Version", "2", "Sett-Node", id, "Sett-Leader", "n2"))
		nodes, urls = append(nodes, n), append(urls, n.URL)
	}
	c := dial(t, 5*time.Second, urls...)
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, _, err := c.Get(t.Context(), "k", kv.ReadOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range 6 {
		if _, _, err := c.Get(t.Context(), "k", kv.ReadOptions{Consistency: kv.Leader}); err != nil {
			t.Error(err)
		}
	}
	if a, b, l := len(nodes[0].seen()), len(nodes[1].seen()), len(nodes[2].seen()); a != 10 || b != 10 || l != 16 {
		t.Errorf("%d, %d and, of the leader, %d requests", a, b, l)
	}
	// A node that is gone is left out for a while.
	nodes[0].Close()
	for range 6 {
		if _, _, err := c.Get(t.Context(), "k", kv.ReadOptions{}); err != nil {
			t.Error(err)
		}
	}
	if a, b := len(nodes[1].seen()), len(nodes[2].seen()); a+b != 32 || a < 13 {
		t.Errorf("%d and %d requests", a, b)
	}
}

func TestHTTP2(t *testing.T) {
	proto := make(chan string, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto <- r.Proto
		created(w, r)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	for _, http2 := range []bool{false, true} {
		c, err := client.New(client.Config{Endpoints: []string{s.URL}, HTTP2: http2})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Put(t.Context(), "k", []byte("v"), client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, want := <-proto, map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[http2]; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// broken is a network that takes requests and never answers.
type broken struct{ sent int }

func (b *broken) RoundTrip(r *http.Request) (*http.Response, error) {
	b.sent++
	httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
	return nil, io.ErrUnexpectedEOF
}

// A repeat must not come when the cluster has forgotten the first attempt: it would be
// done a second time.
func TestRepeatsEndBeforeTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := &broken{}
		c, err := client.New(client.Config{HTTPClient: &http.Client{Transport: net}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		_, err = c.Put(ctx, "k", nil, client.WriteOptions{})
		took := time.Since(began)
		if kv.AsError(err).Outcome != kv.OutcomeUnknown || took >= kv.OnceWindow-time.Minute || took < kv.OnceWindow/2 || net.sent < 100 {
			t.Errorf("%v after %s and %d requests", err, took, net.sent)
		}
	})
}
