package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

func TestCodeTable(t *testing.T) {
	want := map[kv.Code]int{
		kv.CodeInvalidArgument: 400, kv.CodeUnauthenticated: 401, kv.CodeForbidden: 403, kv.CodeNotFound: 404,
		kv.CodeMethodNotAllowed: 405, kv.CodeConflict: 409, kv.CodeCompacted: 410, kv.CodePreconditionFailed: 412,
		kv.CodeTooLarge: 413, kv.CodeOverloaded: 429, kv.CodeOutcomeUnknown: 504, kv.CodeTimeout: 504,
		kv.CodeNoLeader: 503, kv.CodeNotReady: 503, kv.CodeDiskFull: 507, kv.CodeInternal: 500, kv.CodeCorruption: 500,
	}
	for code, status := range want {
		got, title := statusOf(code)
		if got != status || title == "" {
			t.Errorf("%s: status %d %q, want %d", code, got, title, status)
		}
	}
	if got, _ := statusOf("never-heard-of"); got != 500 {
		t.Errorf("an unknown code has status %d", got)
	}
}

// What the state machine or consensus returns, as a writer and as a reader see it.
func TestErrorsOnTheWire(t *testing.T) {
	tests := []struct {
		err          error
		status       int
		code         kv.Code
		outcome      kv.Outcome
		readCode     kv.Code // if it differs
		wantRevision bool
	}{
		{err: kv.Errorf(kv.CodeConflict, "m"), status: 409, code: kv.CodeConflict, outcome: kv.OutcomeNotApplied},
		{err: kv.Errorf(kv.CodeTooLarge, "m"), status: 413, code: kv.CodeTooLarge, outcome: kv.OutcomeNotApplied},
		{err: kv.NotApplied(kv.CodeOverloaded, "m"), status: 429, code: kv.CodeOverloaded, outcome: kv.OutcomeNotApplied},
		{err: kv.NotApplied(kv.CodeDiskFull, "m"), status: 507, code: kv.CodeDiskFull, outcome: kv.OutcomeNotApplied},
		{err: kv.Unknown(errSecret, "m"), status: 504, code: kv.CodeOutcomeUnknown, outcome: kv.OutcomeUnknown, readCode: kv.CodeTimeout},
		{err: kv.Errorf(kv.CodeTimeout, "m"), status: 504, code: kv.CodeOutcomeUnknown, outcome: kv.OutcomeUnknown, readCode: kv.CodeTimeout},
		{err: kv.NotApplied(kv.CodeTimeout, "m"), status: 504, code: kv.CodeTimeout, outcome: kv.OutcomeNotApplied},
		{err: context.DeadlineExceeded, status: 504, code: kv.CodeOutcomeUnknown, outcome: kv.OutcomeUnknown, readCode: kv.CodeTimeout},
		{err: fmt.Errorf("apply: %w", errSecret), status: 500, code: kv.CodeInternal, outcome: kv.OutcomeUnknown},
		{err: fmt.Errorf("read: %w", &kv.Error{Code: kv.CodeCorruption, Msg: "m", Err: errSecret}), status: 500, code: kv.CodeCorruption, outcome: kv.OutcomeUnknown},
		{err: &kv.Error{Code: kv.CodeCompacted, Msg: "m", OldestRevision: 9}, status: 410, code: kv.CodeCompacted, outcome: kv.OutcomeNotApplied},
	}
	for _, tt := range tests {
		f := newFixture(t)
		f.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) { return kv.TxnResult{Revision: 4}, tt.err }
		f.store.onGet = func(context.Context, string, kv.ReadOptions) (kv.Item, kv.Revision, error) {
			return kv.Item{}, 0, tt.err
		}
		w := f.do(t, "PUT", "/v1/kv/a", "v")
		p := wantProblem(t, w, tt.status, tt.code)
		if p.Outcome != tt.outcome {
			t.Errorf("%v: outcome %q, want %q", tt.err, p.Outcome, tt.outcome)
		}
		if w.Header().Get(headerRevision) != "4" {
			t.Errorf("%v: Sett-Revision %q", tt.err, w.Header().Get(headerRevision))
		}
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("internal detail sent: %s", w.Body)
		}
		if tt.readCode == "" {
			tt.readCode = tt.code
		}
		w = f.do(t, "GET", "/v1/kv/a", "")
		p = wantProblem(t, w, tt.status, tt.readCode)
		if p.Outcome != "" || strings.Contains(w.Body.String(), "outcome") && tt.readCode != kv.CodeOutcomeUnknown {
			t.Errorf("%v: a read has outcome %q", tt.err, p.Outcome)
		}
		if tt.code == kv.CodeCompacted && (p.OldestRevision == nil || *p.OldestRevision != 9) {
			t.Errorf("oldest_revision %v", p.OldestRevision)
		}
		if p.Leader != "n1" || p.Instance != "/v1/kv/a" {
			t.Errorf("leader %q instance %q", p.Leader, p.Instance)
		}
	}
}

