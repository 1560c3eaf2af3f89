package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/settkv/sett/kv"
)

const (
	// opWeight is about what a condition or an operation takes in memory beside its bytes.
	opWeight = 512
	// maxTxnParts bounds the conditions and operations of a transaction.
	maxTxnParts = kv.MaxTouchedKeys
)

// postTxn serves POST /v1/txn.
func (s *Server) postTxn(ctx context.Context, x *exchange) error {
	if err := x.refuseHeaders("If-Match", "If-None-Match", "Content-Range"); err != nil {
		return err
	}
	if err := x.refuseEncoding(); err != nil {
		return err
	}
	limits := s.limits()
	if err := x.checkBody("request", limits.MaxRequestBytes); err != nil {
		return err
	}
	if err := x.grant.grow(requestWeight); err != nil {
		return err
	}
	if redirected, err := x.redirect(ctx); redirected || err != nil {
		return err
	}
	body, err := x.readBody("request", limits.MaxRequestBytes)
	if err != nil {
		return err
	}
	var t kv.Txn
	parsed := false
	result, relayed, err := x.transact(ctx, body, func() (kv.Txn, error) {
		if parsed {
			return t, nil
		}
		if err := x.grant.grow(int64(len(body))); err != nil { // what is parsed is a copy
			return t, err
		}
		p := txnParser{j: newJSONReader(body), limits: limits, grant: &x.grant}
		var err error
		t, err = p.txn()
		parsed = err == nil
		return t, err
	})
	if relayed || err != nil {
		return err
	}
	ops := t.Then
	if !result.Succeeded {
		ops = t.Else
	}
	if len(ops) != len(result.Ops) {
		return errBadResult()
	}
	return x.writeResults(ops, &result)
}

// writeResults answers with the result of each operation.
func (x *exchange) writeResults(ops []kv.Op, result *kv.TxnResult) error {
	buf := x.s.buffers.get()
	defer x.s.buffers.put(buf)
	out := pieces{x: x, status: http.StatusOK, kind: "application/json", buf: *buf}
	out.buf = append(out.buf, `{"succeeded":`...)
	out.buf = strconv.AppendBool(out.buf, result.Succeeded)
	out.buf = append(out.buf, `,"revision":`...)
	out.buf = strconv.AppendUint(out.buf, uint64(result.Revision), 10)
	out.buf = append(out.buf, `,"results":[`...)
	for i := range result.Ops {
		if i > 0 {
			out.buf = append(out.buf, ',')
		}
		out.result(&ops[i], &result.Ops[i])
		out.next()
	}
	out.buf = append(out.buf, "]}\n"...)
	err := out.end()
	*buf = out.buf
	return err
}

// result writes the result of one operation, shaped like it.
func (p *pieces) result(op *kv.Op, r *kv.OpResult) {
	b := append(p.buf, `{"`...)
	b = append(b, op.Kind.String()...)
	b = append(b, `":`...)
	switch op.Kind {
	case kv.OpPut, kv.OpAppend:
		b = append(b, `{"created":`...)
		b = strconv.AppendBool(b, r.Created)
		b = append(b, `,"mod_revision":`...)
		b = strconv.AppendUint(b, uint64(r.ModRevision), 10)
		b = append(b, '}')
	case kv.OpTouch:
		b = append(b, `{"mod_revision":`...)
		b = strconv.AppendUint(b, uint64(r.ModRevision), 10)
		b = append(b, '}')
	case kv.OpIncr:
		b = append(b, `{"value":`...)
		b = strconv.AppendInt(b, r.Number, 10)
		b = append(b, '}')
	case kv.OpDelete, kv.OpDeleteRange:
		b = append(b, `{"deleted":`...)
		b = strconv.AppendUint(b, r.Deleted, 10)
		b = append(b, '}')
	case kv.OpGet:
		b = appendItemOrNull(b, r.Item)
	case kv.OpRange:
		b = append(b, `{"items":[`...)
		for i := range r.Items {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendItem(b, &r.Items[i], op.KeysOnly)
			p.buf = b
			p.next()
			b = p.buf
		}
		b = append(b, `],"count":`...)
		b = strconv.AppendInt(b, int64(len(r.Items)), 10)
		b = append(b, `,"more":`...)
		b = strconv.AppendBool(b, r.More)
		b = append(b, '}')
	}
	p.buf = append(b, '}')
}

