package httpapi

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/settkv/sett/kv"
)

func TestClusterPages(t *testing.T) {
	f := newFixture(t)
	runSteps(t, f, []step{
		{req: "GET /v1/cluster", status: 200, want: body(`{"id":"c-1","name":"sett","leader":"n1","term":3,"members":[],` +
			`"settings":{"history_retention":"1h30m","history_retention_bytes":0,"max_key_bytes":64,"max_value_bytes":1048576,"max_request_bytes":2097152}}` + "\n")},
		{req: "HEAD /v1/cluster", status: 200, want: body("")},
		{req: "POST /v1/snapshot", status: 200, want: body(`{"snapshot_index":77}` + "\n")},
		{req: "GET /v1/snapshot", status: 405, code: kv.CodeMethodNotAllowed},
	})
	w := f.do(t, "GET", "/v1/status", "")
	var st kv.Status
	if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil || st.ID != "n1" || w.Header().Get(headerRevision) != "5" {
		t.Errorf("status %s, %v, revision %s", w.Body, err, w.Header().Get(headerRevision))
	}
}

func TestMembers(t *testing.T) {
	f := newFixture(t)
	runSteps(t, f, []step{
		{req: "POST /v1/cluster/members", body: `{"id":"n4","raft_addr":"10.0.0.4:7000","http_addr":"[::1]:8080","voter":false}`, status: 201},
		{req: "POST /v1/cluster/members", body: `{"id":"n4","raft_addr":"10.0.0.4:7000","http_addr":"[::1]:8080"}`, status: 200},
		{req: "POST /v1/cluster/members/n4/promote", status: 200},
		{req: "POST /v1/cluster/members/n4/demote", status: 200},
		{req: "POST /v1/cluster/members/n4/demote?force=1", status: 200},
		{req: "DELETE /v1/cluster/members/n4", status: 204, want: body("")},
		{req: "DELETE /v1/cluster/members/n4?force=true", status: 204},
		{req: "POST /v1/cluster/transfer", status: 200, want: body(`{"leader":"n2"}` + "\n")},
		{req: "POST /v1/cluster/transfer", body: `{}`, status: 200},
		{req: "POST /v1/cluster/transfer", body: `{"to":"n3"}`, status: 200, want: body(`{"leader":"n3"}` + "\n")},
	})
	want := "add n4 false,add n4 true,promote n4,demote n4 false,demote n4 true,remove n4 false,remove n4 true,transfer ,transfer ,transfer n3"
	if got := strings.Join(f.cluster.calls, ","); got != want {
		t.Errorf("calls %s\nwant  %s", got, want)
	}
	f.cluster.calls = nil
	f.cluster.err = kv.Errorf(kv.CodeConflict, "it would lose the quorum")
	for _, req := range []string{"DELETE /v1/cluster/members/n4", "POST /v1/cluster/members/n4/demote", "POST /v1/cluster/members/n4/promote", "POST /v1/cluster/transfer"} {
		runSteps(t, f, []step{{req: req, status: 409, code: kv.CodeConflict}})
	}
	f.cluster.calls = nil
	for _, req := range []string{
		"POST /v1/cluster/members/n4/promote?force=1", "DELETE /v1/cluster/members/n4?force=2", "DELETE /v1/cluster/members/a%20b",
		"DELETE /v1/cluster/members/" + strings.Repeat("a", 129), "POST /v1/cluster/members?force=1",
	} {
		runSteps(t, f, []step{{req: req, status: 400, code: kv.CodeInvalidArgument}})
	}
	runSteps(t, f, []step{{req: "DELETE /v1/cluster/members/n4", body: "{}", status: 400, code: kv.CodeInvalidArgument}})
	if len(f.cluster.calls) != 0 {
		t.Errorf("bad requests did %v", f.cluster.calls)
	}
}

