package testcluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"
)

// TestOperationsAreDoneOnce repeats changes of leader and members under their idempotency keys, through every node:
// nothing happens a second time, also where the leader was gone before it could note the end.
func TestOperationsAreDoneOnce(t *testing.T) {
	c := Start(t, 4, seedOf(t))
	do := func(n *Node, method, path, key string) Answer {
		t.Helper()
		req := Request{Method: method, Path: path, Header: http.Header{}}
		if key != "" {
			req.Header.Set("Idempotency-Key", key)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		a, err := c.Do(ctx, n, req)
		if err != nil {
			t.Fatalf("%s %s at %s: %v", method, path, n.ID, err)
		}
		return a
	}
	leads := func() (l *Node) {
		t.Helper()
		c.Await(20*time.Second, "a leader", func() error {
			if l = c.Leader(); l == nil {
				return errors.New("nobody leads")
			}
			return nil
		})
		return l
	}
	answered := func(n *Node, path, key string) (leader string, replayed bool) {
		t.Helper()
		a := do(n, http.MethodPost, path, key)
		var body struct {
			Leader string `json:"leader"`
		}
		if err := json.Unmarshal(a.Body, &body); err != nil || a.Status != http.StatusOK {
			t.Fatalf("%s under %s at %s: %d %s", path, key, n.ID, a.Status, a.Body)
		}
		return body.Leader, a.Header.Get("Sett-Replayed") == "true"
	}

	before := leads()
	next, _ := answered(c.Nodes[0], "/v1/cluster/transfer", "hand over")
	if next == before.ID {
		t.Fatalf("%s has handed over to itself", next)
	}
	for range 2 {
		for _, n := range c.Nodes {
			if again, _ := answered(n, "/v1/cluster/transfer", "hand over"); again != next {
				t.Errorf("the same request again made %s lead, not %s", again, next)
			}
		}
	}

	var gone *Node
	for _, n := range c.Nodes {
		if n.ID != next {
			gone = n
		}
	}
	remove := "/v1/cluster/members/" + gone.ID
	var rest []*Node
	for _, n := range c.Nodes {
		if n != gone {
			rest = append(rest, n)
		}
	}
	for i, n := range rest {
		a := do(n, http.MethodDelete, remove, "remove")
		if a.Status != http.StatusNoContent || (a.Header.Get("Sett-Replayed") == "true") != (i > 0) {
			t.Errorf("try %d to remove %s: %d %s, replayed %q", i, gone.ID, a.Status, a.Body, a.Header.Get("Sett-Replayed"))
		}
	}
	if a := do(rest[0], http.MethodDelete, remove, "another"); a.Status != http.StatusNotFound {
		t.Errorf("to remove %s under another key: %d %s", gone.ID, a.Status, a.Body)
	}

	// The leader removes itself and cannot note that.
	self := leads()
	var left []*Node
	for _, n := range rest {
		if n != self {
			left = append(left, n)
		}
	}
	for i := range 3 {
		n := left[i%len(left)]
		if a := do(n, http.MethodDelete, "/v1/cluster/members/"+self.ID, "remove the leader"); a.Status != http.StatusNoContent {
			t.Errorf("try %d to remove %s, which led: %d %s", i, self.ID, a.Status, a.Body)
		}
	}
	if a := do(left[0], http.MethodDelete, "/v1/cluster/members/"+left[0].ID, "remove"); a.Status != http.StatusConflict {
		t.Errorf("another request under a key: %d %s", a.Status, a.Body)
	}
}
