package client_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

var created = answerWith(http.StatusCreated, "", "Sett-Revision", "7", "Sett-Node", "n1", "Sett-Leader", "n1")

func found(value string) http.HandlerFunc {
	return answerWith(http.StatusOK, value, "Sett-Revision", "9", "ETag", `"7"`, "Sett-Create-Revision", "5", "Sett-Version", "2", "Content-Type", "text/plain")
}

// Invariant 25: a write without an idempotency key goes out again only if it was surely
// not applied.
func TestWritesWithoutAKeyAreRetriedOnlyWhenSafe(t *testing.T) {
	tests := []struct {
		name  string
		first http.HandlerFunc
		again bool
		code  kv.Code
		out   kv.Outcome
	}{
		{"no leader", refusal(kv.CodeNoLeader, 503), true, "", ""},
		{"not ready", refusal(kv.CodeNotReady, 503), true, "", ""},
		{"overloaded", refusal(kv.CodeOverloaded, 429), true, "", ""},
		{"unknown", problem(504, map[string]any{"code": "outcome-unknown", "outcome": "unknown"}), false, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{"no leader, outcome not told", problem(503, map[string]any{"code": "no-leader"}), false, kv.CodeNoLeader, ""},
		{"no leader, outcome unknown", problem(503, map[string]any{"code": "no-leader", "outcome": "unknown"}), false, kv.CodeNoLeader, kv.OutcomeUnknown},
		{"connection broken", breakOff, false, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{"a proxy's 502", answerWith(502, "bad gateway"), false, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{"a proxy's 503", answerWith(503, "no backend"), false, kv.CodeOutcomeUnknown, kv.OutcomeUnknown},
		{"precondition", refusal(kv.CodePreconditionFailed, 412), false, kv.CodePreconditionFailed, kv.OutcomeNotApplied},
		{"disk full", refusal(kv.CodeDiskFull, 507), false, kv.CodeDiskFull, kv.OutcomeNotApplied},
		{"another server", answerWith(404, "<html>", "Content-Type", "text/html"), false, kv.CodeInternal, kv.OutcomeNotApplied},
		{"internal", problem(500, map[string]any{"code": "internal", "outcome": "unknown"}), false, kv.CodeInternal, kv.OutcomeUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.first, created)
			_, err := dial(t, 5*time.Second, n.URL).Snapshot(t.Context())
			if tt.again {
				if err != nil || len(n.seen()) != 2 {
					t.Fatalf("%v after %d requests", err, len(n.seen()))
				}
				return
			}
			if key := n.seen()[0].header.Get("Idempotency-Key"); key != "" {
				t.Fatalf("it has the key %q", key)
			}
			if len(n.seen()) != 1 {
				t.Errorf("sent %d times", len(n.seen()))
			}
			var e *kv.Error
			if !errors.As(err, &e) || e.Code != tt.code || e.Outcome != tt.out {
				t.Errorf("got %#v, want code %s, outcome %s", err, tt.code, tt.out)
			}
		})
	}
}

func TestReadsAreRetriedFreely(t *testing.T) {
	for name, first := range map[string]http.HandlerFunc{
		"no leader":         problem(503, map[string]any{"code": "no-leader"}),
		"connection broken": breakOff,
		"a proxy's 502":     answerWith(502, "bad gateway"),
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("half"))
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, first, found("v"))
			item, rev, err := dial(t, 5*time.Second, n.URL).Get(t.Context(), "k", kv.ReadOptions{})
			if err != nil || string(item.Value) != "v" || rev != 9 {
				t.Fatalf("%+v at %d, %v", item, rev, err)
			}
		})
	}
}

