package httpapi

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/settkv/sett/kv"
)

// A repeat with the same key is answered as the first request was, and changes nothing.
func TestIdempotencyKey(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		leader.store.set(kv.Item{Key: "text", Value: []byte("no number")}, kv.Item{Key: "del"}, kv.Item{Key: "r/1"}, kv.Item{Key: "r/2"})
		for i, s := range []step{
			{req: "PUT /v1/kv/new", body: "v"},
			{req: "PUT /v1/kv/new?ttl=5s&previous=1", body: "w"},
			{req: "POST /v1/kv/n?op=incr&by=5"},
			{req: "POST /v1/kv?key=n&op=append", body: "0"},
			{req: "POST /v1/kv/n?op=touch&ttl=60"},
			{req: "DELETE /v1/kv/del"},
			{req: "DELETE /v1/kv/del"}, // 404
			{req: "PUT /v1/kv/new", body: "v", headers: []string{`If-Match: "1"`}},
			{req: "PUT /v1/kv/new", body: "v", headers: []string{`If-None-Match: *`}},
			{req: "POST /v1/kv/text?op=incr"}, // 409
			{req: "POST /v1/kv/none?op=touch&ttl=60"},
			{req: "DELETE /v1/kv?prefix=r/"},
			{req: "DELETE /v1/kv?prefix=none"},
			{req: "POST /v1/txn", body: `{"then":[{"incr":{"key":"n"}},{"get":{"key":"n"}}]}`},
			{req: "POST /v1/txn", body: `{"if":[{"key":"x","exists":true}],"then":[{"incr":{"key":"n"}}]}`},
			{req: "POST /v1/txn", body: `{"then":[{"put":{"key":"q","value":""}},{"incr":{"key":"text"}}]}`},
		} {
			method, target, _ := strings.Cut(s.req, " ")
			h := append(s.headers, "Idempotency-Key: key-"+string(rune('a'+i)), "Sett-Request-Id: r")
			first := asked.do(t, method, target, s.body, h...)
			if first.Header().Get("Sett-Replayed") != "" {
				t.Fatalf("%s: the first is a replay", s.req)
			}
			leader.store.set(kv.Item{Key: "other"})
			rev := leader.store.Revision()
			sep := "?"
			if strings.Contains(target, "?") {
				sep = "&"
			}
			again := asked.do(t, method, target+sep+"timeout=7s&timing=1", s.body, h...)
			if again.Code != first.Code || again.Body.String() != first.Body.String() || again.Header().Get("Sett-Replayed") != "true" {
				t.Errorf("%s: %d %s, at first %d %s; Sett-Replayed %q", s.req, again.Code, again.Body, first.Code, first.Body, again.Header().Get("Sett-Replayed"))
			}
			for _, name := range []string{"ETag", "Sett-Revision", "Content-Type", "Content-Length"} {
				if again.Header().Get(name) != first.Header().Get(name) {
					t.Errorf("%s: %s %q, at first %q", s.req, name, again.Header().Get(name), first.Header().Get(name))
				}
			}
			if leader.store.Revision() != rev {
				t.Errorf("%s: the repeat changed something", s.req)
			}
			// The same key on another request is a conflict.
			other := map[string]func() (string, string, string, []string){
				"method": func() (string, string, string, []string) { return "PUT", "/v1/kv/" + method, s.body, nil },
				"query":  func() (string, string, string, []string) { return method, target + sep + "previous=1", s.body, nil },
				"type": func() (string, string, string, []string) {
					return method, target, s.body, []string{"Content-Type: other/type"}
				},
			}
			for what, o := range other {
				m, tg, b, extra := o()
				if strings.Contains(target, "previous") && what == "query" || strings.Contains(target, "prefix") && what == "query" || strings.Contains(target, "txn") && what == "query" {
					continue
				}
				w := asked.do(t, m, tg, b, append(append(s.headers, "Idempotency-Key: key-"+string(rune('a'+i))), extra...)...)
				wantProblem(t, w, 409, kv.CodeConflict)
			}
			if s.body != "" {
				wantProblem(t, asked.do(t, method, target, s.body+" ", h...), 409, kv.CodeConflict)
			}
			if len(s.headers) > 0 {
				wantProblem(t, asked.do(t, method, target, s.body, h[len(s.headers):]...), 409, kv.CodeConflict)
			}
		}
	})
}

