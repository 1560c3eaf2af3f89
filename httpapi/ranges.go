package httpapi

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/settkv/sett/kv"
)

const (
	defaultLimit = 1000
	// maxPageBytes is the size at which a page ends before its limit. A page of one item
	// may be bigger.
	maxPageBytes = 8 << 20
	// checkEvery is after how many results a long scan looks whether it is still wanted.
	checkEvery = 512
	ndjson     = "application/x-ndjson"
)

// listing is a read of a range, as it was asked for.
type listing struct {
	scan      kv.Scan
	limit     int
	countOnly bool
	opts      kv.ReadOptions
	// rest is what of scan is left to be read: all of it, or what the cursor says.
	rest kv.Scan
}

// rangeParams name a range; rangeOf reads them.
func rangeParams(more ...string) []string { return append([]string{"prefix", "start", "end"}, more...) }

// rangeOf reads the range that a request names; all keys if it names none.
func (p params) rangeOf() (kv.Range, error) {
	r := kv.Range{Start: p["start"], End: p["end"]}
	if p.has("prefix") {
		if p.has("start") || p.has("end") {
			return r, badParam("prefix", "it does not go with start and end; give one or the other")
		}
		r = kv.PrefixRange(p["prefix"])
	}
	return r, checkRange(r)
}

// checkRange refuses a range that can hold no key, and bounds that no key is as long as.
func checkRange(r kv.Range) error {
	if r.Empty() {
		return kv.Errorf(kv.CodeInvalidArgument, "the range runs backwards or is empty: its start must come before its end (exclusive), bytewise; for the other direction use reverse")
	}
	if max(len(r.Start), len(r.End)) > kv.MaxKeyBytesBound+1 {
		return errTooLarge("start or end of the range", kv.MaxKeyBytesBound+1)
	}
	return nil
}

// byKey makes one endpoint of two that share a path: what names a key goes to one, all
// else to many. Each takes its own parameters only.
func (s *Server) byKey(one, many endpoint) endpoint {
	allowed := func(e endpoint, common []string) []string {
		p := slices.Concat(e.params, common)
		slices.Sort(p)
		return p
	}
	oneParams, manyParams := allowed(one, commonParams()), allowed(many, commonParams())
	union := slices.Concat(one.params, many.params)
	slices.Sort(union)
	return endpoint{
		params: slices.Compact(union),
		once:   one.once || many.once,
		handle: func(ctx context.Context, x *exchange) error {
			e, takes := many, manyParams
			if x.params.has("key") {
				e, takes = one, oneParams
			} else {
				x.route = routeRange
			}
			for _, name := range slices.Sorted(maps.Keys(x.params)) {
				if !slices.Contains(takes, name) {
					return errUnknownParam(name, takes)
				}
			}
			return e.handle(ctx, x)
		},
	}
}

// getRange serves GET and HEAD of a range.
func (s *Server) getRange(ctx context.Context, x *exchange) error {
	stream := accepts(x.r.Header, ndjson)
	l, err := x.parseListing(stream)
	if err != nil {
		return err
	}
	if err := x.refuseHeaders("If-Match", "If-None-Match"); err != nil {
		return err
	}
	if err := x.noBody(); err != nil {
		return err
	}
	x.Header().Set("Vary", "Accept")
	if stream {
		return s.streamRange(ctx, x, l)
	}
	buf := s.buffers.get()
	defer func() { s.buffers.put(buf) }()
	relayed, err := x.read(ctx, l.opts.Consistency, &leaderCall{local: func(ctx context.Context) error {
		var err error
		*buf, err = x.readPage(ctx, l, (*buf)[:0])
		return err
	}})
	if relayed || err != nil {
		return err
	}
	return x.writeBytes(http.StatusOK, "application/json", *buf)
}

