package cluster

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

// TestPeerCallsAreGuarded: who may call what, and how wrong calls end.
func TestPeerCallsAreGuarded(t *testing.T) {
	formed := form(t, newFakeRaft(), 1)[0]
	unformed := startNode(t, newFakeRaft(), "u", nil)
	own := formed.ClusterID()
	tests := []struct {
		name          string
		n             *testNode
		method, path  string
		cluster, meta string
		body          string
		want          kv.Code // "" for success
	}{
		{"identity for anybody", formed, "GET", pathIdentity, "", "", "", ""},
		{"identity for a stranger", formed, "GET", pathIdentity, "other", "", "", kv.CodeConflict},
		{"identity of somebody else", formed, "GET", pathIdentity, own, "another server", "", kv.CodeConflict},
		{"identity of the unformed", unformed, "GET", pathIdentity, "any", "", "", ""},
		{"clock for a member", formed, "GET", pathClock, own, formed.id(), "", ""},
		{"clock for nobody", formed, "GET", pathClock, "", "", "", kv.CodeConflict},
		{"clock of the unformed", unformed, "GET", pathClock, own, "", "", kv.CodeNotReady},
		{"status for a member", formed, "GET", pathStatus, own, "", "", ""},
		{"read index for a stranger", formed, "POST", pathReadIndex, "other", "", "{}", kv.CodeConflict},
		{"read index that is not served", formed, "POST", pathReadIndex, own, "", "{}", kv.CodeNotReady},
		{"removal by nobody", formed, "POST", pathRemove, "", "", `{"id":"n1","force":true}`, kv.CodeConflict},
		{"adoption by another", formed, "POST", pathAdopt, "", "", `{"cluster_id":"other","cluster_name":"test"}`, kv.CodeConflict},
		{"adoption under another name", unformed, "POST", pathAdopt, "", "", `{"cluster_id":"x","cluster_name":"other"}`, kv.CodeConflict},
		{"adoption by nobody", unformed, "POST", pathAdopt, "", "", `{"cluster_name":"test"}`, kv.CodeConflict},
		{"commit of nothing promised", unformed, "POST", pathFormation + msgCommit, "", "", `{"cluster_id":"x","target":"` + unformed.id() + `"}`, ""},
		{"malformed", formed, "POST", pathAdopt, own, "", `{"cluster_id":`, kv.CodeInvalidArgument},
		{"too big", formed, "POST", pathAdopt, own, "", `{"cluster_id":"` + strings.Repeat("x", maxPeerBody) + `"}`, kv.CodeInvalidArgument},
		{"unknown call", formed, "POST", pathPrefix + "nonsense", own, "", "{}", kv.CodeNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body))
			req.Header.Set(HeaderClusterID, tt.cluster)
			req.Header.Set(headerTarget, tt.meta)
			rec := httptest.NewRecorder()
			tt.n.Handler().ServeHTTP(rec, req)
			var e peerError
			if rec.Code != http.StatusOK {
				if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Message == "" {
					t.Fatalf("status %d, body %q", rec.Code, rec.Body)
				}
			}
			if e.Code != tt.want {
				t.Errorf("answer %d %s, want %q", rec.Code, rec.Body, tt.want)
			}
		})
	}
	if unformed.ClusterID() != "" || formed.ClusterID() != own {
		t.Error("a refused call changed something")
	}
}

// TestAdoptionKeepsPromises: a node that is bound to a formation can't be taken in by
// another cluster, but by the very one it promised itself to.
func TestAdoptionKeepsPromises(t *testing.T) {
	n := startNode(t, newFakeRaft(), "n", func(c *Config) { c.BootstrapExpect = 3 })
	p := &promise{Proposer: "a", ClusterID: "X", Founders: []founder{testFounder("a"), testFounder("b"), {ID: n.id(), Name: "n"}}}
	p.Founders[0].HTTPAddr, p.Founders[1].HTTPAddr = "127.0.0.1:1", "127.0.0.1:1"
	if err := n.cfg.State.update(func(d *durable) error { d.Promise = p; return nil }); err != nil {
		t.Fatal(err)
	}
	adopt := adoptRequest{ClusterID: "Y", ClusterName: "test", Seeds: []string{n.GossipAddr()}}
	if _, err := n.onAdopt(t.Context(), adopt); !errors.Is(err, kv.ErrConflict) || n.ClusterID() != "" {
		t.Errorf("taken in by another: %v", err)
	}
	if !detailHas(n, false, "name-a") || !detailHas(n, false, "delete their data folders") {
		t.Errorf("stuck, it says %+v", n.Ready())
	}
	adopt.ClusterID = "X"
	if _, err := n.onAdopt(t.Context(), adopt); err != nil || n.ClusterID() != "X" {
		t.Errorf("taken in by its own: %v", err)
	}
	st, err := OpenState(n.dir)
	if err != nil || st.ClusterID() != "X" || st.load().Promise != nil {
		t.Errorf("on disk %+v, %v", st.load(), err)
	}
}