// What changes no keys is done once, too, and answered again; its keys and those of writes are the same ones.
func TestIdempotencyKeyOfSmallThings(t *testing.T) {
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		for range 9 {
			leader.store.set(kv.Item{Key: "k"})
		}
		var lost atomic.Int32
		leader.store.afterKeyed = func() error {
			if lost.Add(1)%2 == 1 {
				return kv.Unknown(nil, "lost")
			}
			return nil
		}
		for i, s := range []step{
			{req: "POST /v1/pins", body: `{"revision":3,"ttl":"1h"}`, status: 200},
			{req: "POST /v1/compact", body: `{"revision":5}`, status: 200},
			{req: "DELETE /v1/pins/pin-1", status: 204},
			{req: "DELETE /v1/pins/pin-1", status: 404},
			{req: "PUT /v1/cluster/settings", body: `{"max_key_bytes":99}`, status: 200},
		} {
			method, target, _ := strings.Cut(s.req, " ")
			h := []string{"Idempotency-Key: key-" + string(rune('a'+i)), "Sett-Request-Id: r"}
			lost.Store(0) // the first answer is lost
			first := asked.do(t, method, target, s.body, h...)
			if first.Code != s.status || first.Header().Get("Sett-Replayed") != "true" {
				t.Errorf("%s: %d %s, Sett-Replayed %q", s.req, first.Code, first.Body, first.Header().Get("Sett-Replayed"))
			}
			pins := len(leader.store.pins)
			again := asked.do(t, method, target+"?timeout=7s", s.body, h...)
			if again.Code != first.Code || again.Body.String() != first.Body.String() || again.Header().Get("Sett-Replayed") != "true" || len(leader.store.pins) != pins {
				t.Errorf("%s: %d %s, at first %d %s; Sett-Replayed %q", s.req, again.Code, again.Body, first.Code, first.Body, again.Header().Get("Sett-Replayed"))
			}
			if s.body != "" {
				wantProblem(t, asked.do(t, method, target, s.body+" ", h...), 409, kv.CodeConflict)
			}
			wantProblem(t, asked.do(t, "PUT", "/v1/kv/a", "v", h...), 409, kv.CodeConflict)
		}
		runSteps(t, asked, []step{{req: "PUT /v1/kv/a", body: "v", headers: []string{"Idempotency-Key: put"}, status: 201}})
		wantProblem(t, asked.do(t, "POST", "/v1/pins", `{"revision":9,"ttl":"1h"}`, "Idempotency-Key: put"), 409, kv.CodeConflict)
	})
}

