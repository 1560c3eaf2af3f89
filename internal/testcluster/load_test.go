package testcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestLoadKeepsContent: what was streamed out and loaded again is the same to the last millisecond of each
// key's time.
func TestLoadKeepsContent(t *testing.T) {
	c := Start(t, 3, seedOf(t))
	ctx := context.Background()
	do := func(node int, method, path, body string, header ...string) Answer {
		t.Helper()
		h := http.Header{}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		a, err := c.Do(ctx, c.Nodes[node], Request{Method: method, Path: path, Body: body, Header: h})
		if err != nil || a.Status >= 300 {
			t.Fatalf("%s %s: %d %s, %v", method, path, a.Status, a.Body, err)
		}
		return a
	}
	hash := func(revision string) string {
		t.Helper()
		do(0, http.MethodGet, "/v1/kv?limit=1&min_revision="+revision, "")
		var s struct {
			Digest struct {
				ContentHash string `json:"content_hash"`
			}
		}
		if a := do(0, http.MethodGet, "/v1/status", ""); json.Unmarshal(a.Body, &s) != nil || s.Digest.ContentHash == "" {
			t.Fatalf("%s", a.Body)
		}
		return s.Digest.ContentHash
	}
	// Enough that reading the lines takes some milliseconds.
	var lines strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&lines, `{"key":"key %d","value":"%s","content_type":"text/%d","ttl":%d}`+"\n", i, strings.Repeat("v", 200), i%4, 3600+i)
	}
	first := do(2, http.MethodPost, "/v1/kv", lines.String(), "Content-Type", "application/x-ndjson")
	before := hash(first.Header.Get("Sett-Revision"))
	export := do(1, http.MethodGet, "/v1/kv?consistency=linearizable", "", "Accept", "application/x-ndjson")
	do(0, http.MethodDelete, "/v1/kv?all=true", "")
	for node := range 3 {
		a := do(node, http.MethodPost, "/v1/kv", string(export.Body), "Content-Type", "application/x-ndjson")
		if after := hash(a.Header.Get("Sett-Revision")); after != before {
			t.Errorf("loaded through node %d the content is %s, before %s", node, after, before)
		}
	}
}
