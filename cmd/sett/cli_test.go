package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/settkv/sett/kv"
)

// result is what a command line left behind.
type result struct {
	code        int
	out, stderr string
}

// sett runs a command line in this process.
func sett(t *testing.T, in string, environ []string, args ...string) result {
	t.Helper()
	var out, stderr bytes.Buffer
	a := &app{in: strings.NewReader(in), out: &out, err: &stderr, environ: environ}
	code := a.run(context.Background(), args)
	if lines := strings.Count(stderr.String(), "\n"); code != 0 && (lines != 1 || !strings.HasPrefix(stderr.String(), "sett: ")) {
		t.Errorf("%q: want one line of error, got %q", args, stderr.String())
	}
	if code == 0 && stderr.Len() > 0 {
		t.Errorf("%q: standard error of a success: %q", args, stderr.String())
	}
	return result{code, out.String(), stderr.String()}
}

// fake is a node that knows a few keys by what should happen to them.
type fake struct {
	*httptest.Server
	mu   sync.Mutex
	last *http.Request // of tests that send one after the other
	body string
}

func newFake(t *testing.T) *fake {
	f := &fake{}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) problem(w http.ResponseWriter, status int, code kv.Code, outcome kv.Outcome) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"code":%q,"outcome":%q,"detail":"what\nto do","current_revision":5,"oldest_revision":3}`, code, outcome)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	f.last, f.body = r, string(body)
	f.mu.Unlock()
	h := w.Header()
	h.Set("Sett-Revision", "12")
	h.Set("Sett-Node", "n1")
	key, isKey := strings.CutPrefix(r.URL.Path, "/v1/kv/")
	write := kv.OutcomeNotApplied
	if r.Method == http.MethodGet {
		write = kv.OutcomeNone
	}
	switch {
	case isKey && key == "absent":
		f.problem(w, 404, kv.CodeNotFound, write)
	case isKey && key == "guarded":
		f.problem(w, 412, kv.CodePreconditionFailed, write)
	case isKey && key == "lost":
		f.problem(w, 504, kv.CodeOutcomeUnknown, kv.OutcomeUnknown)
	case isKey && key == "slow":
		f.problem(w, 504, kv.CodeTimeout, write)
	case isKey && key == "headless":
		f.problem(w, 503, kv.CodeNoLeader, write)
	case isKey && key == "full":
		f.problem(w, 507, kv.CodeDiskFull, write)
	case isKey && key == "big":
		f.problem(w, 413, kv.CodeTooLarge, write)
	case isKey && key == "text":
		f.problem(w, 409, kv.CodeConflict, write)
	case isKey && key == "old":
		f.problem(w, 410, kv.CodeCompacted, write)
	case isKey && key == "odd":
		f.problem(w, 400, kv.CodeInvalidArgument, write)
	case isKey && r.Method == http.MethodGet:
		h.Set("ETag", `"7"`)
		h.Set("Sett-Create-Revision", "5")
		h.Set("Sett-Version", "2")
		h.Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "raw\x00bytes")
	case isKey && r.URL.Query().Get("previous") == "1":
		_, _ = io.WriteString(w, `{"key":"k","value":"40","mod_revision":1,"create_revision":1,"version":1}`)
	case isKey && r.URL.Query().Get("op") == "incr":
		_, _ = io.WriteString(w, "42")
	case isKey && r.Method == http.MethodPut && r.Header.Get("If-Match") == "":
		w.WriteHeader(http.StatusCreated)
	case isKey:
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/v1/cluster":
		fmt.Fprintf(w, `{"id":"c1","name":"sett","leader":"n1","term":3,"members":[
			{"id":"n1","voter":true,"role":"leader","state":"alive","http_addr":%q,"raft_addr":"10.0.0.1:7000","applied_index":20,"version":"v1"},
			{"id":"n2","voter":false,"role":"follower","state":"gone","http_addr":"127.0.0.1:1","applied_index":18,"lag":2}],
			"settings":{"history_retention":"1h"}}`, r.Host)
	case r.URL.Path == "/v1/status":
		_, _ = io.WriteString(w, `{"id":"n1","role":"leader","term":3,"leader":"n1","applied_index":20,"revision":12,"keys":4,"disk":{"data_bytes":2097152},"version":"v1","uptime_s":61}`)
	case r.URL.Path == "/readyz":
		_, _ = io.WriteString(w, "ok\n")
	case r.URL.Path == "/v1/cluster/members" || strings.HasSuffix(r.URL.Path, "mote"):
		_, _ = io.WriteString(w, `{"id":"n4"}`)
	case strings.HasPrefix(r.URL.Path, "/v1/cluster/members/n1") && r.Method == http.MethodDelete:
		if r.URL.Query().Get("force") == "" {
			f.problem(w, 409, kv.CodeConflict, write)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/v1/cluster/transfer":
		_, _ = io.WriteString(w, `{"leader":"n2"}`)
	default:
		f.problem(w, 404, kv.CodeNotFound, write)
	}
}

// The exit codes are a promise to scripts.
func TestExitCodes(t *testing.T) {
	f := newFake(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	tests := []struct {
		line string
		code int
	}{
		{"put k v", 0},
		{"get k", 0},
		{"del k", 0},
		{"incr k", 0},
		{"append k v", 0},
		{"members", 0},
		{"status", 0},
		{"health", 0},
		{"join --id n4 --raft-addr h:1 --http-addr h:2", 0},
		{"leave --force", 0},
		{"remove n1 --force", 0},
		{"promote n4", 0},
		{"demote n4", 0},
		{"transfer-leader n2", 0},
		{"transfer-leader", 0},

		{"incr text", 1},
		{"put big v", 1},
		{"put full v", 1},
		{"get old", 1},
		{"remove n1", 1},

		{"put", 2},
		{"put a b c", 2},
		{"get", 2},
		{"get a b", 2},
		{"get k --revision x", 2},
		{"get k --consistency strong", 2},
		{"get k --max-staleness soon", 2},
		{"put k v --no-such-flag", 2},
		{"put k v --ttl soon", 2},
		{"put k v --ttl 0", 2},
		{"put k v --if-match abc", 2},
		{"put k v --if-match 0", 2},
		{"get k --output xml", 2},
		{"get k --timeout never", 2},
		{"get k --timeout 0", 2},
		{"get k --endpoints ftp://x", 2},
		{"get k --endpoints ,", 2},
		{"get odd", 2},
		{"incr k many", 2},
		{"join --id n4", 2},
		{"leave --endpoints a:1,b:2", 2},
		{"promote", 2},
		{"no-such-command", 2},
		{"dev --nodes 0", 2},
		{"dev --http-base 65536", 2},
		{"serve extra", 2},
		{"serve --raft-addr nowhere", 2},
		{"serve --config /nonexistent.yaml", 2},

		{"get absent", 3},
		{"del absent", 3},
		{"promote", 2},
		{"put guarded v", 4},
		{"del guarded", 4},
		{"get headless", 5},
		{"get slow", 5},
		{"put headless v", 5},
		{"get k --endpoints " + gone.URL, 5},
		{"put k v --endpoints " + gone.URL, 5},
		{"put lost v", 6},
		{"health --endpoints " + gone.URL, 1},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			t.Parallel()
			r := sett(t, "", []string{"SETT_ENDPOINTS=" + f.URL, "SETT_TIMEOUT=700ms"}, strings.Fields(tt.line)...)
			if r.code != tt.code {
				t.Errorf("exit code %d, want %d; %s%s", r.code, tt.code, r.out, r.stderr)
			}
		})
	}
}

func TestOutput(t *testing.T) {
	f := newFake(t)
	tests := []struct {
		line, in, want string
	}{
		{"get k", "", "raw\x00bytes"},
		{"get k --output raw", "", "raw\x00bytes"},
		{"get k --output json", "", `{"key":"k","value":"raw\u0000bytes","create_revision":5,"mod_revision":7,"version":2,"content_type":"text/plain"}` + "\n"},
		{"put k v", "", "created at revision 12\n"},
		{"put k v --if-match 5", "", "replaced at revision 12\n"},
		{"put k v --output json", "", `{"revision":12,"created":true}` + "\n"},
		{"put k v --if-match * --output json", "", `{"revision":12,"created":false}` + "\n"},
		{"put k v --output raw", "", "12\n"},
		{"del k", "", "deleted at revision 12\n"},
		{"del k --output json", "", `{"revision":12,"created":false}` + "\n"},
		{"append k v --output json", "", `{"revision":12,"created":false}` + "\n"},
		{"incr k", "", "42\n"},
		{"incr k 2 --output json", "", `{"revision":12,"created":false,"value":42}` + "\n"},
		{"transfer-leader", "", "n2 leads\n"},
		{"remove n1 --force", "", "n1 is no longer a member\n"},
		{"join --id n4 --raft-addr h:1 --http-addr h:2", "", "n4 is a member; it becomes a voter once it has caught up\n"},
		{"members --output raw", "", "n1\tleader\tyes\talive\t20\t0\t" + strings.TrimPrefix(f.URL, "http://") + "\t10.0.0.1:7000\t\tv1\t\nn2\tfollower\tno\tgone\t18\t2\t127.0.0.1:1\t\t\t\t\n"},
		{"health", "", "ready\n"},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			r := sett(t, tt.in, []string{"SETT_ENDPOINTS=" + f.URL}, strings.Fields(tt.line)...)
			if r.out != tt.want {
				t.Errorf("got  %q\nwant %q\n%s", r.out, tt.want, r.stderr)
			}
		})
	}
}

func TestArgumentsArrive(t *testing.T) {
	f := newFake(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL, "SETT_OUTPUT=json"}
	if r := sett(t, "from\nstdin\x00", env, "put", "k", "--ttl", "30", "--content-type", "text/x", "--if-absent"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if f.body != "from\nstdin\x00" || f.last.URL.Query().Get("ttl") != "30s" || f.last.Header.Get("Content-Type") != "text/x" || f.last.Header.Get("If-None-Match") != "*" {
		t.Errorf("put: %q %v %v", f.body, f.last.URL, f.last.Header)
	}
	if r := sett(t, "ignored", env, "put", "k", ""); r.code != 0 || f.body != "" {
		t.Errorf("an empty VALUE: %q, %s", f.body, r.stderr)
	}
	if r := sett(t, "", env, "get", "a//\xff/../b"); r.code != 0 || f.last.URL.Path != "/v1/kv/a//\xff/../b" {
		t.Errorf("key: %q, %s", f.last.URL.Path, r.stderr)
	}
	if r := sett(t, "", env, "incr", "k", "-5", "--output", "raw"); r.code != 0 || f.last.URL.Query().Get("by") != "-5" {
		t.Errorf("incr by %q: %s", f.last.URL.RawQuery, r.stderr)
	}
	if r := sett(t, "", env, "put", "k", "--", "-v"); r.code != 0 || f.body != "-v" {
		t.Errorf("a VALUE with a dash: %q, %s", f.body, r.stderr)
	}
	if r := sett(t, "", env, "get", "k", "--consistency", "stale", "--max-staleness", "5s", "--min-revision", "3", "--revision", "2"); r.code != 0 ||
		f.last.URL.Query().Get("consistency")+f.last.URL.Query().Get("max_staleness")+f.last.URL.Query().Get("min_revision")+f.last.URL.Query().Get("revision") != "stale5s32" {
		t.Errorf("get: %v, %s", f.last.URL, r.stderr)
	}
	if r := sett(t, "", env, "join", "--id", "n4", "--raft-addr", "h:1", "--http-addr", "h:2", "--nonvoter"); r.code != 0 || f.body != `{"id":"n4","raft_addr":"h:1","http_addr":"h:2","voter":false}` {
		t.Errorf("join: %s, %s", f.body, r.stderr)
	}
}

// A flag wins over the environment.
func TestEndpointsPrecedence(t *testing.T) {
	f := newFake(t)
	r := sett(t, "", []string{"SETT_ENDPOINTS=http://127.0.0.1:1", "SETT_OUTPUT=json"}, "get", "k", "--endpoints", f.URL, "--output", "raw")
	if r.code != 0 || r.out != "raw\x00bytes" {
		t.Errorf("%+v", r)
	}
}

func TestValueTooLong(t *testing.T) {
	a := &app{in: io.LimitReader(zeros{}, maxInputBytes+5), out: io.Discard, err: io.Discard}
	if code := a.run(context.Background(), []string{"put", "k"}); code != exitOther {
		t.Errorf("exit code %d", code)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestStatusTable(t *testing.T) {
	f := newFake(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL, "SETT_TIMEOUT=1s"}
	r := sett(t, "", env, "status")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[1], "n1  ready") || !strings.Contains(lines[1], "2.0MiB") ||
		!strings.HasPrefix(lines[2], "n2  unreachable") || !strings.Contains(lines[2], "gone to the leader") {
		t.Errorf("%s%s", r.out, r.stderr)
	}
	r = sett(t, "", env, "status", "--output", "json")
	var nodes []nodeHealth
	if err := json.Unmarshal([]byte(r.out), &nodes); err != nil || len(nodes) != 2 || nodes[0].Keys != 4 || nodes[1].Lag != 2 {
		t.Errorf("%s: %v", r.out, err)
	}
	r = sett(t, "", env, "members", "--output", "json")
	var info struct {
		Leader  string      `json:"leader"`
		Members []kv.Member `json:"members"`
	}
	if err := json.Unmarshal([]byte(r.out), &info); err != nil || info.Leader != "n1" || len(info.Members) != 2 || info.Members[1].State != "gone" {
		t.Errorf("%s: %v", r.out, err)
	}
}

func TestErrorLines(t *testing.T) {
	f := newFake(t)
	env := []string{"SETT_ENDPOINTS=" + f.URL, "SETT_TIMEOUT=500ms"}
	for line, want := range map[string]string{
		"put guarded v":     "sett: what; to do (the key's revision is 5)\n",
		"get old":           "sett: what; to do (the oldest revision is 3)\n",
		"get k --no-flag":   "sett: unknown flag: --no-flag; see \"sett get --help\"\n",
		"put k --ttl x v":   "sett: bad value \"x\" for --ttl: want a duration such as 30s or 1h30m, or a number of seconds\n",
		"serve --id a/b":    "sett: bad value \"a/b\" for id (flag --id): want 1 to 128 letters, digits, dots, dashes or underscores\n",
		"get k --output x":  "sett: bad value \"x\" for --output (or SETT_OUTPUT): want table, json or raw\n",
		"get k --timeout x": "sett: bad value \"x\" for --timeout (or SETT_TIMEOUT): want a duration such as 30s or 1h30m, or a number of seconds\n",
	} {
		if r := sett(t, "", env, strings.Fields(line)...); r.stderr != want {
			t.Errorf("%s: got %q, want %q", line, r.stderr, want)
		}
	}
}

func TestPrintConfig(t *testing.T) {
	r := sett(t, "", []string{"SETT_RAFT_ADDR=10.0.0.1:7000", "SETT_ENDPOINTS=x"}, "serve", "--id", "n7", "--print-config")
	var rows []string
	for line := range strings.Lines(r.out) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{"id n7 flag --id", "raft-addr 10.0.0.1:7000 env SETT_RAFT_ADDR", "log-level info default"} {
		if !slices.Contains(rows, want) {
			t.Errorf("no row %q in\n%s%s", want, r.out, r.stderr)
		}
	}
}

func TestVersionAndCompletion(t *testing.T) {
	if r := sett(t, "", nil, "version"); r.code != 0 || !strings.HasPrefix(r.out, "sett ") {
		t.Errorf("%+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := sett(t, "", nil, "completion", shell); r.code != 0 || !strings.Contains(r.out, "sett") {
			t.Errorf("%s: %d %s", shell, r.code, r.stderr)
		}
	}
	if r := sett(t, "", nil); r.code != 0 || !strings.Contains(r.out, "sett dev") {
		t.Errorf("%+v", r)
	}
}

func TestByteCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1024: "1.0KiB", 1536 << 10: "1.5MiB", 5 << 40: "5.0TiB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