// What the leader does besides the state machine is done once and answered again, if its end was noted. If it was not,
// what is as it is to be by then is a success.
func TestIdempotencyKeyOfOperations(t *testing.T) {
	const member = `{"id":"n4","raft_addr":"h:1","http_addr":"h:2"}`
	absent, guarded := kv.NotApplied(kv.CodeNotFound, "no such member"), kv.NotApplied(kv.CodeConflict, "the quorum would be lost")
	bothWays(t, func(t *testing.T, asked, leader *fixture) {
		cluster, store := leader.cluster, leader.store
		key := 0
		do := func(req, body string, status int, replayed bool, calls int) string {
			t.Helper()
			before := cluster.callCount()
			method, target, _ := strings.Cut(req, " ")
			w := asked.do(t, method, target, body, fmt.Sprintf("Idempotency-Key: key-%d", key))
			if w.Code != status || (w.Header().Get("Sett-Replayed") == "true") != replayed || cluster.callCount() != before+calls {
				t.Errorf("%s: %d %s, replayed %q, %d calls; want %d, %v, %d", req, w.Code, w.Body, w.Header().Get("Sett-Replayed"), cluster.callCount()-before, status, replayed, calls)
			}
			return w.Body.String()
		}
		steps := []struct {
			req, body string
			status    int
		}{
			{"POST /v1/cluster/members", member, 201},
			{"POST /v1/cluster/members/n4/promote", "", 200},
			{"POST /v1/cluster/members/n4/demote?force=1", "", 200},
			{"POST /v1/cluster/transfer", `{"to":"n2"}`, 200},
			{"POST /v1/cluster/transfer", "", 200},
			{"DELETE /v1/cluster/members/n4", "", 204},
		}
		for _, s := range steps {
			key++
			first := do(s.req, s.body, s.status, false, 1)
			if again := do(s.req, s.body, s.status, true, 0); again != first {
				t.Errorf("%s: %s, at first %s", s.req, again, first)
			}
			if s.body != "" {
				do(s.req, s.body+" ", 409, false, 0)
			}
			do("POST /v1/cluster/members/n9/promote", "", 409, false, 0)
			do("PUT /v1/kv/a", "v", 409, false, 0)
		}

		// The answer to the note of its begin is lost once.
		var lost atomic.Int32
		store.afterKeyed = func() error {
			if lost.Add(1) == 1 {
				return kv.Unknown(nil, "lost")
			}
			return nil
		}
		key++
		do("POST /v1/cluster/members/n4/promote", "", 200, false, 1)
		store.afterKeyed = nil

		// A refusal is not remembered.
		key++
		cluster.fails(guarded)
		do("DELETE /v1/cluster/members/n4", "", 409, false, 1)
		cluster.fails(absent)
		do("DELETE /v1/cluster/members/n4", "", 404, false, 1)
		cluster.fails(nil)
		do("DELETE /v1/cluster/members/n4", "", 204, false, 1)
		do("DELETE /v1/cluster/members/n4", "", 204, true, 0)

		// The end is not noted, as if the leader had gone.
		store.setLoseEnds(true)
		for _, s := range steps {
			key++
			first := s.status
			if first == http.StatusCreated {
				first = http.StatusOK // it is a member by now
			}
			do(s.req, s.body, first, false, 1)
			do(s.req, s.body, first, false, 1)
		}
		cluster.fails(absent) // the try before has removed it
		do("DELETE /v1/cluster/members/n4", "", 204, false, 1)
		cluster.fails(guarded)
		if body := do("DELETE /v1/cluster/members/n4", "", 409, false, 1); !strings.Contains(body, `"outcome":"unknown"`) {
			t.Errorf("it may have been done before: %s", body)
		}
		cluster.fails(kv.NotApplied(kv.CodeTimeout, "another change is under way"))
		wantProblem(t, asked.do(t, "DELETE", "/v1/cluster/members/n4?timeout=50ms", "", fmt.Sprintf("Idempotency-Key: key-%d", key)), 504, kv.CodeOutcomeUnknown)
		cluster.fails(absent) // it is one try more, after all these
		do("DELETE /v1/cluster/members/n4", "", 204, false, 1)
		cluster.fails(nil)
		key++
		do("POST /v1/cluster/members", `{"id":"n7","raft_addr":"h:1","http_addr":"h:2"}`, 201, false, 1)
		do("POST /v1/cluster/members", `{"id":"n7","raft_addr":"h:1","http_addr":"h:2"}`, 201, false, 1)
		// What never was a member has not been removed, whatever became of the tries before.
		key++
		cluster.fails(absent)
		lost.Store(0)
		store.afterKeyed = func() error {
			if lost.Add(1) == 1 {
				return kv.Unknown(nil, "lost")
			}
			return nil
		}
		do("DELETE /v1/cluster/members/n99", "", 404, false, 1)
		do("DELETE /v1/cluster/members/n99", "", 404, false, 1)
		store.afterKeyed = nil
		cluster.fails(nil)
		// One at a time has the key.
		key++
		leave, err := leader.srv.turns.take(t.Context(), fmt.Sprintf("key-%d", key))
		if err != nil {
			t.Fatal(err)
		}
		wantProblem(t, asked.do(t, "DELETE", "/v1/cluster/members/n4?timeout=50ms", "", fmt.Sprintf("Idempotency-Key: key-%d", key)), 504, kv.CodeOutcomeUnknown)
		leave()
		do("DELETE /v1/cluster/members/n4", "", 204, false, 1)
		// Whoever leads in a later term need not hand over.
		store.setTerm(2)
		key++
		do("POST /v1/cluster/transfer", "", 200, false, 1)
		if body := do("POST /v1/cluster/transfer", "", 200, false, 0); !strings.Contains(body, leader.cluster.Self()) {
			t.Errorf("leadership has gone over: %s", body)
		}
		do("POST /v1/cluster/transfer", "", 200, false, 0)
	})
}