func TestRetryAfterRoundsUp(t *testing.T) {
	f := newFixture(t)
	f.store.onTxn = func(context.Context, kv.Txn) (kv.TxnResult, error) {
		e := kv.NotApplied(kv.CodeOverloaded, "m")
		e.RetryAfter = 2100 * time.Millisecond
		return kv.TxnResult{}, e
	}
	if w := f.do(t, "PUT", "/v1/kv/a", "v"); w.Header().Get("Retry-After") != "3" {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	f := newFixture(t)
	for _, target := range []string{"/", "/v1", "/v1/", "/v2/kv/a", "//v1/kv/a", "/v1%2Fkv/a", "/v1/txn/", "/v1/watch/x", "/v1/pins/", "/v1/cluster/", "/v1/cluster/members/", "/debug/pprof/", "/internal/x", "/metrics/", "/v1/status/"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "BREW"} {
			w := f.do(t, method, target, "")
			p := wantProblem(t, w, 404, kv.CodeNotFound)
			if write := method != "GET"; write != (p.Outcome == kv.OutcomeNotApplied) {
				t.Errorf("%s %s: outcome %q", method, target, p.Outcome)
			}
		}
	}
	for target, allow := range map[string]string{
		"/v1/kv/a": "DELETE, GET, HEAD, POST, PUT", "/v1/kv?key=a": "DELETE, GET, HEAD, POST, PUT",
		"/v1/txn": "POST", "/v1/watch": "GET, HEAD", "/v1/compact": "POST", "/v1/pins": "POST", "/v1/pins/a": "DELETE",
		"/v1/cluster": "GET, HEAD", "/v1/cluster/members": "POST", "/v1/cluster/members/n1": "DELETE",
		"/v1/cluster/members/n1/promote": "POST", "/v1/cluster/members/n1/demote": "POST", "/v1/cluster/transfer": "POST",
		"/v1/cluster/settings": "PUT", "/v1/status": "GET, HEAD", "/v1/snapshot": "POST",
		"/livez": "GET, HEAD", "/readyz": "GET, HEAD", "/healthz": "GET, HEAD", "/metrics": "GET, HEAD",
	} {
		for _, method := range []string{"PATCH", "OPTIONS", "TRACE", "BREW"} {
			w := f.do(t, method, target, "")
			wantProblem(t, w, 405, kv.CodeMethodNotAllowed)
			if got := w.Header().Get("Allow"); got != allow {
				t.Errorf("%s %s: Allow %q, want %q", method, target, got, allow)
			}
		}
	}
}

func TestPanicIsA500(t *testing.T) {
	f := newFixture(t)
	f.health.panics = true
	w := f.do(t, "GET", "/v1/status", "")
	wantProblem(t, w, 500, kv.CodeInternal)
	if strings.Contains(w.Body.String(), "secret") {
		t.Errorf("the panic was sent: %s", w.Body)
	}
}

func TestCommonHeaders(t *testing.T) {
	f := newFixture(t)
	f.do(t, "PUT", "/v1/kv/a", "v")
	for _, target := range []string{"/v1/kv/a", "/v1/kv/none", "/v1/kv/", "/v1/cluster", "/v1/status", "/v1/none", "/v1/kv/a?bad=1"} {
		w := f.do(t, "GET", target, "", "Sett-Request-Id: my-id.1")
		for name, want := range map[string]string{headerNode: "n1", headerServedBy: "n1", headerLeader: "n1", headerRequestID: "my-id.1"} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", target, name, got, want)
			}
		}
		if w.Header().Get(headerRevision) == "" {
			t.Errorf("%s: no revision", target)
		}
	}
	for _, bad := range []string{"", "a b", "a\tb", "caf\xc3\xa9", strings.Repeat("x", 129)} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header[headerRequestID] = []string{bad}
		if got := requestID(r); got == bad || len(got) < 16 {
			t.Errorf("request id %q for %q", got, bad)
		}
	}
}

func TestBrowsersOfOtherSitesAreRefused(t *testing.T) {
	f := newFixture(t)
	wantProblem(t, f.do(t, "POST", "/v1/kv/a?op=incr", "", "Sec-Fetch-Site: cross-site", "Origin: http://evil.example"), 403, kv.CodeForbidden)
	if f.store.txnCount() != 0 {
		t.Error("it was done")
	}
}
