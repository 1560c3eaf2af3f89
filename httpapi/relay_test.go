package httpapi

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// relayTo has the leader of a pair do what the asked node relays, and notes it.
type relayTo struct {
	p     *pair
	addrs []string
	txns  []kv.Txn
	fail  func(attempt int) error // before anything is done
}

func (r *relayTo) Relay(ctx context.Context, addr string, t kv.Txn, timing *kv.Timing) (kv.TxnResult, error) {
	r.addrs, r.txns = append(r.addrs, addr), append(r.txns, t)
	if r.fail != nil {
		if err := r.fail(len(r.txns)); err != nil {
			return kv.TxnResult{}, err
		}
	}
	result, err := r.p.leader.store.Txn(ctx, t, timing)
	timing.Forward = time.Second
	return result, err
}

func newRelayedPair(t *testing.T) (*pair, *relayTo) {
	t.Helper()
	p := newPair(t)
	r := &relayTo{p: p}
	p.asked.srv.cfg.Relay = r
	return p, r
}

// TestRelayedWrites: a small transaction goes to the leader without its request, and the
// client can't tell the difference.
func TestRelayedWrites(t *testing.T) {
	p, r := newRelayedPair(t)
	runSteps(t, p.asked, []step{
		{req: "PUT /v1/kv/a?ttl=10s", body: "one", headers: []string{"Content-Type: text/x", "Sett-Request-Id: r-1"}, status: 201, want: body(""), has: map[string]string{
			"ETag": `"1"`, "Sett-Node": "n1", "Sett-Served-By": "n2", "Sett-Leader": "n2", "Sett-Revision": "1", "Sett-Request-Id": "r-1",
		}},
		{req: "PUT /v1/kv/a", body: "x", headers: []string{`If-Match: "7"`}, status: 412, code: kv.CodePreconditionFailed, current: 2, has: map[string]string{"Sett-Node": "n1", "Sett-Served-By": "n2"}},
		{req: "POST /v1/kv?key=n&op=incr&by=4", status: 200, want: body("4"), has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "DELETE /v1/kv/a", status: 204},
		{req: "DELETE /v1/kv/a", status: 404, code: kv.CodeNotFound, has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "PUT /v1/kv/t?timing=1", body: "v", status: 201, has: map[string]string{"Server-Timing": "forward;dur=1000.000, queue;dur=0.000, replicate;dur=0.020, apply;dur=0.010, read;dur=0.000"}},
		{req: "POST /v1/txn", body: `{"then":[{"put":{"key":"b","value":"c"}}]}`, status: 200},
		{req: "POST /v1/txn", body: `{"then":[{"put":`, status: 400, code: kv.CodeInvalidArgument, has: map[string]string{"Sett-Served-By": "n1"}},
	})
	if len(r.txns) != 7 || r.addrs[0] != p.addr || r.txns[0].Then[0].TTL != 10*time.Second {
		t.Errorf("relayed %+v to %q", r.txns, r.addrs)
	}

	// What is big, or may have a big result, is forwarded as it is.
	relayed := len(r.txns)
	runSteps(t, p.asked, []step{
		{req: "PUT /v1/kv/big", body: strings.Repeat("v", relayBytes+1), status: 201, has: map[string]string{"Sett-Served-By": "n2"}},
		{req: "PUT /v1/kv/big?previous=1", body: "v", status: 200},
		{req: "POST /v1/txn", body: `{"then":[{"get":{"key":"big"}}]}`, status: 200},
		{req: "POST /v1/txn", body: `{"then":[],"else":[{"range":{"prefix":"b"}}]}`, status: 200},
		{req: "PUT /v1/kv/nearly", body: strings.Repeat("v", relayBytes), status: 201, has: map[string]string{"Sett-Served-By": "n2"}},
	})
	if len(r.txns) != relayed {
		t.Errorf("%d more were relayed", len(r.txns)-relayed)
	}
}

// TestRelayThatFails: what was not sent is tried again, what may have been done only
// with an idempotency key.
func TestRelayThatFails(t *testing.T) {
	once := func(err error) func(int) error {
		return func(attempt int) error {
			if attempt == 1 {
				return err
			}
			return nil
		}
	}
	for _, c := range []struct {
		name     string
		err      error
		headers  []string
		status   int
		code     kv.Code
		attempts int
	}{
		{name: "not sent", err: kv.NotApplied(kv.CodeNoLeader, "nobody there"), status: 201, attempts: 2},
		{name: "refused", err: kv.NotApplied(kv.CodeOverloaded, "busy"), status: 429, code: kv.CodeOverloaded, attempts: 1},
		{name: "lost", err: kv.Unknown(nil, "lost"), status: 504, code: kv.CodeOutcomeUnknown, attempts: 1},
		{name: "lost, with a key", err: kv.Unknown(nil, "lost"), headers: []string{"Idempotency-Key: k"}, status: 201, attempts: 2},
		{name: "full", err: kv.NotApplied(kv.CodeDiskFull, "full"), status: 507, code: kv.CodeDiskFull, attempts: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, r := newRelayedPair(t)
			r.fail = once(c.err)
			w := p.asked.do(t, "PUT", "/v1/kv/a?timeout=5s", "v", c.headers...)
			if c.code != "" {
				pr := wantProblem(t, w, c.status, c.code)
				if want := kv.AsError(c.err).Outcome; pr.Outcome != want {
					t.Errorf("outcome %q, want %q", pr.Outcome, want)
				}
			} else if w.Code != c.status {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if len(r.txns) != c.attempts {
				t.Errorf("%d attempts, want %d", len(r.txns), c.attempts)
			}
		})
	}
}
