package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	keyPrefix = "/v1/kv/"
	// maxContentTypeBytes bounds the content type that is stored with a key.
	maxContentTypeBytes = 255
	// What the settings are until the cluster has some.
	defaultMaxKeyBytes     = 4096
	defaultMaxValueBytes   = 8 << 20
	defaultMaxRequestBytes = 32 << 20
	// freeValueBytes is the size of a value up to which a read isn't weighed.
	freeValueBytes = 64 << 10
)

// pathKey is the key in an escaped path: what follows the prefix, decoded once, byte
// for byte.
func pathKey(escapedPath string) (string, error) {
	key, err := url.PathUnescape(strings.TrimPrefix(escapedPath, keyPrefix))
	if err != nil { // the server has already refused such a request line
		return "", kv.Errorf(kv.CodeInvalidArgument, "the path has a malformed percent-escape")
	}
	return key, nil
}

// key is the key that the request names, within the limits.
func (x *exchange) key() (string, error) {
	var key string
	if x.route != routeKey {
		if !x.params.has("key") {
			return "", kv.Errorf(kv.CodeInvalidArgument, "name a key: /v1/kv/{key} or /v1/kv?key=K")
		}
		key = x.params["key"]
	} else {
		var err error
		if key, err = pathKey(x.r.URL.EscapedPath()); err != nil {
			return "", err
		}
	}
	if key == "" {
		return "", kv.Errorf(kv.CodeInvalidArgument, "the key is empty; a key has at least one byte")
	}
	if limit := x.s.limits().MaxKeyBytes; uint64(len(key)) > limit {
		return "", errTooLarge("key", limit)
	}
	return key, nil
}

// limits are the cluster's size limits, the defaults until it has some.
func (s *Server) limits() kv.ClusterSettings {
	c := s.cfg.Store.Settings()
	if c.MaxKeyBytes == 0 {
		c.MaxKeyBytes = defaultMaxKeyBytes
	}
	if c.MaxValueBytes == 0 {
		c.MaxValueBytes = defaultMaxValueBytes
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = defaultMaxRequestBytes
	}
	return c
}

// getKey serves GET and HEAD of a key.
func (s *Server) getKey(ctx context.Context, x *exchange) error {
	key, err := x.key()
	if err != nil {
		return err
	}
	opts, err := x.params.readOptions()
	if err != nil {
		return err
	}
	ifMatch, err := parseIfMatch(x.r.Header)
	if err != nil {
		return err
	}
	if _, err := noneMatch(x.r.Header, 0); err != nil {
		return err
	}
	if err := x.noBody(); err != nil {
		return err
	}

	var item kv.Item
	read := func(ctx context.Context) error {
		it, rev, err := s.cfg.Store.Get(ctx, key, opts, &x.timing)
		if err == nil || errors.Is(err, kv.ErrNotFound) {
			x.setRevision(rev)
		}
		item = it
		return err
	}
	relayed, err := x.read(ctx, opts.Consistency, &leaderCall{local: read})
	if relayed {
		return nil
	}
	return x.answerItem(item, ifMatch, err)
}