// txnParser reads a transaction within the limits. It counts before it keeps.
type txnParser struct {
	j      *jsonReader
	limits kv.ClusterSettings
	grant  *grant
	parts  int
}

func (p *txnParser) txn() (kv.Txn, error) {
	var t kv.Txn
	ops := func(to *[]kv.Op) func() error {
		return func() error {
			return p.j.array(func() error {
				op, err := p.op()
				*to = append(*to, op)
				return err
			})
		}
	}
	err := p.j.fields(map[string]func() error{
		"if": func() error {
			return p.j.array(func() error {
				c, err := p.cond()
				t.If = append(t.If, c)
				return err
			})
		},
		"then": ops(&t.Then),
		"else": ops(&t.Else),
	})
	if err != nil {
		return t, err
	}
	return t, p.j.end()
}

// part counts a condition or an operation before it is read.
func (p *txnParser) part() error {
	if p.parts == maxTxnParts {
		return kv.NotApplied(kv.CodeTooLarge, "a transaction may have %d conditions and operations; split it", maxTxnParts)
	}
	const atOnce = 64
	if p.parts%atOnce == 0 {
		if err := p.grant.grow(atOnce * opWeight); err != nil {
			return err
		}
	}
	p.parts++
	return nil
}

func (p *txnParser) cond() (kv.Cond, error) {
	var c kv.Cond
	if err := p.part(); err != nil {
		return c, err
	}
	var key, value optional
	j, targets := p.j, 0
	target := func(t kv.CondTarget) {
		c.Target = t
		targets++
	}
	err := j.object(func(name string) error {
		switch name {
		case "key":
			return key.text(j)
		case "key_base64":
			return key.base64(j)
		case "mod_revision":
			target(kv.CondModRevision)
			return p.compare(&c)
		case "create_revision":
			target(kv.CondCreateRevision)
			return p.compare(&c)
		case "version":
			target(kv.CondVersion)
			return p.compare(&c)
		case "value":
			target(kv.CondValue)
			return j.fields(map[string]func() error{"eq": func() error { return value.text(j) }})
		case "value_base64":
			target(kv.CondValue)
			return j.fields(map[string]func() error{"eq": func() error { return value.base64(j) }})
		case "exists":
			target(kv.CondExists)
			exists, err := j.boolean()
			if exists {
				c.Number = 1
			}
			c.Op = kv.CmpEqual
			return err
		}
		return j.unknown(name, "key", "key_base64", "mod_revision", "create_revision", "version", "value", "value_base64", "exists")
	})
	switch {
	case err != nil:
		return c, err
	case targets != 1:
		return c, j.bad("a condition compares one thing: mod_revision, create_revision, version, value or exists; give several conditions for several")
	case c.Target == kv.CondValue && !value.set:
		return c, j.bad(`a condition on the value has "eq"`)
	}
	if c.Target == kv.CondValue {
		c.Op = kv.CmpEqual
		if c.Value, err = p.value(value); err != nil {
			return c, err
		}
	}
	c.Key, err = p.key(key)
	return c, err
}

// compare reads {"eq": N} and its like.
func (p *txnParser) compare(c *kv.Cond) error {
	n := 0
	err := p.j.object(func(name string) (err error) {
		op, ok := condOp(name)
		if !ok {
			return p.j.unknown(name, "eq", "ne", "lt", "gt", "le", "ge")
		}
		n++
		c.Op = op
		c.Number, err = p.j.uint64()
		return err
	})
	if err == nil && n != 1 {
		return p.j.bad("it takes one comparison, for example {\"eq\": 5}")
	}
	return err
}

func condOp(name string) (kv.CondOp, bool) {
	switch name {
	case "eq":
		return kv.CmpEqual, true
	case "ne":
		return kv.CmpNotEqual, true
	case "lt":
		return kv.CmpLess, true
	case "gt":
		return kv.CmpGreater, true
	case "le":
		return kv.CmpLessEqual, true
	case "ge":
		return kv.CmpGreaterEqual, true
	}
	return 0, false
}

