package httpapi

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

// The bounds of a key's time to live.
const (
	minTTL = 100 * time.Millisecond
	maxTTL = 36525 * 24 * time.Hour // 100 years
)

// params are the query parameters of a request, decoded; each at most once.
type params map[string]string

// parseParams reads a query strictly: what isn't allowed, comes twice or is badly
// escaped is an error. A + is a space, and ; is a byte like any other.
func parseParams(raw string, allowed []string) (params, error) {
	if raw == "" {
		return nil, nil
	}
	p := params{}
	for piece := range strings.SplitSeq(raw, "&") {
		if piece == "" {
			continue
		}
		name, value, _ := strings.Cut(piece, "=")
		name, err := url.QueryUnescape(name)
		if err == nil {
			value, err = url.QueryUnescape(value)
		}
		if err != nil {
			return nil, kv.Errorf(kv.CodeInvalidArgument, "the query has a malformed percent-escape; write a literal %% as %%25")
		}
		if !slices.Contains(allowed, name) {
			return nil, errUnknownParam(name, allowed)
		}
		if _, twice := p[name]; twice {
			return nil, kv.Errorf(kv.CodeInvalidArgument, "query parameter %s is given twice", quote(name))
		}
		p[name] = value
	}
	return p, nil
}

func errUnknownParam(name string, allowed []string) error {
	return kv.Errorf(kv.CodeInvalidArgument, "query parameter %s is not known here; this request takes: %s", quote(name), strings.Join(allowed, ", "))
}

// quote shows a client's bytes in a message: ASCII, and not too many.
func quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strconv.QuoteToASCII(s)
}

func badParam(name, format string, args ...any) error {
	return kv.Errorf(kv.CodeInvalidArgument, "query parameter %s: %s", name, fmt.Sprintf(format, args...))
}

func (p params) has(name string) bool {
	_, ok := p[name]
	return ok
}

// flag reads a parameter that checkFlags has seen: present and not off.
func (p params) flag(name string) bool {
	v, ok := p[name]
	return ok && v != "0" && v != "false"
}

// checkFlags verifies the values of boolean parameters.
func (p params) checkFlags(names ...string) error {
	for _, name := range names {
		switch v := p[name]; v {
		case "", "0", "1", "true", "false":
		default:
			return badParam(name, "%s is neither 1 nor 0", quote(v))
		}
	}
	return nil
}

func (p params) revision(name string) (kv.Revision, error) {
	v, ok := p[name]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, badParam(name, "%s is not a revision (a decimal number)", quote(v))
	}
	return kv.Revision(n), nil
}

// duration reads "1m30s", "500ms" or a number of seconds; it must lie in [low, high].
func (p params) duration(name string, low, high time.Duration) (time.Duration, error) {
	v := p[name]
	d, err := parseDuration(v)
	tooBig := err != nil && v != "" && strings.Trim(v, "0123456789") == ""
	if err != nil && !tooBig {
		return 0, badParam(name, "%s is neither a duration such as 30s or 1h30m nor a number of seconds", quote(v))
	}
	if tooBig || d < low || d > high {
		return 0, badParam(name, "%s is not between %s and %s", quote(v), shortDuration(low), shortDuration(high))
	}
	return d, nil
}

func parseDuration(v string) (time.Duration, error) {
	if v != "" && strings.Trim(v, "0123456789.") == "" {
		v += "s"
	}
	return time.ParseDuration(v)
}

// shortDuration writes a duration as people do: "1h" and not "1h0m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ttl reads the ttl parameter, 0 if absent. It is rounded up to the millisecond, the
// clock's resolution: a key never ends early.
func (p params) ttl() (time.Duration, error) {
	if !p.has("ttl") {
		return 0, nil
	}
	d, err := p.duration("ttl", minTTL, maxTTL)
	if err != nil {
		return 0, err
	}
	return roundTTL(d), nil
}

func roundTTL(d time.Duration) time.Duration {
	if rest := d % time.Millisecond; rest != 0 {
		d += time.Millisecond - rest
	}
	return d
}

// readOptions reads the options that every read takes.
func (p params) readOptions() (o kv.ReadOptions, err error) {
	level, ok := kv.ParseConsistency(p["consistency"])
	if !ok || (p.has("consistency") && p["consistency"] == "") {
		return o, badParam("consistency", "%s is none of linearizable, leader, stale", quote(p["consistency"]))
	}
	o.Consistency = level
	if o.Revision, err = p.revision("revision"); err != nil {
		return o, err
	}
	if p.has("revision") && o.Revision == 0 {
		return o, badParam("revision", "revisions begin at 1")
	}
	if o.MinRevision, err = p.revision("min_revision"); err != nil {
		return o, err
	}
	if p.has("max_staleness") {
		if level != kv.Stale {
			return o, badParam("max_staleness", "it goes with consistency=stale; the other levels are never stale")
		}
		if o.MaxStaleness, err = p.duration("max_staleness", time.Millisecond, maxTTL); err != nil {
			return o, err
		}
	}
	return o, nil
}
