package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/settkv/sett/kv"
)

const pinPrefix = "/v1/pins/"

// postCompact serves POST /v1/compact: history below a revision goes, as far as no pin
// holds it.
func (s *Server) postCompact(ctx context.Context, x *exchange) error {
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	var rev uint64
	body, err := x.readFields(false, func(j *jsonReader) map[string]func() error {
		return map[string]func() error{"revision": readInto(j.uint64, &rev)}
	})
	if err != nil {
		return err
	}
	if rev == 0 {
		return badJSON(`names no revision; it takes {"revision": R}, R being the oldest revision to be kept`)
	}
	return x.adminOnce(ctx, body, func(ctx context.Context, once kv.Once) (int, any, bool, error) {
		c, replayed, err := s.cfg.Store.Compact(ctx, kv.Revision(rev), once)
		if c.HeldBy == nil {
			c.HeldBy = []string{}
		}
		return http.StatusOK, &struct {
			CompactedTo kv.Revision `json:"compacted_to"`
			HeldBy      []string    `json:"held_by"`
		}{c.To, c.HeldBy}, replayed, err
	})
}

// postPin serves POST /v1/pins: history from a revision on is held for some time.
func (s *Server) postPin(ctx context.Context, x *exchange) error {
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	var rev uint64
	var ttl time.Duration
	body, err := x.readFields(false, func(j *jsonReader) map[string]func() error {
		return map[string]func() error{"revision": readInto(j.uint64, &rev), "ttl": readInto(j.ttl, &ttl)}
	})
	if err != nil {
		return err
	}
	if rev == 0 || ttl == 0 {
		return badJSON(`needs a revision and a ttl, for example {"revision": 42, "ttl": "1h"}`)
	}
	if ttl > kv.MaxPinTTL {
		return badJSON("has a ttl of more than %s, which is how long a pin may hold history", shortDuration(kv.MaxPinTTL))
	}
	return x.adminOnce(ctx, body, func(ctx context.Context, once kv.Once) (int, any, bool, error) {
		p, replayed, err := s.cfg.Store.Pin(ctx, kv.Revision(rev), ttl, once)
		return http.StatusOK, &struct {
			ID        string      `json:"id"`
			Revision  kv.Revision `json:"revision"`
			ExpiresAt string      `json:"expires_at"`
		}{p.ID, p.Revision, timeText(p.ExpiresAt)}, replayed, err
	})
}

// deletePin serves DELETE /v1/pins/{id}.
func (s *Server) deletePin(ctx context.Context, x *exchange) error {
	id, err := x.pathID(pinPrefix)
	if err != nil {
		return err
	}
	if err := x.noBody(); err != nil {
		return err
	}
	return x.adminOnce(ctx, nil, func(ctx context.Context, once kv.Once) (int, any, bool, error) {
		replayed, err := s.cfg.Store.Unpin(ctx, id, once)
		return http.StatusNoContent, nil, replayed, err
	})
}