func (p *txnParser) op() (kv.Op, error) {
	var op kv.Op
	if err := p.part(); err != nil {
		return op, err
	}
	n := 0
	err := p.j.object(func(name string) (err error) {
		if n++; n > 1 {
			return p.j.bad("an operation has one name; give several operations for several")
		}
		switch name {
		case "put":
			op, err = p.put()
		case "append":
			op, err = p.append()
		case "incr":
			op, err = p.incr()
		case "touch":
			op, err = p.touch()
		case "get":
			op, err = p.get()
		case "range":
			op, err = p.rangeOp()
		case "delete":
			op, err = p.delete()
		default:
			return p.j.unknown(name, "put", "get", "range", "delete", "incr", "append", "touch")
		}
		return err
	})
	if err == nil && n == 0 {
		return op, p.j.bad("an operation has a name: put, get, range, delete, incr, append or touch")
	}
	return op, err
}

func (p *txnParser) put() (op kv.Op, err error) {
	var key, value optional
	op.Kind = kv.OpPut
	j := p.j
	err = j.object(func(name string) (err error) {
		switch name {
		case "key":
			return key.text(j)
		case "key_base64":
			return key.base64(j)
		case "value":
			return value.text(j)
		case "value_base64":
			return value.base64(j)
		case "ttl":
			op.TTL, err = j.ttl()
			return err
		case "content_type":
			op.ContentType, err = j.contentType()
			return err
		}
		return j.unknown(name, "key", "key_base64", "value", "value_base64", "ttl", "content_type")
	})
	if err != nil {
		return op, err
	}
	return op, p.keyAndValue(&op, key, value)
}

func (p *txnParser) append() (op kv.Op, err error) {
	var key, value optional
	op.Kind = kv.OpAppend
	err = p.j.fields(map[string]func() error{
		"key": key.texts(p.j), "key_base64": key.base64s(p.j), "value": value.texts(p.j), "value_base64": value.base64s(p.j),
	})
	if err != nil {
		return op, err
	}
	return op, p.keyAndValue(&op, key, value)
}

func (p *txnParser) incr() (op kv.Op, err error) {
	var key optional
	op.Kind, op.By = kv.OpIncr, 1
	err = p.j.fields(map[string]func() error{
		"key": key.texts(p.j), "key_base64": key.base64s(p.j), "by": readInto(p.j.int64, &op.By),
	})
	if err == nil {
		op.Key, err = p.key(key)
	}
	return op, err
}

func (p *txnParser) touch() (op kv.Op, err error) {
	var key optional
	op.Kind = kv.OpTouch
	err = p.j.fields(map[string]func() error{
		"key": key.texts(p.j), "key_base64": key.base64s(p.j), "ttl": readInto(p.j.ttl, &op.TTL),
	})
	if err == nil && op.TTL == 0 {
		err = p.j.bad(`touch needs a ttl, for example {"key": "a", "ttl": "30s"}`)
	}
	if err == nil {
		op.Key, err = p.key(key)
	}
	return op, err
}

func (p *txnParser) get() (op kv.Op, err error) {
	var key optional
	op.Kind = kv.OpGet
	err = p.j.fields(map[string]func() error{"key": key.texts(p.j), "key_base64": key.base64s(p.j)})
	if err == nil {
		op.Key, err = p.key(key)
	}
	return op, err
}

// bounds are the members that name a range.
type bounds struct{ prefix, start, end optional }

func (b *bounds) fields(j *jsonReader, more map[string]func() error) map[string]func() error {
	more["prefix"], more["prefix_base64"] = b.prefix.texts(j), b.prefix.base64s(j)
	more["start"], more["start_base64"] = b.start.texts(j), b.start.base64s(j)
	more["end"], more["end_base64"] = b.end.texts(j), b.end.base64s(j)
	return more
}

func (b *bounds) given() bool { return b.prefix.set || b.start.set || b.end.set }

func (b *bounds) kvRange(j *jsonReader) (kv.Range, error) {
	r := kv.Range{Start: string(b.start.v), End: string(b.end.v)}
	if b.prefix.set {
		if b.start.set || b.end.set {
			return r, j.bad("prefix does not go with start and end; give one or the other")
		}
		r = kv.PrefixRange(string(b.prefix.v))
	}
	return r, checkRange(r)
}

