package testcluster

import (
	"context"
	"net/http"
	"testing"
	"time"
)

// TestFutureHistoryIsRefused: a revision that the cluster has not reached can be neither
// compacted to nor pinned. A compaction to one would make every read answer 410.
func TestFutureHistoryIsRefused(t *testing.T) {
	c := Start(t, 3, seedOf(t))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	do := func(n *Node, r Request, want int) {
		t.Helper()
		a, err := c.Do(ctx, n, r)
		if err != nil || a.Status != want {
			t.Errorf("%s %s %s: %d %s, want %d: %v", r.Method, r.Path, r.Body, a.Status, a.Body, want, err)
		}
	}
	do(c.Nodes[0], Request{Method: http.MethodPut, Path: "/v1/kv/a", Body: "v"}, http.StatusCreated)
	for _, n := range c.Nodes {
		do(n, Request{Method: http.MethodPost, Path: "/v1/compact", Body: `{"revision":1000}`}, http.StatusBadRequest)
		do(n, Request{Method: http.MethodPost, Path: "/v1/pins", Body: `{"revision":2,"ttl":"1m"}`}, http.StatusBadRequest)
		do(n, Request{Method: http.MethodGet, Path: "/v1/kv/a"}, http.StatusOK)
		do(n, Request{Method: http.MethodGet, Path: "/v1/kv?prefix=a"}, http.StatusOK)
	}
	do(c.Nodes[1], Request{Method: http.MethodPost, Path: "/v1/pins", Body: `{"revision":1,"ttl":"1m"}`}, http.StatusOK)
	do(c.Nodes[2], Request{Method: http.MethodPost, Path: "/v1/compact", Body: `{"revision":1}`}, http.StatusOK)
}
