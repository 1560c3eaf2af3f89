package client_test

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func TestRequests(t *testing.T) {
	tests := []struct {
		name   string
		do     func(*client.Client) error
		answer http.HandlerFunc
		want   string // method, path, query without timeout, headers, body
	}{
		{"put", func(c *client.Client) error {
			_, err := c.Put(t.Context(), "a", []byte("v"), client.WriteOptions{TTL: 90 * time.Second, ContentType: "text/x", IfMatch: 12})
			return err
		}, created, `PUT /v1/kv/a ttl=1m30s If-Match:"12" Content-Type:text/x v`},
		{"put if absent", func(c *client.Client) error {
			_, err := c.Put(t.Context(), "a", nil, client.WriteOptions{IfAbsent: true})
			return err
		}, created, `PUT /v1/kv/a  If-None-Match:* `},
		{"delete", func(c *client.Client) error {
			_, err := c.Delete(t.Context(), "a", client.WriteOptions{IfExists: true, Previous: true})
			return err
		}, answerWith(200, "null"), `DELETE /v1/kv/a previous=1 If-Match:* `},
		{"incr", func(c *client.Client) error {
			_, err := c.Incr(t.Context(), "a", math.MinInt64, client.WriteOptions{})
			return err
		}, answerWith(200, "5"), `POST /v1/kv/a by=-9223372036854775808&op=incr  `},
		{"append", func(c *client.Client) error {
			_, err := c.Append(t.Context(), "a", []byte("+"), client.WriteOptions{})
			return err
		}, answerWith(200, ""), `POST /v1/kv/a op=append  +`},
		{"touch", func(c *client.Client) error {
			_, err := c.Touch(t.Context(), "a", time.Second, client.WriteOptions{})
			return err
		}, answerWith(200, ""), `POST /v1/kv/a op=touch&ttl=1s  `},
		{"get", func(c *client.Client) error {
			_, _, err := c.Get(t.Context(), "a", kv.ReadOptions{Consistency: kv.Stale, MaxStaleness: 5 * time.Second, MinRevision: 3, Revision: 4})
			return err
		}, found("v"), `GET /v1/kv/a consistency=stale&max_staleness=5s&min_revision=3&revision=4  `},
		{"plain get", func(c *client.Client) error {
			_, _, err := c.Get(t.Context(), "a", kv.ReadOptions{})
			return err
		}, found("v"), `GET /v1/kv/a   `},
		{"add member", func(c *client.Client) error {
			_, err := c.AddMember(t.Context(), kv.MemberSpec{ID: "n4", RaftAddr: "h:1", HTTPAddr: "h:2", Voter: true}, client.OnceOptions{})
			return err
		}, answerWith(201, `{"id":"n4"}`), `POST /v1/cluster/members  Content-Type:application/json {"id":"n4","raft_addr":"h:1","http_addr":"h:2","voter":true}`},
		{"remove member", func(c *client.Client) error {
			return c.RemoveMember(t.Context(), "n/4", client.MemberOptions{Force: true})
		}, answerWith(204, ""), `DELETE /v1/cluster/members/n%2F4 force=1  `},
		{"promote", func(c *client.Client) error { _, err := c.Promote(t.Context(), "n4", client.OnceOptions{}); return err },
			answerWith(200, "{}"), `POST /v1/cluster/members/n4/promote   `},
		{"demote", func(c *client.Client) error {
			_, err := c.Demote(t.Context(), "n4", client.MemberOptions{})
			return err
		}, answerWith(200, "{}"), `POST /v1/cluster/members/n4/demote   `},
		{"transfer", func(c *client.Client) error {
			leader, err := c.Transfer(t.Context(), "n2", client.OnceOptions{})
			if leader != "n2" {
				return errors.New("leader " + leader)
			}
			return err
		}, answerWith(200, `{"leader":"n2"}`), `POST /v1/cluster/transfer  Content-Type:application/json {"to":"n2"}`},
		{"transfer to any", func(c *client.Client) error {
			leader, err := c.Transfer(t.Context(), "", client.OnceOptions{})
			if leader != "n3" {
				return errors.New("leader " + leader)
			}
			return err
		}, answerWith(200, `{"leader":"n3"}`), `POST /v1/cluster/transfer  Content-Type:application/json {}`},
		{"settings", func(c *client.Client) error {
			return c.SetSettings(t.Context(), kv.ClusterSettings{HistoryRetention: time.Hour, MaxKeyBytes: 1}, client.OnceOptions{})
		}, answerWith(200, "{}"), `PUT /v1/cluster/settings  Content-Type:application/json {"history_retention":"1h0m0s","history_retention_bytes":0,"max_key_bytes":1,"max_value_bytes":0,"max_request_bytes":0}`},
		{"snapshot", func(c *client.Client) error {
			index, err := c.Snapshot(t.Context())
			if index != 12 {
				return errors.New("index " + strconv.FormatUint(index, 10))
			}
			return err
		}, answerWith(200, `{"snapshot_index":12}`), `POST /v1/snapshot   `},
		{"ready", func(c *client.Client) error { return c.Ready(t.Context()) }, answerWith(200, "ok\n"), `GET /readyz   `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.answer)
			if err := tt.do(dial(t, 5*time.Second, n.URL)); err != nil {
				t.Fatal(err)
			}
			calls := n.seen()
			if len(calls) != 1 {
				t.Fatalf("%d requests", len(calls))
			}
			c := calls[0]
			query := url.Values{}
			for k, v := range c.query {
				if k != "timeout" {
					query.Set(k, v)
				}
			}
			var headers []string
			for _, name := range []string{"If-Match", "If-None-Match", "Content-Type"} {
				if v, ok := c.header[name]; ok {
					headers = append(headers, name+":"+v[0])
				}
			}
			got := strings.Join([]string{c.method, c.path, query.Encode(), strings.Join(headers, " "), c.body}, " ")
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestResults(t *testing.T) {
	n := newNode(t,
		answerWith(200, "value\n\x00\xff", "Sett-Revision", "12", "ETag", `"7"`, "Sett-Create-Revision", "5", "Sett-Version", "3", "Content-Type", "text/x", "Sett-Expires-At", "2030-01-02T03:04:05.678Z"),
		answerWith(200, "-41", "Sett-Revision", "13"),
		answerWith(200, `{"key_base64":"/w==","value":"40","create_revision":1,"mod_revision":2,"version":3,"content_type":"text/x"}`, "Sett-Revision", "14"),
		answerWith(200, "null", "Sett-Revision", "15"),
		answerWith(204, "", "Sett-Revision", "16"),
	)
	c := dial(t, 5*time.Second, n.URL)
	item, rev, err := c.Get(t.Context(), "k", kv.ReadOptions{})
	want := kv.Item{
		Key: "k", Value: []byte("value\n\x00\xff"), CreateRevision: 5, ModRevision: 7, Version: 3, ContentType: "text/x",
		ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 678e6, time.UTC),
	}
	if err != nil || rev != 12 || !reflect.DeepEqual(item, want) {
		t.Errorf("get: %+v at %d, %v", item, rev, err)
	}
	if r, err := c.Incr(t.Context(), "k", 1, client.WriteOptions{}); err != nil || r.Number != -41 || r.Revision != 13 {
		t.Errorf("incr: %+v, %v", r, err)
	}
	r, err := c.Incr(t.Context(), "\xff", 2, client.WriteOptions{Previous: true})
	if err != nil || r.Number != 42 || r.Created || r.Previous == nil || r.Previous.Key != "\xff" || string(r.Previous.Value) != "40" || r.Previous.Version != 3 {
		t.Errorf("incr with previous: %+v, %v", r, err)
	}
	if r, err = c.Incr(t.Context(), "k", 2, client.WriteOptions{Previous: true}); err != nil || r.Number != 2 || !r.Created || r.Previous != nil {
		t.Errorf("first incr with previous: %+v, %v", r, err)
	}
	if r, err = c.Put(t.Context(), "k", nil, client.WriteOptions{}); err != nil || r.Created || r.Revision != 16 {
		t.Errorf("replacing put: %+v, %v", r, err)
	}
}

func TestCluster(t *testing.T) {
	n := newNode(t,
		answerWith(200, `{"id":"c","name":"sett","leader":"n1","term":4,"members":[{"id":"n1","voter":true,"role":"leader"}],
			"settings":{"history_retention":"1h","history_retention_bytes":0,"max_key_bytes":4096,"max_value_bytes":1,"max_request_bytes":2}}`),
		answerWith(200, `{"id":"n1","role":"leader","term":4,"digest":{"revision":3,"hash":"ab"},"disk":{"free_bytes":7}}`),
		answerWith(200, `{"id":`),
		problem(503, map[string]any{"code": "not-ready", "detail": "raft: no leader"}),
	)
	c := dial(t, 5*time.Second, n.URL)
	info, err := c.Cluster(t.Context())
	wantSettings := kv.ClusterSettings{HistoryRetention: time.Hour, MaxKeyBytes: 4096, MaxValueBytes: 1, MaxRequestBytes: 2}
	if err != nil || info.Leader != "n1" || len(info.Members) != 1 || !info.Members[0].Voter || info.Settings != wantSettings {
		t.Errorf("cluster: %+v, %v", info, err)
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Term != 4 || s.Digest.Revision != 3 || s.Disk.FreeBytes != 7 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, kv.ErrInternal) {
		t.Errorf("broken JSON: %v", err)
	}
	if err := c.Ready(t.Context()); !errors.Is(err, kv.ErrNotReady) || kv.AsError(err).Msg != "raft: no leader" {
		t.Errorf("ready: %v", err)
	}
}

// A remote error equals the local one, for every code and status of the API.
func TestErrors(t *testing.T) {
	sentinels := []struct {
		want   *kv.Error
		status int
	}{
		{kv.ErrInvalidArgument, 400}, {&kv.Error{Code: kv.CodeUnauthenticated}, 401}, {&kv.Error{Code: kv.CodeForbidden}, 403},
		{kv.ErrNotFound, 404}, {&kv.Error{Code: kv.CodeMethodNotAllowed}, 405}, {kv.ErrConflict, 409}, {kv.ErrCompacted, 410},
		{kv.ErrPreconditionFailed, 412}, {kv.ErrTooLarge, 413}, {kv.ErrOutcomeUnknown, 504}, {kv.ErrTimeout, 504},
		{kv.ErrDiskFull, 507}, {kv.ErrInternal, 500}, {kv.ErrCorruption, 500},
	}
	for _, tt := range sentinels {
		t.Run(string(tt.want.Code), func(t *testing.T) {
			local := &kv.Error{
				Code: tt.want.Code, Outcome: kv.OutcomeNotApplied, Msg: "what to do", Leader: "n2",
				CurrentRevision: 5, OldestRevision: 6, RetryAfter: 2 * time.Second,
			}
			n := newNode(t, problem(tt.status, map[string]any{
				"type": "x", "title": "y", "instance": "z", "code": local.Code, "outcome": local.Outcome, "detail": local.Msg, "leader": local.Leader,
				"current_revision": 5, "oldest_revision": 6, "request_id": "r",
			}, "Retry-After", "2", "Sett-Revision", "77"))
			_, err := dial(t, 5*time.Second, n.URL).Delete(t.Context(), "k", client.WriteOptions{})
			if !errors.Is(err, tt.want) || !reflect.DeepEqual(err, error(local)) {
				t.Errorf("got %#v", err)
			}
			_, rev, err := dial(t, 5*time.Second, n.URL).Get(t.Context(), "k", kv.ReadOptions{})
			if rev != 77 || !errors.Is(err, tt.want) {
				t.Errorf("get: at %d, %v", rev, err)
			}
		})
	}
}

// Every key arrives byte for byte, whatever it looks like in a path.
func TestKeysArrive(t *testing.T) {
	var got string
	n := newNode(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ = url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/v1/kv/"))
		created(w, r)
	})
	c := dial(t, 5*time.Second, n.URL+"/")
	ctx := t.Context()
	check := func(t rapid.TB, key string) {
		t.Helper()
		if _, err := c.Put(ctx, key, nil, client.WriteOptions{}); err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if got != key {
			t.Fatalf("%q arrived as %q", key, got)
		}
	}
	for _, key := range []string{"a", "a/b", "a//b", "a/../b", "a/", "/", "..", ".", "%2F", "a b", "a+b", "?x=1", "#f", "\x00", "\xff\xfe", "ä", "a;b,c=d&e"} {
		check(t, key)
	}
	rapid.Check(t, func(t *rapid.T) {
		check(t, string(rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "key")))
	})
}