func (p *txnParser) rangeOp() (op kv.Op, err error) {
	var b bounds
	op.Kind = kv.OpRange
	limit := uint64(defaultLimit)
	err = p.j.fields(b.fields(p.j, map[string]func() error{
		"limit": readInto(p.j.uint64, &limit), "reverse": readInto(p.j.boolean, &op.Reverse), "keys_only": readInto(p.j.boolean, &op.KeysOnly),
	}))
	if err != nil {
		return op, err
	}
	if limit < 1 || limit > kv.MaxRangeLimit {
		return op, p.j.bad("limit is 1 to %d", kv.MaxRangeLimit)
	}
	op.Limit = int(limit)
	op.Range, err = b.kvRange(p.j)
	return op, err
}

func (p *txnParser) delete() (op kv.Op, err error) {
	var b bounds
	var key optional
	err = p.j.fields(b.fields(p.j, map[string]func() error{"key": key.texts(p.j), "key_base64": key.base64s(p.j)}))
	switch {
	case err != nil:
		return op, err
	case key.set == b.given():
		return op, p.j.bad("delete takes either a key or a range: a prefix, or start and end")
	case key.set:
		op.Kind = kv.OpDelete
		op.Key, err = p.key(key)
		return op, err
	}
	op.Kind = kv.OpDeleteRange
	op.Range, err = b.kvRange(p.j)
	return op, err
}

func (p *txnParser) keyAndValue(op *kv.Op, key, value optional) (err error) {
	if op.Key, err = p.key(key); err != nil {
		return err
	}
	if !value.set {
		return p.j.bad("%s needs a value, or a value_base64", op.Kind)
	}
	op.Value, err = p.value(value)
	return err
}

func (p *txnParser) key(o optional) (string, error) {
	switch {
	case !o.set:
		return "", p.j.bad("it needs a key, or a key_base64")
	case len(o.v) == 0:
		return "", p.j.bad("the key is empty; a key has at least one byte")
	case uint64(len(o.v)) > p.limits.MaxKeyBytes:
		return "", errTooLarge("key", p.limits.MaxKeyBytes)
	}
	return string(o.v), nil
}

func (p *txnParser) value(o optional) ([]byte, error) {
	if uint64(len(o.v)) > p.limits.MaxValueBytes {
		return nil, errTooLarge("value", p.limits.MaxValueBytes)
	}
	return o.v, nil
}

// optional is bytes that may be given as text or as base64, once.
type optional struct {
	v   []byte
	set bool
}

func (o *optional) read(j *jsonReader, from func() ([]byte, error)) (err error) {
	if o.set {
		return j.bad("it is given as text and as base64; give one of them")
	}
	o.set = true
	o.v, err = from()
	return err
}

func (o *optional) text(j *jsonReader) error   { return o.read(j, j.bytes) }
func (o *optional) base64(j *jsonReader) error { return o.read(j, j.base64) }

func (o *optional) texts(j *jsonReader) func() error   { return func() error { return o.text(j) } }
func (o *optional) base64s(j *jsonReader) func() error { return func() error { return o.base64(j) } }

// ttl reads a time to live: a duration as text, or a number of seconds.
func (j *jsonReader) ttl() (time.Duration, error) {
	var text string
	if j.dec.PeekKind() == '0' {
		raw, err := j.scalar('0', "a number")
		if err != nil {
			return 0, err
		}
		text = string(raw)
	} else {
		var err error
		if text, err = j.text(); err != nil {
			return 0, err
		}
	}
	d, err := parseDuration(text)
	if err != nil {
		return 0, j.bad("%s is neither a duration such as \"30s\" or \"1h30m\" nor a number of seconds", quote(text))
	}
	if d < minTTL || d > maxTTL {
		return 0, j.bad("a ttl lies between %s and %s", shortDuration(minTTL), shortDuration(maxTTL))
	}
	return roundTTL(d), nil
}

func (j *jsonReader) contentType() (string, error) {
	v, err := j.text()
	if err != nil {
		return "", err
	}
	return v, checkContentType(v)
}