// TestOpenChecksTheDisk: cluster.json and the Raft state must fit together.
func TestOpenChecksTheDisk(t *testing.T) {
	open := func(d durable, raft bool, change func(*Config)) error {
		st := &State{dir: t.TempDir()}
		st.cur.Store(&d)
		r := newFakeRaft()
		r.state["s"] = raft
		f := &fakeConsensus{r: r, id: "s"}
		cfg := Config{
			ServerID: "s", Name: "n", ClusterName: "test", RaftAddr: "r", HTTPAddr: "h", GossipAddr: "127.0.0.1:0",
			State: st, Consensus: f, Directory: f, Logger: slog.New(slog.DiscardHandler), Timing: Timing{LeaveWithin: time.Millisecond},
		}
		if change != nil {
			change(&cfg)
		}
		c, err := Open(t.Context(), cfg)
		if err == nil {
			if err := errors.Join(c.Close(), c.Close()); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		return err
	}
	for name, err := range map[string]error{
		"nothing":                  open(durable{}, false, nil),
		"a member":                 open(durable{ClusterID: "X", Started: true}, true, nil),
		"adopted, nothing yet":     open(durable{ClusterID: "X"}, false, nil),
		"a founder that got votes": open(durable{Promise: &promise{Proposer: "s", ClusterID: "X", Founders: []founder{{ID: "s"}}}}, true, nil),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"Raft state without a cluster": open(durable{}, true, nil),
		"Raft state is gone":           open(durable{ClusterID: "X", Started: true}, false, nil),
	} {
		if !errors.Is(err, kv.ErrCorruption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"no name":               func(c *Config) { c.Name = "" },
		"expecting too many":    func(c *Config) { c.BootstrapExpect = maxFounders + 1 },
		"a nonvoter that forms": func(c *Config) { c.BootstrapExpect, c.Nonvoter = 3, true },
		"long cluster name":     func(c *Config) { c.ClusterName = strings.Repeat("x", 256) },
		"long id":               func(c *Config) { c.Name = strings.Repeat("x", 500) },
		"bad key":               func(c *Config) { c.GossipKeys = [][]byte{{1, 2, 3}} },
		"no port":               func(c *Config) { c.GossipAddr = "127.0.0.1" },
		"bad advertise port":    func(c *Config) { c.GossipAdvertise = "127.0.0.1:x" },
		"no logger":             func(c *Config) { c.Logger = nil },
	} {
		if err := open(durable{}, false, change); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestWarningsAreRare: a flood of refusals makes one line, and bounded memory.
func TestWarningsAreRare(t *testing.T) {
	log := &logBuffer{}
	b := &logBridge{log: slog.New(slog.NewTextHandler(log, nil)), limit: newLimiter(time.Hour)}
	for i := range 1000 {
		for _, line := range []string{"[ERR] memberlist: discarding packet with unacceptable label \"x\": from=127.0.0.1:%d\n", "[DEBUG] memberlist: chatter\n"} {
			if _, err := io.WriteString(b, strings.ReplaceAll(line, "%d", strings.Repeat("7", i%5+1))); err != nil {
				t.Fatal(err)
			}
		}
		b.limit.allow(strings.Repeat("y", i))
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("%d lines:\n%s", n, log)
	}
	if len(b.limit.last) > maxLimiterKinds {
		t.Errorf("%d kinds remembered", len(b.limit.last))
	}
}
