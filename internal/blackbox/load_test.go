package blackbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

type stored struct {
	value        []byte
	rev, version uint64
}

// fakeNode is a store in memory that speaks enough of the API, and lies on order.
type fakeNode struct {
	mu   sync.Mutex
	data map[string]stored
	old  map[string]stored
	rev  uint64
	n    int
	lie  string
}

func (f *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
	f.n++
	lying := f.n%25 == 0 && f.n > 200
	if r.Method == http.MethodGet {
		f.get(w, key, lying)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		problem(w, 400, "invalid-argument", "not-applied")
		return
	}
	was, had := f.data[key]
	if r.Method == http.MethodDelete && !had {
		problem(w, 404, "not-found", "")
		return
	}
	switch {
	case f.n%7 == 0: // an honest doubt, every other time applied
		if f.n%2 == 0 {
			f.change(r.Method, key, body)
		}
		problem(w, 504, "outcome-unknown", "unknown")
		return
	case f.n%11 == 0:
		problem(w, 503, "no-leader", "not-applied")
		return
	case lying && f.lie == "lose":
		f.rev++
	case lying && f.lie == "not-applied applied" && r.Method == http.MethodPut:
		f.change(r.Method, key, body)
		problem(w, 503, "no-leader", "not-applied")
		return
	case lying && f.lie == "twice" && r.Method == http.MethodPut:
		f.change(r.Method, key, body)
		f.change(r.Method, key, body)
	case lying && f.lie == "same revision":
		f.rev--
		f.change(r.Method, key, body)
	case lying && f.lie == "no outcome":
		problem(w, 500, "internal", "")
		return
	default:
		f.change(r.Method, key, body)
	}
	if had {
		f.old[key] = was
	}
	w.Header().Set("Sett-Revision", strconv.FormatUint(f.rev, 10))
	w.WriteHeader(http.StatusNoContent)
}

func (f *fakeNode) change(method, key string, body []byte) {
	f.rev++
	if method == http.MethodDelete {
		delete(f.data, key)
		return
	}
	f.data[key] = stored{value: body, rev: f.rev, version: f.data[key].version + 1}
}

func (f *fakeNode) get(w http.ResponseWriter, key string, lying bool) {
	got, ok := f.data[key]
	if before, stale := f.old[key]; lying && stale && f.lie == "stale read" {
		got, ok = before, true
	}
	if !ok {
		problem(w, 404, "not-found", "")
		return
	}
	w.Header().Set("ETag", strconv.Quote(strconv.FormatUint(got.rev, 10)))
	w.Header().Set("Sett-Version", strconv.FormatUint(got.version, 10))
	// A client that has gone is no concern of this fake.
	_, _ = w.Write(got.value)
}

func problem(w http.ResponseWriter, status int, code, outcome string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code":%q,"outcome":%q}`, code, outcome)
}

// TestLedgerCatchesLies runs the load against a store that breaks one promise now
// and then; each such store must be found out, and an honest one must not.
func TestLedgerCatchesLies(t *testing.T) {
	for _, lie := range []string{"", "lose", "not-applied applied", "twice", "same revision", "no outcome", "stale read"} {
		t.Run("lie="+lie, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(&fakeNode{data: map[string]stored{}, old: map[string]stored{}, lie: lie})
			defer srv.Close()
			var file bytes.Buffer
			ledger := NewLedger(&file)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				Load{Endpoints: []string{srv.URL}, Ledger: ledger, Writers: 4, Rate: 2000, BigEvery: 1 << 30}.Run(ctx)
			}()
			wait, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := AwaitAcked(wait, ledger, 1200); err != nil {
				t.Fatal(err)
			}
			stop()
			<-done
			if c := ledger.Counts(); c.InDoubt == 0 || c.NotApplied == 0 || c.Reads == 0 {
				t.Fatalf("the load met no doubt, no refusal or no read: %s", c)
			}

			// What another process reads back must judge alike.
			again, err := ReadLedger(&file)
			if err != nil {
				t.Fatal(err)
			}
			for name, l := range map[string]*Ledger{"ledger": ledger, "ledger read back": again} {
				bad, err := Verify(wait, srv.URL, l)
				if err != nil {
					t.Fatal(err)
				}
				bad = append(bad, l.Violations()...)
				if found := len(bad) > 0; found != (lie != "") {
					t.Errorf("%s: %d broken promises found: %s", name, len(bad), strings.Join(bad, "\n"))
				}
			}
		})
	}
}

func TestReadLedgerRefusesCutLine(t *testing.T) {
	for _, text := range []string{"A load/1/once/1 1 200 17", "A load/1/once/1 1 200", "A"} {
		if _, err := ReadLedger(strings.NewReader("A load/0/once/1 1 200 16 .\n" + text)); err == nil {
			t.Errorf("a ledger that ends in %q was taken", text)
		}
	}
}

func TestFreePortsDiffer(t *testing.T) {
	ports, err := FreePorts(40)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		if seen[p] {
			t.Errorf("port %d was given twice", p)
		}
		seen[p] = true
	}
}

func TestAwaitSaysWhatWasMissing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	err := AwaitReady(ctx, "http://127.0.0.1:1")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Fatalf("got %v", err)
	}
}
