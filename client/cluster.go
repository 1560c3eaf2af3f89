package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/settkv/sett/kv"
)

// Cluster returns the cluster as the leader sees it.
func (c *Client) Cluster(ctx context.Context) (kv.ClusterInfo, error) {
	var info struct {
		kv.ClusterInfo
		Settings settings `json:"settings"`
	}
	if err := c.call(ctx, read("/v1/cluster"), &info); err != nil {
		return kv.ClusterInfo{}, err
	}
	var err error
	info.ClusterInfo.Settings, err = info.Settings.decode()
	return info.ClusterInfo, err
}

// Status returns what the node that answers first tells about itself. For a certain
// node make a Client with its endpoint only.
func (c *Client) Status(ctx context.Context) (kv.Status, error) {
	var s kv.Status
	return s, c.call(ctx, read("/v1/status"), &s)
}

// Ready returns nil if the node at the first endpoint takes requests, else an error
// with what the node says is missing. It tries once.
func (c *Client) Ready(ctx context.Context) error { return c.probe(ctx, "/readyz") }

// Live returns nil if the node at the first endpoint answers and need not be
// restarted. It tries once.
func (c *Client) Live(ctx context.Context) error { return c.probe(ctx, "/livez") }

func (c *Client) probe(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r := read(path)
	r.untimed = true
	if _, _, e := c.attempt(ctx, 0, &r); e != nil {
		return e
	}
	return nil
}

// AddMember takes a server in; doing it again with the same id and addresses
// changes nothing.
func (c *Client) AddMember(ctx context.Context, spec kv.MemberSpec, o OnceOptions) (kv.Member, error) {
	r, err := change(http.MethodPost, "/v1/cluster/members", spec)
	if err != nil {
		return kv.Member{}, err
	}
	r.setOnce(o.IdempotencyKey)
	var m kv.Member
	return m, c.call(ctx, r, &m)
}

// MemberOptions are for changes that the cluster guards.
type MemberOptions struct {
	// Force goes on although the cluster would be left without a quorum of live voters.
	Force bool
	// IdempotencyKey is as in WriteOptions.
	IdempotencyKey string
}

// RemoveMember takes a server out; kv.ErrConflict if that would lose the quorum,
// unless forced.
func (c *Client) RemoveMember(ctx context.Context, id string, o MemberOptions) error {
	r := memberRequest(http.MethodDelete, id, "", o)
	return c.call(ctx, r, nil)
}

// Promote makes a nonvoter a voter.
func (c *Client) Promote(ctx context.Context, id string, o OnceOptions) (kv.Member, error) {
	var m kv.Member
	r := memberRequest(http.MethodPost, id, "/promote", MemberOptions{IdempotencyKey: o.IdempotencyKey})
	return m, c.call(ctx, r, &m)
}

// Demote makes a voter a nonvoter, guarded as RemoveMember is.
func (c *Client) Demote(ctx context.Context, id string, o MemberOptions) (kv.Member, error) {
	var m kv.Member
	return m, c.call(ctx, memberRequest(http.MethodPost, id, "/demote", o), &m)
}

// Transfer hands leadership to the named member, or to any if to is empty, and
// returns the id of the new leader once it leads.
func (c *Client) Transfer(ctx context.Context, to string, o OnceOptions) (string, error) {
	r, err := change(http.MethodPost, "/v1/cluster/transfer", struct {
		To string `json:"to,omitempty"`
	}{to})
	if err != nil {
		return "", err
	}
	r.setOnce(o.IdempotencyKey)
	var res struct {
		Leader string `json:"leader"`
	}
	if err := c.call(ctx, r, &res); err != nil {
		return "", err
	}
	if res.Leader == "" {
		res.Leader = to
	}
	return res.Leader, nil
}

// SetSettings changes the cluster settings, all of them.
func (c *Client) SetSettings(ctx context.Context, s kv.ClusterSettings, o OnceOptions) error {
	r, err := change(http.MethodPut, "/v1/cluster/settings", encodeSettings(s))
	if err != nil {
		return err
	}
	r.setOnce(o.IdempotencyKey)
	return c.call(ctx, r, nil)
}

// Snapshot makes the node that answers first take its Raft snapshot and returns the
// snapshot's index. For a certain node make a Client with its endpoint only.
func (c *Client) Snapshot(ctx context.Context) (uint64, error) {
	r, err := change(http.MethodPost, "/v1/snapshot", nil)
	if err != nil {
		return 0, err
	}
	r.forwarded = false
	var res struct {
		Index uint64 `json:"snapshot_index"`
	}
	return res.Index, c.call(ctx, r, &res)
}

func read(path string) request { return request{method: http.MethodGet, path: path} }

// change makes a request with a JSON body; none if body is nil.
func change(method, path string, body any) (request, error) {
	r := request{method: method, path: path, header: http.Header{}, write: true, forwarded: true}
	if body == nil {
		return r, nil
	}
	data, err := json.Marshal(body)
	if err != nil {
		return r, kv.NotApplied(kv.CodeInvalidArgument, "encode the request: %v", err)
	}
	r.body = data
	r.header.Set("Content-Type", "application/json")
	return r, nil
}

func memberRequest(method, id, action string, o MemberOptions) request {
	const prefix = "/v1/cluster/members/"
	r := request{
		method: method, path: prefix + id + action, rawPath: prefix + escapeKey(id) + action,
		query: url.Values{}, write: true, forwarded: true,
	}
	if o.Force {
		r.query.Set("force", "1")
	}
	r.setOnce(o.IdempotencyKey)
	return r
}

// call sends r and decodes the JSON of its answer into out, if out is not nil and
// there is an answer.
func (c *Client) call(ctx context.Context, r request, out any) error {
	a, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	if out == nil || len(a.body) == 0 {
		return nil
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		if !r.write {
			return kv.Errorf(kv.CodeInternal, "%s answered %d with content that cannot be read: is it a Sett node?", a.endpoint, a.status)
		}
		return unreadable(a, err)
	}
	return nil
}

// settings is the JSON of kv.ClusterSettings: durations as text, sizes as numbers.
type settings struct {
	HistoryRetention      string `json:"history_retention"`
	HistoryRetentionBytes uint64 `json:"history_retention_bytes"`
	MaxKeyBytes           uint64 `json:"max_key_bytes"`
	MaxValueBytes         uint64 `json:"max_value_bytes"`
	MaxRequestBytes       uint64 `json:"max_request_bytes"`
}

func encodeSettings(s kv.ClusterSettings) settings {
	return settings{s.HistoryRetention.String(), s.HistoryRetentionBytes, s.MaxKeyBytes, s.MaxValueBytes, s.MaxRequestBytes}
}

func (s settings) decode() (kv.ClusterSettings, error) {
	out := kv.ClusterSettings{
		HistoryRetentionBytes: s.HistoryRetentionBytes, MaxKeyBytes: s.MaxKeyBytes,
		MaxValueBytes: s.MaxValueBytes, MaxRequestBytes: s.MaxRequestBytes,
	}
	if s.HistoryRetention == "" {
		return out, nil
	}
	d, err := time.ParseDuration(s.HistoryRetention)
	if err != nil {
		return out, kv.Errorf(kv.CodeInternal, "history_retention %q is no duration", s.HistoryRetention)
	}
	out.HistoryRetention = d
	return out, nil
}