func TestEncodeItem(t *testing.T) {
	data, err := client.EncodeItem(kv.Item{Key: "a", Value: []byte("<b>"), CreateRevision: 1, ModRevision: 2, Version: 3})
	if want := `{"key":"a","value":"<b>","create_revision":1,"mod_revision":2,"version":3}`; err != nil || string(data) != want {
		t.Errorf("%s, %v", data, err)
	}
	data, err = client.EncodeItem(kv.Item{Key: "\xff", Value: []byte{0xfe}, ContentType: "x", ExpiresAt: time.Unix(1, 5e8).UTC()})
	want := `{"key_base64":"/w==","value_base64":"/g==","create_revision":0,"mod_revision":0,"version":0,"content_type":"x","expires_at":"1970-01-01T00:00:01.5Z"}`
	if err != nil || string(data) != want || !json.Valid(data) {
		t.Errorf("%s, %v", data, err)
	}
}

func TestEndpoints(t *testing.T) {
	c := dial(t, 0, "127.0.0.1:8080", "https://x/prefix/", "http://[::1]:1")
	want := []string{"http://127.0.0.1:8080", "https://x/prefix", "http://[::1]:1"}
	if got := c.Endpoints(); !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{"ftp://x", "http://", "http://x?y=1", "http://x#f", "http://a b", ":"} {
		if _, err := client.New(client.Config{Endpoints: []string{bad}}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
