package client

import (
	"context"
	"net/http"
	"time"

	"github.com/settkv/sett/kv"
)

// Compact lets history below rev go: rev is the oldest revision that is kept, unless a
// pin holds an older one.
func (c *Client) Compact(ctx context.Context, rev kv.Revision, o OnceOptions) (kv.Compaction, error) {
	r, err := change(http.MethodPost, "/v1/compact", struct {
		Revision kv.Revision `json:"revision"`
	}{rev})
	if err != nil {
		return kv.Compaction{}, err
	}
	r.setOnce(o.IdempotencyKey)
	var res struct {
		To     kv.Revision `json:"compacted_to"`
		HeldBy []string    `json:"held_by"`
	}
	err = c.call(ctx, r, &res)
	return kv.Compaction(res), err
}

// Pin holds history from rev on for ttl, at most kv.MaxPinTTL, so that it can be read
// and watched at leisure.
func (c *Client) Pin(ctx context.Context, rev kv.Revision, ttl time.Duration, o OnceOptions) (kv.Pin, error) {
	r, err := change(http.MethodPost, "/v1/pins", struct {
		Revision kv.Revision `json:"revision"`
		TTL      string      `json:"ttl"`
	}{rev, ttl.String()})
	if err != nil {
		return kv.Pin{}, err
	}
	r.setOnce(o.IdempotencyKey)
	var res struct {
		ID        string      `json:"id"`
		Revision  kv.Revision `json:"revision"`
		ExpiresAt time.Time   `json:"expires_at"`
	}
	err = c.call(ctx, r, &res)
	return kv.Pin(res), err
}

// Unpin ends a pin; kv.ErrNotFound if there is none of that id.
func (c *Client) Unpin(ctx context.Context, id string, o OnceOptions) error {
	const prefix = "/v1/pins/"
	r := request{method: http.MethodDelete, path: prefix + id, rawPath: prefix + escapeKey(id), write: true, forwarded: true}
	r.setOnce(o.IdempotencyKey)
	return c.call(ctx, r, nil)
}