func TestBadIdempotencyKeys(t *testing.T) {
	f := newFixture(t)
	for _, h := range [][]string{{"Idempotency-Key: "}, {"Idempotency-Key: " + strings.Repeat("k", 129)}, {"Idempotency-Key: a", "Idempotency-Key: a"}} {
		for _, req := range []string{"PUT /v1/kv/a", "DELETE /v1/kv?prefix=a", "POST /v1/txn"} {
			runSteps(t, f, []step{{req: req, body: `{}`, headers: h, status: 400, code: kv.CodeInvalidArgument}})
		}
	}
	runSteps(t, f, []step{
		{req: "PUT /v1/kv/a", body: "v", headers: []string{"Idempotency-Key: " + strings.Repeat("k", 128)}, status: 201},
		{req: "POST /v1/kv", body: "{}", headers: []string{"Idempotency-Key: a", "Content-Type: application/x-ndjson"}, status: 400, code: kv.CodeInvalidArgument},
		{req: "GET /v1/kv/a", headers: []string{"Idempotency-Key: a"}, status: 200}, // a read does no harm
		// Refusals before the state machine decides are not remembered.
		{req: "POST /v1/txn", body: `{"then":1}`, headers: []string{"Idempotency-Key: z"}, status: 400, code: kv.CodeInvalidArgument},
		{req: "POST /v1/txn", body: `{"then":[]}`, headers: []string{"Idempotency-Key: z"}, status: 200, has: map[string]string{"Sett-Replayed": ""}},
	})
}

// Invariant 25: with an idempotency key, and only then, an attempt whose answer is lost
// is made again, until the state machine has said what became of it.
func TestLostAnswerIsAskedAgain(t *testing.T) {
	for name, lose := range map[string]func(f *fixture, n *atomic.Int32){
		"after it was applied": func(f *fixture, n *atomic.Int32) {
			f.store.afterTxn = func(kv.Txn, kv.TxnResult, error) error {
				if n.Add(1) <= 2 {
					return kv.Unknown(nil, "lost")
				}
				return nil
			}
		},
		"before it was applied": func(f *fixture, n *atomic.Int32) {
			f.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
				if n.Add(1) <= 2 {
					return kv.TxnResult{}, kv.Unknown(nil, "lost")
				}
				return kv.TxnResult{}, errGoOn
			}
		},
	} {
		for _, where := range []string{"here", "forwarded"} {
			t.Run(name+" "+where, func(t *testing.T) {
				asked := newFixture(t)
				leader := asked
				if where == "forwarded" {
					p := newPair(t)
					asked, leader = p.asked, p.leader
				}
				var n atomic.Int32
				lose(leader, &n)
				replayed := map[bool]string{true: "true", false: ""}[name == "after it was applied"]
				runSteps(t, asked, []step{
					{req: "POST /v1/kv/n?op=incr", headers: []string{"Idempotency-Key: k"}, status: 200, want: body("1"), has: map[string]string{"Sett-Replayed": replayed, "Sett-Revision": "1"}},
				})
				if n.Load() != 3 || leader.store.value("n") != "1" {
					t.Errorf("%d attempts, the value is %s", n.Load(), leader.store.value("n"))
				}
				n.Store(0)
				w := asked.do(t, "POST", "/v1/kv/n?op=incr", "")
				if p := wantProblem(t, w, 504, kv.CodeOutcomeUnknown); p.Outcome != kv.OutcomeUnknown || n.Load() != 1 {
					t.Errorf("without a key: %+v after %d attempts", p, n.Load())
				}
			})
		}
	}
}