func TestNextEndpoint(t *testing.T) {
	good := newNode(t, created)
	c := dial(t, 5*time.Second, dead(t), good.URL)
	for range 3 {
		if _, err := c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(good.seen()) != 3 {
		t.Errorf("%d requests", len(good.seen()))
	}
	t.Run("one that is not ready", func(t *testing.T) {
		bad := newNode(t, refusal(kv.CodeNotReady, 503))
		c := dial(t, 5*time.Second, bad.URL, good.URL)
		for range 3 {
			if _, err := c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if len(bad.seen()) != 1 {
			t.Errorf("the endpoint that is not ready was asked %d times", len(bad.seen()))
		}
	})
}

func TestLeaderIsAskedFirst(t *testing.T) {
	follower := newNode(t, answerWith(204, "", "Sett-Revision", "1", "Sett-Node", "n1", "Sett-Leader", "n2"))
	leader := newNode(t, answerWith(204, "", "Sett-Revision", "2", "Sett-Node", "n2", "Sett-Leader", "n2"))
	c := dial(t, 5*time.Second, follower.URL, leader.URL)
	put := func() kv.Revision {
		t.Helper()
		r, err := c.Put(t.Context(), "k", nil, client.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Revision
	}
	if got := put(); got != 1 {
		t.Fatalf("the first endpoint was not asked first: %d", got)
	}
	// Which endpoint n2 is, only its own answer tells.
	follower.mu.Lock()
	follower.script = []http.HandlerFunc{refusal(kv.CodeNotReady, 503), follower.script[0]}
	follower.mu.Unlock()
	if got := put(); got != 2 {
		t.Fatalf("answer of %d", got)
	}
	for range 3 {
		if got := put(); got != 2 {
			t.Errorf("the leader was not asked first: %d", got)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	c := dial(t, time.Minute, dead(t), dead(t))
	began := time.Now()
	_, err := c.Put(t.Context(), "k", nil, client.WriteOptions{})
	if !errors.Is(err, kv.ErrNotReady) || kv.AsError(err).Outcome != kv.OutcomeNotApplied {
		t.Errorf("write: %#v", err)
	}
	_, _, err = c.Get(t.Context(), "k", kv.ReadOptions{})
	if !errors.Is(err, kv.ErrNotReady) || kv.AsError(err).Outcome != kv.OutcomeNone {
		t.Errorf("read: %#v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %s to find out", took)
	}
}

func TestOutOfTime(t *testing.T) {
	n := newNode(t, hang)
	c := dial(t, 150*time.Millisecond, n.URL)
	_, err := c.Put(t.Context(), "k", nil, client.WriteOptions{})
	if !errors.Is(err, kv.ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
	if _, _, err = c.Get(t.Context(), "k", kv.ReadOptions{}); !errors.Is(err, kv.ErrTimeout) {
		t.Errorf("read: %v", err)
	}
	if calls := n.seen(); len(calls) != 2 {
		t.Errorf("%d requests", len(calls))
	}
	t.Run("while there is no leader", func(t *testing.T) {
		n := newNode(t, refusal(kv.CodeNoLeader, 503))
		_, err := dial(t, 300*time.Millisecond, n.URL).Put(t.Context(), "k", nil, client.WriteOptions{})
		if !errors.Is(err, kv.ErrNoLeader) || kv.AsError(err).Outcome != kv.OutcomeNotApplied {
			t.Errorf("%v", err)
		}
		if len(n.seen()) < 2 {
			t.Error("tried once only")
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
			refusal(kv.CodeNoLeader, 503)(w, r)
			cancel()
		})
		if _, err := dial(t, time.Minute, n.URL).Put(ctx, "k", nil, client.WriteOptions{}); err == nil || kv.AsError(err).Outcome == kv.OutcomeNone {
			t.Errorf("%v", err)
		}
	})
}

// The server gets less time than the caller has, so that its verdict arrives.
func TestServerTimeout(t *testing.T) {
	n := newNode(t, created)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := dial(t, time.Minute, n.URL).Put(ctx, "k", nil, client.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	d, err := time.ParseDuration(n.seen()[0].query["timeout"])
	if err != nil || d > 3800*time.Millisecond || d < 2*time.Second {
		t.Errorf("timeout %s, %v", d, err)
	}
}
