package testcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestOperationsAreDoneOnce repeats changes of leader and members under their idempotency keys, through every node,
// after others have undone them: nothing happens a second time, also where the leader was gone by its own doing.
func TestOperationsAreDoneOnce(t *testing.T) {
	c := Start(t, 5, seedOf(t))
	nodes := c.Nodes
	do := func(n *Node, method, path, body, key string) Answer {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		a, err := c.Do(ctx, n, Request{Method: method, Path: path, Body: body, Header: http.Header{"Idempotency-Key": {key}}})
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
	other := func(not ...*Node) *Node {
		for _, n := range nodes {
			found := false
			for _, x := range not {
				found = found || n == x
			}
			if !found {
				return n
			}
		}
		return nil
	}

	// What was done under which key, to be repeated all over again.
	type deed struct{ method, path, body, key, answer string }
	var deeds []deed
	first := func(method, path, body, key string, status int) string {
		t.Helper()
		var a Answer
		// A new leader may not have heard of all others yet; what it refuses for that leaves the key free.
		c.Await(20*time.Second, key, func() error {
			if a = do(other(), method, path, body, key); a.Status == http.StatusConflict {
				return fmt.Errorf("%s", a.Body)
			}
			return nil
		})
		if a.Status != status || a.Header.Get("Sett-Replayed") != "" {
			t.Fatalf("%s %s %s: %d %s, replayed %q; want %d", method, path, body, a.Status, a.Body, a.Header.Get("Sett-Replayed"), status)
		}
		deeds = append(deeds, deed{method, path, body, key, fmt.Sprintf("%d %s", a.Status, a.Body)})
		return string(a.Body)
	}
	again := func() {
		t.Helper()
		before := leads()
		for _, d := range deeds {
			for _, n := range nodes {
				a := do(n, d.method, d.path, d.body, d.key)
				if got := fmt.Sprintf("%d %s", a.Status, a.Body); got != d.answer || a.Header.Get("Sett-Replayed") != "true" {
					t.Errorf("%s again at %s: %s, replayed %q; at first %s", d.key, n.ID, got, a.Header.Get("Sett-Replayed"), d.answer)
				}
			}
		}
		if now := leads(); now != before {
			t.Errorf("after repeats %s leads, not %s", now.ID, before.ID)
		}
	}
	transfer := func(to *Node, key string) {
		t.Helper()
		body := ""
		if to != nil {
			body = fmt.Sprintf(`{"to":%q}`, to.ID)
		}
		was := leads()
		var now struct{ Leader string }
		if err := json.Unmarshal([]byte(first(http.MethodPost, "/v1/cluster/transfer", body, key, http.StatusOK)), &now); err != nil || now.Leader == was.ID {
			t.Fatalf("%s has handed over to %q: %v", was.ID, now.Leader, err)
		}
	}
	transfer(nil, "to anybody")
	a := other(leads())
	transfer(a, "to one")
	transfer(other(a), "to another")
	again()

	led := leads()
	first(http.MethodPost, "/v1/cluster/members/"+led.ID+"/demote", "", "demote the leader", http.StatusOK)
	first(http.MethodPost, "/v1/cluster/members/"+led.ID+"/promote", "", "promote it", http.StatusOK)
	again()
	var info struct {
		Members []struct {
			ID    string
			Voter bool
		}
	}
	if err := json.Unmarshal(do(other(), http.MethodGet, "/v1/cluster", "", "-").Body, &info); err != nil || len(info.Members) != len(nodes) {
		t.Errorf("%+v: %v", info, err)
	}
	for _, m := range info.Members {
		if !m.Voter {
			t.Errorf("%s was promoted and is no voter", m.ID)
		}
	}

	leave := func(gone *Node, key string) {
		t.Helper()
		var left []*Node
		for _, n := range nodes {
			if n != gone {
				left = append(left, n)
			}
		}
		nodes = left
		first(http.MethodDelete, "/v1/cluster/members/"+gone.ID, "", key, http.StatusNoContent)
	}
	leave(other(leads()), "remove a follower")
	leave(leads(), "remove the leader")
	again()

	// Nobody is told that what never was a member has been removed.
	var wg sync.WaitGroup
	for i := range 9 {
		wg.Go(func() {
			if a := do(nodes[i%len(nodes)], http.MethodDelete, "/v1/cluster/members/nobody", "", "remove nobody"); a.Status != http.StatusNotFound {
				t.Errorf("nobody was removed: %d %s", a.Status, a.Body)
			}
		})
	}
	wg.Wait()
	if a := do(other(), http.MethodDelete, "/v1/cluster/members/"+nodes[0].ID, "", "remove the leader"); a.Status != http.StatusConflict {
		t.Errorf("another request under a key: %d %s", a.Status, a.Body)
	}
}