// parseListing reads the query of a listing.
func (x *exchange) parseListing(stream bool) (*listing, error) {
	p := x.params
	l := &listing{limit: defaultLimit}
	var err error
	if err := p.checkFlags("reverse", "keys_only", "count_only"); err != nil {
		return nil, err
	}
	if l.scan.Range, err = p.rangeOf(); err != nil {
		return nil, err
	}
	if l.opts, err = p.readOptions(); err != nil {
		return nil, err
	}
	l.scan.Prefix, l.scan.Delimiter = p["prefix"], p["delimiter"]
	l.scan.Reverse, l.scan.KeysOnly = p.flag("reverse"), p.flag("keys_only")
	l.countOnly = p.flag("count_only")
	if p.has("delimiter") && p["delimiter"] == "" {
		return nil, badParam("delimiter", "it has at least one byte, for example delimiter=/")
	}
	if p.has("limit") {
		n, err := strconv.ParseUint(p["limit"], 10, 32)
		if err != nil || n < 1 || n > kv.MaxRangeLimit {
			return nil, badParam("limit", "%s is not a number from 1 to %d", quote(p["limit"]), kv.MaxRangeLimit)
		}
		l.limit = int(n)
	}
	if stream {
		for _, name := range []string{"limit", "after", "count_only"} {
			if p.has(name) {
				return nil, badParam(name, "it is for pages; a stream of application/x-ndjson has all of the range")
			}
		}
	}
	l.rest = l.scan
	if p.has("after") {
		rev, rest, err := decodeCursor(l, p["after"])
		if err != nil {
			return nil, err
		}
		if l.opts.Revision != 0 && l.opts.Revision != rev {
			return nil, badParam("revision", "the cursor is of revision %d; leave revision out, since a cursor brings its own", rev)
		}
		l.opts.Revision, l.rest = rev, rest
	}
	return l, nil
}

// read does a read of that consistency: on the leader if that is what is asked for,
// else here.
func (x *exchange) read(ctx context.Context, level kv.Consistency, call *leaderCall) (relayed bool, err error) {
	if level == kv.Leader {
		return x.onLeader(ctx, call)
	}
	return false, x.whenLed(ctx, level, call.local)
}

// readPage appends a page of l to buf. Its bytes are taken from the admission.
func (x *exchange) readPage(ctx context.Context, l *listing, buf []byte) ([]byte, error) {
	scan := l.rest
	scan.KeysOnly = scan.KeysOnly || l.countOnly
	sc, err := x.s.cfg.Store.Scan(ctx, scan, l.opts, &x.timing)
	if err != nil {
		return buf, err
	}
	defer sc.Close()
	began := time.Now()
	defer func() { x.timing.Read += time.Since(began) }()
	rev := sc.Revision()
	x.setRevision(rev)

	buf = append(buf, `{"revision":`...)
	buf = strconv.AppendUint(buf, uint64(rev), 10)
	buf = append(buf, `,"items":[`...)
	var prefixes, binary []byte // of common_prefixes and common_prefixes_base64
	var count int
	var items, more bool
	var last kv.ScanEntry
	held := min(cap(buf), freeValueBytes)
	for sc.Next() {
		if count%checkEvery == 0 {
			if err := ctx.Err(); err != nil {
				return buf, err
			}
		}
		if l.countOnly {
			count++
			continue
		}
		if count == l.limit {
			more = true
			break
		}
		e := sc.Entry()
		before, beforePrefixes, beforeBinary := len(buf), len(prefixes), len(binary)
		switch {
		case e.CommonPrefix == "":
			if items {
				buf = append(buf, ',')
			}
			buf = appendItem(buf, &e.Item, scan.KeysOnly)
		case utf8.ValidString(e.CommonPrefix):
			prefixes = append(appendEscaped(append(prefixes, ',', '"'), e.CommonPrefix), '"')
		default:
			binary = append(appendBase64(append(binary, ',', '"'), e.CommonPrefix), '"')
		}
		if size := len(buf) + len(prefixes) + len(binary); count > 0 && size > maxPageBytes {
			buf, prefixes, binary = buf[:before], prefixes[:beforePrefixes], binary[:beforeBinary]
			more = true
			break
		}
		if grown := cap(buf) + cap(prefixes) + cap(binary) - held; grown > 0 {
			if err := x.grant.grow(int64(grown)); err != nil {
				return buf, err
			}
			held += grown
		}
		items = items || e.CommonPrefix == ""
		last.Item.Key, last.CommonPrefix = e.Item.Key, e.CommonPrefix
		count++
	}
	if err := sc.Err(); err != nil {
		return buf, err
	}
	buf = append(buf, ']')
	if l.scan.Delimiter != "" && !l.countOnly {
		buf = append(buf, `,"common_prefixes":[`...)
		buf = append(buf, afterComma(prefixes)...)
		buf = append(buf, ']')
		if len(binary) > 0 {
			buf = append(buf, `,"common_prefixes_base64":[`...)
			buf = append(buf, afterComma(binary)...)
			buf = append(buf, ']')
		}
	}
	buf = append(buf, `,"count":`...)
	buf = strconv.AppendInt(buf, int64(count), 10)
	rest, ok := scan.Rest(last)
	if more = more && ok; more {
		buf = append(buf, `,"more":true,"next":"`...)
		buf = append(buf, encodeCursor(l, rev, rest)...)
		return append(buf, "\"}\n"...), nil
	}
	return append(buf, ",\"more\":false}\n"...), nil
}