// answerItem maps the outcome of a read to its answer.
func (x *exchange) answerItem(item kv.Item, ifMatch match, err error) error {
	if errors.Is(err, kv.ErrNotFound) && ifMatch.present {
		return &kv.Error{Code: kv.CodePreconditionFailed, Msg: "there is no such key"}
	}
	if err != nil {
		return err
	}
	if !ifMatch.holds(item.ModRevision) {
		return &kv.Error{Code: kv.CodePreconditionFailed, Msg: "the key is at another revision", CurrentRevision: item.ModRevision}
	}
	h := x.Header()
	h.Set("ETag", etag(item.ModRevision))
	h.Set("Vary", "Accept")
	h.Set(headerCreateRevision, strconv.FormatUint(uint64(item.CreateRevision), 10))
	h.Set(headerVersion, strconv.FormatUint(item.Version, 10))
	if !item.ExpiresAt.IsZero() {
		h.Set(headerExpiresAt, timeText(item.ExpiresAt))
	}
	notModified, err := noneMatch(x.r.Header, item.ModRevision)
	if err != nil {
		return err
	}
	if notModified {
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	if len(item.Value) > freeValueBytes {
		// A value waits in memory for as long as its reader takes.
		if err := x.grant.grow(int64(len(item.Value))); err != nil {
			return err
		}
	}
	if accepts(x.r.Header, "application/json") {
		buf := x.s.buffers.get()
		defer x.s.buffers.put(buf)
		*buf = append(appendItem(*buf, &item, false), '\n')
		return x.writeBytes(http.StatusOK, "application/json", *buf)
	}
	contentType := item.ContentType
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	h.Set("Accept-Ranges", "bytes")
	if wantsRange(x.r.Header, item.ModRevision) {
		part, ok, err := parseRange(x.r.Header, len(item.Value))
		if err != nil {
			return err
		}
		if ok {
			h.Set("Content-Range", "bytes "+strconv.Itoa(part.from)+"-"+strconv.Itoa(part.to-1)+"/"+strconv.Itoa(len(item.Value)))
			return x.writeBytes(http.StatusPartialContent, contentType, item.Value[part.from:part.to])
		}
	}
	return x.writeBytes(http.StatusOK, contentType, item.Value)
}

// putKey serves PUT of a key.
func (s *Server) putKey(ctx context.Context, x *exchange) error {
	key, err := x.key()
	if err != nil {
		return err
	}
	op := kv.Op{Kind: kv.OpPut, Key: key, Previous: x.params.flag("previous")}
	if op.TTL, err = x.params.ttl(); err != nil {
		return err
	}
	if op.ContentType, err = storedContentType(x.r.Header); err != nil {
		return err
	}
	ifMatch, err := parseIfMatch(x.r.Header)
	if err != nil {
		return err
	}
	conds := ifMatch.conds(key)
	ifAbsent, err := parseIfAbsent(x.r.Header)
	if err != nil {
		return err
	}
	if ifAbsent {
		conds = append(conds, kv.Cond{Key: key, Target: kv.CondExists, Op: kv.CmpEqual, Number: 0})
	}
	return x.write1(ctx, kv.Txn{If: conds, Then: []kv.Op{op}}, func(r kv.OpResult) error {
		if op.Previous {
			return x.writePrevious(r)
		}
		status := http.StatusNoContent
		if r.Created {
			status = http.StatusCreated
			x.Header().Set("Content-Length", "0")
		}
		x.WriteHeader(status)
		return nil
	})
}

// deleteKey serves DELETE of a key.
func (s *Server) deleteKey(ctx context.Context, x *exchange) error {
	key, err := x.key()
	if err != nil {
		return err
	}
	ifMatch, err := parseIfMatch(x.r.Header)
	if err != nil {
		return err
	}
	if err := x.refuseHeaders("If-None-Match"); err != nil {
		return err
	}
	op := kv.Op{Kind: kv.OpDelete, Key: key, Previous: x.params.flag("previous")}
	return x.write1(ctx, kv.Txn{If: ifMatch.conds(key), Then: []kv.Op{op}}, func(r kv.OpResult) error {
		switch {
		case op.Previous:
			return x.writePrevious(r)
		case r.Deleted == 0:
			return kv.NotApplied(kv.CodeNotFound, "there is no such key")
		}
		x.WriteHeader(http.StatusNoContent)
		return nil
	})
}

// postKey serves POST of a key: op=incr, append or touch.
func (s *Server) postKey(ctx context.Context, x *exchange) error {
	key, err := x.key()
	if err != nil {
		return err
	}
	op := kv.Op{Key: key, Previous: x.params.flag("previous")}
	switch v := x.params["op"]; v {
	case "incr":
		op.Kind, op.By = kv.OpIncr, 1
		if by, ok := x.params["by"]; ok {
			if op.By, err = strconv.ParseInt(by, 10, 64); err != nil {
				return badParam("by", "%s is not a 64-bit integer", quote(by))
			}
		}
	case "append":
		op.Kind = kv.OpAppend
	case "touch":
		op.Kind = kv.OpTouch
		if !x.params.has("ttl") {
			return badParam("ttl", "op=touch needs it, for example ttl=30s")
		}
		if op.TTL, err = x.params.ttl(); err != nil {
			return err
		}
	default:
		return badParam("op", "%s is none of incr, append, touch", quote(v))
	}
	for name, kind := range map[string]kv.OpKind{"by": kv.OpIncr, "ttl": kv.OpTouch} {
		if x.params.has(name) && op.Kind != kind {
			return badParam(name, "op=%s does not take it", op.Kind)
		}
	}
	ifMatch, err := parseIfMatch(x.r.Header)
	if err != nil {
		return err
	}
	if err := x.refuseHeaders("If-None-Match"); err != nil {
		return err
	}
	return x.write1(ctx, kv.Txn{If: ifMatch.conds(key), Then: []kv.Op{op}}, func(r kv.OpResult) error {
		switch {
		case op.Previous:
			return x.writePrevious(r)
		case op.Kind == kv.OpIncr:
			return x.writeBytes(http.StatusOK, "text/plain; charset=utf-8", strconv.AppendInt(nil, r.Number, 10))
		}
		return x.writeBytes(http.StatusOK, "", nil)
	})
}

// write1 does a transaction of one operation: reads its body, proposes it here or
// forwards the request, and maps the result. answer writes what is the operation's
// own.
func (x *exchange) write1(ctx context.Context, t kv.Txn, answer func(kv.OpResult) error) error {
	op := &t.Then[0]
	if err := x.refuseHeaders("Content-Range"); err != nil {
		return err
	}
	if err := x.refuseEncoding(); err != nil {
		return err
	}
	takesValue := op.Kind == kv.OpPut || op.Kind == kv.OpAppend
	limits := x.s.limits()
	what, limit := "value", limits.MaxValueBytes
	if limits.MaxRequestBytes < limit {
		what, limit = "request", limits.MaxRequestBytes
	}
	if takesValue {
		if err := x.checkBody(what, limit); err != nil {
			return err
		}
	} else if err := x.noBody(); err != nil {
		return err
	}
	if err := x.grant.grow(requestWeight + int64(len(op.Key))); err != nil {
		return err
	}
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	if takesValue {
		var err error
		if op.Value, err = x.readBody(what, limit); err != nil {
			return err
		}
	}

	result, relayed, err := x.transact(ctx, op.Value, func() (kv.Txn, error) { return t, nil })
	if relayed {
		return nil
	}
	switch {
	case err != nil:
		return err
	case !result.Succeeded:
		e := kv.NotApplied(kv.CodePreconditionFailed, "the key is at revision %d, which is not what the precondition asks for", result.FailedRevision)
		if result.FailedRevision == 0 {
			e.Msg = "there is no such key, and the precondition asks for one"
		}
		e.CurrentRevision = result.FailedRevision
		return e
	case len(result.Ops) != 1:
		return errBadResult()
	}
	r := result.Ops[0]
	if op.Kind != kv.OpDelete {
		x.Header().Set("ETag", etag(r.ModRevision))
	}
	return answer(r)
}

func (x *exchange) writePrevious(r kv.OpResult) error {
	return x.writeBytes(http.StatusOK, "application/json", append(appendItemOrNull(nil, r.Previous), '\n'))
}

// refuseHeaders refuses conditions that this request would have to ignore.
func (x *exchange) refuseHeaders(names ...string) error {
	for _, name := range names {
		if len(x.r.Header.Values(name)) > 0 {
			return kv.Errorf(kv.CodeInvalidArgument, "this request does not take the header %s", name)
		}
	}
	return nil
}

// refuseEncoding refuses a body that is not what it is.
func (x *exchange) refuseEncoding() error {
	if v := x.r.Header.Get("Content-Encoding"); v != "" && !strings.EqualFold(v, "identity") {
		return kv.Errorf(kv.CodeInvalidArgument, "bodies are taken byte for byte and without a Content-Encoding; send it decoded, or a value's as its Content-Type")
	}
	return nil
}

// storedContentType is the Content-Type that a PUT stores.
func storedContentType(h http.Header) (string, error) {
	v, _, err := singleHeader(h, "Content-Type")
	if err != nil {
		return "", err
	}
	return v, checkContentType(v)
}

// checkContentType refuses what is not fit to be sent as a header again.
func checkContentType(v string) error {
	if len(v) > maxContentTypeBytes || strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c > '~' }) {
		return kv.Errorf(kv.CodeInvalidArgument, "a content type may have %d bytes of printable ASCII", maxContentTypeBytes)
	}
	return nil
}

// whenLed does a read that this node serves itself, again while it fails for want of
// a leader and there is time. A stale read is not worth waiting for: its answer is
// about this moment.
func (x *exchange) whenLed(ctx context.Context, level kv.Consistency, read func(context.Context) error) error {
	pause := firstRetry
	for {
		changed := x.s.cfg.Cluster.LeaderChanged()
		err := read(ctx)
		if level == kv.Stale || !worthRetry(err, false) {
			return err
		}
		if !x.awaitLeader(ctx, changed, pause) {
			return err
		}
		pause = min(2*pause, lastRetry)
	}
}

const (
	firstRetry = 10 * time.Millisecond
	lastRetry  = 200 * time.Millisecond
)
