package httpapi

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

// lineParser reads the lines of a bulk load into operations. A line is
//
//   - the JSON form of a key, or a part of it: a put. What the cluster decides itself
//     (create_revision, mod_revision, version) is read and has no effect, so that an export
//     can be loaded. A ttl, or an expires_at, says when the key ends.
//   - {"delete": KEY} or {"delete_base64": KEY}
//   - {"begin": true, …} as the first line, and {"end": true, "count": N, …} as the last:
//     what an export has around it. N is the number of lines in between.
//   - nothing.
type lineParser struct {
	txnParser
	// now is the cluster's time. A key whose expires_at has passed is left out.
	now time.Time
	ops []kv.Op
	// lines is the number of the last line that was read; applied is how many of them, from
	// the load's beginning on, put or delete something.
	lines   uint64
	applied uint64
	ended   bool
}

func errLine(n uint64, err error) error {
	e := *kv.AsError(err)
	what, isJSON := strings.CutPrefix(e.Msg, "the JSON body ")
	if isJSON {
		what = "the JSON " + what
	}
	e.Msg = "line " + strconv.FormatUint(n, 10) + ": " + what
	return &e
}

func errAfterEnd() error {
	return kv.Errorf(kv.CodeInvalidArgument, `it comes after the line with "end"`)
}

// parse reads lines until one is bad; that one is counted in p.lines.
func (p *lineParser) parse(data []byte) error {
	for len(data) > 0 {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		p.lines++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if p.ended {
			return errAfterEnd()
		}
		p.j.reset(line)
		if err := p.line(); err != nil {
			return err
		}
	}
	return nil
}

// parsedLine is what a line says.
type parsedLine struct {
	op              kv.Op
	key, value, del optional
	expiresAt       time.Time
	begin, end      bool
	count           uint64
	counted, failed bool
	endOnly         bool // it has a member that only an end has
}

func (p *lineParser) line() error {
	var l parsedLine
	fields := 0
	if err := p.j.object(func(name string) error {
		fields++
		return p.field(&l, name)
	}); err != nil {
		return err
	}
	if err := p.j.end(); err != nil {
		return err
	}
	switch {
	case l.failed:
		return kv.Errorf(kv.CodeInvalidArgument, "the export was broken off by an error; it is not whole")
	case l.begin:
		if p.lines != 1 {
			return kv.Errorf(kv.CodeInvalidArgument, `a line with "begin" is the first line or none`)
		}
		return nil
	case l.end:
		if l.counted && l.count != p.applied {
			return kv.Errorf(kv.CodeInvalidArgument, "the end counts %d lines, and %d came before it: the file is not whole", l.count, p.applied)
		}
		p.ended = true
		return nil
	case l.del.set:
		return p.delLine(&l, fields)
	}
	return p.putLine(&l)
}

func (p *lineParser) field(l *parsedLine, name string) (err error) {
	j := p.j
	if l.begin || l.end || l.failed { // what else such a line says is for people
		if name == "count" && l.end {
			l.counted = true
			l.count, err = j.uint64()
			return err
		}
		return j.skip()
	}
	switch name {
	case "key":
		return l.key.text(j)
	case "key_base64":
		return l.key.base64(j)
	case "value":
		return l.value.text(j)
	case "value_base64":
		return l.value.base64(j)
	case "content_type":
		l.op.ContentType, err = j.contentType()
		return err
	case "ttl":
		l.op.TTL, err = j.ttl()
		return err
	case "expires_at":
		l.expiresAt, err = j.time()
		return err
	case "create_revision", "mod_revision", "version":
		_, err = j.uint64()
		return err
	case "delete":
		return l.del.text(j)
	case "delete_base64":
		return l.del.base64(j)
	case "begin":
		return j.switchOn(&l.begin)
	case "end":
		return j.switchOn(&l.end)
	case "revision": // of an end whose members come in another order, as count
		l.endOnly = true
		_, err = j.uint64()
		return err
	case "count":
		l.endOnly, l.counted = true, true
		l.count, err = j.uint64()
		return err
	case "error":
		l.failed = true
		return j.skip()
	}
	return j.unknown(name, "key, value, content_type, ttl or expires_at to put, delete to delete")
}

func (p *lineParser) delLine(l *parsedLine, fields int) error {
	if fields != 1 {
		return kv.Errorf(kv.CodeInvalidArgument, `a line with "delete" has nothing else`)
	}
	key, err := p.key(l.del)
	if err != nil {
		return err
	}
	p.ops = append(p.ops, kv.Op{Kind: kv.OpDelete, Key: key})
	p.applied++
	return nil
}

func (p *lineParser) putLine(l *parsedLine) error {
	l.op.Kind = kv.OpPut
	if err := p.keyAndValue(&l.op, l.key, l.value); err != nil {
		return err
	}
	if l.endOnly {
		return kv.Errorf(kv.CodeInvalidArgument, `"count" and "revision" are for the line with "end"`)
	}
	if !l.expiresAt.IsZero() {
		if l.op.TTL != 0 {
			return kv.Errorf(kv.CodeInvalidArgument, "a line has a ttl or an expires_at, not both")
		}
		left := l.expiresAt.Sub(p.now)
		if left > maxTTL {
			return kv.Errorf(kv.CodeInvalidArgument, "expires_at is more than %s away", shortDuration(maxTTL))
		}
		if left <= 0 {
			p.applied++
			return nil
		}
		l.op.ExpiresAt = l.expiresAt.Add(time.Millisecond - 1).Truncate(time.Millisecond)
	}
	p.ops = append(p.ops, l.op)
	p.applied++
	return nil
}

// skip reads a value of any kind.
func (j *jsonReader) skip() error {
	if err := j.dec.SkipValue(); err != nil {
		return j.malformed(err)
	}
	return nil
}

// switchOn reads true into to.
func (j *jsonReader) switchOn(to *bool) error {
	on, err := j.boolean()
	if err == nil && !on {
		return j.bad("it takes true")
	}
	*to = on
	return err
}

// rfc3339 is the form of a time.
var rfc3339 = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// time reads a time as RFC 3339; strictly, which time.Parse is not. It is never the zero time.
func (j *jsonReader) time() (time.Time, error) {
	text, err := j.text()
	if err != nil {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || !rfc3339.MatchString(text) {
		return time.Time{}, j.bad("%s is no time as RFC 3339 has it, for example \"2030-01-02T15:04:05Z\"", quote(text))
	}
	if t.IsZero() {
		t = t.Add(time.Nanosecond)
	}
	return t, nil
}