func afterComma(b []byte) []byte { return b[min(1, len(b)):] }

// deleteRange serves DELETE of a range.
func (s *Server) deleteRange(ctx context.Context, x *exchange) error {
	p := x.params
	if err := p.checkFlags("all", "atomic"); err != nil {
		return err
	}
	r, err := p.rangeOf()
	if err != nil {
		return err
	}
	all := p.flag("all")
	named := p.has("prefix") || p.has("start") || p.has("end")
	switch {
	case all && named:
		return badParam("all", "it does not go with prefix, start or end")
	case !all && r == (kv.Range{}):
		// An empty prefix is more likely a variable that was not set than a wish.
		return kv.Errorf(kv.CodeInvalidArgument, "name what to delete: key=K, prefix=P, start=A and end=B, or all=true for every key there is")
	}
	if err := x.refuseHeaders("If-Match", "If-None-Match", "Content-Range"); err != nil {
		return err
	}
	if err := x.noBody(); err != nil {
		return err
	}
	if err := x.grant.grow(requestWeight + int64(len(r.Start)+len(r.End))); err != nil {
		return err
	}
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	if paged := all && !p.has("atomic") || p.has("atomic") && !p.flag("atomic"); paged {
		return s.deletePages(x, r)
	}
	result, relayed, err := x.transact(ctx, nil, func() (kv.Txn, error) {
		return kv.Txn{Then: []kv.Op{{Kind: kv.OpDeleteRange, Range: r}}}, nil
	})
	switch {
	case relayed:
		return nil
	case errors.Is(err, kv.ErrTooLarge):
		e := *kv.AsError(err)
		e.Msg = "the range has more keys, or keys with more bytes, than one transaction may change (" + strconv.Itoa(kv.MaxTouchedKeys) + " keys); delete it in pages with atomic=0, or narrow it"
		return &e
	case err != nil:
		return err
	case len(result.Ops) != 1:
		return errBadResult()
	}
	return x.writeDeleted(result.Ops[0].Deleted, result.Revision)
}

func (x *exchange) writeDeleted(n uint64, rev kv.Revision) error {
	b := append(make([]byte, 0, 64), `{"deleted":`...)
	b = strconv.AppendUint(b, n, 10)
	b = append(b, `,"revision":`...)
	b = strconv.AppendUint(b, uint64(rev), 10)
	return x.writeBytes(http.StatusOK, "application/json", append(b, "}\n"...))
}

func errBadResult() error {
	return kv.Errorf(kv.CodeInternal, "internal error; see the node's log")
}

// accepts reports whether Accept lists that media type by name, and not with q=0.
// Wildcards do not count: what is asked for by name is not what one gets by default.
func accepts(h http.Header, mediaType string) bool {
	for _, line := range h.Values("Accept") {
		for part := range strings.SplitSeq(line, ",") {
			t, args, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(t), mediaType) && !refusedByQ(args) {
				return true
			}
		}
	}
	return false
}

func refusedByQ(args string) (refused bool) {
	for arg := range strings.SplitSeq(args, ";") {
		name, value, _ := strings.Cut(arg, "=")
		if strings.EqualFold(strings.TrimSpace(name), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			refused = err == nil && q == 0
		}
	}
	return refused
}