// Once an attempt may have been applied, no later refusal makes that undone: the
// request is of unknown outcome until the state machine decides.
func TestDoubtStays(t *testing.T) {
	refusals := map[string]*kv.Error{
		"no leader":  kv.NotApplied(kv.CodeNoLeader, "none"),
		"overloaded": kv.NotApplied(kv.CodeOverloaded, "busy"),
		"disk full":  kv.NotApplied(kv.CodeDiskFull, "full"),
		"not ready":  kv.NotApplied(kv.CodeNotReady, "stopping"),
		"timeout":    kv.NotApplied(kv.CodeTimeout, "queue"),
	}
	for name, refusal := range refusals {
		for _, where := range []string{"here", "forwarded"} {
			t.Run(name+" "+where, func(t *testing.T) {
				asked := newFixture(t)
				leader := asked
				if where == "forwarded" {
					p := newPair(t)
					asked, leader = p.asked, p.leader
				}
				var n atomic.Int32
				leader.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
					if n.Add(1) == 1 {
						return kv.TxnResult{}, kv.Unknown(nil, "lost")
					}
					return kv.TxnResult{}, refusal
				}
				w := asked.do(t, "PUT", "/v1/kv/a?timeout=150ms", "v", "Idempotency-Key: k")
				if p := wantProblem(t, w, 504, kv.CodeOutcomeUnknown); p.Outcome != kv.OutcomeUnknown || !strings.Contains(p.Detail, "Idempotency-Key") || n.Load() < 2 {
					t.Errorf("%+v after %d attempts", p, n.Load())
				}
				// What the state machine decides is the last word.
				n.Store(0)
				leader.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
					if n.Add(1) == 1 {
						return kv.TxnResult{}, kv.Unknown(nil, "lost")
					}
					return kv.TxnResult{Revision: 3}, kv.NotApplied(kv.CodeConflict, "decided")
				}
				wantProblem(t, asked.do(t, "PUT", "/v1/kv/a?timeout=5s", "v", "Idempotency-Key: k2"), 409, kv.CodeConflict)
			})
		}
	}
}

// The connection that loses an answer may be any: small forwards, and those that take
// the transport, which begins anew by itself where there is an Idempotency-Key.
func TestLostForwardWithAKey(t *testing.T) {
	for _, size := range []int{1, relayBytes + 1} {
		p := newPair(t)
		addr, requests := faultyLeader(t, func(net.Conn) {})
		p.asked.cluster.lead("n2", addr)
		done := make(chan *http.Response)
		go func() {
			w := p.asked.do(t, "PUT", "/v1/kv/a", strings.Repeat("v", size), "Idempotency-Key: k")
			done <- w.Result()
		}()
		eventually(t, "two attempts", func() bool { return requests.Load() >= 2 })
		p.asked.cluster.lead("n2", p.addr)
		if resp := <-done; resp.StatusCode != http.StatusCreated || resp.Header.Get("Sett-Served-By") != "n2" {
			t.Errorf("%d bytes: %d", size, resp.StatusCode)
		}
		// No leader answers any more: in doubt, never not-applied.
		p.asked.cluster.lead("n2", addr)
		before := requests.Load()
		done2 := make(chan problem)
		go func() {
			w := p.asked.do(t, "PUT", "/v1/kv/a?timeout=1s", strings.Repeat("v", size), "Idempotency-Key: k2")
			done2 <- wantProblem(t, w, 504, kv.CodeOutcomeUnknown)
		}()
		eventually(t, "an attempt", func() bool { return requests.Load() > before })
		p.asked.cluster.lead("", "")
		if pr := <-done2; pr.Outcome != kv.OutcomeUnknown {
			t.Errorf("%d bytes: %+v", size, pr)
		}
	}
}