func TestBadAdminJSON(t *testing.T) {
	const good = `"id":"n4","raft_addr":"h:1","http_addr":"h:2"`
	deep := strings.Repeat("[", 30000)
	bad := map[string][]string{
		"POST /v1/cluster/members": {
			``, ` `, `null`, `[]`, `"x"`, `{`, `{}`, `{` + good, `{` + good + `}x`, `{` + good + `}{}`, `{` + good + `,}`, `{` + good + `,"id":"n5"}`, `{` + good + `,"x":1}`,
			`{` + good + `,"voter":1}`, `{` + good + `,"voter":null}`, `{"ID":"n4","raft_addr":"h:1","http_addr":"h:2"}`, `{"id":"","raft_addr":"h:1","http_addr":"h:2"}`,
			`{"id":"a b","raft_addr":"h:1","http_addr":"h:2"}`, `{"id":7,"raft_addr":"h:1","http_addr":"h:2"}`, `{"id":"n4","raft_addr":"h","http_addr":"h:2"}`,
			`{"id":"n4","raft_addr":"h:0","http_addr":"h:2"}`, `{"id":"n4","raft_addr":":1","http_addr":"h:2"}`, `{"id":"n4","raft_addr":"h:70000","http_addr":"h:2"}`,
			`{"id":"n4","raft_addr":"h:1"}`, "{\"id\":\"\xff\",\"raft_addr\":\"h:1\",\"http_addr\":\"h:2\"}", `{"x":` + deep, deep,
		},
		"POST /v1/cluster/transfer": {`{"to":""}`, `{"to":null}`, `{"to":1}`, `{"from":"x"}`, `x`, `{"to":"a","to":"b"}`},
		"PUT /v1/cluster/settings": {
			``, `[]`, `{"history_retention":3600}`, `{"history_retention":"soon"}`, `{"history_retention":"-1h"}`, `{"max_key_bytes":0}`, `{"max_key_bytes":-1}`, `{"max_key_bytes":"4"}`,
			`{"max_key_bytes":1.5}`, `{"max_key_bytes":1e400}`, `{"max_key_bytes":18446744073709551616}`, `{"max_keys":1}`, `{"max_key_bytes":1,"max_key_bytes":2}`, `{"Max_key_bytes":1}`,
			`{"max_key_bytes":32769}`, `{"max_value_bytes":33554433}`, `{"max_request_bytes":67108865}`, `{"history_retention":"876001h"}`, `{"history_retention_bytes":1125899906842625}`,
		},
	}
	for req, bodies := range bad {
		method, target, _ := strings.Cut(req, " ")
		for _, b := range bodies {
			f := newFixture(t)
			w := f.do(t, method, target, b)
			p := wantProblem(t, w, 400, kv.CodeInvalidArgument)
			if p.Outcome != kv.OutcomeNotApplied || len(f.cluster.calls) != 0 {
				t.Errorf("%s %s: outcome %q, did %v", req, b, p.Outcome, f.cluster.calls)
			}
		}
		f := newFixture(t)
		wantProblem(t, f.do(t, method, target, `{"x":"`+strings.Repeat("x", MaxAdminBodyBytes)+`"}`), 413, kv.CodeTooLarge)
	}
}

func TestSettings(t *testing.T) {
	f := newFixture(t)
	runSteps(t, f, []step{
		{req: "PUT /v1/cluster/settings", body: `{}`, status: 200, want: body(`{"history_retention":"1h","history_retention_bytes":0,"max_key_bytes":64,"max_value_bytes":1048576,"max_request_bytes":2097152}` + "\n")},
		{req: "PUT /v1/cluster/settings", body: `{"history_retention":"90m","history_retention_bytes":1000,"max_value_bytes":2000}`, status: 200,
			want: body(`{"history_retention":"1h30m","history_retention_bytes":1000,"max_key_bytes":64,"max_value_bytes":2000,"max_request_bytes":2097152}` + "\n")},
		{req: "PUT /v1/cluster/settings", body: `{"history_retention_bytes":0}`, status: 200},
		{req: "PUT /v1/kv/a", body: strings.Repeat("x", 2001), status: 413, code: kv.CodeTooLarge},
	})
	if got := f.store.settings; got.HistoryRetention != 90*time.Minute || got.HistoryRetentionBytes != 0 {
		t.Errorf("settings %+v", got)
	}
	// Changes of different settings at once don't undo each other.
	var wg sync.WaitGroup
	for _, b := range []string{`{"max_key_bytes":100}`, `{"max_value_bytes":200}`, `{"max_request_bytes":300}`, `{"history_retention_bytes":400}`} {
		wg.Go(func() {
			if w := f.do(t, "PUT", "/v1/cluster/settings", b); w.Code != 200 {
				t.Errorf("%s: %d", b, w.Code)
			}
		})
	}
	wg.Wait()
	if got := f.store.settings; got.MaxKeyBytes != 100 || got.MaxValueBytes != 200 || got.MaxRequestBytes != 300 || got.HistoryRetentionBytes != 400 {
		t.Errorf("settings %+v", got)
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", time.Minute: "1m", 10 * time.Minute: "10m", time.Hour: "1h", 20 * time.Hour: "20h", time.Hour + time.Second: "1h0m1s", 90 * time.Minute: "1h30m", 1500 * time.Millisecond: "1.5s",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
		if back, err := time.ParseDuration(shortDuration(d)); err != nil || back != d {
			t.Errorf("%v does not come back: %v %v", d, back, err)
		}
	}
}
